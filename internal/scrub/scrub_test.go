package scrub

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
)

// fakeStore has files of a given size, and remembers when each was read.
type fakeStore struct {
	generation uint64
	files      []engine.File
	damaged    uint64 // number of a damaged file
	busy       atomic.Bool

	mu      sync.Mutex // of what follows: a test looks while the scrubber reads
	read    []uint64
	slowest float64 // bytes per second, over whole files
	fastest float64
}

// seen returns which files were read, and the extremes of the rates.
func (f *fakeStore) seen() (read []uint64, slowest, fastest float64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.read), f.slowest, f.fastest
}

func (f *fakeStore) Files() (uint64, []engine.File, error) {
	return f.generation, slices.Clone(f.files), nil
}

func (f *fakeStore) Verify(file engine.File, pace func(int) error) error {
	if f.busy.Load() {
		return errors.New("too many open files")
	}
	begin := time.Now()
	for left := file.Bytes; left > 0; left -= 1 << 20 {
		if err := pace(int(min(left, 1<<20))); err != nil {
			return err
		}
	}
	rate := float64(file.Bytes) / max(time.Since(begin), 1).Seconds()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fastest = max(f.fastest, rate)
	if f.slowest == 0 || rate < f.slowest {
		f.slowest = rate
	}
	f.read = append(f.read, file.Number)
	if file.Number == f.damaged {
		return fmt.Errorf("file %d: %w", file.Number, engine.ErrDamaged)
	}
	return nil
}

func storeOf(n int, each int64) *fakeStore {
	f := &fakeStore{generation: 1}
	for i := range n {
		f.files = append(f.files, engine.File{Number: uint64(i + 1), Bytes: each})
	}
	return f
}

const week = 7 * 24 * time.Hour

// running runs a scrubber in the bubble until stop.
func running(t *testing.T, f *fakeStore, path string) (s *Scrubber, stop func() error) {
	t.Helper()
	return runningEvery(t, f, path, week)
}

// runningEvery is running with another interval.
func runningEvery(t *testing.T, f *fakeStore, path string, interval time.Duration) (s *Scrubber, stop func() error) {
	t.Helper()
	s = New(f, path, interval)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	return s, func() error { cancel(); return <-ended }
}

// TestPassTakesMostOfTheInterval: a large store is read once in each interval, evenly.
func TestPassTakesMostOfTheInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := storeOf(50, 4<<30)
		s, stop := running(t, f, filepath.Join(t.TempDir(), "scrub"))
		begin := time.Now()
		<-time.After(week - time.Hour)
		synctest.Wait()
		got := s.Figures()
		read, slowest, fastest := f.seen()
		if got.Passes != 1 || got.Bytes != 50*4<<30 || len(read) != 50 {
			t.Errorf("after a week: %+v, %d files", got, len(read))
		}
		if took := time.Unix(got.LastPass, 0).Sub(begin); took < week*7/10 || took > week*85/100 {
			t.Errorf("the pass took %v", took)
		}
		if fastest > 1.1*slowest {
			t.Errorf("between %.0f and %.0f bytes per second", slowest, fastest)
		}
		<-time.After(week)
		synctest.Wait()
		if got := s.Figures(); got.Passes != 2 {
			t.Errorf("after two weeks: %+v", got)
		}
		if err := stop(); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// TestFullDiskDoesNotRepeatThePass: a position that cannot be saved is not lost.
func TestFullDiskDoesNotRepeatThePass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := storeOf(20, 1<<30)
		s, stop := running(t, f, filepath.Join(t.TempDir(), "missing", "scrub"))
		<-time.After(2*week - time.Hour)
		synctest.Wait()
		read, _, _ := f.seen()
		if got := s.Figures(); got.Passes != 2 || len(read) != 40 {
			t.Errorf("after two weeks: %+v, %d files", got, len(read))
		}
		_ = stop()
	})
}

// TestSmallStoreIsReadOnceAWeek: it is read at MinRate, and then left alone.
func TestSmallStoreIsReadOnceAWeek(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := storeOf(3, MinRate*10)
		s, stop := running(t, f, filepath.Join(t.TempDir(), "scrub"))
		<-time.After(time.Minute)
		synctest.Wait()
		if got := s.Figures(); got.Passes != 1 {
			t.Errorf("after a minute: %+v", got)
		}
		<-time.After(week - 2*time.Minute)
		synctest.Wait()
		if got := s.Figures(); got.Passes != 1 {
			t.Errorf("before the week is over: %+v", got)
		}
		<-time.After(5 * time.Minute)
		synctest.Wait()
		if got := s.Figures(); got.Passes != 2 {
			t.Errorf("after a week: %+v", got)
		}
		_ = stop()
	})
}

// TestRestartsDoNotBeginAnew: a node that is restarted every day finishes its pass in
// the week, and reads no file twice.
func TestRestartsDoNotBeginAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := storeOf(700, 1<<30)
		path := filepath.Join(t.TempDir(), "scrub")
		var passes uint64
		for range 7 {
			s, stop := running(t, f, path)
			<-time.After(24 * time.Hour)
			_ = stop()
			passes += s.Figures().Passes
		}
		if passes != 1 || len(f.read) != 700 {
			t.Errorf("%d passes, %d files", passes, len(f.read))
		}
		if err := os.WriteFile(path, []byte("{damaged"), 0o600); err != nil {
			t.Fatal(err)
		}
		s, stop := running(t, f, path)
		<-time.After(week * 9 / 10)
		_ = stop()
		if s.Figures().Passes != 1 || len(f.read) != 1400 {
			t.Errorf("with damaged progress: %d files", len(f.read))
		}
	})
}

// TestDamageEndsTheRun, at the next start, too, until the store is another one.
func TestDamageEndsTheRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := storeOf(5, 1<<20)
		f.damaged = 3
		path := filepath.Join(t.TempDir(), "scrub")
		for range 2 {
			if err := New(f, path, week).Run(t.Context()); !engine.IsDamage(err) {
				t.Errorf("ended with %v", err)
			}
		}
		if want := []uint64{1, 2, 3, 3}; !slices.Equal(f.read, want) {
			t.Errorf("read %v, want %v", f.read, want)
		}
		f.generation, f.damaged, f.read = 2, 0, nil
		s, stop := running(t, f, path)
		<-time.After(time.Hour)
		synctest.Wait()
		if s.Figures().Passes != 1 || len(f.read) != 5 {
			t.Errorf("of the new store, %v was read", f.read)
		}
		_ = stop()
	})
}

// TestCircumstancesAreNoDamage: what cannot be read right now is tried again.
func TestCircumstancesAreNoDamage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := storeOf(2, 1000)
		f.busy.Store(true)
		s, stop := running(t, f, filepath.Join(t.TempDir(), "scrub"))
		<-time.After(10 * time.Minute)
		synctest.Wait()
		f.busy.Store(false)
		<-time.After(10 * time.Minute)
		synctest.Wait()
		if s.Figures().Passes != 1 {
			t.Errorf("%+v", s.Figures())
		}
		_ = stop()
	})
}
