package raftnode

import (
	"sync/atomic"
	"time"
)

// Stage is a point that a request passes.
type Stage int

// The stages of a write, in order, and the one of a read.
const (
	StageTaken     Stage = iota // the node loop has the command
	StageProposed               // it was packed and handed to raft
	StageCommitted              // a quorum has it on disk
	StageConfirmed              // of a read: a quorum confirmed the leader
	stages
)

// Timing records when a request passes its stages. Only requests that carry one
// are timed; for the others the loops look at a nil pointer. The loops write to
// it, and any goroutine may read it.
type Timing struct {
	begin time.Time
	at    [stages]atomic.Int64 // nanoseconds after begin; 0: not passed
}

// NewTiming returns a Timing that begins now.
func NewTiming() *Timing { return &Timing{begin: time.Now()} }

// At returns when the stage was first passed, counted from the beginning; false
// if it was not.
func (t *Timing) At(s Stage) (time.Duration, bool) {
	d := t.at[s].Load()
	return time.Duration(d), d > 0
}

// pass records a stage. What is done again after a change of leader keeps its
// first time. t may be nil.
func (t *Timing) pass(s Stage) {
	if t != nil {
		t.at[s].CompareAndSwap(0, max(1, int64(time.Since(t.begin))))
	}
}

// pass records a stage for the proposals of a batch that are timed.
func (b *batch) pass(s Stage) {
	if !b.timed {
		return
	}
	for _, p := range b.proposals {
		p.timing.pass(s)
	}
}

// notePacked reports the batches that were proposed for the first time.
func (r *Replica) notePacked(batches []*batch) {
	for _, b := range batches {
		r.cfg.Observer.Packed(b.commands, len(b.data))
		b.pass(StageProposed)
	}
}

func (w *applyWork) notePassed() {
	for _, own := range w.own {
		own.batch.pass(StageCommitted)
	}
}

func (r readRound) notePassed() {
	for _, req := range r.requests {
		req.timing.pass(StageConfirmed)
	}
}
