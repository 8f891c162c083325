package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

// TestBenchFailures: error responses are counted by their codes, and a load
// without a success is a failure.
func TestBenchFailures(t *testing.T) {
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p := startNode(t, log)
	p.awaitReady(t)
	address := strings.TrimPrefix(p.client, "http://")
	for _, c := range []struct {
		load string
		o    benchOptions
		want string
	}{
		{"get", benchOptions{reads: 100}, "404 key_not_found"},
		{"put", benchOptions{valueSize: 1536<<10 + 1}, "413 too_large"},
		{"batch", benchOptions{valueSize: 1536<<10 + 1, lines: 2}, "413 too_large"},
	} {
		c.o.endpoints, c.o.connections, c.o.keySpace, c.o.lines = []string{address}, 1, 10, max(1, c.o.lines)
		op, closeOp, err := c.o.load(c.load).Open(0)
		if err != nil {
			t.Fatal(err)
		}
		if code, err := op(t.Context()); code != c.want || err != nil && !errors.Is(err, loadgen.ErrClosing) {
			t.Errorf("%s: %q, %v, want %q", c.load, code, err, c.want)
		}
		closeOp()
	}
	code, _, stderr := kvd("bench", "get", "--value-size", "1572865", "--endpoints", p.client, "--key-space", "10")
	if code != exitFailed || !strings.Contains(stderr, "write keys: the node returned 413 too_large") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// TestBenchVerdict: a result with errors names them, and only a complete one
// with operations is a success.
func TestBenchVerdict(t *testing.T) {
	some, none := &loadgen.Result{Ops: 1, Latency: loadgen.NewHistogram()}, &loadgen.Result{Latency: loadgen.NewHistogram()}
	none.Errors = map[string]uint64{"503 no_leader": 7, "connection": 1}
	for _, c := range []struct {
		r    *loadgen.Result
		err  error
		want string
	}{
		{some, nil, ""},
		{none, nil, "no operation succeeded"},
		{some, fmt.Errorf("run: %w", context.Canceled), "interrupted"},
		{none, loadgen.ErrNoProgress, loadgen.ErrNoProgress.Error()},
	} {
		if err := verdict(c.r, c.err); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%d operations and %v: %v, want %q", c.r.Ops, c.err, err, c.want)
		}
	}
	var out bytes.Buffer
	o := benchOptions{output: "text", connections: 2, lines: 1}
	if err := o.print(&out, "put", none); err != nil {
		t.Fatal(err)
	}
	if want := "errors: 503 no_leader: 7\nerrors: connection: 1\n"; !strings.HasSuffix(out.String(), want) {
		t.Errorf("%q lacks %q", out.String(), want)
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
		body := &batchBody{from: new(benchOptions).newBatcher("x", loadgen.SequentialKeys(10, 0, 1), []byte("vv")), left: 2}
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
