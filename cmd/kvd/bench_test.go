package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
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
