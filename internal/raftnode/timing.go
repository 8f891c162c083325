package raftnode

import (
	"sync/atomic"
	"time"
)

// Stage is a point on the way of a request.
type Stage int

// The stages of a write, in order, and those of a read.
const (
	StageTaken     Stage = iota // the node loop has the command
	StageProposed               // it was packed and handed to raft
	StageCommitted              // a quorum has it on disk
	StageConfirmed              // of a read: a quorum confirmed the leader
	stages
)

// Timing notes when a request passes its stages. Only a request that carries
// one is timed. The loops write to it; any goroutine may read it.
type Timing struct {
	begin time.Time
	at    [stages]atomic.Int64 // nanoseconds after begin; 0: not passed
}

// NewTiming returns a Timing that begins now.
func NewTiming() *Timing { return &Timing{begin: time.Now()} }

// At returns when the stage was passed for the first time, counted from the
// begin; false while it was not.
func (t *Timing) At(s Stage) (time.Duration, bool) {
	d := t.at[s].Load()
	return time.Duration(d), d > 0
}

// pass notes a stage; what is done again after a change of leader keeps its
// first time. nil is not timed.
func (t *Timing) pass(s Stage) {
	if t != nil {
		t.at[s].CompareAndSwap(0, max(1, int64(time.Since(t.begin))))
	}
}

// pass notes a stage for the proposals of a batch that are timed.
func (b *batch) pass(s Stage) {
	if !b.timed {
		return
	}
	for _, p := range b.proposals {
		p.timing.pass(s)
	}
}

// notePacked tells of the batches that were proposed for the first time.
func (n *Replica) notePacked(batches []*batch) {
	for _, b := range batches {
		n.observer.Packed(b.commands, len(b.data))
		b.pass(StageProposed)
	}
}

func (w *applyWork) notePassed() {
	for _, own := range w.own {
		own.batch.pass(StageCommitted)
	}
}

func (b readRound) notePassed() {
	for _, r := range b.requests {
		r.timing.pass(StageConfirmed)
	}
}
