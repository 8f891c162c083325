package engine

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"strconv"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// TestCrashLeavesPrefix crashes an engine in the middle of random batches and
// flushes. What is found must be the state after one of the batches, not older
// than what Durable showed.
func TestCrashLeavesPrefix(t *testing.T) {
	const crashes = 12
	rng := rand.New(rand.NewPCG(testSeed(t), 1))
	lost := 0
	for range crashes {
		lost += crashOnce(t, rng)
	}
	if lost == 0 {
		t.Error("no crash lost a batch: they came too late to show anything")
	}
}

// crashOnce returns how many batches were lost.
func crashOnce(t *testing.T, rng *rand.Rand) int {
	fs := vfs.NewCrashableMem()
	e := mustOpen(t, testDir, PebbleOptions{FS: fs, MemTableBytes: 64 << 10})
	states := []map[string]string{{}}
	batch := e.NewWriteBatch()
	for range rng.IntN(200) {
		states = append(states, commitRandom(t, rng, batch, states[len(states)-1], len(states)))
		if rng.IntN(10) == 0 {
			must(t, e.Flush())
		}
		if rng.IntN(40) == 0 {
			waitDurable(t, e)
		}
	}
	durable := e.Durable()
	least := batchNumber(t, durable)
	crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
	wantContent(t, durable, states[least])
	must(t, durable.Close())
	must(t, batch.Close())
	must(t, e.Close())

	e = mustOpen(t, testDir, PebbleOptions{FS: crashed})
	found := batchNumber(t, e)
	if found < least || found >= len(states) {
		t.Fatalf("found batch %d of %d, where %d was durable", found, len(states)-1, least)
	}
	wantContent(t, e, states[found])
	must(t, e.Close())
	return len(states) - 1 - found
}

// commitRandom commits batch number n and returns the state after it. In that
// state the key "batch" has n.
func commitRandom(t *testing.T, rng *rand.Rand, b WriteBatch, state map[string]string, n int) map[string]string {
	next := maps.Clone(state)
	put := func(key, value string) {
		b.Set([]byte(key), []byte(value))
		next[key] = value
	}
	for range rng.IntN(10) {
		key := testKey(rng.IntN(50))
		if rng.IntN(3) == 0 {
			b.Delete([]byte(key))
			delete(next, key)
		} else {
			put(key, fmt.Sprintf("%0*d", rng.IntN(1000), n))
		}
	}
	put("batch", strconv.Itoa(n))
	must(t, b.Commit())
	return next
}

func batchNumber(t *testing.T, r Reader) int {
	content, err := contentOf(r)
	must(t, err)
	if len(content) == 0 {
		return 0
	}
	n, err := strconv.Atoi(content["batch"])
	must(t, err)
	return n
}

func TestCrashWithoutFlushLosesAll(t *testing.T) {
	fs := vfs.NewCrashableMem()
	e := mustOpen(t, testDir, PebbleOptions{FS: fs})
	set(t, e, "a", "1")
	crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
	must(t, e.Close())
	e = mustOpen(t, testDir, PebbleOptions{FS: crashed})
	wantContent(t, e, nil)
	must(t, e.Close())
}

func TestCloseMakesDurable(t *testing.T) {
	fs := vfs.NewCrashableMem()
	e := mustOpen(t, testDir, PebbleOptions{FS: fs})
	set(t, e, "a", "1")
	must(t, e.Close())
	wantAfterCrash(t, fs.CrashClone(vfs.CrashCloneCfg{}), "1")
}

// crashRecorder copies the disk as a crash would leave it, before each operation that
// changes something.
type crashRecorder struct {
	fs      *vfs.MemFS
	cfg     vfs.CrashCloneCfg
	crashed chan *vfs.MemFS
}

func newCrashRecorder(unsyncedPercent int, rng *rand.Rand) *crashRecorder {
	return &crashRecorder{
		fs:      vfs.NewCrashableMem(),
		cfg:     vfs.CrashCloneCfg{UnsyncedDataPercent: unsyncedPercent, RNG: rng},
		crashed: make(chan *vfs.MemFS, 1000),
	}
}

func (r *crashRecorder) MaybeError(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
		// Also holds the lock that the random numbers need.
		r.crashed <- r.fs.CrashClone(r.cfg)
	}
	return nil
}

// now returns a copy as it would be after a crash at this moment.
func (r *crashRecorder) now() []*vfs.MemFS {
	return []*vfs.MemFS{r.fs.CrashClone(r.cfg)}
}

func (r *crashRecorder) String() string { return "crash recorder" }

// take returns the copies recorded since the last take.
func (r *crashRecorder) take() (copies []*vfs.MemFS) {
	for len(r.crashed) > 0 {
		copies = append(copies, <-r.crashed)
	}
	return copies
}

// TestCrashAtEachStep crashes at every step of the first start, of Replace and
// of Close.
func TestCrashAtEachStep(t *testing.T) {
	rng := rand.New(rand.NewPCG(testSeed(t), 2))
	for _, unsynced := range []int{0, 50, 100} {
		t.Run(fmt.Sprintf("%d %% of unsynced data", unsynced), func(t *testing.T) {
			testCrashAtEachStep(t, newCrashRecorder(unsynced, rng))
		})
	}
}

func testCrashAtEachStep(t *testing.T, r *crashRecorder) {
	e := mustOpen(t, testDir, PebbleOptions{FS: errorfs.Wrap(r.fs, r)})
	wantEach(t, append(r.take(), r.now()...), nil)

	old, next := map[string]string{"a": "1", "b": "1"}, map[string]string{"b": "2", "c": "2"}
	last := map[string]string{"a": "3", "b": "2", "c": "2"}
	set(t, e, "a", "1")
	set(t, e, "b", "1")
	waitDurable(t, e)
	r.take()
	must(t, e.Replace(func(set func(key, value []byte) error) error {
		return firstError(set([]byte("b"), []byte("2")), set([]byte("c"), []byte("2")))
	}))
	found := wantEach(t, r.take(), old, next)
	if found[0] < 10 || found[1] == 0 {
		t.Errorf("found old and new content %d times: the crashes missed the switch", found)
	}
	wantEach(t, r.now(), next)
	set(t, e, "a", "3")
	must(t, e.Close())
	wantEach(t, r.take(), next, last)
	wantEach(t, r.now(), last)
}

// wantEach opens each copy, expects one of the contents, and counts them.
func wantEach(t *testing.T, copies []*vfs.MemFS, allowed ...map[string]string) []int {
	t.Helper()
	found := make([]int, len(allowed))
	for _, fs := range copies {
		e := mustOpen(t, testDir, PebbleOptions{FS: fs})
		content, err := contentOf(e)
		must(t, err)
		must(t, e.Close())
		wantOneDatabase(t, fs)
		n := 0
		for n < len(allowed) && !maps.Equal(content, allowed[n]) {
			n++
		}
		if n == len(allowed) {
			t.Fatalf("found %v; want one of %v", content, allowed)
		}
		found[n]++
	}
	return found
}

func wantOneDatabase(t *testing.T, fs vfs.FS) {
	t.Helper()
	numbers, err := (&pebbleDir{fs: fs, path: testDir}).generations()
	must(t, err)
	if len(numbers) != 1 {
		t.Fatalf("leftover databases: %v", numbers)
	}
}
