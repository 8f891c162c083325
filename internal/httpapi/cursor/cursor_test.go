package cursor

import (
	"bytes"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore"
)

func TestCursorRoundTrip(t *testing.T) {
	for _, c := range []Cursor{
		{1, 0, []byte{}},
		{1<<53 - 1, 1<<64 - 1, []byte("a/b\x00")},
		{300, 7, bytes.Repeat([]byte{0xff}, kvstore.MaxKeyBytes+1)},
	} {
		got, err := Parse(c.String())
		if err != nil || got.Revision != c.Revision || got.Digest != c.Digest || !bytes.Equal(got.Bound, c.Bound) {
			t.Errorf("%+v came back as %+v, %v", c, got, err)
		}
	}
}

// A cursor with any single character changed is refused.
func TestCursorDamage(t *testing.T) {
	text := (&Cursor{42, 99, []byte("some/key")}).String()
	for i := range text {
		for _, c := range []byte("Aa0_-=!") {
			if text[i] == c {
				continue
			}
			damaged := text[:i] + string(c) + text[i+1:]
			if _, err := Parse(damaged); err == nil {
				t.Fatalf("%q, damaged at %d, was accepted", damaged, i)
			}
		}
		if _, err := Parse(text[:i]); err == nil {
			t.Fatalf("%q, cut at %d, was accepted", text, i)
		}
	}
}

func TestDigestTellsRangesApart(t *testing.T) {
	b := func(s string) []byte { return []byte(s) }
	seen := map[uint64]int{}
	for i, r := range []kvstore.Range{
		{},
		{Start: b("a")},
		{End: b("a")},
		{End: b("")},
		{Start: b("a"), End: b("b")},
		{Start: b("ab")},
		{Start: b("a"), End: b("b"), Reverse: true},
		{Start: b("a"), End: b("b"), Delimiter: b("/")},
		{Start: b("a"), End: b("b"), Delimiter: b("/"), GroupAfter: 1},
	} {
		d := Digest(&r)
		if j, ok := seen[d]; ok {
			t.Errorf("ranges %d and %d have the same digest", i, j)
		}
		seen[d] = i
	}
}

// FuzzCursor checks that Parse does not panic and accepts exactly what String makes.
func FuzzCursor(f *testing.F) {
	f.Add((&Cursor{1, 2, []byte("k")}).String(), uint64(1), uint64(2), []byte("k"))
	f.Add("", uint64(1<<53), uint64(0), []byte{})
	f.Fuzz(func(t *testing.T, text string, revision, digest uint64, bound []byte) {
		if c, err := Parse(text); err == nil && c.String() != text {
			t.Fatalf("%q was accepted, but String makes %q", text, c.String())
		}
		if revision == 0 || len(bound) > kvstore.MaxKeyBytes+1 {
			return
		}
		c := Cursor{revision, digest, bound}
		got, err := Parse(c.String())
		if err != nil || got.Revision != revision || got.Digest != digest || !bytes.Equal(got.Bound, bound) {
			t.Fatalf("%+v came back as %+v, %v", c, got, err)
		}
	})
}
