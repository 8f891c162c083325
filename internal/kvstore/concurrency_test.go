package kvstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore/tally"
)

// The writer of these tests makes revisions whose content follows from the revision
// alone: key i%ringKeys has the value i
// since revision i, and every tenth revision deletes half of the keys.
const (
	ringKeys       = 20
	ringRevisions  = 3000
	ringDeletes    = 10
	compactEvery   = 50
	compactBehind  = 30
	revisionsAhead = 7 // of an Apply, at most
)

func ringKey(i uint64) string { return fmt.Sprintf("key%02d", i%ringKeys) }

// ringCommand makes revision i.
func ringCommand(i uint64) Command {
	if i%ringDeletes == 0 {
		start, end := ringHalf(i)
		return Command{Op: OpDeleteRange, Key: []byte(start), End: []byte(end)}
	}
	return put(ringKey(i), strconv.FormatUint(i, 10))
}

// ringHalf returns the range that revision i deletes: the keys just written.
func ringHalf(i uint64) (start, end string) {
	if i%ringKeys == 0 {
		return ringKey(ringKeys / 2), "l"
	}
	return ringKey(0), ringKey(ringKeys / 2)
}

// ringAt returns the content at a revision.
func ringAt(revision uint64) map[string]string {
	out := make(map[string]string)
	for i := uint64(2); i <= revision; i++ {
		if i%ringDeletes != 0 {
			out[ringKey(i)] = strconv.FormatUint(i, 10)
			continue
		}
		start, end := ringHalf(i)
		maps.DeleteFunc(out, func(key, _ string) bool { return key >= start && key < end })
	}
	return out
}

// ringReader reads until the writer is done, and checks what it sees.
type ringReader struct {
	store *Store
	want  []map[string]string // by revision
	reads atomic.Int64
	old   atomic.Int64
}

func (r *ringReader) run(done *atomic.Bool, seed uint64) error {
	for i := seed; !done.Load(); i++ {
		newest := r.store.Revision()
		revision := uint64(0)
		if i%3 > 0 {
			revision = newest - min(i*7%(compactBehind*2), newest-1)
		}
		err := errors.Join(r.list(revision, newest, i%2 == 0), r.get(revision, newest, i), r.count(revision, i))
		if err != nil {
			return err
		}
		r.reads.Add(1)
	}
	return nil
}

// answered reports whether the read succeeded. An old revision may be compacted.
func (r *ringReader) answered(revision, at, newest uint64, err error) (bool, error) {
	var compacted *CompactedError
	switch {
	case errors.As(err, &compacted) && revision != 0 && revision < compacted.CompactRevision:
		return false, nil
	case err != nil && !errors.Is(err, ErrKeyNotFound):
		return false, err
	case revision != 0 && at != revision || revision == 0 && at < newest:
		return false, fmt.Errorf("read at %d, asked for %d, when the newest was %d", at, revision, newest)
	}
	if at < newest {
		r.old.Add(1)
	}
	return true, nil
}

func (r *ringReader) list(revision, newest uint64, reverse bool) error {
	got := make(map[string]string)
	at, err := r.store.List(context.Background(), Range{Revision: revision, Reverse: reverse}, func(i Item) (bool, error) {
		got[string(i.KV.Key)] = string(i.KV.Value)
		if string(i.KV.Value) != strconv.FormatUint(i.KV.ModRevision, 10) {
			return false, fmt.Errorf("the item %s", kvText(&i.KV))
		}
		return true, nil
	})
	if ok, err := r.answered(revision, at, newest, err); !ok {
		return err
	}
	if fmt.Sprint(got) != fmt.Sprint(r.want[at]) {
		return fmt.Errorf("list at %d: %v, want %v", at, got, r.want[at])
	}
	return nil
}

func (r *ringReader) get(revision, newest, i uint64) error {
	kv, at, err := r.store.Get([]byte(ringKey(i)), revision)
	if ok, err := r.answered(revision, at, newest, err); !ok {
		return err
	}
	if want, ok := r.want[at][ringKey(i)]; string(kv.Value) != want || ok != (err == nil) {
		return fmt.Errorf("get %s at %d: %q, %w; want %q", ringKey(i), at, kv.Value, err, want)
	}
	return nil
}

func (r *ringReader) count(revision, i uint64) error {
	start, end := ringKey(i%3), ringKey(ringKeys-1-i%5)
	n, at, err := r.store.Count(context.Background(), Range{Start: []byte(start), End: []byte(end), Revision: revision})
	if ok, err := r.answered(revision, at, 0, err); !ok {
		return err
	}
	want := uint64(0)
	for key := range r.want[at] {
		if key >= start && key < end {
			want++
		}
	}
	if n != want {
		return fmt.Errorf("count %s to %s at %d: %d, want %d", start, end, at, n, want)
	}
	return nil
}

// TestReadersSeeRevisions reads at new and old revisions while the writer writes
// several revisions at a time, compacts, maintains and flushes.
func TestReadersSeeRevisions(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		s.tally = tally.New(2)
		r := &ringReader{store: s}
		for i := range uint64(ringRevisions + revisionsAhead + 1) {
			r.want = append(r.want, ringAt(i))
		}
		var readers sync.WaitGroup
		var done atomic.Bool
		for i := range uint64(3) {
			readers.Go(func() {
				if err := r.run(&done, i*13); err != nil {
					t.Error(err)
				}
			})
		}
		writeRing(t, s, r)
		done.Store(true)
		readers.Wait()
		if r.reads.Load() == 0 || r.old.Load() == 0 {
			t.Errorf("%d reads, %d of them at an old revision: too few to show anything", r.reads.Load(), r.old.Load())
		}
		checkCounters(t, s)
	})
}

func writeRing(t *testing.T, s *Store, r *ringReader) {
	t.Helper()
	for next := uint64(2); next <= ringRevisions; {
		var entries []Entry
		for range 1 + next%revisionsAhead {
			entries = append(entries, entryOf(s.Position().Index+1+uint64(len(entries)), ringCommand(next)))
			next++
		}
		if next%compactEvery < revisionsAhead && next > compactBehind {
			// It follows in an entry of the same Apply.
			entries = append(entries, entryOf(s.Position().Index+1+uint64(len(entries)), Command{Op: OpCompact, Revision: next - compactBehind}))
		}
		must(t, s.Apply(entries))
		_, err := s.Maintain()
		must(t, err)
		if next%97 == 0 {
			must(t, s.Flush())
		}
		for next > ringRevisions/2 && r.reads.Load() == 0 && !t.Failed() {
			must(t, s.Flush()) // until the readers have started
		}
	}
}

// TestReadersDuringRestore alternates between two states with unrelated revisions: a
// reader must see all of one of them.
func TestReadersDuringRestore(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		content := make(map[uint64]string)
		var bodies [][]byte
		for i, revisions := range []int{20, 90} {
			from := newStore(t, "memory")
			for n := range revisions {
				do(t, from, put(fmt.Sprint("key", n%(7+i)), fmt.Sprint("state ", i, n)))
			}
			do(t, from, Command{Op: OpCompact, Revision: from.Revision()})
			maintainAll(t, from)
			content[from.Revision()] = fmt.Sprint(contentOf(t, from))
			bodies = append(bodies, bodyOf(t, from))
		}
		must(t, s.Restore(bytes.NewReader(bodies[0])))
		s.tally = tally.New(2)
		var readers sync.WaitGroup
		var done atomic.Bool
		var reads atomic.Int64
		for range 2 {
			readers.Go(func() {
				for !done.Load() {
					if err := readWhole(s, content); err != nil {
						t.Error(err)
						return
					}
					reads.Add(1)
				}
			})
		}
		for i := 0; i < 40 || reads.Load() < 100 && !t.Failed(); i++ {
			must(t, s.Restore(bytes.NewReader(bodies[i%2])))
		}
		done.Store(true)
		readers.Wait()
	})
}

func readWhole(s *Store, content map[uint64]string) error {
	var got []string
	at, err := s.List(context.Background(), Range{}, func(i Item) (bool, error) {
		got = append(got, itemText(i))
		return true, nil
	})
	if err != nil {
		return err
	}
	if fmt.Sprint(got) != content[at] {
		return fmt.Errorf("at %d: %s", at, got)
	}
	n, at, err := s.Count(context.Background(), Range{})
	if err != nil || n != uint64(strings.Count(content[at], "key")) {
		return fmt.Errorf("counted %d at %d: %w", n, at, err)
	}
	_, at, err = s.Get([]byte("key0"), 0)
	if err != nil || content[at] == "" {
		return fmt.Errorf("get at %d: %w", at, err)
	}
	return nil
}

// TestViewStays: a view does not change while the store does.
func TestViewStays(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		do(t, s, put("a", "1"), put("b", "2"))
		v := mustGet[*View](t)(s.View())
		want := mustGet[uint64](t)(v.ScanHash())
		body := bodyOf(t, s)
		do(t, s, put("a", "3"), remove("b"), Command{Op: OpCompact, Revision: 4})
		maintainAll(t, s)
		must(t, s.Restore(bytes.NewReader(bodyOf(t, newStore(t, "memory")))))
		var again bytes.Buffer
		_, err := v.WriteTo(&again)
		must(t, err)
		if got := mustGet[uint64](t)(v.ScanHash()); got != want || v.Hash() != want || !bytes.Equal(again.Bytes(), body) || v.Revision() != 3 {
			t.Errorf("the view has changed: hash %x, revision %d", got, v.Revision())
		}
		must(t, v.Close())
	})
}
