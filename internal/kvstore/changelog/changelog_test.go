package changelog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore/wire"
)

// text is everything that a change says.
func text(revision uint64, c *Change) string {
	return fmt.Sprintf("%d %q %t %d %d", revision, c.Key, c.Deleted, c.Previous, c.Stored)
}

// TestRoundTrip logs random revisions, some of them too large for a record, and reads them
// again.
func TestRoundTrip(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	var want, got []string
	var l Logger
	l.Set = func(revision uint64, part uint32, value []byte) {
		if len(value) > MaxBytes+8000 {
			t.Errorf("a record of %d bytes", len(value))
		}
		r := Read(revision, value)
		for r.Next() {
			got = append(got, text(r.Revision, &r.Change))
		}
		if r.Err != nil || part > 0 && r.Revision != revision {
			t.Errorf("part %d of revision %d: ends at %d, %v", part, revision, r.Revision, r.Err)
		}
	}
	revision := uint64(1)
	for range 300 {
		revision += 1 + rng.Uint64N(3)
		changes := make([]Change, 1+rng.IntN(4))
		if rng.IntN(30) == 0 {
			changes = make([]Change, 3000)
		}
		for i := range changes {
			c := Change{Key: fmt.Appendf(nil, "some/prefix/%d", rng.Uint64()>>rng.IntN(64)), Deleted: rng.IntN(2) == 0}
			if rng.IntN(2) == 0 {
				c.Previous, c.Stored = 1+rng.Uint64N(revision-1), 1+rng.Int64N(1<<20)
			}
			changes[i] = c
			want = append(want, text(revision, &c))
		}
		l.Log(revision, Revision{len(changes), func(i int, c *Change) { *c = changes[i] }})
	}
	l.Flush()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("seed %d: %d changes became %d others", seed, len(want), len(got))
	}
}

// TestRefused: what a Logger does not write is refused.
func TestRefused(t *testing.T) {
	for name, b := range map[string]string{
		"nothing":                   "",
		"no change":                 "\x01",
		"a revision without change": "\x01\x00\x00",
		"a later first revision":    "\x01\x01\x01\x00\x00\x01a",
		"a revision twice":          "\x01\x00\x01\x00\x00\x01a\x00\x01\x00\x00\x01b",
		"half a revision":           "\x01\x00\x02\x00\x00\x01a",
		"an unknown flag":           "\x01\x00\x01\x04\x00\x01a",
		"a prefix that is not":      "\x01\x00\x01\x00\x01\x01a",
		"the empty key":             "\x01\x00\x01\x00\x00\x00",
		"replaced by itself":        "\x01\x00\x01\x02\x00\x01a\x00\x08",
		"replaced before the first": "\x01\x00\x01\x02\x00\x01a\x05\x08",
		"replaced nothing":          "\x01\x00\x01\x02\x00\x01a\x01\x00",
	} {
		if _, err := Last(5, []byte(b)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var unknown *wire.UnknownVersionError
	if _, err := Last(5, []byte{2, 0, 1, 0, 0, 1, 'a'}); !errors.As(err, &unknown) || unknown.Version != 2 {
		t.Errorf("a newer version: %v", err)
	}
}
