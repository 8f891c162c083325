package settings

import (
	"slices"
	"time"
)

// setting is one row of the table of settings.
type setting struct {
	name string
	kind string // what a value looks like, for the help
	def  string // "": follows from the other settings, as help says
	help string
	// bare is the value that the flag's name alone stands for; "" where it
	// needs a value.
	bare string
	// secret keeps the value out of every output; a variable NAME_FILE may
	// name a file that has it.
	secret bool
	value
}

// value joins a row to its field.
type value struct {
	store func(s *Settings, text string) error
	show  func(s *Settings) string // text that store takes; "" for none
}

// of makes the value of a field and a codec.
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

// table has the settings in the order of the help.
var table = slices.Concat(fileRows, clusterRows, addressRows, tlsRows, storeRows, logRows)

var fileRows = []setting{
	{name: configFile, kind: "file", help: "YAML or JSON file with settings by these names; flags and variables win",
		value: of(func(s *Settings) *string { return &s.ConfigFile }, textCodec)},
}

var clusterRows = []setting{
	{name: "id", kind: "number", help: "id of this member: its position in --cluster, counted from 1 (default: where --name is, else 1)",
		value: of(func(s *Settings) *uint64 { return &s.ID }, idCodec)},
	{name: "cluster", kind: "[NAME=]URL,...", help: "peer URLs of all members, in the same order on each, all with names or none (default: this node alone)",
		value: of(func(s *Settings) *[]Member { return &s.Cluster }, membersCodec)},
	{name: "port", kind: "number", help: "port for clients on 127.0.0.1; short for --listen-client",
		value: of(func(s *Settings) *uint64 { return &s.Port }, portCodec)},
	{name: "join", kind: "URL,...", bare: "true", help: "alone: the cluster exists and this member was added to it; with client or peer URLs of members: ask them for admission",
		value: value{store: storeJoin, show: showJoin}},
	{name: "name", kind: "text", help: "name of this member (default: its name in --cluster, or kvdID)",
		value: of(func(s *Settings) *string { return &s.Name }, textCodec)},
	{name: "data-dir", kind: "directory", help: "where this member keeps its data (default ./" + DefaultDataRoot + "/ID)",
		value: of(func(s *Settings) *string { return &s.DataDir }, textCodec)},
	{name: "cluster-token", kind: "text", def: "kvd", secret: true, help: "sets clusters of equal members apart; the same on each",
		value: of(func(s *Settings) *string { return &s.ClusterToken }, textCodec)},
}

var addressRows = []setting{
	{name: "listen-client", kind: "URL,...", help: "addresses to serve clients on: http, https or unix:///PATH (default " + DefaultClientURL + ")",
		value: of(func(s *Settings) *[]string { return &s.ListenClient }, listenersCodec)},
	{name: "listen-peer", kind: "URL", help: "address to serve other members on (default: its URL in --cluster, or " + DefaultPeerURL + ")",
		value: of(func(s *Settings) *string { return &s.ListenPeer }, urlCodec)},
	{name: "listen-metrics", kind: "URL,...", help: "addresses for /metrics and health checks only: http or unix:///PATH (default: with the clients only)",
		value: of(func(s *Settings) *[]string { return &s.ListenMetrics }, plainListenersCodec)},
	{name: "advertise-client", kind: "URL,...", help: "URLs that clients reach this node by (default: those of --listen-client)",
		value: of(func(s *Settings) *[]string { return &s.AdvertiseClient }, urlsCodec)},
	{name: "advertise-peer", kind: "URL,...", help: "URLs that members reach this node by (default: its URL in --cluster, or that of --listen-peer)",
		value: of(func(s *Settings) *[]string { return &s.AdvertisePeer }, urlsCodec)},
	{name: "max-connections", kind: "number", def: "10000", help: "most connections of clients at once; 0: no limit",
		value: of(func(s *Settings) *int64 { return &s.MaxConnections }, countCodec)},
	{name: "max-inflight", kind: "number", def: "4096", help: "most requests of clients in work at once; others wait for up to 1s",
		value: of(func(s *Settings) *int64 { return &s.MaxInFlight }, countCodec)},
	{name: "root-members", kind: "on|off", def: "on", bare: "on", help: "let POST /ID and DELETE /ID change the membership",
		value: of(func(s *Settings) *bool { return &s.RootMembers }, switchCodec)},
}

var tlsRows = []setting{
	{name: "tls-cert-file", kind: "file", help: "certificate for clients, PEM; needed by https URLs of --listen-client",
		value: of(func(s *Settings) *string { return &s.TLSCertFile }, textCodec)},
	{name: "tls-key-file", kind: "file", help: "key of --tls-cert-file, PEM",
		value: of(func(s *Settings) *string { return &s.TLSKeyFile }, textCodec)},
	{name: "tls-ca-file", kind: "file", help: "authorities whose certificates clients may show, PEM",
		value: of(func(s *Settings) *string { return &s.TLSCAFile }, textCodec)},
	{name: "tls-client-auth", kind: "off|request|require", help: "whether clients show a certificate (default: require with --tls-ca-file, else off)",
		value: of(func(s *Settings) *string { return &s.TLSClientAuth }, clientAuthCodec)},
	{name: "tls-crl-file", kind: "file", help: "list of revoked certificates of clients, PEM or DER",
		value: of(func(s *Settings) *string { return &s.TLSCRLFile }, textCodec)},
	{name: "tls-min-version", kind: "1.2|1.3", def: "1.2", help: "least version of TLS, for clients and members",
		value: of(func(s *Settings) *uint16 { return &s.TLSMinVersion }, tlsVersionCodec)},
	{name: "peer-cert-file", kind: "file", help: "certificate for other members, PEM; needed by https URLs of members",
		value: of(func(s *Settings) *string { return &s.PeerCertFile }, textCodec)},
	{name: "peer-key-file", kind: "file", help: "key of --peer-cert-file, PEM",
		value: of(func(s *Settings) *string { return &s.PeerKeyFile }, textCodec)},
	{name: "peer-ca-file", kind: "file", help: "authorities that sign the certificates of members, PEM",
		value: of(func(s *Settings) *string { return &s.PeerCAFile }, textCodec)},
	{name: "peer-crl-file", kind: "file", help: "list of revoked certificates of members, PEM or DER",
		value: of(func(s *Settings) *string { return &s.PeerCRLFile }, textCodec)},
	{name: "insecure-peers", kind: "on|off", def: "off", bare: "on", help: "let members talk without TLS beyond this machine, where whoever reaches the port controls the data",
		value: of(func(s *Settings) *bool { return &s.InsecurePeers }, switchCodec)},
}

var storeRows = []setting{
	{name: "engine", kind: "pebble|memory", def: "pebble", help: "keep the data on disk (pebble) or in memory; the log is on disk in both cases",
		value: of(func(s *Settings) *string { return &s.Engine }, oneOf("pebble", "memory"))},
	{name: "quota", kind: "bytes", def: "8GiB", help: "most bytes of live data that a new cluster takes; 0: no quota",
		value: of(func(s *Settings) *int64 { return &s.QuotaBytes }, sizeCodec)},
	{name: "max-value-bytes", kind: "bytes", def: "1MiB", help: "largest value that a new cluster takes, up to 64MiB",
		value: of(func(s *Settings) *int64 { return &s.MaxValueBytes }, sizeCodec)},
	{name: "heartbeat-interval", kind: "duration", def: "100ms", help: "pace of the leader's heartbeats",
		value: of(func(s *Settings) *time.Duration { return &s.Heartbeat }, paceCodec)},
	{name: "election-timeout", kind: "duration", def: "1s", help: "silence of the leader after which another is elected, at least 5 heartbeats",
		value: of(func(s *Settings) *time.Duration { return &s.Election }, paceCodec)},
	{name: "snapshot-checkpoint-bytes", kind: "bytes", def: "64MiB", help: "release the log that is older than the data on disk after so much of it",
		value: of(func(s *Settings) *int64 { return &s.CheckpointBytes }, sizeCodec)},
	{name: "snapshot-catch-up-bytes", kind: "bytes", def: "16MiB", help: "log kept in memory for members that lag; one that lags more gets a snapshot",
		value: of(func(s *Settings) *int64 { return &s.CatchUpBytes }, sizeCodec)},
}

var logRows = []setting{
	{name: "log-level", kind: "debug|info|warn|error", def: "info", help: "least severe messages to log",
		value: of(func(s *Settings) *level { return &s.LogLevel }, levelCodec)},
	{name: "log-format", kind: "json|console", help: "form of the log on standard error (default: console on a terminal, else json)",
		value: of(func(s *Settings) *string { return &s.LogFormat }, oneOf("json", "console"))},
	{name: "request-log", kind: "off|errors|all", def: "off", help: "which requests of clients to log, without keys and values",
		value: of(func(s *Settings) *string { return &s.RequestLog }, oneOf("off", "errors", "all"))},
	{name: "pprof", kind: "on|off", def: "off", bare: "on", help: "serve profiles of the process on --listen-metrics",
		value: of(func(s *Settings) *bool { return &s.Pprof }, switchCodec)},
}

// settingNamed returns the row of the table, nil where there is none.
func settingNamed(name string) *setting {
	i := slices.IndexFunc(table, func(s setting) bool { return s.name == name })
	if i < 0 {
		return nil
	}
	return &table[i]
}

// env is the environment variable of the setting.
func (s *setting) env() string { return envName(s.name) }
