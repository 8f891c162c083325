package watch

import (
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore"
)

// What was applied is counted whether somebody watches or not.
func TestAppliedIsCounted(t *testing.T) {
	h := New(Options{})
	put, gone := kvstore.Event{KV: kvstore.KV{Key: []byte("a")}}, kvstore.Event{Deleted: true, KV: kvstore.KV{Key: []byte("b")}}
	h.Applied([]kvstore.Change{{Revision: 2, Events: []kvstore.Event{put}}, {Revision: 3, Events: []kvstore.Event{put, gone}}}, func() {})
	h.Applied([]kvstore.Change{{Revision: 4, Events: []kvstore.Event{gone}}}, func() {})
	if got, want := h.Stats().Applied, (Applied{Puts: 2, Deletes: 2, Compound: 1}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}
