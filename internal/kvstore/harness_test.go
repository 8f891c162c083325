package kvstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
)

const testDir = "db"

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustGet[T any](t testing.TB) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		must(t, err)
		return v
	}
}

// testRand returns random numbers from the seed in KVD_TEST_SEED, or from a
// new one, which a failing test prints.
func testRand(t testing.TB) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("KVD_TEST_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		must(t, err)
		seed = n
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("KVD_TEST_SEED=%d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 0))
}

// openPebble opens an engine in a file system in memory.
func openPebble(t testing.TB, fs vfs.FS) engine.Engine {
	t.Helper()
	return openPebbleWith(t, fs, engine.PebbleOptions{MemTableBytes: 256 << 10, CacheBytes: 4 << 20})
}

func openPebbleWith(t testing.TB, fs vfs.FS, o engine.PebbleOptions) engine.Engine {
	t.Helper()
	o.Comparer, o.FS = layout.Comparer(), fs
	e, err := engine.OpenPebble(testDir, o)
	must(t, err)
	return e
}

func newEngine(t testing.TB, name string) engine.Engine {
	if name == "memory" {
		return engine.NewMemory()
	}
	return openPebble(t, vfs.NewMem())
}

func openStore(t testing.TB, e engine.Engine, o Options) *Store {
	t.Helper()
	s, err := Open(e, o)
	must(t, err)
	return s
}

// newStore opens an empty store that is closed at the end of the test.
func newStore(t testing.TB, name string) *Store {
	t.Helper()
	s := openStore(t, newEngine(t, name), Options{})
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

// onBothEngines runs a test with an empty store on each engine.
func onBothEngines(t *testing.T, test func(t *testing.T, s *Store)) {
	for _, name := range []string{"memory", "pebble"} {
		t.Run(name, func(t *testing.T) { test(t, newStore(t, name)) })
	}
}

// entryOf makes the entry of an index in term 1.
func entryOf(index uint64, commands ...Command) Entry {
	e := Entry{Index: index, Term: 1, WantResults: true}
	for i := range commands {
		e.Commands = append(e.Commands, EncodeCommand(nil, &commands[i]))
	}
	return e
}

// do applies the commands as the store's next entry and returns their results.
func do(t testing.TB, s *Store, commands ...Command) []Result {
	t.Helper()
	entries := []Entry{entryOf(s.Position().Index+1, commands...)}
	must(t, s.Apply(entries))
	return resultsOf(&entries[0])
}

// recordOf makes a record of the replication layer. An empty value is not nil,
// which would delete the record.
func recordOf(key, value string) Record { return Record{Key: []byte(key), Value: []byte(value)} }

// resultsOf returns the results that Apply filled in.
func resultsOf(e *Entry) []Result {
	var out []Result
	for _, r := range e.Results {
		out = append(out, *r.(*Result))
	}
	return out
}

func put(key, value string) Command {
	return Command{Op: OpPut, Key: []byte(key), Value: []byte(value)}
}

func remove(key string) Command { return Command{Op: OpDelete, Key: []byte(key)} }

// maintainAll removes all history that may go.
func maintainAll(t testing.TB, s *Store) {
	t.Helper()
	for more := true; more; {
		var err error
		more, err = s.Maintain()
		must(t, err)
	}
}

// bodyOf returns the store's state as a snapshot body.
func bodyOf(t testing.TB, s *Store) []byte {
	t.Helper()
	v, err := s.View()
	must(t, err)
	var b bytes.Buffer
	n, err := v.WriteTo(&b)
	must(t, err)
	if n != int64(b.Len()) {
		t.Fatalf("WriteTo says %d bytes and wrote %d", n, b.Len())
	}
	must(t, v.Close())
	return b.Bytes()
}

// contentOf returns the newest pairs, with their metadata, as text.
func contentOf(t testing.TB, s *Store) []string {
	t.Helper()
	return listOf(t, s, Range{})
}

func listOf(t testing.TB, s *Store, r Range) (out []string) {
	t.Helper()
	_, err := s.List(context.Background(), r, func(i Item) (bool, error) {
		out = append(out, itemText(i))
		return true, nil
	})
	must(t, err)
	return out
}

func itemText(i Item) string {
	if i.Group != nil {
		return fmt.Sprintf("group %q", i.Group)
	}
	return kvText(&i.KV)
}

func kvText(kv *KV) string {
	if kv == nil {
		return "nothing"
	}
	text := fmt.Sprintf("%s=%s create %d mod %d version %d lease %d", bytesText(kv.Key), bytesText(kv.Value), kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease)
	if kv.Attributes != nil {
		text += fmt.Sprintf(" attributes %d", *kv.Attributes)
	}
	return text + strayText(kv.Value)
}

// bytesText has long bytes as their hash: to quote them took most of the time of the tests
// that compare texts.
func bytesText(b []byte) string {
	if len(b) <= 64 {
		return strconv.Quote(string(b))
	}
	return fmt.Sprintf("%q… (%d bytes, %x)", b[:16], len(b), sha256.Sum256(b))
}

// strayText shows a value that is empty and not nil, which no path may return.
func strayText(value []byte) string {
	if value != nil && len(value) == 0 {
		return " (not nil)"
	}
	return ""
}

// resultText is everything of a result but the wording of its detail.
func resultText(r *Result) string {
	text := fmt.Sprintf("outcome %d detail %t revision %d kv [%s] created %t deleted %d previous [%s] count %d more %t succeeded %t compact %d",
		r.Outcome, r.Detail != "", r.Revision, kvText(&r.KV), r.Created, r.Deleted, kvText(r.Previous), r.Count, r.More, r.Succeeded, r.CompactRevision)
	if r.Lease != nil {
		text += fmt.Sprintf(" lease %+v", *r.Lease)
	}
	text += ticketText(r.Lock)
	for i := range r.Pairs {
		text += fmt.Sprintf(" pair [%s]", kvText(&r.Pairs[i]))
	}
	for i := range r.Results {
		text += fmt.Sprintf("\n\t{%s}", resultText(&r.Results[i]))
	}
	return text
}
