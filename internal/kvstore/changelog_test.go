package kvstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore/layout"
)

// recorder is an observer that keeps every change by its revision.
type recorder struct{ changes map[uint64]string }

func (r *recorder) Applied(changes []Change, show func()) {
	for i := range changes {
		r.changes[changes[i].Revision] = changeText(&changes[i])
	}
	show()
}

func (r *recorder) Reset(show func()) { show() }

// checkFrom compares the change log from a revision on with what was recorded.
func (r *recorder) checkFrom(t *testing.T, s *Store, from uint64) {
	t.Helper()
	next := from
	newest, err := s.Changes(t.Context(), from, func(c Change) (bool, error) {
		for ; next < c.Revision; next++ {
			if want, ok := r.changes[next]; ok {
				t.Fatalf("from %d: %s is missing", from, want)
			}
		}
		if got := changeText(&c); got != r.changes[next] {
			t.Fatalf("from %d: %s, want %s", from, got, r.changes[next])
		}
		next++
		return true, nil
	})
	if from < s.CompactRevision() {
		var compacted *CompactedError
		if !errors.As(err, &compacted) || compacted.CompactRevision != s.CompactRevision() || next != from {
			t.Fatalf("from %d, compact revision %d: got to %d, %v", from, s.CompactRevision(), next, err)
		}
		return
	}
	if err != nil || newest != s.Revision() || next <= s.Revision() && r.changes[s.Revision()] != "" {
		t.Fatalf("from %d: got to %d, newest %d of %d, %v", from, next, newest, s.Revision(), err)
	}
}

// TestChanges: the change log has what the observer heard, from the compact revision on,
// before and after maintenance.
func TestChanges(t *testing.T) {
	for _, name := range []string{"memory", "pebble"} {
		t.Run(name, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(rand.Uint64(), 0))
			r := &recorder{changes: make(map[uint64]string)}
			s := openStore(t, newEngine(t, name), Options{Observer: r})
			defer s.Close()
			key := func() string { return string("abc"[rnd.IntN(3)]) + string("\x00z"[rnd.IntN(2)]) }
			for range 300 {
				switch rnd.IntN(10) {
				case 0:
					do(t, s, deleteRange("a", string("bcd"[rnd.IntN(3)])))
				case 1:
					do(t, s, remove(key()))
				case 2:
					do(t, s, txnOf(Txn{Then: []Command{put("t", key()), put("s", key()), remove(key())}}))
				case 3:
					do(t, s, Command{Op: OpCompact, Revision: s.Revision() - min(s.Revision()-1, rnd.Uint64N(20))})
				case 4:
					_ = mustGet[bool](t)(s.Maintain())
				default:
					do(t, s, put(key(), strings.Repeat("v", rnd.IntN(5))))
				}
				r.checkFrom(t, s, 1+rnd.Uint64N(s.Revision()+1))
				r.checkFrom(t, s, s.CompactRevision())
			}
		})
	}
}

// TestChangesOfTheCompactRevision: they stay until the next compaction, also if there are
// too many of them for one step of maintenance, and then go.
func TestChangesOfTheCompactRevision(t *testing.T) {
	s := newStore(t, "memory")
	const keys = 2*maintainChanges + 100
	for i := 0; i < keys; i += 500 {
		var puts []Command
		for j := range min(500, keys-i) {
			puts = append(puts, put(fmt.Sprintf("%s%06d", strings.Repeat("k", 100), i+j), ""))
		}
		do(t, s, puts...)
	}
	do(t, s, deleteRange("k", "l"))
	do(t, s, Command{Op: OpCompact, Revision: s.Revision()})
	for more := true; more; {
		more = mustGet[bool](t)(s.Maintain())
		events := 0
		if _, err := s.Changes(t.Context(), s.Revision(), func(c Change) (bool, error) {
			events += len(c.Events)
			return true, nil
		}); err != nil || events != keys {
			t.Fatalf("%d events, want %d: %v", events, keys, err)
		}
	}
	if st := s.Stats(); st.HistoryVersions != keys || s.Work().UncleanedRevisions != 0 {
		t.Errorf("left after maintenance: %+v, %+v", st, s.Work())
	}
	do(t, s, put("a", "1"))
	do(t, s, Command{Op: OpCompact, Revision: s.Revision()})
	maintainAll(t, s)
	v := mustGet[*View](t)(s.View())
	defer v.Close()
	_, err := v.each(func(k, _ []byte) error {
		if k[0] == layout.TableChange && string(k) < string(layout.ChangeKey(nil, s.Revision(), 0)) {
			return fmt.Errorf("%q is left", k)
		}
		return nil
	})
	must(t, err)
}

// TestChangesStop: a reader can stop, fail, and be canceled.
func TestChangesStop(t *testing.T) {
	s := newStore(t, "memory")
	do(t, s, put("a", "1"), put("a", "2"), put("a", "3"))
	var got []uint64
	if _, err := s.Changes(t.Context(), 2, func(c Change) (bool, error) {
		got = append(got, c.Revision)
		return len(got) < 2, nil
	}); err != nil || len(got) != 2 {
		t.Errorf("got %v, %v", got, err)
	}
	fails := errors.New("fails")
	if _, err := s.Changes(t.Context(), 2, func(Change) (bool, error) { return true, fails }); !errors.Is(err, fails) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Changes(ctx, 2, func(Change) (bool, error) { return true, nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestLookIsBounded: one look at the change log holds no more values than its bound, however
// large they are, but whole revisions.
func TestLookIsBounded(t *testing.T) {
	s := newStore(t, "memory")
	half := string(make([]byte, lookBytes/2))
	for range 5 {
		do(t, s, put("a", half))
	}
	for from := uint64(layout.FirstRevision + 1); from <= s.Revision(); from += 2 {
		changes, _, err := lookAtChanges(t.Context(), s, from)
		if want := min(2, int(s.Revision()-from)+1); err != nil || len(changes) != want || changes[0].Revision != from {
			t.Errorf("from %d: %d changes, want %d; %v", from, len(changes), want, err)
		}
	}
}
