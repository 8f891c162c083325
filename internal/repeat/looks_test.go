package repeat

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestLooks: however often something changes, there is one look each pace, one after the last
// change, and none after that.
func TestLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		l, urgent := NewLooks(time.Second), make(chan struct{})
		var looks []time.Duration
		begin, ended := time.Now(), make(chan struct{})
		go func() {
			defer close(ended)
			for l.Wait(ctx, urgent) {
				looks = append(looks, time.Since(begin))
			}
		}()
		expect := func(want ...time.Duration) {
			t.Helper()
			synctest.Wait()
			for i, at := range looks {
				if i >= len(want) || at != want[i] {
					t.Fatalf("looks at %v, want %v", looks, want)
				}
			}
			if len(looks) < len(want) {
				t.Fatalf("looks at %v, want %v", looks, want)
			}
		}
		time.Sleep(time.Hour)
		expect(time.Second) // the first one
		looks, begin = nil, time.Now()
		for range 8 { // until 2.1 s
			l.Stir()
			time.Sleep(300 * time.Millisecond)
		}
		time.Sleep(time.Hour)
		expect(time.Second, 2200*time.Millisecond)
		looks, begin = nil, time.Now()
		urgent <- struct{}{}
		expect(0)
		l.Stir()
		time.Sleep(300 * time.Millisecond)
		urgent <- struct{}{}
		time.Sleep(time.Hour)
		expect(0, 300*time.Millisecond)
		cancel()
		<-ended
	})
}
