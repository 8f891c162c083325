package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/loadgen"
)

// TestBench drives a real node with every kind of load.
func TestBench(t *testing.T) {
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p := startNode(t, log)
	p.awaitReady(t)
	for _, args := range [][]string{
		{"put"}, {"put", "--sequential"}, {"get"}, {"get", "--consistency", "stale", "--to", "all"}, {"mixed"}, {"batch", "--lines", "10"},
	} {
		var stdout, stderr bytes.Buffer
		args = append(append([]string{"bench"}, args...), "--endpoints", p.client, "--connections", "3", "--key-space", "50", "--count", "300", "--output", "json")
		if code := run(environment{args: args, stdout: &stdout, stderr: &stderr}); code != exitOK {
			t.Errorf("%v: exit code %d: %s", args, code, stderr.String())
			continue
		}
		var r benchResult
		if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		if r.Operations < 300 || len(r.Errors) > 0 || r.Rate <= 0 || r.Max < r.P50 {
			t.Errorf("%v: %+v", args, r)
		}
	}
}

// TestBenchFailures: failures are reported by their codes, and do not count as
// a result.
func TestBenchFailures(t *testing.T) {
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p := startNode(t, log)
	p.awaitReady(t)
	for _, c := range []struct {
		args string
		want []string // in the output
	}{
		{"get --no-prepare --warmup 0s --duration 200ms", []string{"errors: 404 key_not_found: ", "no operation succeeded"}},
		{"put --value-size 1048577 --warmup 0s --duration 200ms", []string{"errors: 413 too_large: ", "no operation succeeded"}},
		{"batch --value-size 1048577 --lines 2 --warmup 0s --duration 200ms", []string{"errors: 413 too_large: ", "no operation succeeded"}},
		{"get --value-size 1048577", []string{"write keys: the node returned 413 too_large"}},
	} {
		var out bytes.Buffer
		args := append([]string{"bench"}, strings.Fields(c.args)...)
		args = append(args, "--endpoints", p.client, "--connections", "2", "--key-space", "10")
		if code := run(environment{args: args, stdout: &out, stderr: &out}); code != exitFailed {
			t.Errorf("%s: exit code %d", c.args, code)
		}
		for _, want := range c.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: %q lacks %q", c.args, out.String(), want)
			}
		}
	}
}

func TestBenchUsage(t *testing.T) {
	for args, want := range map[string]string{
		"":                             "needs a subcommand",
		"put --endpoints=":             "--endpoints is empty",
		"put --endpoints https://a:1":  "--listen-client",
		"put --endpoints unix:///a":    "--listen-client",
		"put --endpoints a:1":          "http://HOST:PORT",
		"put --endpoints http://a:1/x": "http://HOST:PORT",
		"put --to some":                "must be one of leader, all",
		"get --consistency none":       "must be one of linearizable, stale",
		"put --output xml":             "must be one of text, json",
		"put --count 1 --duration 1s":  "give only one of them",
		"put --count 0":                "must be positive",
		"put --duration 0s":            "must be positive",
		"put --connections 0":          "between 1 and",
		"put --key-space 0":            "at least 1",
		"batch --lines 0":              "between 1 and",
		"mixed --reads 101":            "between 0 and 100",
		"put --connections 20000 --value-size 1000000": "exceeds 1.0 GiB",
	} {
		var out bytes.Buffer
		if code := run(environment{args: append([]string{"bench"}, strings.Fields(args)...), stdout: &out, stderr: &out}); code != exitUsage || !strings.Contains(out.String(), want) {
			t.Errorf("%s: exit code %d, %q lacks %q", args, code, out.String(), want)
		}
	}
}

// TestBatchBody: the lines are the same in whatever pieces they are read.
func TestBatchBody(t *testing.T) {
	want := `{"put":{"key":"key-00000000","value":"vv"}}` + "\n" + `{"put":{"key":"key-00000001","value":"vv"}}` + "\n"
	for _, piece := range []int{1, 7, 44, 1000} {
		body := &batchBody{from: newBatcher("x", loadgen.SequentialKeys(10, 0, 1), []byte("vv")), left: 2}
		var got []byte
		for err := error(nil); err == nil; {
			p, n := make([]byte, piece), 0
			n, err = body.Read(p)
			if got = append(got, p[:n]...); err != nil && err != io.EOF {
				t.Fatal(err)
			}
		}
		if string(got) != want {
			t.Errorf("in pieces of %d: %q", piece, got)
		}
	}
}
