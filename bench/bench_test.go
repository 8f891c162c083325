package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestHarness runs some measurements once, at a tiny size, against real nodes
// of both systems. It does not judge speed.
func TestHarness(t *testing.T) {
	if testing.Short() {
		t.Skip("builds etcd and starts clusters; not run with -short")
	}
	b := &bench{options: options{clients: []int{2}, rounds: 1, seconds: 0.5, valueSize: 32, keySpace: 200, count: 2000,
		watches: 500, leases: 500, floor: 1, limit: time.Hour, hurry: true, dir: t.TempDir()}}
	ctx := context.Background()
	if err := b.build(ctx); err != nil {
		t.Fatal(err)
	}
	chosen, err := choose("cold-start,puts,bulk,txn,watch,leases,locks,once,rights,tls,random,face-puts,face-watch,face-streams,face-leases,face-pages")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range chosen {
		b.use(m.face)
		if err := m.run(ctx, b); err != nil {
			t.Fatalf("%s: %v", m.name, err)
		}
	}
	for _, w := range b.report.rows {
		alone := strings.HasPrefix(w.Name, "kvd alone")
		if len(w.KVD) == 0 || len(w.Etcd) != len(w.KVD) && !alone {
			t.Errorf("%s: %d values of kvd, %d of etcd", w.Name, len(w.KVD), len(w.Etcd))
		}
		for _, v := range append(w.KVD, w.Etcd...) {
			if math.IsNaN(v) || v < 0 {
				t.Errorf("%s: %v", w.Name, v)
			}
		}
	}
}

func TestChoose(t *testing.T) {
	for names, want := range map[string]string{"gets,puts": "puts,gets", "locks": "locks", "face,puts": "puts,face-puts,face-gets,face-txn,face-watch,face-streams,face-leases,face-pages", "puts,nothing": "", "": "", "puts,puts": ""} {
		chosen, err := choose(names)
		var got []string
		for _, m := range chosen {
			got = append(got, m.name)
		}
		if strings.Join(got, ",") != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q %v, want %q", names, got, err, want)
		}
	}
}

// TestFailure: a measurement that fails or takes too long keeps its rows, and
// is named in the report.
func TestFailure(t *testing.T) {
	b := &bench{options: options{limit: time.Hour}}
	boom := measurement{name: "boom", run: func(_ context.Context, b *bench) error {
		b.report.row("half", "1/s", nil).add("kvd", 7)
		return errors.New("two\nlines")
	}}
	if err := b.one(context.Background(), boom, 1, 2); err == nil || !strings.Contains(err.Error(), "boom: two") {
		t.Errorf("%v", err)
	}
	b.limit = time.Nanosecond
	endless := measurement{name: "endless", run: func(ctx context.Context, _ *bench) error { return wait(ctx, time.Hour) }}
	if err := b.one(context.Background(), endless, 2, 2); err == nil {
		t.Error("a measurement without an end is not given up")
	}
	text := b.report.markdown(b)
	for _, want := range []string{"| half, 1/s | 7.00 |", "- boom: two lines\n", "- endless: not done after 1ns\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in:\n%s", want, text)
		}
	}
}

func TestTimedValue(t *testing.T) {
	before := time.Now()
	for _, size := range []int{0, 22, 256} {
		value := timed(size)
		if at, ok := sentAt(value); !ok || at.Before(before.Round(0)) || time.Since(at) < 0 || len(value) != max(22, size) {
			t.Errorf("%s: %v %v", value, at, ok)
		}
	}
	for _, other := range []string{"", "at=", strings.Repeat("v", 256), "at=" + strings.Repeat("x", 30)} {
		if _, ok := sentAt([]byte(other)); ok {
			t.Errorf("%q has a time", other)
		}
	}
}

// TestWatchLines: values of puts are found, progress is not an event, and the
// end of a stream is an error.
func TestWatchLines(t *testing.T) {
	w := &kvdWatch{lines: bufio.NewReader(strings.NewReader(`{"type":"progress","revision":3}
{"type":"put","key":"a","value":"xyz","mod_revision":4,"create_revision":4,"version":1,"lease":0}
{"type":"compacted","compact_revision":9}
`))}
	var got []string
	event := func(value []byte) { got = append(got, string(value)) }
	for range 2 {
		if err := w.next(event); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.next(event); err == nil || !strings.Contains(err.Error(), "compacted") || len(got) != 1 || got[0] != "xyz" {
		t.Errorf("%q %v", got, err)
	}
	if err := w.next(event); err == nil {
		t.Error("the end is not an error")
	}
}

// TestAwait fails if an event is missing, comes twice, or if a watch ends.
func TestAwait(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	a := &audience{counts: make([]atomic.Int64, 2), failed: make(chan error, 1)}
	a.counts[0].Store(3)
	a.counts[1].Store(3)
	if err := a.await(ctx, 3); err != nil {
		t.Error(err)
	}
	if err := a.await(ctx, 2); err == nil {
		t.Error("an event too many is accepted")
	}
	a.failed <- io.ErrUnexpectedEOF
	if err := a.await(ctx, 4); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v", err)
	}
	cancel()
	if err := a.await(ctx, 4); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// TestScatter: no key comes twice, and the keys are all over the space.
func TestScatter(t *testing.T) {
	seen, high := map[uint64]bool{}, 0
	for n := range uint64(10_000) {
		s := scatter(n + 1)
		if seen[s] {
			t.Fatalf("%d comes twice", s)
		}
		if seen[s] = true; s>>63 == 1 {
			high++
		}
	}
	if high < 4500 || high > 5500 {
		t.Errorf("%d of 10000 are in the upper half", high)
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

// TestBaseline: the targets for etcd are not those for another kvd, but kvd's own remain.
func TestBaseline(t *testing.T) {
	for _, baseline := range []bool{false, true} {
		r := report{baseline: baseline}
		relative := r.row("a", "1/s", func(w *row) { w.AtLeast, w.Goal = 3, 4 })
		alone := r.row("b", "times", func(w *row) { w.AtLeast, w.Absolute = 0.9, true })
		if (relative.AtLeast == 0 && relative.Goal == 0) != baseline || alone.AtLeast == 0 {
			t.Errorf("baseline %v: %+v %+v", baseline, relative, alone)
		}
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
