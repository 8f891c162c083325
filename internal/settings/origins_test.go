package settings

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write the tables of docs/configuration.md")

// load reads a command line, an environment and a file, as a node does.
func load(t *testing.T, args, environ, file string) (*Settings, error) {
	t.Helper()
	env := strings.Fields(environ)
	if file != "" {
		path := filepath.Join(t.TempDir(), "kvd.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args += " --config-file=" + path
	}
	flags := pflag.NewFlagSet("kvd", pflag.ContinueOnError)
	AddFlags(flags)
	if err := flags.Parse(NormaliseArguments(strings.Fields(args))); err != nil {
		return nil, ExplainFlag(flags, err)
	}
	return Load(flags, env)
}

// TestOriginsAreMerged: each setting comes from the first origin that has it,
// regardless of other settings in the same origin.
func TestOriginsAreMerged(t *testing.T) {
	s, err := load(t, "--quota 1GiB", "KVD_QUOTA=2GiB KVD_ENGINE=memory PORT=5000",
		"quota: 3GiB\nengine: pebble\nlog-level: warn\nheartbeat-interval: 50ms\nadvertise-client: [http://a:1, http://b:2]\nroot-members: off\n")
	if err != nil {
		t.Fatal(err)
	}
	if s.QuotaBytes != 1<<30 || s.Engine != "memory" || s.LogLevel.String() != "warn" || s.Heartbeat.String() != "50ms" || s.RootMembers {
		t.Errorf("%+v", s)
	}
	if len(s.AdvertiseClient) != 2 || s.ListenClient[0] != DefaultClientURL {
		t.Errorf("client URLs %v, listening on %v (the bare PORT is goreman's)", s.AdvertiseClient, s.ListenClient)
	}
	for _, v := range s.All() {
		want := map[string]string{"quota": "flag --quota", "engine": "environment variable KVD_ENGINE", "log-format": "default"}[v.Name]
		if want != "" && v.Origin != want || v.Name == "log-level" && !strings.HasSuffix(v.Origin, "kvd.yaml:3") {
			t.Errorf("%s comes from %q", v.Name, v.Origin)
		}
	}
}

// TestProblemsNameTheirOrigin: every problem is reported with its origin.
func TestProblemsNameTheirOrigin(t *testing.T) {
	for _, c := range []struct {
		args, env, file string
		want            []string
	}{
		{args: "--quota many --engine tape", want: []string{"--quota", "many", "--engine", "tape"}},
		{args: "--quotta 1", want: []string{"did you mean --quota?"}},
		{env: "KVD_QUOTTA=1 KVD_ENGINE=tape", want: []string{"KVD_QUOTTA", "did you mean KVD_QUOTA?", "KVD_ENGINE", "tape"}},
		{file: "quotta: 1\nengine: tape\n", want: []string{"kvd.yaml:1", "quotta", "did you mean quota?", "kvd.yaml:2", "tape"}},
		{file: "quota: 1GiB\nquota: 2GiB\n", want: []string{"kvd.yaml:2", "line 1"}},
		{file: "quota: {a: 1}\n", want: []string{"kvd.yaml:1", "plain value"}},
		{file: "advertise-client: [[a]]\n", want: []string{"kvd.yaml:1", "plain values without commas"}},
		{file: "- quota\n", want: []string{"kvd.yaml:1", "must consist of"}},
		{file: "quota: [1\n", want: []string{"kvd.yaml", "line"}},
		{file: "quota: 1GiB\n---\nquota: 2GiB\n", want: []string{"more than one document"}},
		{file: "config-file: other\n", want: []string{"cannot name another"}},
		{file: strings.Repeat("# long\n", 200_000), want: []string{"1048576 bytes"}},
		{args: "--peer-client-cert-auth=maybe --feature-gates=Other=true", want: []string{`--peer-client-cert-auth: "maybe" is not supported`, `"Other=true" is not supported`}},
		{args: "--config-file /nowhere/kvd.yaml", want: []string{"--config-file", "/nowhere/kvd.yaml"}},
		{args: "--initial-cluster n1=http://a:1 --cluster http://b:1", want: []string{"both set --cluster"}},
		{env: "KVD_CLUSTER_TOKEN_FILE=/nowhere/token", want: []string{"KVD_CLUSTER_TOKEN_FILE", "/nowhere/token"}},
		{env: "KVD_CLUSTER_TOKEN_FILE=/etc/hostname KVD_CLUSTER_TOKEN=x", want: []string{"KVD_CLUSTER_TOKEN_FILE", "KVD_CLUSTER_TOKEN both", "remove one of them"}},
		{env: "KVD_QUOTA_FILE=/etc/hostname", want: []string{"KVD_QUOTA_FILE"}},
	} {
		_, err := load(t, c.args, c.env, c.file)
		if err == nil {
			t.Errorf("%q %q %.50q: no error", c.args, c.env, c.file)
			continue
		}
		for _, w := range c.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q %q %.50q: %q is not in\n%v", c.args, c.env, c.file, w, err)
			}
		}
	}
}

// TestSecretsComeFromFilesAndStayThere: no output contains a secret.
func TestSecretsComeFromFilesAndStayThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte("hushhush\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := load(t, "", "KVD_CLUSTER_TOKEN_FILE="+path, "")
	if err != nil || s.ClusterToken != "hushhush" {
		t.Fatalf("%v", err)
	}
	for _, v := range s.All() {
		if strings.Contains(v.Value+v.Origin, "hush") {
			t.Errorf("%+v", v)
		}
	}
	if _, err := load(t, "", "", "cluster-token: \"hush\\nhush\"\n"); err == nil || strings.Contains(err.Error(), "hush") {
		t.Errorf("%v", err)
	}
}

// TestEtcdsCommandLine: the command line of a typical unit file for etcd works.
func TestEtcdsCommandLine(t *testing.T) {
	s, err := load(t, `--name n2 --data-dir /var/lib/etcd --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379
		--listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380
		--initial-cluster n1=http://127.0.0.1:1380,n2=http://127.0.0.1:2380,n3=http://127.0.0.1:3380 --initial-cluster-token tkn
		--initial-cluster-state new --heartbeat-interval 200 --election-timeout=2000 --quota-backend-bytes 8589934592 --snapshot-count 10000
		--auto-compaction-retention 1 --max-request-bytes 1048576 --strict-reconfig-check --log-level info --logger zap --log-outputs stderr`, "", "")
	if err != nil {
		t.Fatal(err)
	}
	if s.ID != 2 || len(s.Cluster) != 3 || s.Join || s.ClusterToken != "tkn" || s.QuotaBytes != 8<<30 || s.Election.String() != "2s" || s.Heartbeat.String() != "200ms" ||
		s.DataDir != "/var/lib/etcd" || s.ListenPeer != "http://127.0.0.1:2380" || s.ListenClient[0] != "http://127.0.0.1:2379" {
		t.Errorf("%+v", s)
	}
	for i, name := range []string{"auto-compaction-retention", "log-outputs", "logger", "snapshot-count", "strict-reconfig-check"} {
		if i >= len(s.Notes) || !strings.HasPrefix(s.Notes[i], "--"+name+" has no effect: ") {
			t.Errorf("no note about --%s: %q", name, s.Notes)
		}
	}
}

// TestEtcdsFile: etcd's configuration file works, with its sections.
func TestEtcdsFile(t *testing.T) {
	s, err := load(t, "", "", `
name: n1
data-dir: /var/lib/etcd
listen-client-urls: https://127.0.0.1:2379
advertise-client-urls: https://127.0.0.1:2379
listen-peer-urls: https://127.0.0.1:2380
initial-advertise-peer-urls: https://127.0.0.1:2380
initial-cluster: n1=https://127.0.0.1:2380
initial-cluster-state: new
client-transport-security:
  cert-file: server.crt
  key-file: server.key
  client-cert-auth: true
  trusted-ca-file: ca.crt
peer-transport-security:
  cert-file: peer.crt
  key-file: peer.key
  client-cert-auth: true
  trusted-ca-file: ca.crt
`)
	if err != nil {
		t.Fatal(err)
	}
	if s.TLSCertFile != "server.crt" || s.PeerCertFile != "peer.crt" || s.PeerCAFile != "ca.crt" || s.TLSClientAuth != "require" {
		t.Errorf("%+v", s)
	}
}

// TestKubeadmsEtcd: the flags that kubeadm passes to etcd work, here with variables
// for two of them.
func TestKubeadmsEtcd(t *testing.T) {
	s, err := load(t, `--advertise-client-urls=https://10.0.0.1:2379 --cert-file=s.crt --client-cert-auth=true --data-dir=/var/lib/etcd
		--feature-gates=InitialCorruptCheck=true --initial-advertise-peer-urls=https://10.0.0.1:2380 --initial-cluster=node=https://10.0.0.1:2380
		--listen-client-urls=https://127.0.0.1:2379,https://10.0.0.1:2379 --listen-metrics-urls=http://127.0.0.1:2381 --listen-peer-urls=https://10.0.0.1:2380
		--name=node --peer-cert-file=p.crt --peer-client-cert-auth=true --peer-trusted-ca-file=ca.crt --snapshot-count=10000 --trusted-ca-file=ca.crt
		--watch-progress-notify-interval=5s`, "KVD_KEY_FILE=s.key KVD_PEER_KEY_FILE=p.key", "")
	if err != nil {
		t.Fatal(err)
	}
	if s.TLSKeyFile != "s.key" || s.TLSClientAuth != "require" || s.PeerCAFile != "ca.crt" || len(s.ListenClient) != 2 || len(s.ListenMetrics) != 1 || s.ID != 1 {
		t.Errorf("%+v", s)
	}
}

// TestKubespraysEtcd: the variables of Kubespray's etcd.env, work under kvd's prefix.
func TestKubespraysEtcd(t *testing.T) {
	s, err := load(t, "", `KVD_DATA_DIR=/var/lib/etcd KVD_ADVERTISE_CLIENT_URLS=https://10.0.0.1:2379 KVD_INITIAL_ADVERTISE_PEER_URLS=https://10.0.0.1:2380
		KVD_INITIAL_CLUSTER_STATE=new KVD_METRICS=basic KVD_LISTEN_CLIENT_URLS=https://10.0.0.1:2379,https://127.0.0.1:2379 KVD_ELECTION_TIMEOUT=5000
		KVD_HEARTBEAT_INTERVAL=250 KVD_INITIAL_CLUSTER_TOKEN=k8s_etcd KVD_LISTEN_PEER_URLS=https://10.0.0.1:2380 KVD_NAME=etcd1 KVD_PROXY=off
		KVD_INITIAL_CLUSTER=etcd1=https://10.0.0.1:2380 KVD_AUTO_COMPACTION_RETENTION=8 KVD_SNAPSHOT_COUNT=10000 KVD_TRUSTED_CA_FILE=ca.pem
		KVD_CERT_FILE=m.pem KVD_KEY_FILE=m-key.pem KVD_CLIENT_CERT_AUTH=true KVD_PEER_TRUSTED_CA_FILE=ca.pem KVD_PEER_CERT_FILE=m.pem
		KVD_PEER_KEY_FILE=m-key.pem KVD_PEER_CLIENT_CERT_AUTH=True`, "")
	if err != nil {
		t.Fatal(err)
	}
	if s.ID != 1 || s.PeerKeyFile != "m-key.pem" || s.TLSClientAuth != "require" || s.Election.String() != "5s" || len(s.Notes) != 5 {
		t.Errorf("%+v", s)
	}
}

// TestRefusedNames: every refused name is reported with its reason, from each
// origin, with and without a value.
func TestRefusedNames(t *testing.T) {
	for _, r := range refusals {
		for _, name := range r.names {
			for _, from := range []struct{ args, env, file, origin string }{
				{args: "--" + name},
				{args: "--" + name + "=false"},
				{args: "-" + name + " /some/path"},
				{env: envName(name) + "=off", origin: " (from environment variable " + envName(name) + ")"},
				{file: name + ": 0\n", origin: ":1)"},
				{file: "{\"" + name + "\": true}", origin: ":1)"},
			} {
				_, err := load(t, from.args, from.env, from.file)
				if err == nil {
					t.Errorf("%+v: accepted", from)
					continue
				}
				got := err.Error()
				if !strings.HasPrefix(got, "--"+name) || !strings.Contains(got, from.origin+" is not supported: "+r.reason) {
					t.Errorf("%+v: %v", from, err)
				}
				if hint := "; did you mean " + r.instead + "?"; (r.instead != "") != strings.HasSuffix(got, hint) {
					t.Errorf("%+v: want the hint %q in %q", from, hint, got)
				}
			}
		}
	}
}

// TestRefusedWithOthers: a refused name does not hide other problems, and the
// sections of etcd's file lead to it too.
func TestRefusedWithOthers(t *testing.T) {
	_, err := load(t, "--unsafe-no-fsync --wal-dir /fast --quota many", "KVD_CORS=*",
		"peer-transport-security:\n  auto-tls: true\n  allowed-cn: member\nproxy: readonly\n")
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		"--unsafe-no-fsync is not supported: an acknowledged write is always on the disks of a majority\n",
		"--wal-dir is not supported: the log stays in the data directory, with the state that it belongs to; did you mean --data-dir?",
		"--cors (from environment variable KVD_CORS) is not supported",
		"kvd.yaml:2) is not supported: " + ownCertificate + "; did you mean --peer-cert-file?",
		"--peer-cert-allowed-cn (from ", `"readonly" is not supported: every node serves every request`,
		`"many"`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in\n%v", want, err)
		}
	}
}

// TestJSONFile: JSON works too, even with tabs, which YAML itself does not allow.
func TestJSONFile(t *testing.T) {
	s, err := load(t, "", "", `{
	"quota": "1GiB", "advertise-client": ["http://a:1"], "root-members": false}`)
	if err != nil || s.QuotaBytes != 1<<30 || s.RootMembers {
		t.Errorf("%+v %v", s, err)
	}
}

// TestNamesAreUnique: no name means two things, and each alias leads to a setting.
func TestNamesAreUnique(t *testing.T) {
	seen := make(map[string]bool)
	for _, name := range allNames() {
		if seen[name] {
			t.Errorf("%s appears twice", name)
		}
		seen[name] = true
	}
	for _, a := range aliases {
		if settingNamed(a.setting) == nil {
			t.Errorf("%s stands for %s, which is not a setting", a.name, a.setting)
		}
	}
	for _, i := range ignoredNames {
		if i.reason == "" {
			t.Errorf("%s has no reason", i.name)
		}
	}
	for _, r := range refusals {
		if r.reason == "" || len(r.names) == 0 {
			t.Errorf("%v is refused without a reason", r.names)
		}
		for word := range strings.FieldsSeq(r.instead) {
			if name, ok := strings.CutPrefix(word, "--"); ok && settingNamed(name) == nil {
				t.Errorf("%v: --%s is not a setting", r.names, name)
			}
		}
	}
}

// TestConfigurationPage compares docs/configuration.md with the tables and loads its
// examples. -update writes the tables.
func TestConfigurationPage(t *testing.T) {
	const page, begin, end = "../../docs/configuration.md", "<!-- settings:begin -->\n", "<!-- settings:end -->"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(text), begin)
	tables, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatal("the page has no markers")
	}
	if *update {
		if err := os.WriteFile(page, []byte(head+begin+Reference()+end+tail), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if tables != Reference() {
		t.Error("docs/configuration.md is out of date; update it with: go test ./internal/settings -run ConfigurationPage -update")
	}
	examples := strings.Split(head+tail, "```yaml\n")[1:]
	if len(examples) == 0 {
		t.Error("no example")
	}
	for _, e := range examples {
		e, _, _ = strings.Cut(e, "```")
		if _, err := load(t, "", "", e); err != nil {
			t.Errorf("the example\n%s\n%v", e, err)
		}
	}
}

// FuzzFile: no file makes the parsers panic, and they accept what they show for
// anything that they accepted (L4).
func FuzzFile(f *testing.F) {
	f.Add("quota: 1GiB\n", "listen-client", "http://127.0.0.1:1,unix:///x")
	f.Add("{\"a\": [1, {}]}", "cluster", "n1=http://a:1,http://b:2")
	f.Add("peer-transport-security:\n  cert-file: x\n", "join", "true")
	f.Add("a: &a [*a]\n", "heartbeat-interval", "5")
	f.Fuzz(func(t *testing.T, file, name, text string) {
		layer, _ := parseFile("file", []byte(file))
		_, _ = Resolve(Layer{name: Given{Text: text, Origin: "fuzz"}}, layer)
		row := settingNamed(name)
		if row == nil {
			return
		}
		var s, again Settings
		if row.store(&s, text) != nil {
			return
		}
		shown := row.show(&s)
		if shown == "" {
			return
		}
		if err := row.store(&again, shown); err != nil || row.show(&again) != shown {
			t.Errorf("%s: %q is shown as %q, which is %v, shown as %q", name, text, shown, err, row.show(&again))
		}
	})
}
