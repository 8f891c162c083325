package settings

import (
	"slices"
	"time"
)

// setting is one row of the settings table, from which flags, variables, file
// keys, checks and documentation follow. A setting that is not in the table does
// not exist.
type setting struct {
	name string
	kind string // what a value looks like, for the help
	def  string // "" if the default follows from other settings, as help says
	help string // a fragment of at most maxHelp characters
	// bare is the value that the flag's name alone stands for, or "" if the flag
	// needs a value.
	bare string
	// secret keeps the value out of every output. A variable NAME_FILE may name a
	// file that holds it.
	secret bool
	value
}

// maxHelp bounds a help text, so that it fits a line of a terminal.
const maxHelp = 100

// value connects a row to its field.
type value struct {
	store func(s *Settings, text string) error
	show  func(s *Settings) string // a text that store accepts; "" for none
}

// of connects a row to the field, which the codec reads and shows.
func of[T any](field func(*Settings) *T, c codec[T]) value {
	return value{
		store: func(s *Settings, text string) error {
			v, err := c.parse(text)
			if err == nil {
				*field(s) = v
			}
			return err
		},
		show: func(s *Settings) string { return c.show(*field(s)) },
	}
}

// table has all settings in the order of docs/configuration.md. Groups orders them
// for the help.
var table = slices.Concat(fileRows, clusterRows, addressRows, tlsRows, rightsRows, storeRows, logRows, auditRows)

var fileRows = []setting{
	{name: configFile, kind: "file", help: "YAML or JSON file of settings; flags and environment variables override it",
		value: of(func(s *Settings) *string { return &s.ConfigFile }, textCodec)},
}

var clusterRows = []setting{
	{name: "id", kind: "number", help: "ID of this member: its position in --cluster, from 1 (default: the position of --name, or 1)",
		value: of(func(s *Settings) *uint64 { return &s.ID }, idCodec)},
	{name: "cluster", kind: "[NAME=]URL,...", help: "peer URLs of all members, in the same order everywhere, all named or none (default: this node)",
		value: of(func(s *Settings) *[]Member { return &s.Cluster }, membersCodec)},
	{name: "port", kind: "number", help: "client port on 127.0.0.1; short for --listen-client http://127.0.0.1:PORT",
		value: of(func(s *Settings) *uint64 { return &s.Port }, portCodec)},
	{name: "join", kind: "URL,...", bare: "true", help: "members to ask for admission; without a value, this member was already added to --cluster",
		value: value{store: storeJoin, show: showJoin}},
	{name: "remove-dead-after", kind: "duration", def: "0s", help: "silence after which the leader removes a member, at least 5 election timeouts (default 0s: never)",
		value: of(func(s *Settings) *time.Duration { return &s.RemoveDeadAfter }, durationCodec)},
	{name: "name", kind: "text", help: "name of this member (default: its name in --cluster, or kvdID)",
		value: of(func(s *Settings) *string { return &s.Name }, textCodec)},
	{name: "data-dir", kind: "directory", help: "directory for the data of this member (default ./" + DefaultDataRoot + "/ID)",
		value: of(func(s *Settings) *string { return &s.DataDir }, textCodec)},
	{name: "cluster-token", kind: "text", def: "kvd", secret: true, help: "token that tells clusters with equal member lists apart; the same on every member",
		value: of(func(s *Settings) *string { return &s.ClusterToken }, textCodec)},
}

var addressRows = []setting{
	{name: "listen-client", kind: "URL,...", help: "URLs to serve clients on: http, https, or unix:///PATH (default " + DefaultClientURL + ")",
		value: of(func(s *Settings) *[]string { return &s.ListenClient }, listenersCodec)},
	{name: "listen-etcd", kind: "URL,...", bare: DefaultEtcdURL, help: "URLs to serve etcd clients on (default: none; without a value: " + DefaultEtcdURL + ")",
		value: of(func(s *Settings) *[]string { return &s.ListenEtcd }, listenersCodec)},
	{name: "listen-peer", kind: "URL", help: "URL to serve other members on (default: its URL in --cluster, or " + DefaultPeerURL + ")",
		value: of(func(s *Settings) *string { return &s.ListenPeer }, urlCodec)},
	{name: "listen-metrics", kind: "URL,...", help: "additional URLs for /metrics and health checks alone: http or unix:///PATH",
		value: of(func(s *Settings) *[]string { return &s.ListenMetrics }, plainListenersCodec)},
	{name: "advertise-client", kind: "URL,...", help: "URLs at which clients reach this node (default: those of --listen-client)",
		value: of(func(s *Settings) *[]string { return &s.AdvertiseClient }, memberURLsCodec)},
	{name: "advertise-etcd", kind: "URL,...", help: "URLs at which etcd clients reach this node (default: those of --listen-etcd)",
		value: of(func(s *Settings) *[]string { return &s.AdvertiseEtcd }, memberURLsCodec)},
	{name: "advertise-peer", kind: "URL,...", help: "URLs at which members reach this node (default: its URL in --cluster, or --listen-peer)",
		value: of(func(s *Settings) *[]string { return &s.AdvertisePeer }, memberURLsCodec)},
	{name: "allowed-hosts", kind: "NAME,...", help: "more host names that browsers may use for this node; its own names and IP addresses always work",
		value: of(func(s *Settings) *[]string { return &s.AllowedHosts }, hostNamesCodec)},
	{name: "max-connections", kind: "number", def: "10000", help: "maximum number of client connections, within the limit on open files (0 means no other limit)",
		value: of(func(s *Settings) *int64 { return &s.MaxConnections }, countCodec)},
	{name: "max-inflight", kind: "number", def: "4096", help: "maximum number of client requests served at once; others wait for up to 1s",
		value: of(func(s *Settings) *int64 { return &s.MaxInFlight }, countCodec)},
	{name: "max-watches", kind: "number", def: "10000", help: "maximum number of watches and long polls at once; they do not count as requests",
		value: of(func(s *Settings) *int64 { return &s.MaxWatches }, countCodec)},
	{name: "request-memory", kind: "bytes", help: "memory for bodies and responses of clients (default: a quarter of the memory limit, or 512MiB)",
		value: of(func(s *Settings) *int64 { return &s.RequestMemory }, memoryCodec)},
	{name: "max-request-bytes", kind: "bytes", def: "1536KiB", help: "maximum request of an etcd client; also sets --max-value-bytes unless that is given",
		value: of(func(s *Settings) *int64 { return &s.MaxRequestBytes }, sizeCodec)},
	{name: "max-txn-ops", kind: "number", def: "128", help: "maximum number of operations on one level of an etcd client's transaction",
		value: of(func(s *Settings) *int64 { return &s.MaxTxnOps }, countCodec)},
	{name: "max-learners", kind: "number", def: "1", help: "maximum number of members that stay learners, for additions by etcd clients",
		value: of(func(s *Settings) *int64 { return &s.MaxLearners }, countCodec)},
	{name: "watch-progress-notify-interval", kind: "duration", def: "10m", help: "interval of progress notifications to etcd clients that ask for them, at least 100ms",
		value: of(func(s *Settings) *time.Duration { return &s.WatchProgress }, paceCodec)},
	{name: "root-members", kind: "on|off", def: "on", bare: "on", help: "allow POST /ID and DELETE /ID to change the membership",
		value: of(func(s *Settings) *bool { return &s.RootMembers }, switchCodec)},
	{name: "dialects", kind: "NAME,...", def: "raftexample", help: "older systems whose HTTP is served: raftexample (keys at the root), raftd, riot; or none",
		value: of(func(s *Settings) *[]string { return &s.Dialects }, dialectsCodec)},
	{name: "ui", kind: "off|read|on", help: "web page at /ui/; with read, no web page changes anything (default: on for loopback, else read)",
		value: of(func(s *Settings) *string { return &s.UI }, oneOf("off", "read", "on"))},
}

var tlsRows = []setting{
	{name: "tls-cert-file", kind: "file", help: "PEM certificate for clients; required by https URLs of --listen-client",
		value: of(func(s *Settings) *string { return &s.TLSCertFile }, textCodec)},
	{name: "tls-key-file", kind: "file", help: "PEM key of --tls-cert-file",
		value: of(func(s *Settings) *string { return &s.TLSKeyFile }, textCodec)},
	{name: "tls-ca-file", kind: "file", help: "PEM certificates of the CAs that sign client certificates",
		value: of(func(s *Settings) *string { return &s.TLSCAFile }, textCodec)},
	{name: "tls-client-auth", kind: "off|request|require", help: "whether clients present certificates (default: require with --tls-ca-file, else off)",
		value: of(func(s *Settings) *string { return &s.TLSClientAuth }, clientAuthCodec)},
	{name: "tls-crl-file", kind: "file", help: "list of revoked client certificates, PEM or DER",
		value: of(func(s *Settings) *string { return &s.TLSCRLFile }, textCodec)},
	{name: "tls-min-version", kind: "1.2|1.3", def: "1.2", help: "minimum TLS version for clients and members",
		value: of(func(s *Settings) *uint16 { return &s.TLSMinVersion }, tlsVersionCodec)},
	{name: "peer-cert-file", kind: "file", help: "PEM certificate for other members; required by https URLs of members",
		value: of(func(s *Settings) *string { return &s.PeerCertFile }, textCodec)},
	{name: "peer-key-file", kind: "file", help: "PEM key of --peer-cert-file",
		value: of(func(s *Settings) *string { return &s.PeerKeyFile }, textCodec)},
	{name: "peer-ca-file", kind: "file", help: "PEM certificates of the CAs that sign member certificates",
		value: of(func(s *Settings) *string { return &s.PeerCAFile }, textCodec)},
	{name: "peer-crl-file", kind: "file", help: "list of revoked member certificates, PEM or DER",
		value: of(func(s *Settings) *string { return &s.PeerCRLFile }, textCodec)},
	{name: "insecure-peers", kind: "on|off", def: "off", bare: "on", help: "allow peer traffic without TLS beyond this machine; anyone who reaches the port controls the data",
		value: of(func(s *Settings) *bool { return &s.InsecurePeers }, switchCodec)},
}

var rightsRows = []setting{
	{name: "auth-cert-user", kind: "cn|san-uri|san-email|off", def: "cn", help: "part of a client certificate that names the user, once rights are enabled",
		value: of(func(s *Settings) *string { return &s.AuthCertUser }, oneOf("cn", "san-uri", "san-email", "off"))},
	{name: "auth-local-root", kind: "on|off", def: "on", bare: "on", help: "on a Unix socket, give the operating-system user of this process all rights",
		value: of(func(s *Settings) *bool { return &s.AuthLocalRoot }, switchCodec)},
	{name: "auth-metrics", kind: "on|off", def: "off", bare: "on", help: "require credentials for /metrics, once rights are enabled",
		value: of(func(s *Settings) *bool { return &s.AuthMetrics }, switchCodec)},
	{name: "auth-token-ttl", kind: "duration", def: "5m", help: "how long a login token is valid, from 1s to 24h",
		value: of(func(s *Settings) *time.Duration { return &s.AuthTokenTTL }, durationCodec)},
	{name: "auth-token", kind: "simple|jwt,…", def: "simple", help: "jwt,sign-method=RS256,pub-key=FILE also accepts JSON Web Tokens signed elsewhere, as in etcd",
		value: of(func(s *Settings) *string { return &s.AuthToken }, authTokenCodec)},
	{name: "bcrypt-cost", kind: "number", def: "10", help: "bcrypt cost of new passwords, from 4 to 14; each step doubles the time of a login",
		value: of(func(s *Settings) *int64 { return &s.BcryptCost }, countCodec)},
	{name: "insecure-auth", kind: "on|off", def: "off", bare: "on", help: "accept credentials without TLS beyond this machine; anyone on the network path can steal them",
		value: of(func(s *Settings) *bool { return &s.InsecureAuth }, switchCodec)},
	{name: "root-password-file", kind: "file", help: "enable rights when founding a cluster; the file has the password of root",
		value: of(func(s *Settings) *string { return &s.RootPasswordFile }, textCodec)},
}

var storeRows = []setting{
	{name: "engine", kind: "pebble|memory", def: "pebble", help: "keep the data on disk (pebble) or in memory; the raft log is always on disk",
		value: of(func(s *Settings) *string { return &s.Engine }, oneOf("pebble", "memory"))},
	{name: "rebuild-store", kind: "on|off", def: "off", bare: "on", help: "move a damaged store aside and fill a new one from the log or another member; for one start",
		value: of(func(s *Settings) *bool { return &s.RebuildStore }, switchCodec)},
	{name: "scrub-interval", kind: "duration", def: "168h", help: "how often to read the whole store in the background to find damage (0 means never)",
		value: of(func(s *Settings) *time.Duration { return &s.ScrubInterval }, durationCodec)},
	{name: "quota", kind: "bytes", def: "8GiB", help: "maximum live data of a new cluster; PUT /v1/settings changes it later (0 means unlimited)",
		value: of(func(s *Settings) *int64 { return &s.QuotaBytes }, sizeCodec)},
	{name: "max-value-bytes", kind: "bytes", def: "1536KiB", help: "maximum value size of a new cluster, at most 64MiB; PUT /v1/settings changes it later",
		value: of(func(s *Settings) *int64 { return &s.MaxValueBytes }, sizeCodec)},
	{name: "heartbeat-interval", kind: "duration", def: "100ms", help: "interval between heartbeats of the leader",
		value: of(func(s *Settings) *time.Duration { return &s.Heartbeat }, paceCodec)},
	{name: "election-timeout", kind: "duration", def: "1s", help: "time without a heartbeat after which members elect a leader, at least 5 heartbeat intervals",
		value: of(func(s *Settings) *time.Duration { return &s.Election }, paceCodec)},
	{name: "snapshot-checkpoint-bytes", kind: "bytes", def: "64MiB", help: "growth of the raft log after which a checkpoint releases the older part",
		value: of(func(s *Settings) *int64 { return &s.CheckpointBytes }, sizeCodec)},
	{name: "snapshot-catch-up-bytes", kind: "bytes", def: "16MiB", help: "raft log kept in memory for lagging members; one that is further behind gets a snapshot",
		value: of(func(s *Settings) *int64 { return &s.CatchUpBytes }, sizeCodec)},
}

var logRows = []setting{
	{name: "log-level", kind: "debug|info|warn|error", def: "info", help: "minimum level of log messages",
		value: of(func(s *Settings) *level { return &s.LogLevel }, levelCodec)},
	{name: "log-format", kind: "json|console", help: "format of the log on standard error (default: console on a terminal, else json)",
		value: of(func(s *Settings) *string { return &s.LogFormat }, oneOf("json", "console"))},
	{name: "request-log", kind: "off|errors|all", def: "off", help: "client requests to log, always without keys and values",
		value: of(func(s *Settings) *string { return &s.RequestLog }, oneOf("off", "errors", "all"))},
	{name: "pprof", kind: "on|off", def: "off", bare: "on", help: "serve runtime profiles on --listen-metrics",
		value: of(func(s *Settings) *bool { return &s.Pprof }, switchCodec)},
}

var auditRows = []setting{
	{name: "audit-log", kind: "file", help: "append a line for each change, refusal, and administrative read to this file",
		value: of(func(s *Settings) *string { return &s.AuditLog }, textCodec)},
	{name: "audit-log-max-size", kind: "bytes", def: "100MiB", help: "size at which the audit log is rotated, in whole MiB",
		value: of(func(s *Settings) *int64 { return &s.AuditMaxSize }, sizeCodec)},
	{name: "audit-log-max-age", kind: "duration", def: "0s", help: "age at which rotated audit logs are removed, in whole days (default 0s: never)",
		value: of(func(s *Settings) *time.Duration { return &s.AuditMaxAge }, durationCodec)},
	{name: "audit-log-max-backups", kind: "number", def: "10", help: "maximum number of rotated audit logs; older ones are removed (0 means no limit)",
		value: of(func(s *Settings) *int64 { return &s.AuditMaxBackups }, countCodec)},
	{name: "audit-keys", kind: "plain|hashed|off", def: "plain", help: "how keys and lock names appear in the audit log",
		value: of(func(s *Settings) *string { return &s.AuditKeys }, oneOf("plain", "hashed", "off"))},
	{name: "audit-strict", kind: "on|off", def: "off", bare: "on", help: "refuse changes and administrative reads that cannot be recorded first",
		value: of(func(s *Settings) *bool { return &s.AuditStrict }, switchCodec)},
}

// settingNamed returns the row with the name, or nil.
func settingNamed(name string) *setting {
	i := slices.IndexFunc(table, func(s setting) bool { return s.name == name })
	if i < 0 {
		return nil
	}
	return &table[i]
}

// env returns the name of the setting's environment variable.
func (s *setting) env() string { return envName(s.name) }
