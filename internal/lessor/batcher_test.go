package lessor

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// running runs a Batcher over a function that stands for the leader.
func running(t *testing.T, ask func(context.Context, []Request) ([]Answer, error), test func(t *testing.T, b *Batcher)) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBatcher(ask)
		ctx, cancel := context.WithCancel(t.Context())
		var done sync.WaitGroup
		done.Go(func() { b.Run(ctx) })
		defer done.Wait()
		defer cancel()
		test(t, b)
	})
}

// alive answers each request with its own id as the TTL.
func alive(requests []Request) []Answer {
	out := make([]Answer, len(requests))
	for i, r := range requests {
		out[i] = Answer{State: Alive, TTL: time.Duration(r.ID)}
	}
	return out
}

// TestBatches: what arrives during a call goes into the next one, and each gets its
// own answer.
func TestBatches(t *testing.T) {
	var sizes []int
	ask := func(_ context.Context, requests []Request) ([]Answer, error) {
		sizes = append(sizes, len(requests))
		time.Sleep(time.Second)
		return alive(requests), nil
	}
	running(t, ask, func(t *testing.T, b *Batcher) {
		var clients sync.WaitGroup
		for id := uint64(1); id <= MaxBatch+100; id++ {
			clients.Go(func() {
				if id > 1 {
					time.Sleep(time.Millisecond) // the first call is under way
				}
				a, err := b.Ask(t.Context(), Request{ID: id, Renew: id%2 == 0})
				if err != nil || a.TTL != time.Duration(id) {
					t.Errorf("request %d: %+v, %v", id, a, err)
				}
			})
		}
		clients.Wait()
		if len(sizes) != 3 || sizes[0] != 1 || sizes[1] != MaxBatch || sizes[2] != 99 {
			t.Errorf("calls of %v requests", sizes)
		}
		if n := b.Renewed(); n != (MaxBatch+100)/2 {
			t.Errorf("%d renewals counted", n)
		}
	})
}

// TestRepeatsUntilAnswered: there is no leader for a while; then the lease is ending;
// then it has ended.
func TestRepeatsUntilAnswered(t *testing.T) {
	calls := 0
	ask := func(_ context.Context, requests []Request) ([]Answer, error) {
		switch calls++; {
		case calls < 5:
			return nil, ErrNotLeader
		case calls < 9:
			return []Answer{{State: Ending}}, nil
		}
		return make([]Answer, len(requests)), nil
	}
	running(t, ask, func(t *testing.T, b *Batcher) {
		from := time.Now()
		a, err := b.Ask(t.Context(), Request{ID: 1, Renew: true})
		if err != nil || a.State != Unknown || calls != 9 || time.Since(from) != 8*retryPause {
			t.Errorf("%+v, %v after %d calls and %v", a, err, calls, time.Since(from))
		}
		if b.Renewed() != 0 {
			t.Error("a lease that has ended counts as renewed")
		}
	})
}

// TestNoAnswer: the reason of the last call reaches the client.
func TestNoAnswer(t *testing.T) {
	ask := func(context.Context, []Request) ([]Answer, error) { return nil, ErrNotLeader }
	running(t, ask, func(t *testing.T, b *Batcher) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.Ask(ctx, Request{ID: 1}); !errors.Is(err, ErrNoAnswer) || !errors.Is(err, ErrNotLeader) {
			t.Errorf("%v", err)
		}
	})
}

// TestHangingLeader: a call is given up, and the requests go to the next leader.
func TestHangingLeader(t *testing.T) {
	calls := 0
	ask := func(ctx context.Context, requests []Request) ([]Answer, error) {
		if calls++; calls == 1 {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return alive(requests), nil
	}
	running(t, ask, func(t *testing.T, b *Batcher) {
		from := time.Now()
		if _, err := b.Ask(t.Context(), Request{ID: 1}); err != nil || time.Since(from) != roundTimeout+retryPause {
			t.Errorf("%v after %v", err, time.Since(from))
		}
	})
}

// TestWaitingIsBounded: a request too many is refused at once, and one whose client has
// gone gives its place back.
func TestWaitingIsBounded(t *testing.T) {
	ask := func(ctx context.Context, requests []Request) ([]Answer, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	running(t, ask, func(t *testing.T, b *Batcher) {
		ctx, cancel := context.WithCancel(t.Context())
		var clients sync.WaitGroup
		for range maxWaiting + MaxBatch {
			clients.Go(func() { _, _ = b.Ask(ctx, Request{ID: 1}) })
			if len(b.wake) > 0 {
				synctest.Wait() // the first ones are under way
			}
		}
		synctest.Wait()
		for range maxWaiting {
			clients.Go(func() { _, _ = b.Ask(ctx, Request{ID: 1}) })
		}
		synctest.Wait()
		if _, err := b.Ask(ctx, Request{ID: 1}); !errors.Is(err, ErrOverloaded) {
			t.Errorf("a request too many: %v", err)
		}
		cancel()
		clients.Wait()
		time.Sleep(10 * roundTimeout)
		b.mu.Lock()
		defer b.mu.Unlock()
		if n := len(b.mu.waiting); n != 0 {
			t.Errorf("%d requests wait without a client", n)
		}
	})
}

func TestStopping(t *testing.T) {
	b := NewBatcher(func(ctx context.Context, _ []Request) ([]Answer, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b.Run(ctx)
	if _, err := b.Ask(t.Context(), Request{ID: 1}); !errors.Is(err, ErrStopping) {
		t.Errorf("%v", err)
	}
}

// TestPost: a request without a goroutine gets its answer, or learns that there is none:
// when its time is up, and when the batcher stops.
func TestPost(t *testing.T) {
	var led atomic.Bool
	ask := func(_ context.Context, requests []Request) ([]Answer, error) {
		if !led.Load() {
			return nil, ErrNotLeader
		}
		return alive(requests), nil
	}
	type outcome struct {
		answer Answer
		err    error
	}
	synctest.Test(t, func(t *testing.T) {
		b := NewBatcher(ask)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var running sync.WaitGroup
		running.Go(func() { b.Run(ctx) })
		post := func(id uint64, within time.Duration) chan outcome {
			got := make(chan outcome, 2)
			if err := b.Post(Request{ID: id, Renew: true}, time.Now().Add(within), func(a Answer, err error) { got <- outcome{a, err} }); err != nil {
				t.Fatal(err)
			}
			return got
		}
		begin := time.Now()
		if o := <-post(1, time.Second); !errors.Is(o.err, ErrNoAnswer) || !errors.Is(o.err, ErrNotLeader) {
			t.Errorf("without a leader: %+v", o)
		}
		if took := time.Since(begin); took < time.Second || took > time.Second+2*retryPause {
			t.Errorf("given up after %v", took)
		}
		last := post(2, time.Hour)
		led.Store(true)
		if o := <-last; o.err != nil || o.answer.TTL != 2 || b.Renewed() != 1 {
			t.Errorf("with a leader: %+v, %d renewed", o, b.Renewed())
		}
		led.Store(false)
		stopped := post(3, time.Hour)
		synctest.Wait()
		cancel()
		running.Wait()
		if o := <-stopped; !errors.Is(o.err, ErrStopping) {
			t.Errorf("stopping: %+v", o)
		}
		if err := b.Post(Request{ID: 4}, time.Now(), func(Answer, error) {}); !errors.Is(err, ErrStopping) {
			t.Errorf("after the stop: %v", err)
		}
		if len(stopped)+len(last) != 0 {
			t.Error("a request was answered twice")
		}
	})
}
