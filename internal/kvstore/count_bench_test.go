package kvstore

import (
	"context"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore/tally"
)

// BenchmarkCount counts nearly a million keys at once: for the first time, and again after
// a put.
func BenchmarkCount(b *testing.B) {
	const keys = 1_000_000
	for _, name := range []string{"memory", "pebble"} {
		s := benchStore(b, name, Options{})
		puts := benchPuts(keys)
		applyAll(b, s, puts)
		var from []byte
		_, err := s.List(context.Background(), Range{}, func(i Item) (bool, error) {
			from = append(i.KV.Key, 0) // all but the first
			return false, nil
		})
		must(b, err)
		count := func(b *testing.B) {
			if n, _, err := s.Count(context.Background(), Range{Start: from}); err != nil || n != keys-1 {
				b.Fatal(n, err)
			}
		}
		b.Run(name+"/first", func(b *testing.B) {
			for b.Loop() {
				s.tally = tally.New(tally.Grain)
				count(b)
			}
		})
		b.Run(name+"/again", func(b *testing.B) {
			for b.Loop() {
				do(b, s, put(string(from[:len(from)-1]), "again"))
				count(b)
			}
		})
	}
}
