package crashdisk_test

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/engine/crashdisk"
)

// TestCutTakesWhatWasNotFlushed: a power cut leaves what the engine had made durable, and
// nothing else.
func TestCutTakesWhatWasNotFlushed(t *testing.T) {
	d, rng := crashdisk.New(), rand.New(rand.NewPCG(1, 1))
	e := open(t, d)
	set(t, e, "kept")
	if err := e.Close(); err != nil { // which flushes
		t.Fatal(err)
	}
	for range 20 {
		e = open(t, d)
		set(t, e, "lost")
		d.Cut(rng)
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		e = open(t, d)
		if _, err := e.Get(nil, []byte("kept")); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Get(nil, []byte("lost")); !errors.Is(err, engine.ErrNotFound) {
			t.Fatalf("what was never flushed is there: %v", err)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func open(t *testing.T, d *crashdisk.Disk) engine.Engine {
	t.Helper()
	e, err := d.Open(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func set(t *testing.T, e engine.Engine, key string) {
	t.Helper()
	b := e.NewWriteBatch()
	b.Set([]byte(key), []byte("v"))
	if err := errors.Join(b.Commit(), b.Close()); err != nil {
		t.Fatal(err)
	}
}
