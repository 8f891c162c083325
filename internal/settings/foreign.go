package settings

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// foreign is a name that is accepted beside those of the table, mostly one of
// etcd's flags. It is one of three things: another name of a setting with the
// same meaning; something that has no effect here and harms nobody, for the
// values in harmless; or something that kvd would not do, which is refused
// rather than overlooked. The last two say why, and how kvd does it.
type foreign struct {
	name    string
	setting string
	// convert turns the text into that of the setting, nil for the same text;
	// "" says that the text is etcd's way of leaving the setting alone.
	convert  func(text string) (string, error)
	bare     string
	harmless []string // values; "*" for all of them
	why      string
}

var (
	anything = []string{"*"}
	no       = []string{"false"}
	either   = []string{"true", "false"}
)

// alsoNamed has the other names of settings.
var alsoNamed = []foreign{
	{name: "initial-cluster", setting: "cluster"},
	{name: "initial-cluster-state", setting: "join", convert: clusterState},
	{name: "initial-cluster-token", setting: "cluster-token"},
	{name: "listen-client-urls", setting: "listen-client"},
	{name: "listen-peer-urls", setting: "listen-peer"},
	{name: "listen-metrics-urls", setting: "listen-metrics"},
	{name: "advertise-client-urls", setting: "advertise-client"},
	{name: "initial-advertise-peer-urls", setting: "advertise-peer"},
	{name: "quota-backend-bytes", setting: "quota", convert: backendQuota},
	{name: "max-request-bytes", setting: "max-value-bytes"},
	{name: "cert-file", setting: "tls-cert-file"},
	{name: "key-file", setting: "tls-key-file"},
	{name: "trusted-ca-file", setting: "tls-ca-file"},
	{name: "client-cert-auth", setting: "tls-client-auth", bare: "true", convert: clientCertAuth},
	{name: "client-crl-file", setting: "tls-crl-file"},
	{name: "peer-trusted-ca-file", setting: "peer-ca-file"},
	{name: "enable-pprof", setting: "pprof", bare: "true"},
	{name: "checkpoint-bytes", setting: "snapshot-checkpoint-bytes"},
	{name: "catch-up-bytes", setting: "snapshot-catch-up-bytes"},
}

// without has etcd's flags that nothing here corresponds to.
var without = slices.Concat(withoutStore, withoutCluster, withoutTLS, withoutWatching)

var withoutStore = []foreign{
	{name: "snapshot-count", harmless: anything, why: "the log is bounded by bytes, not entries: --snapshot-checkpoint-bytes"},
	{name: "snapshot-catchup-entries", harmless: anything, why: "the log for members that lag is bounded by bytes: --snapshot-catch-up-bytes"},
	{name: "max-snapshots", harmless: anything, why: "files that are no longer needed are removed"},
	{name: "max-wals", harmless: anything, why: "files that are no longer needed are removed"},
	{name: "max-txn-ops", harmless: anything, why: "the limit of a transaction is one of the cluster's, not of a node's flags"},
	{name: "wal-dir", why: "the log is in --data-dir, together with what it belongs to; mount the faster disk there"},
	{name: "unsafe-no-fsync", bare: "true", harmless: no, why: "an acknowledged write is always on the disks of a majority"},
	{name: "auto-compaction-mode", harmless: anything, why: "history is bounded by its size, all the time"},
	{name: "auto-compaction-retention", harmless: anything, why: "history is bounded by its size, all the time"},
	{name: "compaction-batch-limit", harmless: anything, why: "removing history has a fixed share of the work"},
	{name: "compaction-sleep-interval", harmless: anything, why: "removing history has a fixed share of the work"},
	{name: "backend-batch-interval", harmless: anything, why: "there is no bbolt"},
	{name: "backend-batch-limit", harmless: anything, why: "there is no bbolt"},
	{name: "backend-bbolt-freelist-type", harmless: anything, why: "there is no bbolt"},
	{name: "bootstrap-defrag-threshold-megabytes", harmless: anything, why: "there is no bbolt to defragment"},
	{name: "memory-mlock", bare: "true", harmless: no, why: "memory is not locked; give the service no swap (MemorySwapMax=0)"},
	{name: "enable-v2", bare: "true", harmless: no, why: "etcd's v2 API is not served"},
	{name: "v2-deprecation", harmless: anything, why: "etcd's v2 API is not served"},
}

var withoutCluster = []foreign{
	{name: "strict-reconfig-check", bare: "true", harmless: either, why: "changes of the membership are always checked"},
	{name: "pre-vote", bare: "true", harmless: []string{"true"}, why: "a member always asks the others before it stands for election"},
	{name: "initial-election-tick-advance", bare: "true", harmless: either, why: "the first election follows rules of its own"},
	{name: "max-learners", harmless: anything, why: "learners become voters by themselves"},
	{name: "force-new-cluster", bare: "true", harmless: no, why: "kvd recover DIR makes a new cluster of what a lost quorum left, and asks first"},
	{name: "discovery", why: "there is no discovery service; list the members with --cluster, or ask one with --join URL"},
	{name: "discovery-token", why: "there is no discovery service; list the members with --cluster, or ask one with --join URL"},
	{name: "discovery-endpoints", why: "there is no discovery service; list the members with --cluster, or ask one with --join URL"},
	{name: "discovery-srv", why: "members are not looked up in DNS; list them with --cluster, or ask one with --join URL"},
	{name: "discovery-srv-name", why: "members are not looked up in DNS; list them with --cluster, or ask one with --join URL"},
	{name: "discovery-proxy", why: "there is no discovery service"},
	{name: "discovery-fallback", harmless: anything, why: "there is no discovery service"},
	{name: "discovery-dial-timeout", harmless: anything, why: "there is no discovery service"},
	{name: "discovery-request-timeout", harmless: anything, why: "there is no discovery service"},
	{name: "discovery-keepalive-time", harmless: anything, why: "there is no discovery service"},
	{name: "discovery-keepalive-timeout", harmless: anything, why: "there is no discovery service"},
	{name: "discovery-insecure-transport", bare: "true", harmless: either, why: "there is no discovery service"},
	{name: "discovery-insecure-skip-tls-verify", bare: "true", harmless: either, why: "there is no discovery service"},
	{name: "discovery-cert", harmless: anything, why: "there is no discovery service"},
	{name: "discovery-key", harmless: anything, why: "there is no discovery service"},
	{name: "discovery-cacert", harmless: anything, why: "there is no discovery service"},
	{name: "discovery-user", harmless: anything, why: "there is no discovery service"},
	{name: "discovery-password", harmless: anything, why: "there is no discovery service"},
	{name: "proxy", harmless: []string{"off"}, why: "every node serves every request; there is no proxy mode"},
	{name: "proxy-failure-wait", harmless: anything, why: "there is no proxy mode"},
	{name: "proxy-refresh-interval", harmless: anything, why: "there is no proxy mode"},
	{name: "proxy-dial-timeout", harmless: anything, why: "there is no proxy mode"},
	{name: "proxy-write-timeout", harmless: anything, why: "there is no proxy mode"},
	{name: "proxy-read-timeout", harmless: anything, why: "there is no proxy mode"},
	{name: "raft-read-timeout", harmless: anything, why: "connections of members have fixed deadlines"},
	{name: "raft-write-timeout", harmless: anything, why: "connections of members have fixed deadlines"},
}

var withoutTLS = []foreign{
	{name: "auto-tls", bare: "true", harmless: no, why: "a certificate that nobody can check protects from nobody; kvd cert init makes one with a CA, for --tls-cert-file"},
	{name: "peer-auto-tls", bare: "true", harmless: no, why: "a certificate that nobody can check protects from nobody; kvd cert init makes one with a CA, for --peer-cert-file"},
	{name: "self-signed-cert-validity", harmless: anything, why: "no certificate is made at the start"},
	{name: "peer-client-cert-auth", bare: "true", harmless: either, why: "members with TLS always check each other's certificates"},
	{name: "peer-skip-client-san-verification", bare: "true", harmless: no, why: "a member's certificate must name the member"},
	{name: "peer-cert-allowed-cn", why: "a member's certificate must name the host of its peer URL, and one name for all would take that away; let --peer-ca-file sign for members only"},
	{name: "peer-cert-allowed-hostname", why: "a member's certificate must name the host of its peer URL, and one name for all would take that away; let --peer-ca-file sign for members only"},
	{name: "client-cert-allowed-hostname", why: "clients are judged by --tls-ca-file only; let it sign for those that may come in"},
	{name: "client-cert-file", harmless: anything, why: "a node is no client of itself"},
	{name: "client-key-file", harmless: anything, why: "a node is no client of itself"},
	{name: "peer-client-cert-file", why: "members serve and call with the same certificate, --peer-cert-file; it needs both usages"},
	{name: "peer-client-key-file", why: "members serve and call with the same key, --peer-key-file"},
	{name: "cipher-suites", why: "the suites are those that Go holds to be safe; with --tls-min-version 1.3 there is nothing to choose"},
	{name: "tls-max-version", harmless: []string{"TLS1.3", "1.3"}, why: "the newest version is always offered"},
	{name: "auth-token", harmless: []string{"simple"}, why: "there are no users and passwords; use certificates of clients (--tls-ca-file)"},
	{name: "auth-token-ttl", harmless: anything, why: "there are no users and passwords"},
	{name: "bcrypt-cost", harmless: anything, why: "there are no users and passwords"},
	{name: "cors", why: "pages of other origins are never let in"},
	{name: "host-whitelist", why: "a list of host names is not kept"},
}

var withoutWatching = []foreign{
	{name: "logger", harmless: []string{"zap"}, why: "zap is the only logger"},
	{name: "log-outputs", harmless: []string{"default", "stderr"}, why: "the log goes to standard error; let the service manager direct it"},
	{name: "enable-log-rotation", bare: "true", harmless: no, why: "the log goes to standard error; let the service manager rotate it"},
	{name: "log-rotation-config-json", harmless: anything, why: "the log goes to standard error; let the service manager rotate it"},
	{name: "metrics", harmless: []string{"basic", "extensive"}, why: "all metrics are served always"},
	{name: "enable-distributed-tracing", bare: "true", harmless: no, why: "traces are not sent"},
	{name: "distributed-tracing-address", harmless: anything, why: "traces are not sent"},
	{name: "distributed-tracing-service-name", harmless: anything, why: "traces are not sent"},
	{name: "distributed-tracing-instance-id", harmless: anything, why: "traces are not sent"},
	{name: "distributed-tracing-sampling-rate", harmless: anything, why: "traces are not sent"},
	{name: "corrupt-check-time", harmless: anything, why: "members compare their state all the time"},
	{name: "compact-hash-check-time", harmless: anything, why: "members compare their state all the time"},
	{name: "experimental-initial-corrupt-check", bare: "true", harmless: either, why: "data is always checked at the start"},
	{name: "experimental-corrupt-check-time", harmless: anything, why: "members compare their state all the time"},
	{name: "experimental-watch-progress-notify-interval", harmless: anything, why: "there is no such message"},
	{name: "feature-gates", harmless: []string{"InitialCorruptCheck=true"}, why: "etcd's features have no switches here"},
	{name: "watch-progress-notify-interval", harmless: anything, why: "there is no such message"},
	{name: "warning-apply-duration", harmless: anything, why: "/metrics has the times"},
	{name: "warning-unary-request-duration", harmless: anything, why: "/metrics has the times"},
	{name: "downgrade-check-time", harmless: anything, why: "there is no downgrade of a cluster"},
	{name: "listen-client-http-urls", why: "HTTP is all that is served, on --listen-client"},
	{name: "enable-grpc-gateway", bare: "true", harmless: no, why: "etcd's API is not served"},
	{name: "max-concurrent-streams", harmless: anything, why: "requests in work are bounded by --max-inflight"},
	{name: "grpc-keepalive-min-time", harmless: anything, why: "there is no gRPC"},
	{name: "grpc-keepalive-interval", harmless: anything, why: "there is no gRPC"},
	{name: "grpc-keepalive-timeout", harmless: anything, why: "there is no gRPC"},
	{name: "socket-reuse-port", bare: "true", harmless: no, why: "two processes on one port would share out its clients"},
	{name: "socket-reuse-address", bare: "true", harmless: no, why: "the system's rule for addresses is left alone"},
}

// foreignNamed returns the foreign name's row, nil where there is none.
func foreignNamed(name string) *foreign {
	for _, list := range [][]foreign{alsoNamed, without} {
		if i := slices.IndexFunc(list, func(f foreign) bool { return f.name == name }); i >= 0 {
			return &list[i]
		}
	}
	return nil
}

// known reports whether the name is one of a setting, by any tradition.
func known(name string) bool { return settingNamed(name) != nil || foreignNamed(name) != nil }

// allNames has every name that is accepted, in the order of the tables.
func allNames() []string {
	var names []string
	for i := range table {
		names = append(names, table[i].name)
	}
	for _, f := range slices.Concat(alsoNamed, without) {
		names = append(names, f.name)
	}
	return names
}

// translate brings a layer to the names of the table. It returns what was
// accepted without effect, as sentences for the log.
func (l Layer) translate(p *problemList) (own Layer, notes []string) {
	own = make(Layer)
	for _, name := range slices.Sorted(maps.Keys(l)) {
		g := l[name]
		f := foreignNamed(name)
		switch {
		case f == nil:
			own.merge(name, g, p)
		case f.setting == "":
			note, err := f.judge(g)
			if err != nil {
				*p = append(*p, err)
			} else {
				notes = append(notes, note)
			}
		default:
			text, err := f.translate(g.Text)
			if err != nil {
				p.add("%s: %w", describe(name, g.Origin), err)
			} else if text != "" {
				own.merge(f.setting, Given{Text: text, Origin: g.Origin}, p)
			}
		}
	}
	return own, notes
}

// merge adds a setting that may be there already by another name.
func (l Layer) merge(name string, g Given, p *problemList) {
	if before, ok := l[name]; ok && before.Text != g.Text {
		p.add("%s and %s both give --%s, and not the same; leave one out", before.Origin, g.Origin, name)
		return
	}
	l[name] = g
}

func (f *foreign) translate(text string) (string, error) {
	if f.convert == nil || text == "" {
		return text, nil
	}
	return f.convert(text)
}

// judge says what becomes of a value that nothing here corresponds to.
func (f *foreign) judge(g Given) (note string, err error) {
	for part := range strings.SplitSeq(g.Text, ",") {
		if !slices.Contains(f.harmless, "*") && !slices.Contains(f.harmless, strings.TrimSpace(part)) {
			return "", fmt.Errorf("%s is not possible with %q: %s", describe(f.name, g.Origin), g.Text, f.why)
		}
	}
	return fmt.Sprintf("%s has no effect: %s", describe(f.name, g.Origin), f.why), nil
}

func clusterState(text string) (string, error) {
	switch text {
	case "new":
		return "false", nil
	case "existing":
		return "true", nil
	}
	return "", fmt.Errorf("%q is none of new, existing", text)
}

// backendQuota: etcd's 0 is its default, and less than that no quota.
func backendQuota(text string) (string, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	switch {
	case err != nil:
		return text, nil // one of kvd's sizes, perhaps
	case n == 0:
		return "", nil
	case n < 0:
		return "0", nil
	}
	return text, nil
}

// clientCertAuth: without the switch, etcd asks for certificates if there is a
// CA to check them, as kvd does.
func clientCertAuth(text string) (string, error) {
	on, err := strconv.ParseBool(text)
	switch {
	case err != nil:
		return "", errors.New("it is neither true nor false")
	case on:
		return "require", nil
	}
	return "", nil
}
