package node

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/proof"
)

// storeMatrix damages the store of a lone member, whose log no longer reaches back to
// its beginning: nobody else has what it lacks.
type storeMatrix struct {
	cfg    Config
	files  map[string][]byte // of the data directory
	older  map[string][]byte // the same, from earlier in its life
	values map[string]string // what was acknowledged

	refused, met, unharmed int
	// complain says what is wrong: errorf of the test, unless that is a control.
	complain func(format string, args ...any)
}

func newStoreMatrix(t *testing.T) *storeMatrix {
	t.Helper()
	url := freeURL(t)
	x := &storeMatrix{complain: t.Errorf, values: make(map[string]string), cfg: Config{
		ID: 1, DataDir: t.TempDir(), Engine: "pebble", ListenPeer: url, Initial: []Peer{{ID: 1, URL: url}},
		TickInterval: 5 * time.Millisecond, CheckpointBytes: 32 << 10,
	}}
	m := start(t, x.cfg)
	m.awaitReady(t)
	n := 0
	write := func(until func() bool) {
		eventually(t, "checkpoints", func() bool {
			key, value := fmt.Sprint("k", n%40), incompressible(n)
			m.put(t, key, value)
			x.values[key] = value
			n++
			return until()
		})
	}
	snaps := func() int {
		names, err := filepath.Glob(filepath.Join(x.cfg.DataDir, "snap", "*.snap"))
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	write(func() bool { return snaps() > 0 })
	if err := m.end(t); err != nil {
		t.Fatal(err)
	}
	x.older = tree(t, x.cfg.DataDir)
	m = start(t, x.cfg)
	m.awaitReady(t)
	write(func() bool { return snaps() > 1 })
	if err := m.end(t); err != nil {
		t.Fatal(err)
	}
	x.files = tree(t, x.cfg.DataDir)
	return x
}

// incompressible returns a value that fills blocks of a table as it is.
func incompressible(n int) string {
	rng := rand.New(rand.NewPCG(uint64(n), 1))
	b := make([]byte, 3000)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return string(b)
}

func tree(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		name, rerr := filepath.Rel(dir, path)
		files[name] = b
		return errors.Join(err, rerr)
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// judge starts a node on the directory with one file changed. It must refuse, at the
// start or when the damage is met, or serve everything that was acknowledged.
func (x *storeMatrix) judge(t *testing.T, what, name string, content []byte, gone bool) {
	t.Helper()
	cfg := x.cfg
	cfg.DataDir = filepath.Join(t.TempDir(), "data")
	for file, b := range x.files {
		if file == name {
			if gone {
				continue
			}
			b = content
		}
		path := filepath.Join(cfg.DataDir, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	report, err := Examine(cfg.DataDir)
	if err != nil {
		x.complain("%s: %s: the doctor fails: %v", name, what, err)
	}
	m := start(t, cfg)
	select {
	case <-m.Ready():
	case err := <-m.done:
		if err != nil && strings.Contains(err.Error(), "storage engine: engine failed") {
			x.met++ // by a compaction, before the node was ready
		} else {
			x.refused++
		}
		x.wantRefusal(t, name, what, err)
		if report.Refused == nil && !strings.HasSuffix(name, ".sst") {
			x.complain("%s: %s: a start refuses it (%v), and the doctor does not", name, what, err)
		}
		return
	case <-testContext(t).Done():
		t.Fatalf("%s: %s: neither ready nor refused", name, what)
	}
	met := false
	for key, want := range x.values {
		switch kv, _, err := m.Store().Get([]byte(key), 0); {
		case err != nil && !strings.Contains(err.Error(), "not found"):
			met = true // and the node ends
		case err != nil || string(kv.Value) != want:
			x.complain("%s: %s: %s is %.20q, %v; %.20q was acknowledged", name, what, key, kv.Value, err, want)
		}
	}
	if !met {
		met = x.scanMeets(t, m, name, what)
	}
	if !met {
		x.unharmed++
		if err := m.end(t); err != nil { // the flush at the end may meet it
			x.wantRefusal(t, name, what, err)
		}
		return
	}
	x.met++
	x.wantRefusal(t, name, what, m.awaitEnd(t))
}

// scanMeets reads the whole state, and reports whether that met the damage. If not, the
// state must be the one that its hash says.
func (x *storeMatrix) scanMeets(t *testing.T, m *testNode, name, what string) bool {
	t.Helper()
	v, err := m.Store().View()
	if err != nil {
		return true
	}
	got, err := v.ScanHash()
	if cerr := v.Close(); err != nil || cerr != nil {
		return true
	}
	if _, want := m.Store().StateHash(); got != want {
		x.complain("%s: %s: the state has the hash %016x, and says %016x", name, what, got, want)
	}
	return false
}

func (x *storeMatrix) wantRefusal(t *testing.T, name, what string, err error) {
	t.Helper()
	var refused *datadir.RefusedError
	if !errors.As(err, &refused) || refused.Remedy == "" || refused.File == "" {
		x.complain("%s: %s: ended with %v, which is no refusal: a supervisor would start it again and again", name, what, err)
	}
}

// TestCorruptionMatrixOfTheStore damages each file of the store. KVD_E2E=full takes ten
// times as many places.
func TestCorruptionMatrixOfTheStore(t *testing.T) {
	begin := time.Now()
	seed := uint64(begin.UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	places := 3
	if os.Getenv("KVD_E2E") != "" {
		places = 30
	}
	x := newStoreMatrix(t)
	x.judge(t, "unchanged", "", nil, false)
	if x.unharmed != 1 {
		t.Fatal("an undamaged directory is not taken as it is")
	}
	cases := 0
	try := func(what, name string, content []byte, gone bool) {
		x.judge(t, what, name, content, gone)
		cases++
	}
	for _, name := range slices.Sorted(maps.Keys(x.files)) {
		whole := x.files[name]
		if !strings.HasPrefix(name, "store") || strings.HasSuffix(name, "LOCK") || filepath.Base(name) == "lock" {
			continue
		}
		try("removed", name, nil, true)
		try("emptied", name, []byte{}, false)
		if len(whole) == 0 {
			continue // the name alone says everything
		}
		try("all zeros", name, make([]byte, len(whole)), false)
		try("cut in half", name, whole[:len(whole)/2], false)
		if old, ok := x.older[name]; ok && !bytes.Equal(old, whole) {
			try("an older copy", name, old, false)
		}
		// The middle of a large table has records that no start reads, and that a scan
		// has to meet.
		middle := bytes.Clone(whole)
		clear(middle[len(whole)/4 : len(whole)/2])
		try("a quarter zeroed", name, middle, false)
		for range min(places, len(whole)) {
			at := rng.IntN(len(whole))
			b := bytes.Clone(whole)
			b[at] ^= 1 << rng.IntN(8)
			try(fmt.Sprintf("bit flipped in byte %d of %d", at, len(whole)), name, b, false)
			from := rng.IntN(len(whole)) / 512 * 512
			b = bytes.Clone(whole)
			clear(b[from:min(from+512, len(b))])
			try(fmt.Sprintf("sector at %d of %d zeroed", from, len(whole)), name, b, false)
		}
		if t.Failed() {
			break
		}
	}
	t.Logf("%d cases in %v: %d refused at the start, %d when a read or a compaction met the damage, %d unharmed", cases, time.Since(begin).Round(time.Second), x.refused, x.met, x.unharmed)
	if x.refused == 0 || x.met == 0 || x.unharmed == 0 {
		t.Error("the cases do not cover the verdicts")
	}
	proof.Record(t, proof.Result{
		Suite: "corruption matrix: store", Runs: int64(cases), Operations: int64(cases * len(x.values)), Seconds: time.Since(begin).Seconds(), Promises: []string{"fails safe"},
		Replay: "go test -run '^TestCorruptionMatrixOfTheStore$' ./internal/node",
	})
}

// TestControlCorruptionMatrixOfTheStore: outcomes that must not be are noticed: values that
// are lost or changed after damage, and an end that a supervisor answers with another start.
func TestControlCorruptionMatrixOfTheStore(t *testing.T) {
	x := newStoreMatrix(t)
	whole := x.files
	for _, c := range []struct {
		planted string
		files   map[string][]byte
		values  map[string]string
		port    bool // the port is taken
	}{
		{"damage is answered with an older state", x.older, x.values, false},
		{"damage is answered with another value", whole, map[string]string{"k0": "another value"}, false},
		{"damage loses a key", whole, map[string]string{"a key that is not there": "value"}, false},
		{"damage ends the node like any other failure", whole, x.values, true},
	} {
		begin := time.Now()
		var said []string
		x.files, x.values = c.files, c.values
		x.complain = func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
		if c.port {
			l, err := net.Listen("tcp", strings.TrimPrefix(x.cfg.ListenPeer, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
		}
		if x.judge(t, c.planted, "", nil, false); len(said) == 0 {
			t.Errorf("not noticed: %s", c.planted)
			continue
		}
		t.Logf("%s: %.300s", c.planted, said[0])
		proof.Caught(t, "corruption matrix: store", c.planted, 1, begin)
	}
}
