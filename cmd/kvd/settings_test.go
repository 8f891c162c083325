package main

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/zap/zapcore"
)

// settingsOf resolves a command line and an environment as the daemon does.
func settingsOf(t *testing.T, args, environ []string) (*settings, error) {
	t.Helper()
	flags := pflag.NewFlagSet("kvd", pflag.ContinueOnError)
	addFlags(flags)
	if err := flags.Parse(normaliseArguments(args)); err != nil {
		return nil, err
	}
	env, err := envLayer(environ)
	if err != nil {
		return nil, err
	}
	return resolve(flagLayer(flags), env)
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
	want := &settings{
		id: 1, name: "kvd1", dataDir: "kvd-data/1", engine: "pebble",
		cluster: []string{peer1}, token: "kvd",
		listenClient: "http://127.0.0.1:12380", listenPeer: peer1,
		advertiseClient: []string{"http://127.0.0.1:12380"}, advertisePeer: []string{peer1},
		rootMembers: true, quotaBytes: 8 << 30, maxValueBytes: 1 << 20, checkpointBytes: 64 << 20, catchUpBytes: 32 << 20,
		heartbeat: 100 * time.Millisecond, election: time.Second,
		logLevel: zapcore.InfoLevel, given: map[string]given{},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if got.electionTicks() != 10 {
		t.Errorf("%d ticks", got.electionTicks())
	}
}

func TestSettings(t *testing.T) {
	for _, c := range []struct {
		name, args, env string
		check           func(s *settings) bool
	}{
		{"raftexample's first node", "--id 1 --cluster " + three + " --port 12380", "", func(s *settings) bool {
			return s.id == 1 && len(s.cluster) == 3 && s.listenPeer == peer1 && s.listenClient == "http://127.0.0.1:12380" && !s.join
		}},
		{"the third node listens on its own URL", "--id 3 --cluster " + three + " --port 32380", "", func(s *settings) bool {
			return s.listenPeer == peer3 && reflect.DeepEqual(s.advertisePeer, []string{peer3}) && s.dataDir == "kvd-data/3" && s.name == "kvd3"
		}},
		{"raftexample's join", "--id 3 --cluster " + three + " --port 32380 --join", "", func(s *settings) bool {
			return s.join && len(s.joinURLs) == 0 && s.id == 3
		}},
		{"join as a switch before another flag", "--join --id 3 --cluster " + three, "", func(s *settings) bool { return s.join && s.id == 3 }},
		{"single dashes", "-id 2 -cluster " + three + " -port=22380 -join", "", func(s *settings) bool {
			return s.id == 2 && s.listenClient == "http://127.0.0.1:22380" && s.join
		}},
		{"self-join", "--join " + peer2 + "," + peer3 + " --data-dir d --listen-peer http://127.0.0.1:42379", "", func(s *settings) bool {
			return !s.join && reflect.DeepEqual(s.joinURLs, []string{peer2, peer3}) && s.id == 0 && s.name == "" && len(s.cluster) == 0 &&
				reflect.DeepEqual(s.advertisePeer, []string{"http://127.0.0.1:42379"})
		}},
		{"self-join with an id", "-join " + peer2 + " -id 7", "", func(s *settings) bool { return s.id == 7 && s.dataDir == "kvd-data/7" }},
		{"join switched off", "--join=false", "", func(s *settings) bool { return !s.join && s.id == 1 }},
		{"environment", "", "KVD_PORT=7000 KVD_DATA_DIR=/d KVD_ROOT_MEMBERS=off KVD_LOG_LEVEL=debug", func(s *settings) bool {
			return s.listenClient == "http://127.0.0.1:7000" && s.dataDir == "/d" && !s.rootMembers && s.logLevel == zapcore.DebugLevel
		}},
		{"flag over environment", "--name a --quota 1MiB", "KVD_NAME=b KVD_QUOTA=2MiB KVD_ENGINE=memory", func(s *settings) bool {
			return s.name == "a" && s.quotaBytes == 1<<20 && s.engine == "memory" && s.given["name"].origin == "flag --name" &&
				s.given["engine"].origin == "environment variable KVD_ENGINE"
		}},
		{"join from the environment", "--data-dir d", "KVD_JOIN=" + peer2, func(s *settings) bool { return reflect.DeepEqual(s.joinURLs, []string{peer2}) }},
		{"the bare PORT is somebody else's", "", "PORT=5000", func(s *settings) bool { return s.listenClient == defaultClientURL }},
		{"an empty variable is none", "", "KVD_NAME=", func(s *settings) bool { return s.name == "kvd1" }},
		{"service links of Kubernetes", "", "KVD_SERVICE_HOST=10.0.0.1 KVD_SERVICE_PORT=80 KVD_SERVICE_PORT_HTTP=80 KVD_PORT=tcp://10.0.0.1:80 " +
			"KVD_PORT_80_TCP=tcp://10.0.0.1:80 KVD_PORT_80_TCP_ADDR=10.0.0.1 KVD_CLIENT_PORT=tcp://10.0.0.2:80", func(s *settings) bool {
			return s.listenClient == defaultClientURL && len(s.given) == 0
		}},
		{"all addresses", "--listen-client http://0.0.0.0:80", "", func(s *settings) bool { return len(s.advertiseClient) == 0 }},
		{"all addresses for peers", "--cluster http://kvd-0.kvd:1 --listen-peer http://[::]:1", "", func(s *settings) bool {
			return s.listenPeer == "http://[::]:1" && reflect.DeepEqual(s.advertisePeer, []string{"http://kvd-0.kvd:1"})
		}},
		{"a value that looks like a flag", "--name -id", "", func(s *settings) bool { return s.name == "-id" && s.id == 1 }},
		{"the same said twice", "--port 7000 --listen-client http://127.0.0.1:7000/", "", func(s *settings) bool { return s.listenClient == "http://127.0.0.1:7000" }},
		{"no quota", "--quota 0", "", func(s *settings) bool { return s.quotaBytes == 0 }},
		{"uneven timing", "--heartbeat-interval 30ms --election-timeout 200ms", "", func(s *settings) bool { return s.electionTicks() == 7 }},
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
		{"unknown variable", "", "KVD_DATADIR=x KVD_FOO=y", []string{"KVD_DATADIR names no setting; did you mean KVD_DATA_DIR?", "KVD_FOO names no setting"}},
		{"bad value names the variable", "", "KVD_ID=x", []string{"--id (from environment variable KVD_ID)", `"x"`}},
		{"bad value of a flag", "--id 0", "", []string{"--id: ", `"0"`}},
		{"several at once", "--id x --quota y --log-level loud", "KVD_ENGINE=paper", []string{"--id", "--quota", "--log-level", "--engine (from environment variable KVD_ENGINE)"}},
		{"catch-up beyond its limit", "--catch-up-bytes 5GiB", "", []string{"--catch-up-bytes", "4GiB"}},
		{"several contradictions at once", "--max-value-bytes 1GiB --heartbeat-interval 1s", "", []string{"--max-value-bytes", "--election-timeout (from default)"}},
		{"id beyond the cluster", "--id 4 --cluster " + three, "", []string{"--id is 4", "--cluster lists 3 URLs"}},
		{"id without a cluster", "--id 2", "", []string{"--id is 2", "--cluster"}},
		{"cluster without an id", "--cluster " + three, "", []string{"--cluster lists 3 URLs", "--id"}},
		{"two client ports", "--port 1", "KVD_LISTEN_CLIENT=http://127.0.0.1:2", []string{"--port means http://127.0.0.1:1", "--listen-client (from environment variable KVD_LISTEN_CLIENT) says http://127.0.0.1:2"}},
		{"join URL and cluster", "--join " + peer2 + " --id 1 --cluster " + three, "", []string{"--join", "--cluster has no meaning"}},
		{"join switch without cluster", "--join --id 1", "", []string{"--join alone needs --cluster"}},
		{"self-join without a directory", "--join " + peer2, "", []string{"--data-dir"}},
		{"join without a scheme", "--join localhost:4001 --data-dir d", "", []string{"--join", "localhost:4001"}},
		{"peers cannot reach all addresses", "--listen-peer http://0.0.0.0:1", "", []string{"http://0.0.0.0:1", "--advertise-peer"}},
		{"own URL not advertised", "--id 1 --cluster " + three + " --advertise-peer http://127.0.0.1:9", "", []string{peer1, "--advertise-peer does not have"}},
		{"one port for both", "--port 12379", "", []string{"clients and peers", "12379"}},
		{"a member twice", "--id 1 --cluster " + peer1 + "," + peer1, "", []string{"--cluster", "listed twice"}},
		{"https", "--listen-client https://127.0.0.1:1", "", []string{"--listen-client", "http://"}},
		{"path in a URL", "--listen-client http://127.0.0.1:1/x", "", []string{"more than scheme, host and port"}},
		{"no port in a URL", "--listen-client http://127.0.0.1", "", []string{"lacks the host or the port"}},
		{"tiny quota", "--quota 1", "", []string{"--quota", "at least 1MiB"}},
		{"no unit", "--heartbeat-interval 100", "", []string{"--heartbeat-interval", "500ms"}},
		{"election too short", "--election-timeout 300ms", "", []string{"--election-timeout is 300ms", "5 times"}},
		{"election too long", "--election-timeout 2m", "", []string{"--election-timeout is 2m0s", "at most"}},
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
		"0": 0, "1048576": 1 << 20, "512KiB": 512 << 10, "1.5MiB": 3 << 19, "8GiB": 8 << 30, "2TiB": 2 << 40, "10MB": 1e7, "7B": 7, "3 kB": 3000,
	} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%s: got %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "-1", "x", "1XB", "MiB", "-1KiB", "99999999TiB", "NaNMiB"} {
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
		if got := normaliseArguments(words(c.in)); !slices.Equal(got, words(c.want)) {
			t.Errorf("%s: got %v", c.in, got)
		}
	}
}

// TestTableIsComplete: the help names each variable, and no two settings share
// a name.
func TestTableIsComplete(t *testing.T) {
	flags := pflag.NewFlagSet("kvd", pflag.ContinueOnError)
	addFlags(flags)
	help := flags.FlagUsages()
	seen := make(map[string]bool)
	for i := range table {
		row := &table[i]
		if seen[row.name] {
			t.Errorf("%s is there twice", row.name)
		}
		seen[row.name] = true
		if !strings.Contains(help, "["+row.env()+"]") || !strings.Contains(help, "--"+row.name) {
			t.Errorf("the help lacks %s", row.name)
		}
		if row.def != "" && row.store(&settings{}, row.def) != nil {
			t.Errorf("%s refuses its default", row.name)
		}
	}
}

// FuzzSettings: no text of any setting makes the parser panic, and what it
// takes has the ports and the place that a node needs.
func FuzzSettings(f *testing.F) {
	f.Add("id", "1", "cluster", three)
	f.Add("join", peer1, "data-dir", "d")
	f.Add("port", "0", "quota", "1e400TiB")
	f.Add("listen-client", "http://[::1]:0", "listen-peer", "http://0.0.0.0:1")
	f.Fuzz(func(t *testing.T, name1, text1, name2, text2 string) {
		s, err := resolve(map[string]given{name1: {text1, "fuzz"}, name2: {text2, "fuzz"}})
		if err != nil {
			return
		}
		if s.listenClient == "" || s.listenPeer == "" || len(s.advertisePeer) == 0 || s.dataDir == "" || s.electionTicks() < minElectionBeat {
			t.Errorf("incomplete: %+v", s)
		}
		if len(s.joinURLs) == 0 && (s.id < 1 || s.id > uint64(len(s.cluster))) {
			t.Errorf("no place in the cluster: %+v", s)
		}
	})
}
