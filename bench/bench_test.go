package main

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestHarness runs some measurements once, at a tiny size, against real nodes
// of both systems. It does not judge speed.
func TestHarness(t *testing.T) {
	if testing.Short() {
		t.Skip("builds etcd and starts clusters; not run with -short")
	}
	b := &bench{options: options{clients: []int{2}, rounds: 1, seconds: 0.5, valueSize: 32, keySpace: 200, count: 2000, dir: t.TempDir()}}
	ctx := context.Background()
	if err := b.build(ctx); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cold-start", "puts", "bulk"} {
		for _, m := range measurements {
			if m.name != name {
				continue
			}
			if err := m.run(ctx, b); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	for _, w := range b.report.rows {
		if len(w.KVD) == 0 || len(w.Etcd) != len(w.KVD) {
			t.Errorf("%s: %d values of kvd, %d of etcd", w.Name, len(w.KVD), len(w.Etcd))
		}
		for _, v := range append(w.KVD, w.Etcd...) {
			if math.IsNaN(v) || v < 0 {
				t.Errorf("%s: %v", w.Name, v)
			}
		}
	}
}

func TestVerdict(t *testing.T) {
	more := row{KVD: []float64{1, 9, 3}, Etcd: []float64{1}, More: true, AtLeast: 2, Goal: 4}
	gap := row{KVD: []float64{50}, Etcd: []float64{1000}, Absolute: true, AtLeast: 100, Goal: 30}
	for want, got := range map[string]string{
		"yes":          more.verdict(), // the median is 3
		"not measured": (&row{AtLeast: 1}).verdict(),
		"":             (&row{KVD: []float64{1}}).verdict(),
		"**no**":       (&row{KVD: []float64{2}, Etcd: []float64{1}, AtLeast: 0.5, Goal: 0.2}).verdict(),
		"goal":         (&row{KVD: []float64{0.1}, Etcd: []float64{1}, AtLeast: 0.5, Goal: 0.2}).verdict(),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if gap.verdict() != "yes" {
		t.Errorf("absolute: %q", gap.verdict())
	}
}

func TestReplaceSection(t *testing.T) {
	path := filepath.Join(t.TempDir(), "doc.md")
	if err := os.WriteFile(path, []byte("a\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nz\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := replaceSection(path, "new\n"); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil || string(text) != "a\n<!-- bench:begin -->\nnew\n<!-- bench:end -->\nz\n" {
		t.Errorf("%q %v", text, err)
	}
	if err := replaceSection(path+"x", "new"); err == nil || strings.Contains(err.Error(), "markers") {
		t.Errorf("a missing file: %v", err)
	}
}
