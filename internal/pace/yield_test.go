package pace

import (
	"io"
	"testing"
	"testing/synctest"
	"time"
)

// TestBackupsYieldToRequests: in virtual time, a backup rests while entries are
// applied, within its limit, and only then.
func TestBackupsYieldToRequests(t *testing.T) {
	for _, c := range []struct {
		name       string
		busy       bool
		work, rest time.Duration
	}{
		{"idle", false, 3 * time.Millisecond, 0},
		{"busy", true, 3 * time.Millisecond, 6 * time.Millisecond},
		{"a slow reader", true, time.Second, maxRest},
	} {
		synctest.Test(t, func(t *testing.T) {
			applied := uint64(7)
			p := &Yielding{W: io.Discard, Applied: func() uint64 { return applied }, seen: 7}
			for range 10 {
				time.Sleep(c.work)
				if c.busy {
					applied++
				}
				begin := time.Now()
				first := p.since.IsZero()
				if n, err := p.Write([]byte("x")); n != 1 || err != nil {
					t.Fatal(n, err)
				}
				want := c.rest
				if first {
					want = 0
				}
				if got := time.Since(begin); got != want {
					t.Errorf("%s: rested %v, want %v", c.name, got, want)
				}
			}
		})
	}
}
