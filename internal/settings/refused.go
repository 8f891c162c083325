package settings

import (
	"fmt"
	"slices"
)

// refusal is a reason to refuse names of etcd's flags, whatever their value. A
// switch is refused even when it is off: the line does nothing here and has to
// leave the configuration either way, and one rule is easier to predict than a
// list of harmless values.
type refusal struct {
	names   []string
	reason  string
	instead string // kvd's equivalent, as an operator would type it; "" if there is none
}

const (
	joinInstead       = "--cluster or --join URL"
	noDiscovery       = "kvd has no discovery service"
	noProxy           = "every node serves every request; there is no proxy mode"
	noTracing         = "kvd does not export traces"
	noBbolt           = "kvd does not use bbolt"
	fixedPings        = "the keep-alive of etcd clients' connections is fixed at etcd's defaults"
	noV2              = "kvd does not serve etcd's v2 API"
	noLogFiles        = "the log goes to standard error; rotate it with the service manager"
	ownCertificate    = "a certificate that nobody can verify protects nothing; create one with kvd cert init"
	memberCertificate = "a member's certificate must name the host of its peer URL"
	oneCertificate    = "members serve and connect with the same certificate, which needs both key usages"
	constantChecks    = "members compare their state hashes continuously"
	inMetrics         = "latencies are in /metrics"
	pacedCompaction   = "kvd paces compaction automatically"
)

// refusals covers every flag of etcd 3.7 that is neither an alias nor ignored,
// and flags of earlier versions that are still found in the field.
var refusals = []refusal{
	// Storage.
	{[]string{"wal-dir"}, "the log stays in the data directory, with the state that it belongs to", "--data-dir"},
	{[]string{"snapshot-catchup-entries"}, "the log kept for lagging members is bounded in bytes", "--snapshot-catch-up-bytes"},
	{[]string{"unsafe-no-fsync"}, "an acknowledged write is always on the disks of a majority", ""},
	{[]string{"compaction-batch-limit", "compaction-sleep-interval"}, pacedCompaction, ""},
	{[]string{"backend-batch-interval", "backend-batch-limit", "backend-bbolt-freelist-type", "bootstrap-defrag-threshold-megabytes"}, noBbolt, ""},
	{[]string{"memory-mlock"}, "kvd does not lock memory; turn off swap for the service (MemorySwapMax=0)", ""},
	{[]string{"enable-v2", "v2-deprecation"}, noV2, ""},

	// Cluster.
	{[]string{"pre-vote"}, "raft's PreVote is always on", ""},
	{[]string{"initial-election-tick-advance"}, "a cluster that starts elects a leader without waiting for the timeout", ""},
	{[]string{"force-new-cluster"}, "recovering from a lost quorum is a command of its own", "kvd recover DIR"},
	{[]string{"discovery", "discovery-token", "discovery-endpoints"}, noDiscovery, joinInstead},
	{[]string{"discovery-srv", "discovery-srv-name"}, "kvd does not look up members in DNS", joinInstead},
	{[]string{
		"discovery-proxy", "discovery-fallback", "discovery-dial-timeout", "discovery-request-timeout",
		"discovery-keepalive-time", "discovery-keepalive-timeout", "discovery-insecure-transport",
		"discovery-insecure-skip-tls-verify", "discovery-cert", "discovery-key", "discovery-cacert", "discovery-user", "discovery-password",
	}, noDiscovery, ""},
	{[]string{"proxy-failure-wait", "proxy-refresh-interval", "proxy-dial-timeout", "proxy-write-timeout", "proxy-read-timeout"}, noProxy, ""},
	{[]string{"raft-read-timeout", "raft-write-timeout"}, "the deadlines of connections between members are fixed", ""},

	// TLS and authentication.
	{[]string{"auto-tls"}, ownCertificate, "--tls-cert-file"},
	{[]string{"peer-auto-tls"}, ownCertificate, "--peer-cert-file"},
	{[]string{"self-signed-cert-validity"}, "kvd does not create certificates at startup", "kvd cert init"},
	{[]string{"peer-skip-client-san-verification"}, memberCertificate, ""},
	{[]string{"peer-cert-allowed-cn", "peer-cert-allowed-hostname"}, memberCertificate + "; use a CA that signs for members only", "--peer-ca-file"},
	{[]string{"client-cert-allowed-hostname"}, "give each client a user (--auth-cert-user) with a role", "--tls-ca-file"},
	{[]string{"client-cert-file", "client-key-file"}, "a node does not connect to itself as a client", ""},
	{[]string{"peer-client-cert-file"}, oneCertificate, "--peer-cert-file"},
	{[]string{"peer-client-key-file"}, oneCertificate, "--peer-key-file"},
	{[]string{"cipher-suites"}, "kvd uses the cipher suites that Go considers secure", "--tls-min-version"},
	{[]string{"tls-max-version"}, "kvd always offers the newest version of TLS", "--tls-min-version"},
	{[]string{"cors"}, "kvd always refuses requests from other origins", ""},
	{[]string{"host-whitelist"}, "kvd checks only the host names that browsers use", "--allowed-hosts"},

	// Serving clients.
	{[]string{"listen-client-http-urls"}, "HTTP is all that kvd serves", "--listen-client"},
	{[]string{"enable-grpc-gateway"}, "--listen-etcd serves gRPC and its gateway together", "--listen-etcd"},
	{[]string{"max-concurrent-streams"}, "kvd bounds requests rather than streams", "--max-inflight"},
	{[]string{"grpc-keepalive-min-time", "grpc-keepalive-interval", "grpc-keepalive-timeout"}, fixedPings, ""},
	{[]string{"socket-reuse-port"}, "two processes on one port would divide its clients between them", ""},
	{[]string{"socket-reuse-address"}, "kvd leaves the system's rule for reusing addresses alone", ""},

	// Logging and monitoring.
	{[]string{"debug", "log-package-levels"}, "one level applies to the whole log", "--log-level"},
	{[]string{"enable-log-rotation", "log-rotation-config-json"}, noLogFiles, ""},
	{[]string{
		"enable-distributed-tracing", "distributed-tracing-address", "distributed-tracing-service-name",
		"distributed-tracing-instance-id", "distributed-tracing-sampling-rate",
	}, noTracing, ""},
	{[]string{"corrupt-check-time", "experimental-corrupt-check-time", "compact-hash-check-time"}, constantChecks, ""},
	{[]string{"warning-apply-duration", "warning-unary-request-duration"}, inMetrics, ""},
	{[]string{"downgrade-check-time"}, "kvd does not support downgrading a cluster", ""},
}

// refusedNamed returns why the name is refused, or nil if it is not.
func refusedNamed(name string) *refusal {
	for i := range refusals {
		if slices.Contains(refusals[i].names, name) {
			return &refusals[i]
		}
	}
	return nil
}

// refuse returns the error for one of the names.
func (r *refusal) refuse(name string, g Given) error {
	if r.instead == "" {
		return fmt.Errorf("%s is not supported: %s", describe(name, g.Origin), r.reason)
	}
	return fmt.Errorf("%s is not supported: %s; did you mean %s?", describe(name, g.Origin), r.reason, r.instead)
}
