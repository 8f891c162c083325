package scrub

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

// FuzzProgress starts a scrub with arbitrary bytes as its file. Whatever they are, each file
// of the store is read within two intervals, no faster than one interval asks for, and a
// restart goes on where the scrub was.
func FuzzProgress(f *testing.F) {
	f.Add([]byte(`{"begun":946684800,"ended":946684000,"generation":1,"after":2,"done":false}`))
	f.Add([]byte(`{"begun":946684800,"generation":1,"after":3,"done":true}`))
	f.Add([]byte(`{"begun":` + strconv.Itoa(math.MaxInt64) + `,"ended":` + strconv.Itoa(math.MaxInt64) + `,"generation":1,"after":18446744073709551615}`))
	f.Add([]byte(`{"begun":9e18,"done":true}`))
	f.Add([]byte(`{"begun":-1,"after":3,"generation":1}`))
	f.Add([]byte(`{"generation":2,"after":4,"Done":true}{`))
	f.Add([]byte("null"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "scrub")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		synctest.Test(t, func(t *testing.T) {
			const (
				interval = 10 * time.Minute
				size     = 32 << 20
			)
			store := storeOf(4, size)
			s, stop := runningEvery(t, store, path, interval)
			<-time.After(2 * interval)
			synctest.Wait()
			_ = stop()
			read, _, fastest := store.seen()
			if got := slices.Compact(slices.Sorted(slices.Values(read))); len(got) != len(store.files) || s.Figures().Passes == 0 {
				t.Fatalf("%q: of %d files, %v were read in two intervals, in %d passes", text, len(store.files), got, s.Figures().Passes)
			}
			// A pass that is late may take a tenth of the interval.
			if most := 1.01 * 4 * size / (interval / 10).Seconds(); fastest > most {
				t.Fatalf("%q: %.0f bytes per second, at most %.0f were planned", text, fastest, most)
			}
			before := s.load()
			if again := New(store, path, interval); again.load() != before || again.Figures().LastPass != s.Figures().LastPass || before.Begun == 0 {
				t.Fatalf("%q: went on from %+v, not from %+v", text, again.load(), before)
			}
		})
	})
}
