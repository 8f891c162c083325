package layout

import (
	"bytes"
	"cmp"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"github.com/kvd-io/kvd/internal/kvstore/command"
	"github.com/kvd-io/kvd/internal/kvstore/wire"
)

// likely are the bytes that a key format is likely to get wrong.
var likely = []byte{0x00, 0x01, 0x02, '/', 'a', 'v', 0xFE, 0xFF}

// seeded returns a source of random numbers, and names its seed if the test fails.
func seeded(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the seed is %d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 0))
}

// randomLongKey returns a key of random length, mostly of difficult bytes.
func randomLongKey(rng *rand.Rand) []byte {
	key := make([]byte, rng.IntN(20))
	for i := range key {
		key[i] = likely[rng.IntN(len(likely))]
		if rng.IntN(4) == 0 {
			key[i] = byte(rng.Uint32())
		}
	}
	return key
}

func randomNumber(rng *rand.Rand) uint64 {
	switch rng.IntN(4) {
	case 0:
		return 1 + rng.Uint64N(3)
	case 1:
		return math.MaxUint64 - rng.Uint64N(3)
	}
	return rng.Uint64()>>rng.IntN(64) | 1
}

func TestVersionKeysKeepOrder(t *testing.T) {
	rng := seeded(t)
	for range 20_000 {
		a, b := randomLongKey(rng), randomLongKey(rng)
		if rng.IntN(2) == 0 { // a continuation
			b = slices.Concat(a, b)
		}
		revA, revB := randomNumber(rng), randomNumber(rng)
		want := cmp.Or(bytes.Compare(a, b), -cmp.Compare(revA, revB))
		keyA, keyB := AppendVersionKey(nil, a, revA), AppendVersionKey(nil, b, revB)
		if got := bytes.Compare(keyA, keyB); got != want {
			t.Fatalf("%x@%d and %x@%d: %d, want %d", a, revA, b, revB, got, want)
		}
		checkRoundTrip(t, keyA, a, revA)
		checkBounds(t, a, b, keyB)
		checkPointBounds(t, a, revA, b, revB)
	}
}

func checkRoundTrip(t *testing.T, k, key []byte, revision uint64) {
	t.Helper()
	if err := CheckVersionKey(k); err != nil {
		t.Fatal(err)
	}
	prefix, got, err := SplitVersionKey(k)
	if err != nil {
		t.Fatal(err)
	}
	if got != revision || !bytes.Equal(UnescapePrefix(nil, prefix), key) || !bytes.Equal(appendKeyPrefix(nil, key), prefix) {
		t.Fatalf("%x@%d became %x", key, revision, k)
	}
	if after := AfterPrefix(nil, prefix); bytes.Compare(k, after) >= 0 {
		t.Fatalf("%x is after %x", k, after)
	}
}

// checkBounds compares being in a range with being between its bounds.
func checkBounds(t *testing.T, start, key, k []byte) {
	t.Helper()
	lower, upper := VersionBounds(start, nil)
	if got, want := bytes.Compare(k, lower) >= 0, bytes.Compare(key, start) >= 0; got != want || bytes.Compare(k, upper) >= 0 {
		t.Fatalf("%x from %x on: %t", key, start, got)
	}
	_, upper = VersionBounds(nil, start)
	if got, want := bytes.Compare(k, upper) < 0, bytes.Compare(key, start) < 0; got != want {
		t.Fatalf("%x before %x: %t", key, start, got)
	}
}

func checkPointBounds(t *testing.T, a []byte, revA uint64, b []byte, revB uint64) {
	t.Helper()
	lower, upper := PointBounds(nil, a, revA)
	k := AppendVersionKey(nil, b, revB)
	got := bytes.Compare(lower, k) <= 0 && bytes.Compare(k, upper) < 0
	if want := bytes.Equal(a, b) && revB <= revA; got != want {
		t.Fatalf("%x@%d read at %x@%d: %t", b, revB, a, revA, got)
	}
}

// sampleEngineKeys returns keys of all tables and the bounds made from them.
func sampleEngineKeys(rng *rand.Rand) (out [][]byte) {
	for range 60 {
		key := randomLongKey(rng)
		prefix := appendKeyPrefix(nil, key)
		out = append(out, prefix, AfterPrefix(nil, prefix), AppendEscaped([]byte{TableVersion}, key),
			AppendVersionKey(nil, key, randomNumber(rng)), AppendVersionKey(nil, key, randomNumber(rng)),
			AppendVersionKey(nil, key, math.MaxUint64), AppendVersionKey(nil, key, 0),
			RecordKey(nil, key), TimeKey(randomNumber(rng)), ChangeKey(nil, randomNumber(rng), rng.Uint32()))
		if group := Prefix(AppendEscaped([]byte{TableVersion}, key)).End(); group != nil {
			out = append(out, group)
		}
	}
	return append(out, []byte{TableMeta}, []byte{TableSetting}, []byte{TableVersion + 1})
}

// TestComparer checks what Pebble requires of a comparer: that keys are ordered by prefix
// and then by the rest, and where separators, successors and abbreviated keys sort.
func TestComparer(t *testing.T) {
	keys := sampleEngineKeys(seeded(t))
	c := Comparer()
	for _, a := range keys {
		checkSuccessors(t, c, a)
		for _, b := range keys {
			checkSplit(t, c, a, b)
			checkSeparator(t, c, a, b)
		}
	}
}

func checkSplit(t *testing.T, c *pebble.Comparer, a, b []byte) {
	t.Helper()
	n, m := c.Split(a), c.Split(b)
	if n > len(a) || c.Split(a[:n]) != n {
		t.Fatalf("%x is split at %d, its prefix at %d", a, n, c.Split(a[:n]))
	}
	want := cmp.Or(bytes.Compare(a[:n], b[:m]), c.ComparePointSuffixes(a[n:], b[m:]))
	if got := c.Compare(a, b); got != want || c.Equal(a, b) != (want == 0) {
		t.Fatalf("%x and %x compare as %d; by prefix and rest as %d", a, b, got, want)
	}
	if x, y := c.AbbreviatedKey(a), c.AbbreviatedKey(b); x < y && want >= 0 || x > y && want <= 0 {
		t.Fatalf("%x and %x are abbreviated to %x and %x", a, b, x, y)
	}
}

func checkSeparator(t *testing.T, c *pebble.Comparer, a, b []byte) {
	t.Helper()
	if c.Compare(a, b) >= 0 {
		return
	}
	if s := c.Separator(nil, a, b); c.Compare(a, s) > 0 || c.Compare(s, b) >= 0 {
		t.Fatalf("the separator of %x and %x is %x", a, b, s)
	}
	// The successor of a prefix is at or before everything without the prefix.
	prefix := a[:c.Split(a)]
	if s := c.ImmediateSuccessor(nil, prefix); !bytes.Equal(prefix, b[:c.Split(b)]) && c.Compare(s, b) > 0 {
		t.Fatalf("%x lies between %x and its successor %x", b, prefix, s)
	}
}

func checkSuccessors(t *testing.T, c *pebble.Comparer, a []byte) {
	t.Helper()
	if s := c.Successor(nil, a); c.Compare(s, a) < 0 {
		t.Fatalf("%x follows %x", s, a)
	}
	prefix := a[:c.Split(a)]
	if s := c.ImmediateSuccessor(nil, prefix); c.Compare(s, a) <= 0 || c.Split(s) != len(s) {
		t.Fatalf("the immediate successor of %x is %x, with %x in between", prefix, s, a)
	}
}

// A bound that was shortened stands between the same keys.
func TestBound(t *testing.T) {
	longest := strings.Repeat("k", command.MaxKeyBytes)
	for _, bound := range []string{"", "a", longest, longest + "\x00", longest + "z", longest[1:] + "\xff\xff"} {
		got := Bound([]byte(bound))
		if len(got) > command.MaxKeyBytes+1 {
			t.Errorf("a bound of %d bytes became one of %d", len(bound), len(got))
		}
		for _, key := range []string{"a", longest, longest[1:], longest[1:] + "\xfe", longest[1:] + "\xff", longest[2:] + "l"} {
			if (key < bound) != (key < string(got)) || (key == bound) != (key == string(got)) {
				t.Errorf("a key of %d bytes is elsewhere beside a bound of %d", len(key), len(bound))
			}
		}
	}
}

func TestPrefixEnd(t *testing.T) {
	for prefix, want := range map[string]string{"a": "b", "a\xff": "b", "a\xff\xffb\xff": "a\xff\xffc", "\x00": "\x01"} {
		if got := Prefix(prefix).End(); string(got) != want {
			t.Errorf("the end of %q is %q, want %q", prefix, got, want)
		}
	}
	for _, prefix := range []string{"", "\xff", "\xff\xff"} {
		if got := Prefix(prefix).End(); got != nil {
			t.Errorf("the end of %q is %q, want none", prefix, got)
		}
	}
}

// TestUnknownVersionFlags: a flag that is not known stands for a newer format.
func TestUnknownVersionFlags(t *testing.T) {
	for bit := range 8 {
		var unknown *wire.UnknownVersionError
		_, err := DecodeVersion(9, []byte{1 << bit, 1, 1, 1, 1, 1, 1})
		if known := knownFlags&(1<<bit) != 0; errors.As(err, &unknown) == known {
			t.Errorf("flag %#x: %v", 1<<bit, err)
		}
	}
}
