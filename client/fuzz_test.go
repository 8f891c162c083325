package client

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// document returns a pair as a node writes it.
func document(kv *KV) map[string]any {
	doc := map[string]any{"create_revision": kv.CreateRevision, "mod_revision": kv.ModRevision, "version": kv.Version, "lease": kv.Lease}
	if kv.Lease >= 1<<53 {
		doc["lease"] = fmt.Sprint(kv.Lease)
	}
	for field, b := range map[string]string{"key": kv.Key, "value": string(kv.Value)} {
		if utf8.ValidString(b) {
			doc[field] = b
		} else {
			doc[field+"_base64"] = base64.StdEncoding.EncodeToString([]byte(b))
		}
	}
	return doc
}

// FuzzPair: any pair is read as the node has it, and no text makes the client panic or take
// a pair for another one.
func FuzzPair(f *testing.F) {
	f.Add("a", []byte("1"), int64(7), uint64(3), `{"key":"a","lease":"9007199254740993"}`)
	f.Add("\xff", []byte{0xff}, int64(1)<<62, uint64(1)<<63, `{"key_base64":"!","lease":null,"previous":{"key":1}}`)
	f.Add("\u2028", []byte{}, int64(-1), uint64(0), `{"key":"a","key_base64":"Yg==","value":null}`)
	f.Fuzz(func(t *testing.T, key string, value []byte, lease int64, revision uint64, text string) {
		want := &KV{Key: key, Value: value, Lease: lease, CreateRevision: revision, ModRevision: revision, Version: revision}
		b, err := json.Marshal(document(want))
		if err != nil {
			t.Fatal(err)
		}
		var w wireKV
		if err := json.Unmarshal(b, &w); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		if got, err := w.kv(); err != nil || got.Key != key || string(got.Value) != string(value) || got.Lease != lease || got.CreateRevision != revision || got.ModRevision != revision || got.Version != revision {
			t.Fatalf("%s is read as %+v, %v", b, got, err)
		}
		var other wireKV
		if json.Unmarshal([]byte(text), &other) != nil {
			return
		}
		got, err := other.kv()
		if err != nil {
			return
		}
		again, err := json.Marshal(document(got))
		if err != nil {
			t.Fatal(err)
		}
		var third wireKV
		if err := json.Unmarshal(again, &third); err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		if back, err := third.kv(); err != nil || back.Key != got.Key || string(back.Value) != string(got.Value) || back.Lease != got.Lease || back.ModRevision != got.ModRevision {
			t.Fatalf("%q is read as %+v, and that as %+v, %v", text, got, back, err)
		}
	})
}

// FuzzResume breaks the connections of a watch after arbitrary numbers of lines. Each event
// comes once, in order, wherever a connection ends, also within a revision.
func FuzzResume(f *testing.F) {
	f.Add([]byte{1, 3, 1, 4}, []byte{2, 1, 5})
	f.Add([]byte{5}, []byte{1, 1, 1, 1, 1})
	f.Add([]byte{2, 2, 2}, []byte{0, 0, 9})
	f.Fuzz(func(t *testing.T, sizes, cuts []byte) {
		if len(sizes) > 50 || len(cuts) > 500 {
			return
		}
		var history []*wireEvent
		var want []string
		for i, n := range sizes {
			revision := uint64(2*i + 2) // the others are of other keys
			for at := range n % 8 {
				key := fmt.Sprint(revision, "/", at)
				history = append(history, &wireEvent{wireKV: wireKV{Key: &key, ModRevision: revision}, Type: "put", More: at+1 < n%8})
				want = append(want, key)
			}
		}
		var got []string
		w := &watch{next: 1, yield: func(e *Event, _ error) bool { got = append(got, e.KV.Key); return true }}
		for n := 0; ; n++ {
			left := len(history) + 2
			if n < len(cuts) {
				left = int(cuts[n]) % 16
			}
			if connected(t, w, history, left) {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("sizes %v, cuts %v: got %s, want %s", sizes, cuts, strings.Join(got, " "), strings.Join(want, " "))
		}
	})
}

// connected sends up to so many lines of a history from where the watch asks for it, and
// reports whether that was all of it.
func connected(t *testing.T, w *watch, history []*wireEvent, lines int) (all bool) {
	skip, from := w.partial, w.next
	send := func(e *wireEvent) bool {
		if lines--; lines < 0 {
			return false
		}
		if err := w.take(e, &skip); err != nil {
			t.Fatal(err)
		}
		return true
	}
	if !send(&wireEvent{Type: "progress", Revision: from - 1}) {
		return false
	}
	for i, e := range history {
		if e.ModRevision < from {
			continue
		}
		if !send(e) {
			return false
		}
		// Between two revisions, a node may say how far it is.
		if i%3 == 0 && !e.More && !send(&wireEvent{Type: "progress", Revision: e.ModRevision}) {
			return false
		}
	}
	return true
}
