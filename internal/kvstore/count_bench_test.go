package kvstore

import (
	"context"
	"testing"
)

// BenchmarkCount counts a million keys at once.
func BenchmarkCount(b *testing.B) {
	for _, name := range []string{"memory", "pebble"} {
		b.Run(name, func(b *testing.B) {
			s := benchStore(b, name, Options{})
			applyAll(b, s, benchPuts(1_000_000))
			for b.Loop() {
				if n, _, err := s.Count(context.Background(), Range{}); err != nil || n != 1_000_000 {
					b.Fatal(n, err)
				}
			}
		})
	}
}
