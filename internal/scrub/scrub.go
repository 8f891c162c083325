// Package scrub reads a store in the background, so that bit rot is found while other
// members still have the data, and not only when a request needs the block.
//
// A pass reads every live file in the order of file numbers, which is the order in which
// they were written. It is spread over most of the interval to keep the load on the disk
// low, but reads at least MinRate, so a pass over a small store is short. Passes begin one
// interval apart. The position is also kept in a small file, so that a node that is restarted
// every day also finishes a pass. The file is only a hint: if it is missing or damaged, a
// node that starts begins a new pass.
//
// Files written during a pass have higher numbers and are read at its end. Files removed by
// a compaction need not be read: the compaction has read them.
//
// # Rejected
//
//   - Reading through the store: it would evict what requests need from the block cache,
//     and find in memory what has rotted on the disk.
//   - Repairing single blocks: only the engine knows what a block contained at which time.
//     The store is rebuilt as a whole (package node).
package scrub

import (
	"context"
	"encoding/json"
	"os"
	"sync/atomic"
	"time"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
)

const (
	// MinRate is the minimum rate of a pass, in bytes per second.
	MinRate = 256 << 10
	// ahead is the fraction of the interval for which a pass is planned, because the store
	// grows meanwhile.
	ahead = 0.8
	// burst bounds the bytes read between two pauses, as time at the current rate.
	burst = 100 * time.Millisecond
	// retryPause is the pause before another attempt if the store cannot be read now.
	retryPause = time.Minute
)

// Scrubber reads one store. Its figures may be read at any time.
type Scrubber struct {
	store    engine.Verifier
	path     string // of the file with the progress
	interval time.Duration

	bytes  atomic.Uint64
	passes atomic.Uint64
	last   atomic.Int64 // when the last pass ended, in Unix seconds; 0 if unknown
}

// New returns a scrubber that reads the store once in each interval, and keeps its
// progress in the file at path.
func New(store engine.Verifier, path string, interval time.Duration) *Scrubber {
	s := &Scrubber{store: store, path: path, interval: interval}
	s.last.Store(s.load().Ended)
	return s
}

// Figures are what a scrubber has done: since the process started, except for LastPass.
type Figures struct {
	Bytes, Passes uint64
	LastPass      int64 // when the last whole pass ended, in Unix seconds; 0 if there was none
}

// Figures returns the figures. A nil scrubber has none.
func (s *Scrubber) Figures() Figures {
	if s == nil {
		return Figures{}
	}
	return Figures{Bytes: s.bytes.Load(), Passes: s.passes.Load(), LastPass: s.last.Load()}
}

// progress is the position of the current pass.
type progress struct {
	Begun      int64  `json:"begun"` // Unix seconds; 0 if no pass has begun
	Ended      int64  `json:"ended"` // of the last whole pass; 0 if there was none
	Generation uint64 `json:"generation"`
	After      uint64 `json:"after"` // files up to this number have been read
	Done       bool   `json:"done"`  // the pass has ended
}

// load returns the zero progress if there is none.
func (s *Scrubber) load() (p progress) {
	text, err := os.ReadFile(s.path)
	if err != nil || json.Unmarshal(text, &p) != nil || p.Begun < 0 || p.Ended < 0 {
		return progress{}
	}
	return p
}

// save ignores errors: they cost a node that is restarted its place in the pass.
func (s *Scrubber) save(p progress) {
	text, err := json.Marshal(p)
	if err != nil {
		return
	}
	if err := os.WriteFile(s.path+".tmp", append(text, '\n'), 0o600); err == nil {
		_ = os.Rename(s.path+".tmp", s.path)
	}
}

// Run reads until the context ends, whose error it returns, or until it finds damage.
func (s *Scrubber) Run(ctx context.Context) error {
	p := s.load()
	for {
		if p.Done {
			// A clock that was set back must not stop the scrubbing for long.
			next := time.Unix(p.Begun, 0).Add(s.interval)
			if err := sleep(ctx, min(time.Until(next), s.interval)); err != nil {
				return err
			}
			p = progress{Ended: p.Ended}
		}
		if p.Begun == 0 {
			p.Begun = time.Now().Unix()
		}
		again, err := s.pass(ctx, &p)
		if err != nil {
			return err
		}
		if again {
			if err := sleep(ctx, retryPause); err != nil {
				return err
			}
		}
	}
}

// pass reads the rest of a pass, and moves p. again means that it cannot continue now.
func (s *Scrubber) pass(ctx context.Context, p *progress) (again bool, err error) {
	generation, files, err := s.store.Files()
	if err != nil {
		return true, nil // the engine is closing or failing, and tells so itself
	}
	if p.Generation != generation {
		p.Generation, p.After = generation, 0
	}
	pace := newPace(ctx, files, p.After, s.left(*p), s.interval)
	for _, f := range files {
		if f.Number <= p.After {
			continue
		}
		err := s.store.Verify(f, func(n int) error { s.bytes.Add(uint64(n)); return pace.wait(n) })
		switch {
		case err == nil:
			p.After = f.Number
			s.save(*p)
		case ctx.Err() != nil:
			return false, ctx.Err()
		case engine.IsDamage(err):
			return false, err
		default:
			return true, nil // for lack of file descriptors, for example
		}
	}
	p.Done, p.Ended = true, time.Now().Unix()
	s.save(*p)
	s.last.Store(p.Ended)
	s.passes.Add(1)
	return false, nil
}

// left returns how much time the pass may still take.
func (s *Scrubber) left(p progress) time.Duration {
	whole := time.Duration(float64(s.interval) * ahead)
	return min(max(time.Until(time.Unix(p.Begun, 0).Add(whole)), 0), whole)
}

// pace spreads the reading over the time that is left.
type pace struct {
	ctx  context.Context
	rate float64 // bytes per second
	debt time.Duration
}

func newPace(ctx context.Context, files []engine.File, after uint64, left, interval time.Duration) *pace {
	var total int64
	for _, f := range files {
		if f.Number > after {
			total += f.Bytes
		}
	}
	// A node that was down for a long time is late, but must not read everything at once.
	left = max(left, interval/10)
	return &pace{ctx: ctx, rate: max(MinRate, float64(total)/left.Seconds())}
}

// wait returns when n more bytes may be read.
func (p *pace) wait(n int) error {
	p.debt += time.Duration(float64(n) / p.rate * float64(time.Second))
	if p.debt < burst {
		return p.ctx.Err()
	}
	d := p.debt
	p.debt = 0
	return sleep(p.ctx, d)
}

// sleep returns early, with the context's error, if the context ends.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
