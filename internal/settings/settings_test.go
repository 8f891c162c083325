package settings

import (
	"crypto/tls"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/zap/zapcore"
)

// settingsOf resolves a command line and an environment as a node does.
func settingsOf(t *testing.T, args, environ []string) (*Settings, error) {
	t.Helper()
	flags := pflag.NewFlagSet("kvd", pflag.ContinueOnError)
	AddFlags(flags)
	if err := flags.Parse(NormaliseArguments(args)); err != nil {
		return nil, err
	}
	env, err := EnvLayer(environ)
	if err != nil {
		return nil, err
	}
	return Resolve(FlagLayer(flags), env)
}

const (
	peer1 = "http://127.0.0.1:12379"
	peer2 = "http://127.0.0.1:22379"
	peer3 = "http://127.0.0.1:32379"
	three = peer1 + "," + peer2 + "," + peer3
)

func words(line string) []string { return strings.Fields(line) }

func TestDefaults(t *testing.T) {
	got, err := settingsOf(t, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := &Settings{
		ID: 1, Name: "kvd1", DataDir: "kvd-data/1", Engine: "pebble",
		Cluster: []Member{{URL: peer1}}, ClusterToken: "kvd",
		ListenClient: []string{"http://127.0.0.1:12380"}, ListenPeer: peer1,
		AdvertiseClient: []string{"http://127.0.0.1:12380"}, AdvertisePeer: []string{peer1},
		RootMembers: true, Dialects: []string{"raftexample"}, UI: "on", QuotaBytes: 8 << 30, MaxValueBytes: 1536 << 10, CheckpointBytes: 64 << 20, CatchUpBytes: 16 << 20,
		ScrubInterval: 7 * 24 * time.Hour, Heartbeat: 100 * time.Millisecond, Election: time.Second,
		MaxConnections: 10000, MaxInFlight: 4096, MaxWatches: 10000, MaxRequestBytes: 1536 << 10, MaxTxnOps: 128, MaxLearners: 1, WatchProgress: 10 * time.Minute, TLSClientAuth: "off", TLSMinVersion: tls.VersionTLS12,
		AuthToken: "simple", AuthCertUser: "cn", AuthLocalRoot: true, AuthTokenTTL: 5 * time.Minute, BcryptCost: 10, AuditMaxSize: 100 << 20, AuditMaxBackups: 10, AuditKeys: "plain",
		LogLevel: zapcore.InfoLevel, RequestLog: "off", Given: Layer{},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if got.ElectionTicks() != 10 {
		t.Errorf("%d ticks", got.ElectionTicks())
	}
}

func TestSettings(t *testing.T) {
	for _, c := range []struct {
		name, args, env string
		check           func(s *Settings) bool
	}{
		{"raftexample's first node", "--id 1 --cluster " + three + " --port 12380", "", func(s *Settings) bool {
			return s.ID == 1 && len(s.Cluster) == 3 && s.ListenPeer == peer1 && reflect.DeepEqual(s.ListenClient, []string{"http://127.0.0.1:12380"}) && !s.Join
		}},
		{"the third node listens on its own URL", "--id 3 --cluster " + three + " --port 32380", "", func(s *Settings) bool {
			return s.ListenPeer == peer3 && reflect.DeepEqual(s.AdvertisePeer, []string{peer3}) && s.DataDir == "kvd-data/3" && s.Name == "kvd3"
		}},
		{"raftexample's join", "--id 3 --cluster " + three + " --port 32380 --join", "", func(s *Settings) bool {
			return s.Join && len(s.JoinURLs) == 0 && s.ID == 3
		}},
		{"join as a switch before another flag", "--join --id 3 --cluster " + three, "", func(s *Settings) bool { return s.Join && s.ID == 3 }},
		{"single dashes", "-id 2 -cluster " + three + " -port=22380 -join", "", func(s *Settings) bool {
			return s.ID == 2 && reflect.DeepEqual(s.ListenClient, []string{"http://127.0.0.1:22380"}) && s.Join
		}},
		{"self-join", "--join " + peer2 + "," + peer3 + " --data-dir d --listen-peer http://127.0.0.1:42379", "", func(s *Settings) bool {
			return !s.Join && reflect.DeepEqual(s.JoinURLs, []string{peer2, peer3}) && s.ID == 0 && s.Name == "" && len(s.Cluster) == 0 &&
				reflect.DeepEqual(s.AdvertisePeer, []string{"http://127.0.0.1:42379"})
		}},
		{"self-join with an id", "-join " + peer2 + " -id 7", "", func(s *Settings) bool { return s.ID == 7 && s.DataDir == "kvd-data/7" }},
		{"join switched off", "--join=false", "", func(s *Settings) bool { return !s.Join && s.ID == 1 }},
		{"environment", "", "KVD_PORT=7000 KVD_DATA_DIR=/d KVD_ROOT_MEMBERS=off KVD_LOG_LEVEL=debug", func(s *Settings) bool {
			return reflect.DeepEqual(s.ListenClient, []string{"http://127.0.0.1:7000"}) && s.DataDir == "/d" && !s.RootMembers && s.LogLevel == zapcore.DebugLevel
		}},
		{"flag over environment", "--name a --quota 1MiB", "KVD_NAME=b KVD_QUOTA=2MiB KVD_ENGINE=memory", func(s *Settings) bool {
			return s.Name == "a" && s.QuotaBytes == 1<<20 && s.Engine == "memory" && s.Given["name"].Origin == "flag --name" &&
				s.Given["engine"].Origin == "environment variable KVD_ENGINE"
		}},
		{"join from the environment", "--data-dir d", "KVD_JOIN=" + peer2, func(s *Settings) bool { return reflect.DeepEqual(s.JoinURLs, []string{peer2}) }},
		{"the bare PORT is somebody else's", "", "PORT=5000", func(s *Settings) bool { return reflect.DeepEqual(s.ListenClient, []string{DefaultClientURL}) }},
		{"an empty variable is none", "", "KVD_NAME=", func(s *Settings) bool { return s.Name == "kvd1" }},
		{"service links of Kubernetes", "", "KVD_SERVICE_HOST=10.0.0.1 KVD_SERVICE_PORT=80 KVD_SERVICE_PORT_HTTP=80 KVD_PORT=tcp://10.0.0.1:80 " +
			"KVD_PORT_80_TCP=tcp://10.0.0.1:80 KVD_PORT_80_TCP_ADDR=10.0.0.1 KVD_CLIENT_PORT=tcp://10.0.0.2:80", func(s *Settings) bool {
			return reflect.DeepEqual(s.ListenClient, []string{DefaultClientURL}) && len(s.Given) == 0
		}},
		{"all addresses", "--listen-client http://0.0.0.0:80", "", func(s *Settings) bool { return len(s.AdvertiseClient) == 0 }},
		{"hosts in capitals", "--id 1 --cluster http://LOCALHOST:1,HTTP://Localhost:2 --listen-peer http://localHost:1", "", func(s *Settings) bool {
			return s.ListenPeer == "http://localhost:1" && s.Cluster[0].URL == s.ListenPeer && reflect.DeepEqual(s.AdvertisePeer, []string{s.ListenPeer})
		}},
		{"all addresses for peers", "--cluster http://kvd-0.kvd:1 --listen-peer http://[::]:1 --insecure-peers", "", func(s *Settings) bool {
			return s.ListenPeer == "http://[::]:1" && reflect.DeepEqual(s.AdvertisePeer, []string{"http://kvd-0.kvd:1"})
		}},
		{"a value that looks like a flag", "--name -id", "", func(s *Settings) bool { return s.Name == "-id" && s.ID == 1 }},
		{"the same said twice", "--port 7000 --listen-client http://127.0.0.1:7000/", "", func(s *Settings) bool { return reflect.DeepEqual(s.ListenClient, []string{"http://127.0.0.1:7000"}) }},
		{"the page on loopback and a socket", "--listen-client http://localhost:1,unix:///run/k.sock", "", func(s *Settings) bool { return s.UI == "on" }},
		{"the page beyond loopback", "--listen-client http://127.0.0.1:1,http://10.0.0.1:1", "", func(s *Settings) bool { return s.UI == "read" }},
		{"the page on all addresses", "--listen-client http://0.0.0.0:80", "", func(s *Settings) bool { return s.UI == "read" }},
		{"the page as given", "--listen-client http://0.0.0.0:80 --ui on", "KVD_UI=off", func(s *Settings) bool { return s.UI == "on" }},
		{"a bare number of seconds, as in etcd", "--auth-token-ttl 300 --bcrypt-cost 12 --auth-token simple", "", func(s *Settings) bool {
			return s.AuthTokenTTL == 5*time.Minute && s.BcryptCost == 12
		}},
		{"tokens of others, as in etcd", "--auth-token jwt,pub-key=a.crt,priv-key=a.key,sign-method=RS256,ttl=3s", "", func(s *Settings) bool {
			j, err := ParseJWT(s.AuthToken)
			return err == nil && j == JWT{Method: "RS256", KeyFile: "a.crt", TTL: 3 * time.Second} && s.AuthTokenTTL == 3*time.Second
		}},
		{"tokens of others, by a private key", "--auth-token jwt,priv-key=a.key,sign-method=ES256,ttl=3s --auth-token-ttl 1m", "", func(s *Settings) bool {
			j, err := ParseJWT(s.AuthToken)
			return err == nil && j.KeyFile == "a.key" && s.AuthTokenTTL == time.Minute
		}},
		{"exposed listeners", "--listen-client http://10.0.0.1:1,unix:///run/k.sock,http://127.0.0.1:1 --listen-etcd http://0.0.0.0:2 --listen-metrics http://10.0.0.1:3", "", func(s *Settings) bool {
			return slices.Equal(s.Exposed(), []string{"http://10.0.0.1:1", "http://0.0.0.0:2", "http://10.0.0.1:3"})
		}},
		{"no quota", "--quota 0", "", func(s *Settings) bool { return s.QuotaBytes == 0 }},
		{"bare numbers are milliseconds", "--heartbeat-interval 50 --election-timeout 500", "", func(s *Settings) bool {
			return s.Heartbeat == 50*time.Millisecond && s.Election == 500*time.Millisecond
		}},
		{"named members", "--name b --cluster a=" + peer1 + ",b=" + peer2, "", func(s *Settings) bool {
			return s.ID == 2 && s.ListenPeer == peer2 && s.Cluster[0] == Member{"a", peer1}
		}},
		{"a named member by its id", "--id 1 --cluster a=" + peer1 + ",b=" + peer2, "", func(s *Settings) bool { return s.Name == "a" }},
		{"one named member", "--cluster a=" + peer1, "", func(s *Settings) bool { return s.ID == 1 && s.Name == "a" }},
		{"secured for clients", "--listen-client https://0.0.0.0:1,http://127.0.0.1:2 --tls-cert-file c --tls-key-file k --tls-min-version 1.3", "", func(s *Settings) bool {
			return s.TLSCertFile == "c" && s.TLSKeyFile == "k" && s.TLSClientAuth == "off" && s.TLSMinVersion == tls.VersionTLS13 && len(s.AdvertiseClient) == 1
		}},
		{"a CA asks clients for certificates", "--listen-client https://0.0.0.0:1 --tls-cert-file c --tls-key-file k --tls-ca-file a --tls-crl-file r", "", func(s *Settings) bool {
			return s.TLSClientAuth == "require" && s.TLSCAFile == "a" && s.TLSCRLFile == "r"
		}},
		{"certificates of clients are optional", "--listen-client https://0.0.0.0:1 --tls-cert-file c --tls-key-file k --tls-ca-file a --tls-client-auth optional", "", func(s *Settings) bool {
			return s.TLSClientAuth == "request"
		}},
		{"secured peers", "--listen-peer https://10.0.0.1:1 --peer-cert-file c --peer-key-file k --peer-ca-file a", "", func(s *Settings) bool {
			return s.PeerCertFile == "c" && s.PeerKeyFile == "k" && s.PeerCAFile == "a" && !s.InsecurePeers
		}},
		{"insecure peers", "--listen-peer http://10.0.0.1:1 --insecure-peers", "", func(s *Settings) bool { return s.InsecurePeers }},
		{"a switch before a flag", "--insecure-peers --pprof true --listen-metrics http://127.0.0.1:1", "", func(s *Settings) bool { return s.InsecurePeers && s.Pprof }},
		{"sockets", "--listen-client unix:///run/kvd.sock,http://127.0.0.1:1 --listen-metrics unix:///run//m.sock", "", func(s *Settings) bool {
			return reflect.DeepEqual(s.AdvertiseClient, []string{"http://127.0.0.1:1"}) && s.ListenMetrics[0] == "unix:///run/m.sock"
		}},
		{"only a socket", "--listen-client unix:///run/kvd.sock", "", func(s *Settings) bool { return len(s.AdvertiseClient) == 0 }},
		{"any free port twice", "--listen-client http://127.0.0.1:0 --listen-peer http://127.0.0.1:0", "", func(s *Settings) bool { return true }},
		{"limits", "--max-connections 0 --max-inflight 1 --max-watches 2 --request-log errors", "", func(s *Settings) bool {
			return s.MaxConnections == 0 && s.MaxInFlight == 1 && s.MaxWatches == 2 && s.RequestLog == "errors"
		}},
		{"uneven timing", "--heartbeat-interval 30ms --election-timeout 200ms", "", func(s *Settings) bool { return s.ElectionTicks() == 7 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := settingsOf(t, words(c.args), words(c.env))
			if err != nil {
				t.Fatal(err)
			}
			if !c.check(s) {
				t.Errorf("got %+v", s)
			}
		})
	}
}

func TestWrongSettings(t *testing.T) {
	for _, c := range []struct {
		name, args, env string
		want            []string // all of them in the error
	}{
		{"unknown variable", "", "KVD_DATADIR=x KVD_FOO=y", []string{"KVD_DATADIR is not a setting; did you mean KVD_DATA_DIR?", "KVD_FOO is not a setting; see kvd --help-all"}},
		{"bad value names the variable", "", "KVD_ID=x", []string{"--id (from environment variable KVD_ID)", `"x"`}},
		{"bad value of a flag", "--id 0", "", []string{"--id: ", `"0"`}},
		{"several at once", "--id x --quota y --log-level loud", "KVD_ENGINE=paper", []string{"--id", "--quota", "--log-level", "--engine (from environment variable KVD_ENGINE)"}},
		{"catch-up beyond its limit", "--catch-up-bytes 5GiB", "", []string{"--catch-up-bytes", "4GiB"}},
		{"several contradictions at once", "--max-value-bytes 1GiB --heartbeat-interval 1s", "", []string{"--max-value-bytes", "--election-timeout (default)"}},
		{"id beyond the cluster", "--id 4 --cluster " + three, "", []string{"--id is 4, but the last member in --cluster is 3"}},
		{"cluster without an id", "--cluster " + three, "", []string{"--cluster has 3 members", "--id"}},
		{"two client ports", "--port 1", "KVD_LISTEN_CLIENT=http://127.0.0.1:2", []string{"--port means http://127.0.0.1:1", "--listen-client (from environment variable KVD_LISTEN_CLIENT) is http://127.0.0.1:2"}},
		{"join URL and cluster", "--join " + peer2 + " --id 1 --cluster " + three, "", []string{"--join", "cannot be combined with --cluster"}},
		{"join switch without cluster", "--join --id 1", "", []string{"--join without a value needs --cluster"}},
		{"self-join without a directory", "--join " + peer2, "", []string{"--data-dir"}},
		{"join without a scheme", "--join localhost:4001 --data-dir d", "", []string{"--join", "localhost:4001"}},
		{"peers cannot reach all addresses", "--listen-peer http://0.0.0.0:1", "", []string{"http://0.0.0.0:1", "--advertise-peer"}},
		{"own URL not advertised", "--id 1 --cluster " + three + " --advertise-peer http://127.0.0.1:9", "", []string{peer1, "--advertise-peer does not contain it"}},
		{"one port for both", "--port 12379", "", []string{"is used by both", "12379"}},
		{"a member twice", "--id 1 --cluster " + peer1 + "," + peer1, "", []string{"--cluster", "listed twice"}},
		{"another scheme", "--listen-client ftp://127.0.0.1:1", "", []string{"--listen-client", "http://"}},
		{"path in a URL", "--listen-client http://127.0.0.1:1/x", "", []string{"more than a scheme, a host, and a port"}},
		{"no port in a URL", "--listen-client http://127.0.0.1", "", []string{"has no host or no port"}},
		{"some named", "--id 1 --cluster a=" + peer1 + "," + peer2, "", []string{"--cluster", "others do not"}},
		{"a name twice", "--id 1 --cluster a=" + peer1 + ",a=" + peer2, "", []string{"--cluster", "listed twice"}},
		{"name outside the list", "--name c --cluster a=" + peer1 + ",b=" + peer2, "", []string{"--name is \"c\"", "not in --cluster"}},
		{"name against id", "--id 1 --name b --cluster a=" + peer1 + ",b=" + peer2, "", []string{"--name is \"b\"", "member 1 of --cluster is named \"a\""}},
		{"named list without a name", "--cluster a=" + peer1 + ",b=" + peer2, "", []string{"--name (or --id)"}},
		{"https without a certificate", "--listen-client https://127.0.0.1:1", "", []string{"--listen-client", "--tls-cert-file"}},
		{"certificate without https", "--tls-cert-file c --tls-key-file k", "", []string{"--listen-client (default)", "--tls-cert-file"}},
		{"certificate without a key", "--listen-client https://127.0.0.1:1 --tls-cert-file c", "", []string{"--tls-cert-file needs --tls-key-file"}},
		{"key without a certificate", "--listen-client https://127.0.0.1:1 --tls-key-file k", "", []string{"--tls-key-file needs --tls-cert-file"}},
		{"CA without https", "--tls-ca-file c", "", []string{"--tls-ca-file"}},
		{"certificates by no CA", "--tls-client-auth require", "", []string{"--tls-client-auth is require", "--tls-ca-file"}},
		{"revoked by no CA", "--tls-crl-file r", "", []string{"--tls-crl-file", "--tls-ca-file"}},
		{"CA without use", "--listen-client https://127.0.0.1:1 --tls-cert-file c --tls-key-file k --tls-ca-file a --tls-client-auth off", "", []string{"--tls-ca-file has no effect", "--tls-client-auth is off"}},
		{"old TLS", "--tls-min-version 1.1", "", []string{"--tls-min-version", "1.2"}},
		{"peers in the clear", "--listen-peer http://10.0.0.1:1", "", []string{"--listen-peer has http://10.0.0.1:1", "--peer-cert-file", "--insecure-peers"}},
		{"other peers in the clear", "--id 1 --cluster " + peer1 + ",http://b:1", "", []string{"--cluster has http://b:1", "--insecure-peers"}},
		{"secured peers without all three", "--listen-peer https://127.0.0.1:1 --peer-key-file k", "", []string{"--peer-cert-file is missing", "--peer-ca-file is missing"}},
		{"peer certificate without https", "--peer-cert-file c --peer-key-file k --peer-ca-file a", "", []string{"--peer-cert-file has no effect", "--listen-peer"}},
		{"half secured", "--listen-peer https://127.0.0.1:1 --advertise-peer http://127.0.0.1:1 --peer-cert-file c --peer-key-file k --peer-ca-file a", "", []string{"--listen-peer is https", "--advertise-peer is http:"}},
		{"profiles without a listener", "--pprof", "", []string{"--pprof needs --listen-metrics"}},
		{"metrics with TLS", "--listen-metrics https://127.0.0.1:1", "", []string{"--listen-metrics", "does not support TLS"}},
		{"metrics on the client port", "--listen-metrics http://127.0.0.1:12380", "", []string{"--listen-metrics", "is used by both"}},
		{"relative socket", "--listen-client unix://kvd.sock", "", []string{"--listen-client", "absolute path"}},
		{"long socket", "--listen-client unix:///" + strings.Repeat("x", 107), "", []string{"--listen-client", "108 bytes"}},
		{"peers on a socket", "--listen-peer unix:///x", "", []string{"--listen-peer", "is not a URL"}},
		{"no watches", "--max-watches 0", "", []string{"--max-watches is 0"}},
		{"no requests", "--max-inflight 0", "", []string{"--max-inflight is 0"}},
		{"tiny quota", "--quota 1", "", []string{"--quota", "at least 1MiB"}},
		{"bad unit", "--heartbeat-interval 100m5", "", []string{"--heartbeat-interval", "500ms"}},
		{"election too short", "--election-timeout 300ms", "", []string{"--election-timeout is 300ms", "5 times"}},
		{"election too long", "--election-timeout 2m", "", []string{"--election-timeout is 2m0s", "at most"}},
		{"logins for days", "--auth-token-ttl 48h", "", []string{"--auth-token-ttl is 48h0m0s", "24h0m0s"}},
		{"logins for hours of work", "--bcrypt-cost 31", "", []string{"--bcrypt-cost is 31", "4 to 14"}},
		{"strict about nothing", "--audit-strict", "", []string{"--audit-strict has no effect without --audit-log"}},
		{"a tiny audit log", "--audit-log a --audit-log-max-size 1KiB", "", []string{"--audit-log-max-size", "at least 1MiB"}},
		{"audit keys", "--audit-log a --audit-keys hidden", "", []string{"--audit-keys", "plain, hashed, off"}},
		{"tokens of others without a method", "--auth-token jwt,pub-key=k", "", []string{"--auth-token", "sign-method"}},
		{"tokens of others without a key", "--auth-token jwt,sign-method=RS256", "", []string{"--auth-token", "pub-key"}},
		{"tokens of others with an unknown option", "--auth-token jwt,sign-method=RS256,pub-key=k,kid=1", "", []string{"--auth-token", "kid=1"}},
		{"tokens of another kind", "--auth-token opaque", "", []string{"--auth-token", "opaque", "simple"}},
		{"logins that others would keep for days", "--auth-token jwt,sign-method=RS256,pub-key=k,ttl=48h", "", []string{"48h0m0s", "24h0m0s"}},
		{"empty value", "--name=", "", []string{"--name: the value is empty"}},
		{"unknown flag", "--nmae x", "", []string{"nmae"}},
		{"port range", "--port 65536", "", []string{"--port", "65535"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := settingsOf(t, words(c.args), words(c.env))
			if err == nil {
				t.Fatal("no error")
			}
			for _, part := range c.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("the error does not say %q:\n%v", part, err)
				}
			}
		})
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1048576": 1 << 20, "512KiB": 512 << 10, "1.5MiB": 3 << 19, "8GiB": 8 << 30, "2TiB": 2 << 40, "10MB": 1e7, "7B": 7, "3 kB": 3000, "64Mi": 64 << 20, "9223372036854775807": math.MaxInt64,
	} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%s: got %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "-1", "x", "1XB", "MiB", "-1KiB", "99999999TiB", "NaNMiB", "1,000", "9223372036854775808", "1e3"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q gives %d", text, got)
		}
	}
}

func TestNormaliseArguments(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"-id 1", "--id 1"},
		{"--join " + peer1, "--join=" + peer1},
		{"-join", "--join"},
		{"--join --id 1", "--join --id 1"},
		{"--join=x y", "--join=x y"},
		{"-h", "-h"},
		{"doctor -id", "doctor --id"},
		{"--name --join x", "--name --join x"},
		{"-- -id 1", "-- -id 1"},
		{"--unknown -join", "--unknown --join"},
		{"-id", "--id"},
	} {
		if got := NormaliseArguments(words(c.in)); !slices.Equal(got, words(c.want)) {
			t.Errorf("%s: got %v", c.in, got)
		}
	}
}

// TestTableIsComplete: each setting is a flag with a text, and no two settings
// share a name.
func TestTableIsComplete(t *testing.T) {
	flags := pflag.NewFlagSet("kvd", pflag.ContinueOnError)
	AddFlags(flags)
	help := flags.FlagUsages()
	seen := make(map[string]bool)
	for i := range table {
		row := &table[i]
		if seen[row.name] {
			t.Errorf("%s appears twice", row.name)
		}
		seen[row.name] = true
		if row.help == "" || !strings.Contains(help, "--"+row.name+" ") && !strings.Contains(help, "--"+row.name+"[") {
			t.Errorf("the help lacks %s", row.name)
		}
		if row.def != "" && row.store(&Settings{}, row.def) != nil {
			t.Errorf("%s refuses its default", row.name)
		}
	}
}

// TestOneMistakeIsOneProblem: a mistake is not reported a second time through what
// would have followed from the setting.
func TestOneMistakeIsOneProblem(t *testing.T) {
	for _, args := range []string{
		"--cluster " + three,
		"--name c --cluster a=" + peer1 + ",b=" + peer2,
		"--id 4 --cluster " + three,
		"--quota many --election-timeout 1ms",
		"--port 12379",
		"--listen-client https://127.0.0.1:1 --tls-cert-file c",
	} {
		_, err := settingsOf(t, words(args), nil)
		if err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: want one problem, got\n%v", args, err)
		}
	}
}

// TestHelpTexts: each text is a fragment that fits a line.
func TestHelpTexts(t *testing.T) {
	for i := range table {
		help := table[i].help
		if help == "" || len(help) > maxHelp || strings.HasSuffix(help, ".") {
			t.Errorf("%s: %d characters, want 1 to %d without a period: %q", table[i].name, len(help), maxHelp, help)
		}
		first, _, _ := strings.Cut(help, " ")
		if strings.ToUpper(first) != first && strings.ToLower(first[:1]) != first[:1] && first != "URLs" {
			t.Errorf("%s: a fragment begins with a small letter: %q", table[i].name, help)
		}
	}
}

// FuzzSettings: no text of any setting makes the parsers panic, and accepted settings
// have the addresses and the position in the cluster that a node needs.
func FuzzSettings(f *testing.F) {
	f.Add("id", "1", "cluster", three)
	f.Add("join", peer1, "data-dir", "d")
	f.Add("port", "0", "quota", "1e400TiB")
	f.Add("id", "3", "name", "")
	f.Add("listen-client", "http://[::1]:0", "listen-peer", "http://0.0.0.0:1")
	f.Fuzz(func(t *testing.T, name1, text1, name2, text2 string) {
		s, err := Resolve(Layer{name1: {text1, "fuzz"}, name2: {text2, "fuzz"}})
		if err != nil {
			return
		}
		if reflect.DeepEqual(s.ListenClient, []string{""}) || s.ListenPeer == "" || len(s.AdvertisePeer) == 0 || s.DataDir == "" || s.ElectionTicks() < minElectionBeat {
			t.Errorf("incomplete: %+v", s)
		}
		// A cluster of one has no list that its id is a position in.
		listed := s.Has("cluster")
		if len(s.JoinURLs) == 0 && (s.ID < 1 || len(s.Cluster) == 0 || listed && s.ID > uint64(len(s.Cluster))) {
			t.Errorf("no place in the cluster: %+v", s)
		}
	})
}

// TestAllowedHosts: names are compared in one spelling, and nothing else passes for one.
func TestAllowedHosts(t *testing.T) {
	s, err := load(t, "--allowed-hosts KVD.example.,kvd-1", "", "")
	if err != nil || !slices.Equal(s.AllowedHosts, []string{"kvd.example", "kvd-1"}) {
		t.Errorf("%v, %v", s, err)
	}
	for _, bad := range []string{"http://kvd.example", "kvd.example:80", "a,,b", "a,A.", "*", "kvd/x"} {
		if _, err := load(t, "--allowed-hosts "+bad, "", ""); err == nil || !strings.Contains(err.Error(), "allowed-hosts") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
