package kvstore

import (
	"fmt"
	"strings"
	"testing"
)

// TestCacheIsBounded: the cache is bounded in entries and in bytes, and a key in steady
// use stays in it.
func TestCacheIsBounded(t *testing.T) {
	const limit = 10
	for name, keyLen := range map[string]int{"by entries": 8, "by bytes": 2000} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, newEngine(t, "memory"), Options{CacheEntries: limit})
			do(t, s, put("used", ""))
			used := s.exec.cache.get([]byte("used"))
			for i := range 1000 {
				do(t, s, put(fmt.Sprintf("%0*d", keyLen, i), ""), put("used", ""))
				bytes := 0
				for key := range s.exec.cache.young {
					bytes += len(key)
				}
				if len(s.exec.cache.young) > limit || len(s.exec.cache.old) > limit+1 || bytes > s.exec.cache.limitBytes {
					t.Fatalf("after %d keys: %d young ones of %d bytes, %d old ones", i, len(s.exec.cache.young), bytes, len(s.exec.cache.old))
				}
			}
			if s.exec.cache.get([]byte("used")) != used {
				t.Error("a key in use was looked up again")
			}
		})
	}
}

// TestCacheKeepsWhatFits: nothing is dropped while everything fits.
func TestCacheKeepsWhatFits(t *testing.T) {
	s := newStore(t, "memory")
	var first []*keyMeta
	for i := range 2000 {
		do(t, s, put(strings.Repeat("k", i%50+1), ""))
		if i < 50 {
			first = append(first, s.exec.cache.get([]byte(strings.Repeat("k", i+1))))
		}
	}
	for i, m := range first {
		if got := s.exec.cache.young[strings.Repeat("k", i+1)]; got != m {
			t.Fatalf("key %d was looked up again", i)
		}
	}
}
