package sidebyside

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// TestEtcdctl compares command lines of etcdctl.
func TestEtcdctl(t *testing.T) { compare(t, "testdata/etcdctl.txt") }

// TestGateway compares requests to the JSON gateway, and to what surrounds it.
func TestGateway(t *testing.T) { compare(t, "testdata/gateway.txt") }

// compare runs a script against both servers at once.
func compare(t *testing.T, file string) {
	bin := os.Getenv("CONFORMANCE_BIN")
	if bin == "" {
		t.Skip("it needs what make conformance builds: CONFORMANCE_BIN names the directory")
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	steps, err := parse(string(text))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	targets := []*target{start(t, "etcd", buildEtcd(t), bin), start(t, "kvd", filepath.Join(bin, "etcd"), bin)}
	answers := make([][]string, len(targets))
	var running sync.WaitGroup
	for i, a := range targets {
		running.Go(func() {
			for _, s := range steps {
				answers[i] = append(answers[i], normalize(a.run(t.Context(), s.command)))
			}
		})
	}
	running.Wait()
	if os.Getenv("CONFORMANCE_UPDATE") != "" {
		if err := record(file, string(text), answers[0]); err != nil {
			t.Fatal(err)
		}
	}
	for i, s := range steps {
		t.Run(s.name(), func(t *testing.T) {
			if got := answers[0][i]; got != s.answer && os.Getenv("CONFORMANCE_UPDATE") == "" {
				t.Errorf("%s\netcd no longer answers as recorded; run with CONFORMANCE_UPDATE=1\n%s", s.command, differing(got, s.answer))
			}
			if got := answers[1][i]; got != answers[0][i] {
				t.Errorf("%s\n%s", s.command, differing(got, answers[0][i]))
			}
		})
	}
}

func differing(got, want string) string {
	return " got " + strings.ReplaceAll(got, "\n", "\n     ") + "\nwant " + strings.ReplaceAll(want, "\n", "\n     ")
}

// buildEtcd builds etcd's server.
func buildEtcd(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "etcd")
	cmd := exec.Command("go", "build", "-o", out, "go.etcd.io/etcd/server/v3")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build etcd: %v\n%s", err, text)
	}
	return out
}

// A script survives being written again.
func TestRecord(t *testing.T) {
	const text = "# about\n== one\n$ a\n\tx\n\ty\nPOST /p {}\n\n== two\n$ b\n\tz\n"
	steps, err := parse(text)
	if err != nil || len(steps) != 3 || steps[0].answer != "x\ny\n" || steps[2].name() != "two-01" {
		t.Fatalf("%+v, %v", steps, err)
	}
	var answers []string
	for _, s := range steps {
		answers = append(answers, s.answer)
	}
	file := filepath.Join(t.TempDir(), "script")
	if err := record(file, text, answers); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != text {
		t.Errorf("got %q, %v", got, err)
	}
}

// What makes answers equal does not make different ones equal.
func TestNormalize(t *testing.T) {
	for in, want := range map[string]string{
		"200 {\"header\":{\"cluster_id\":\"12\", \"member_id\":\"1\", \"revision\":\"7\"}}\n": "200 {\"header\":{\"cluster_id\":N,\"member_id\":N,\"revision\":\"7\"}}\n",
		`400 {"code":3,"message":"a \"b\"","error":"a \"b\""}`:                                `400 {"code":3,"message":"a \"b\""}` + "\n",
		"foo\nbar baz\n": "foo\nbar baz\n",
		"lease 694d7e5a1b2c3d4e granted with TTL(9s)\n": "lease LEASE granted with TTL(9s)\n",
		"1, started, default, http://127.0.0.1:1, x\n":  "MEMBER, started, default, http://ADDRESS, x\n",
	} {
		if got := normalize(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}
