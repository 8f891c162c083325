package budget

import (
	"errors"
	"testing"
	"testing/synctest"
)

// However many claims of a share there are, and wait, others find half of the large part
// (B5).
func TestShareLeavesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(8 * mib)
		share := b.Share() // 3 of the 6 MiB
		first := share.Claim()
		if !first.Try(100*mib) || b.large.taken.Load() != 3*mib {
			t.Fatalf("%d bytes are taken", b.large.taken.Load())
		}
		done := make(chan error, 20)
		for range cap(done) {
			go func() {
				c := share.Claim()
				done <- c.WaitFor(t.Context(), mib, Patience)
			}()
		}
		synctest.Wait()
		other := b.Claim()
		if !other.Try(3 * mib) {
			t.Error("claims of the share keep others waiting")
		}
		var full *FullError
		for range cap(done) {
			if err := <-done; !errors.As(err, &full) {
				t.Errorf("a claim beyond the share: %v", err)
			}
		}
		other.Release()
		first.Release()
		if got := all(t, b); got != 0 || !share.bytes.TryAcquire(share.size) {
			t.Errorf("%d bytes were not given back, or not all of the share", got)
		}
	})
}

// A claim that finds room in the share alone keeps none of it.
func TestShareWithoutBudget(t *testing.T) {
	b := New(8 * mib)
	share := b.Share()
	other, c := b.Claim(), share.Claim()
	other.Try(6 * mib)
	if c.Try(mib) || c.held != 0 || !share.bytes.TryAcquire(share.size) {
		t.Errorf("%d bytes of the share are held", c.held)
	}
}
