package raftnode

import (
	"sync/atomic"
	"testing"
	"time"
)

// checkpointCounter counts the checkpoints that were recorded.
type checkpointCounter struct {
	discardObserver
	made atomic.Int64
}

func (c *checkpointCounter) Snapshot(work SnapshotWork, _ time.Duration, _ int64, err error) {
	if work == SnapshotCheckpoint && err == nil {
		c.made.Add(1)
	}
}

// TestLoopsLookAfterEachChange: between the rounds the loops rest, and nothing but the next
// command wakes them up. Memory then keeps no more log than it should, and a checkpoint is
// made, by bytes or by time.
func TestLoopsLookAfterEachChange(t *testing.T) {
	const kept = 600 // bytes; the log asks for an urgent look only beyond a quarter more
	for name, adjust := range map[string]func(*Config){
		"bytes": func(c *Config) { c.CheckpointBytes, c.CheckpointInterval = 1, time.Hour },
		"time":  func(c *Config) { c.CheckpointBytes, c.CheckpointInterval = 1<<30, time.Millisecond },
	} {
		t.Run(name, func(t *testing.T) {
			sm, observer := newLockedMachine(t), new(checkpointCounter)
			sm.m.durable = sm.m.cur.clone() // such a state is flushed, and needs no body
			n := startNodes(t, 1, func(c *Config) {
				c.StateMachine, c.Observer, c.CatchUpBytes, c.PeerURLs = sm, observer, kept, nil
				adjust(c)
			})[0]
			<-n.Ready()
			for i := range uint64(12) {
				before := observer.made.Load()
				if _, err := n.Propose(testContext(t), command(i+1)); err != nil {
					t.Fatal(err)
				}
				waitFor(t, "the log in memory to be released", func() bool { return n.log.BytesAfter(0) <= kept })
				waitFor(t, "a checkpoint", func() bool { return observer.made.Load() > before })
			}
		})
	}
}
