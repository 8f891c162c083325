package settings

// Group is one section of the help: settings that are read together, in
// reading order.
type Group struct {
	Title string
	// Common settings are shown by --help.
	Common []string
	// Rare settings are shown by --help-all only: their defaults suit almost
	// every cluster, and listing them would hide the ones a newcomer looks for.
	Rare []string
}

// Groups returns the sections of the help. Every setting of the table is in
// exactly one of them; a test holds that.
func Groups() []Group {
	return []Group{
		{
			Title:  "Essential",
			Common: []string{"id", "cluster", "join", "port", "listen-client", "listen-etcd", "ui", "data-dir", configFile},
		},
		{
			Title:  "Cluster",
			Common: []string{"name", "listen-peer", "advertise-client", "advertise-peer", "cluster-token", "heartbeat-interval", "election-timeout"},
			Rare:   []string{"advertise-etcd", "remove-dead-after", "root-members", "dialects", "allowed-hosts"},
		},
		{
			Title: "TLS",
			Common: []string{
				"tls-cert-file", "tls-key-file", "tls-ca-file", "tls-client-auth",
				"peer-cert-file", "peer-key-file", "peer-ca-file", "insecure-peers",
			},
			Rare: []string{"tls-crl-file", "peer-crl-file", "tls-min-version"},
		},
		{
			Title:  "Rights",
			Common: []string{"root-password-file", "auth-cert-user", "audit-log", "audit-strict"},
			Rare: []string{
				"auth-local-root", "auth-metrics", "auth-token-ttl", "auth-token", "bcrypt-cost", "insecure-auth",
				"audit-keys", "audit-log-max-size", "audit-log-max-age", "audit-log-max-backups",
			},
		},
		{
			Title:  "Limits",
			Common: []string{"quota", "max-value-bytes", "max-connections", "max-inflight", "max-watches", "request-memory"},
			Rare:   []string{"max-learners", "max-request-bytes", "max-txn-ops", "watch-progress-notify-interval"},
		},
		{
			Title:  "Storage",
			Common: []string{"engine"},
			Rare:   []string{"rebuild-store", "scrub-interval", "snapshot-checkpoint-bytes", "snapshot-catch-up-bytes"},
		},
		{
			Title:  "Logging and metrics",
			Common: []string{"log-level", "log-format", "request-log", "listen-metrics"},
			Rare:   []string{"pprof"},
		},
	}
}
