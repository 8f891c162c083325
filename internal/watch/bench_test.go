package watch

import (
	"context"
	"fmt"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore"
)

// BenchmarkApplied measures what a put costs the goroutine that applies: elsewhere means
// that it concerns none of the idle watches, here that it concerns that many (W6).
func BenchmarkApplied(b *testing.B) {
	for _, watches := range []int{0, 100, 10_000} {
		b.Run(fmt.Sprintf("elsewhere=%d", watches), func(b *testing.B) { benchmarkApplied(b, watches, "elsewhere/") })
	}
	b.Run("here=100", func(b *testing.B) { benchmarkApplied(b, 100, "k") })
}

func benchmarkApplied(b *testing.B, watches int, prefix string) {
	hub := New(Options{MaxWatches: watches + 1})
	store := newFakeStore()
	hub.Attach(store)
	s, err := hub.OpenStream()
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	hub.used = true // with 0 watches, too
	for i := range watches {
		spec := Spec{Start: []byte("k"), End: []byte("l")}
		if prefix != "k" {
			start := fmt.Appendf(nil, "%s%d/", prefix, i)
			spec = Spec{Start: start, End: kvstore.Prefix(start).End(), Single: i%2 == 0}
		}
		w, err := hub.OpenStream()
		if err != nil {
			b.Fatal(err)
		}
		defer w.Close()
		if _, _, err := w.Add(spec); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Next(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
	value := make([]byte, 256)
	revision := uint64(1)
	show := func() {}
	b.ReportAllocs()
	for b.Loop() {
		revision++
		hub.Applied([]kvstore.Change{{Revision: revision, Events: []kvstore.Event{{KV: kvstore.KV{Key: []byte("key-0123456789"), Value: value, ModRevision: revision, CreateRevision: 2, Version: revision}}}}}, show)
	}
}
