package etcdapi

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/metadata"
)

// headless is a member that may lose its leader.
type headless struct {
	Member
	led atomic.Bool
}

func (h *headless) HasLeader() bool { return h.led.Load() }

// A stream that requires a leader survives an election, and ends with the error that its
// client expects when there is none for long. One that does not require it stays.
func TestStreamsEndWithoutLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := new(headless)
		m.led.Store(true)
		s := &Server{led: ledStreams{member: m, interval: time.Second}}
		md := metadata.Pairs(rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
		strict, done := s.whileLed(metadata.NewIncomingContext(t.Context(), md))
		defer done()
		lax, none := s.whileLed(t.Context())
		defer none()
		time.Sleep(10500 * time.Millisecond) // between two looks
		m.led.Store(false)
		time.Sleep(2250 * time.Millisecond)
		m.led.Store(true)
		time.Sleep(10 * time.Second)
		if strict.Err() != nil {
			t.Fatal("an election ended the stream")
		}
		m.led.Store(false)
		begin := time.Now()
		<-strict.Done()
		if took := time.Since(begin); took < 2*time.Second || took > 3*time.Second {
			t.Errorf("the stream ended after %v", took)
		}
		if err := s.finalError(strict, context.Canceled); !errors.Is(err, rpctypes.ErrGRPCNoLeader) {
			t.Errorf("it ended with %v", err)
		}
		synctest.Wait() // until the look that has ended the stream is over
		if lax.Err() != nil || s.led.mu.timer != nil {
			t.Error("what requires no leader has ended, or the timer still runs")
		}
		again, done2 := s.whileLed(metadata.NewIncomingContext(t.Context(), md))
		done2()
		if again.Err() == nil || s.led.mu.timer != nil || len(s.led.mu.ends) != 0 {
			t.Error("a stream that has ended is remembered")
		}
	})
}
