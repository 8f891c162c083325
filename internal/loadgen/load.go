package loadgen

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// Op does one operation. The code is that of an error response, for example
// "503 no_leader", or "" for success. An error means that the connection cannot
// be used again, and the worker opens another. With ErrClosing there was a
// response, which counts; with any other error there was none.
type Op func(ctx context.Context) (code string, err error)

// ErrClosing comes with the last response of a connection.
var ErrClosing = errors.New("the server closed the connection")

// ErrNoProgress ends a load in which nothing succeeds.
var ErrNoProgress = errors.New("no operation succeeded")

// Load describes the work of a number of clients.
type Load struct {
	Workers int
	// Open returns the operation of a worker, on a connection of its own. It is
	// called again after an error, by the worker's goroutine.
	Open func(worker int) (op Op, close func(), err error)
	// Warmup is how long the load runs before anything counts.
	Warmup time.Duration
	// Duration is how long it counts; 0 means until Count operations have
	// succeeded.
	Duration time.Duration
	Count    uint64
	// Patience is the least time that a load with a Count continues while
	// nothing succeeds. 0 means 10 s, which is longer than a change of leader.
	Patience time.Duration
	// Progress is called with the state once a second; it may be nil.
	Progress func(Snapshot)
}

// Snapshot is the state of a running load.
type Snapshot struct {
	Ops, Errors uint64        // so far
	Elapsed     time.Duration // since the warm-up; negative during it
}

// Result is what a load measured. Error responses count neither as operations
// nor in the latencies (I1).
type Result struct {
	Ops     uint64
	Elapsed time.Duration
	Latency Histogram
	Errors  map[string]uint64 // responses by code, and broken connections as "connection"
}

// brokenPause is how long a worker waits after a failed connection. Without it,
// the workers of a service that is down would spin and use up its machine.
const brokenPause = 10 * time.Millisecond

const defaultPatience = 10 * time.Second

// Run runs the load to its end and returns what was measured, also with an
// error: that no connection could be made, ErrNoProgress, or the context's.
func (l *Load) Run(ctx context.Context) (*Result, error) {
	run, parent := &run{load: l}, ctx
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
		workers[i] = worker{latency: NewHistogram(), errors: make(map[string]uint64)}
		all.Go(func() { workers[i].work(ctx, run, i) })
	}
	var watchers sync.WaitGroup
	watchers.Go(func() { run.report(ctx) })
	watchers.Go(func() { run.watch(ctx) })
	all.Wait()
	run.finish()
	watchers.Wait()
	return run.result(workers), run.err(parent)
}

// result adds up what the workers measured.
func (r *run) result(workers []worker) *Result {
	res := &Result{Latency: NewHistogram(), Elapsed: max(0, time.Since(r.begin)), Errors: make(map[string]uint64)}
	if r.load.Duration > 0 {
		res.Elapsed = min(res.Elapsed, r.load.Duration)
	}
	for i := range workers {
		res.Latency.Merge(workers[i].latency)
		for code, n := range workers[i].errors {
			res.Errors[code] += n
		}
	}
	res.Ops = res.Latency.Count()
	return res
}

func (r *run) err(parent context.Context) error {
	switch {
	case r.opened.Load() == 0:
		return errors.Join(errors.New("no connection could be made"), r.failure.load())
	case r.stuck.Load():
		return errors.Join(ErrNoProgress, r.failure.load())
	}
	return parent.Err()
}

// run is what the workers of a load share (I2).
type run struct {
	load    *Load
	begin   time.Time
	finish  context.CancelFunc
	ops     atomic.Uint64
	errors  atomic.Uint64
	opened  atomic.Int64
	stuck   atomic.Bool // the load was given up
	failure firstError
}

// report calls Progress once a second until the load ends.
func (r *run) report(ctx context.Context) {
	if r.load.Progress == nil {
		return
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			r.load.Progress(Snapshot{Ops: r.ops.Load(), Errors: r.errors.Load(), Elapsed: time.Since(r.begin)})
		}
	}
}

// watch gives up a load with a Count if nothing succeeds: it would never end.
func (r *run) watch(ctx context.Context) {
	if r.load.Duration > 0 {
		return
	}
	patience := r.load.Patience
	if patience == 0 {
		patience = defaultPatience
	}
	timer := time.NewTimer(r.load.Warmup + patience)
	defer timer.Stop()
	for before := uint64(0); ; {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		now := r.ops.Load()
		if now == before {
			r.stuck.Store(true)
			r.finish()
			return
		}
		before = now
		timer.Reset(patience)
	}
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
		switch {
		case err == nil || ctx.Err() != nil:
			return
		case errors.Is(err, ErrClosing):
			continue
		}
		r.failure.note(err)
		if !time.Now().Before(r.begin) {
			w.fail(r, "connection")
		}
		select {
		case <-ctx.Done():
		case <-time.After(brokenPause):
		}
	}
}

// loop runs operations on one connection. It returns nil when the load has
// ended, and otherwise why another connection is needed.
func (w *worker) loop(ctx context.Context, r *run, op Op) error {
	for ctx.Err() == nil {
		start := time.Now()
		code, err := op(ctx)
		if err != nil && !errors.Is(err, ErrClosing) {
			return err
		}
		end := time.Now()
		switch {
		case start.Before(r.begin) || ctx.Err() != nil:
		case code != "":
			w.fail(r, code)
		default:
			w.latency.Record(end.Sub(start))
			if n := r.ops.Add(1); r.load.Duration == 0 && n >= r.load.Count {
				r.finish()
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) fail(r *run, code string) {
	w.errors[code]++
	r.errors.Add(1)
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
