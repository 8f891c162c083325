// Package loadgen drives a key-value service with a closed loop of clients and
// measures what they get: each client sends its next request when it has the
// answer to the last one. kvd bench and the comparison in bench/ use it, so
// that whatever is compared is driven and measured the same way.
package loadgen

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// Op does one operation. A code names an error answer, such as "503
// no_leader"; "" is success. An error means that the connection is of no
// further use.
type Op func(ctx context.Context) (code string, err error)

// Load is a number of clients at work.
type Load struct {
	Workers int
	// Open makes the operation of a worker, on a connection of its own. It is
	// called again after an error.
	Open func(worker int) (op Op, close func(), err error)
	// Warmup is how long the load runs before anything counts.
	Warmup time.Duration
	// Duration is how long it counts; 0: until Count operations succeeded.
	Duration time.Duration
	Count    uint64
	// Progress hears of the state once a second; nil: nobody.
	Progress func(Snapshot)
}

// Snapshot is the state of a running load.
type Snapshot struct {
	Ops, Errors uint64        // so far
	Elapsed     time.Duration // since the warm-up
}

// Result is what a load measured. Error answers count neither as operations
// nor in the latencies.
type Result struct {
	Ops     uint64
	Elapsed time.Duration
	Latency Histogram
	Errors  map[string]uint64 // answers by code, and broken connections
}

// brokenPause is how long a worker waits whose connection could not be made,
// so that a service that is down is not asked as fast as the machine can.
const brokenPause = 10 * time.Millisecond

// Run runs the load to its end. The error is the context's, or that no worker
// could connect at the beginning.
func (l *Load) Run(ctx context.Context) (*Result, error) {
	run := &run{load: l}
	run.begin = time.Now().Add(l.Warmup)
	if l.Duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, run.begin.Add(l.Duration))
		defer cancel()
	}
	ctx, run.finish = context.WithCancel(ctx)
	defer run.finish()
	workers := make([]worker, l.Workers)
	var all sync.WaitGroup
	for i := range workers {
		workers[i].errors = make(map[string]uint64)
		all.Go(func() { workers[i].work(ctx, run, i) })
	}
	stop := run.report()
	all.Wait()
	stop()
	r := &Result{Elapsed: time.Since(run.begin), Errors: make(map[string]uint64)}
	if l.Duration > 0 {
		r.Elapsed = min(r.Elapsed, l.Duration)
	}
	for i := range workers {
		r.Latency.Merge(&workers[i].latency)
		for code, n := range workers[i].errors {
			r.Errors[code] += n
		}
	}
	r.Ops = r.Latency.Count()
	if run.opened.Load() == 0 {
		return r, errors.Join(errors.New("no connection could be made"), run.failure.load())
	}
	return r, nil
}

// run is what the workers of a load share.
type run struct {
	load    *Load
	begin   time.Time
	finish  context.CancelFunc
	ops     atomic.Uint64
	errors  atomic.Uint64
	opened  atomic.Int64
	failure firstError
}

// report calls Progress once a second until the returned function is called.
func (r *run) report() (stop func()) {
	if r.load.Progress == nil {
		return func() {}
	}
	done := make(chan struct{})
	var reporter sync.WaitGroup
	reporter.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				r.load.Progress(Snapshot{Ops: r.ops.Load(), Errors: r.errors.Load(), Elapsed: time.Since(r.begin)})
			}
		}
	})
	return func() { close(done); reporter.Wait() }
}

// worker is one client. Its goroutine owns it.
type worker struct {
	latency Histogram
	errors  map[string]uint64
}

// work opens connections, one after the other, until the load ends.
func (w *worker) work(ctx context.Context, r *run, i int) {
	for ctx.Err() == nil {
		op, closeConn, err := r.load.Open(i)
		if err == nil {
			r.opened.Add(1)
			err = w.loop(ctx, r, op)
			closeConn()
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		r.failure.note(err)
		r.errors.Add(1)
		w.errors["connection"]++
		select {
		case <-ctx.Done():
		case <-time.After(brokenPause):
		}
	}
}

// loop runs operations on one connection; nil means that the load has ended.
func (w *worker) loop(ctx context.Context, r *run, op Op) error {
	for ctx.Err() == nil {
		start := time.Now()
		code, err := op(ctx)
		if err != nil {
			return err
		}
		end := time.Now()
		switch {
		case start.Before(r.begin) || ctx.Err() != nil:
		case code != "":
			w.errors[code]++
			r.errors.Add(1)
		default:
			w.latency.Record(end.Sub(start))
			if n := r.ops.Add(1); r.load.Duration == 0 && n >= r.load.Count {
				r.finish()
			}
		}
	}
	return nil
}

// firstError keeps the first error of many goroutines.
type firstError struct{ p atomic.Pointer[error] }

func (f *firstError) note(err error) { f.p.CompareAndSwap(nil, &err) }

func (f *firstError) load() error {
	if p := f.p.Load(); p != nil {
		return *p
	}
	return nil
}
