package body

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"runtime"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/zstd"

	"github.com/kvd-io/kvd/internal/kvstore/wire"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// read reads a body into text.
func read(b []byte) (out []string, err error) {
	t, sections, err := Read(bytes.NewReader(b), func(name string, version byte) error {
		out = append(out, fmt.Sprintf("section %s %d", name, version))
		return nil
	}, func(key, value []byte) error {
		out = append(out, fmt.Sprintf("%s=%d", key, len(value)))
		return nil
	})
	for _, s := range sections {
		out = append(out, fmt.Sprintf("%s: %d records, %d bytes", s.Name, s.Records, s.Bytes))
	}
	return append(out, fmt.Sprintf("%+v", t)), err
}

// twoSections has a section of two blocks, and an empty one.
func twoSections(t testing.TB) []byte {
	var out bytes.Buffer
	w, err := NewWriter(&out)
	must(t, err)
	must(t, w.Section("first", 1))
	must(t, w.Add([]byte("a"), make([]byte, blockSize)))
	must(t, w.Add([]byte("b"), nil))
	must(t, w.Section("second", 7))
	must(t, w.Finish(Trailer{Index: 1, Term: 2, Revision: 3, CompactRevision: 4, StateHash: 5}))
	if w.Written() != int64(out.Len()) {
		t.Errorf("%d bytes were written, want %d", w.Written(), out.Len())
	}
	return out.Bytes()
}

func TestRoundTrip(t *testing.T) {
	got, err := read(twoSections(t))
	must(t, err)
	want := []string{
		"section first 1", "a=262144", "b=0", "section second 7", "first: 2 records, 262152 bytes", "second: 0 records, 0 bytes",
		"{Records:2 Index:1 Term:2 Revision:3 CompactRevision:4 StateHash:5}",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("read %q", got)
	}
}

// TestDamage: no byte can change, and no end be missing.
func TestDamage(t *testing.T) {
	body := twoSections(t)
	for i := range body {
		for _, bit := range []byte{1, 0x80} {
			bad := bytes.Clone(body)
			bad[i] ^= bit
			var unknown *wire.UnknownVersionError
			// The owner judges names and versions of sections.
			if _, err := read(bad); !errors.Is(err, ErrDamaged) && !errors.As(err, &unknown) && !inSectionHead(body, i) {
				t.Errorf("byte %d of %d: %v", i, len(body), err)
			}
		}
		if _, err := read(body[:i]); !errors.Is(err, ErrDamaged) {
			t.Errorf("cut off at %d: %v", i, err)
		}
	}
	if _, err := read(append(bytes.Clone(body), 0)); !errors.Is(err, ErrDamaged) {
		t.Errorf("something after the end: %v", err)
	}
}

func inSectionHead(body []byte, i int) bool {
	for _, name := range []string{"first", "second"} {
		at := bytes.Index(body, []byte(name))
		if i >= at-2 && i < at+len(name) {
			return true
		}
	}
	return false
}

// TestOrder: the keys of a section ascend.
func TestOrder(t *testing.T) {
	for _, keys := range []string{"ba", "aa"} {
		var out bytes.Buffer
		w, err := NewWriter(&out)
		must(t, err)
		must(t, w.Section("s", 1))
		for _, key := range []byte(keys) {
			must(t, w.Add([]byte{key}, nil))
		}
		must(t, w.Finish(Trailer{}))
		if _, err := read(out.Bytes()); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", keys, err)
		}
	}
}

// TestHostileLengths: a claimed length is not allocated before the bytes arrive.
func TestHostileLengths(t *testing.T) {
	head := append([]byte(Magic), Version, sectionMark, 1, 1, 's')
	block := func(packed, raw uint64, content []byte) []byte {
		b := make([]byte, blockHeadLen)
		putNumbers(b, packed, raw, xxhash.Sum64(content))
		return append(append(bytes.Clone(head), b...), content...)
	}
	enc, err := zstd.NewWriter(nil)
	must(t, err)
	bomb := enc.EncodeAll(make([]byte, 2*maxBlock), nil)
	for name, body := range map[string][]byte{
		"the greatest length":        block(math.MaxUint64, math.MaxUint64, nil),
		"more than a block":          block(maxBlock+1, 1, nil),
		"a block that does not come": block(maxBlock, maxBlock, nil),
		"half an end":                block(0, 1, nil),
		"a bomb":                     block(uint64(len(bomb)), maxBlock, bomb),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := read(body)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 {
			t.Errorf("%s: %d bytes were allocated", name, n)
		}
	}
}

// TestUnknownVersion: a body of a newer kvd is not taken for a damaged one.
func TestUnknownVersion(t *testing.T) {
	body := twoSections(t)
	body[len(Magic)]++
	var unknown *wire.UnknownVersionError
	if _, err := read(body); !errors.As(err, &unknown) || unknown.Version != Version+1 {
		t.Errorf("%v", err)
	}
}

// FuzzRead: a body that is read, written again, is the same body to a reader.
func FuzzRead(f *testing.F) {
	body := twoSections(f)
	f.Add(body, []byte("k"), []byte("v"))
	f.Add(body[:40], []byte{}, []byte{})
	f.Add([]byte(Magic), bytes.Repeat([]byte("k"), 100), make([]byte, blockSize))
	f.Fuzz(func(t *testing.T, body, key, value []byte) {
		if again, ok := rewritten(t, body); ok {
			want, _ := read(body)
			if got, err := read(again); err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("%q became %q, %v", want, got, err)
			}
		}
		// Most bodies fail a checksum, so these records get valid ones.
		var out bytes.Buffer
		w, err := NewWriter(&out)
		must(t, err)
		must(t, w.Section("s", 1))
		must(t, w.Add(key, value))
		must(t, w.Add(append(bytes.Clone(key), 0), key))
		must(t, w.Finish(Trailer{Index: uint64(len(key))}))
		if again, ok := rewritten(t, out.Bytes()); !ok || !bytes.Equal(again, out.Bytes()) {
			t.Fatalf("%x is not read back", out.Bytes())
		}
	})
}

// rewritten writes what is in a body to another one. It returns false if the body is refused.
func rewritten(t *testing.T, body []byte) ([]byte, bool) {
	var out bytes.Buffer
	w, err := NewWriter(&out)
	must(t, err)
	trailer, _, err := Read(bytes.NewReader(body), w.Section, w.Add)
	if err != nil {
		return nil, false
	}
	must(t, w.Finish(trailer))
	return out.Bytes(), true
}
