package transfer

import (
	"context"
	"encoding/json"
	"iter"
	"strings"
	"testing"
	"time"

	"github.com/kvd-io/kvd/kvdtest"
)

type noMeter struct{}

func (noMeter) Add(int64) {}
func (noMeter) Done()     {}

// pairsOf is a source in memory, whose passes are counted.
func pairsOf(before func(pass int), keys ...string) *Source {
	pass := 0
	return &Source{
		What:  "the test",
		check: func() (int64, error) { return int64(len(keys)), nil },
		pairs: func(context.Context) iter.Seq2[Pair, error] {
			pass++
			before(pass)
			return func(yield func(Pair, error) bool) {
				for _, key := range keys {
					if !yield(Pair{Key: key, Value: []byte(key)}, nil) {
						return
					}
				}
			}
		},
	}
}

// Somebody changes a key between the import and the comparison at its end.
func TestImportIsVerified(t *testing.T) {
	c := kvdtest.New(t).Client()
	work := Import{Client: c, Timeout: 30 * time.Second, Meter: func(string, int64) Meter { return noMeter{} }}
	for what, change := range map[string]func() error{
		"changed": func() error { _, err := c.Put(t.Context(), "b", []byte("other")); return err },
		"deleted": func() error { _, err := c.Delete(t.Context(), "b"); return err },
	} {
		from := pairsOf(func(pass int) {
			if pass == 2 {
				if err := change(); err != nil {
					t.Error(err)
				}
			}
		}, "a", "b", "c")
		done, err := work.Store(t.Context(), from)
		if err != nil {
			t.Fatal(err)
		}
		err = work.Verify(t.Context(), from, &done)
		if err == nil || !strings.Contains(err.Error(), "the cluster differs from the test") || !strings.Contains(err.Error(), `the first one that differs is "b"`) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if kv, err := c.Get(t.Context(), "c"); err != nil || string(kv.Value) != "c" {
		t.Errorf("%+v %v", kv, err)
	}
}

// Chunks are bounded by pairs and by bytes, and a large pair is alone.
func TestChunks(t *testing.T) {
	keys := []string{strings.Repeat("x", maxChunkBytes), "a", "b"}
	for range maxChunkPairs {
		keys = append(keys, "k")
	}
	skipped := uint64(0)
	var sizes []int
	for chunk, err := range new(Import).chunks(t.Context(), pairsOf(func(int) {}, keys...), &skipped) {
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, len(chunk))
	}
	if len(sizes) != 3 || sizes[0] != 1 || sizes[1] != maxChunkPairs || sizes[2] != 2 {
		t.Errorf("chunks of %v", sizes)
	}
}

func TestAfter(t *testing.T) {
	for prefix, want := range map[string]string{"": "", "a": "b", "a\xff": "b", "\xff\xff": "", "a/": "a0"} {
		if got := After(prefix); got != want {
			t.Errorf("after %q comes %q, want %q", prefix, got, want)
		}
	}
}

// TestHalfCharacters: half of a surrogate pair would be read as another character.
func TestHalfCharacters(t *testing.T) {
	for text, whole := range map[string]bool{
		`"\ud83d\ude00"`: true, `"\ufffd"`: true, `"\\ud800"`: true, `"\u0041\n\""`: true,
		`"\ud800"`: false, `"\ude00\ud83d"`: false, `"\ud83d\n"`: false, `"\\\ud83dx"`: false, `"\ud83d\ud83d\ude00"`: false,
	} {
		var got string
		if err := decodeText(json.NewDecoder(strings.NewReader(text)), &got); (err == nil) != whole {
			t.Errorf("%s is read as %q, %v", text, got, err)
		}
	}
}

func TestIsEtcdURL(t *testing.T) {
	for text, want := range map[string]bool{
		"http://a:2379": true, "https://10.0.0.1:2379": true, "a:2379": false, "10.0.0.1:2379": false, "http://": false, "http://a/x": false, "unix:///a": false,
		"http://u:p@a:1": false, "": false,
	} {
		if IsEtcdURL(text) != want {
			t.Errorf("%q: %v", text, !want)
		}
	}
}
