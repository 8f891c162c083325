package raftnode

import (
	"context"
	"io"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// Observer hears what the loops do, for metrics. Its methods are called on the
// paths of writes, from several goroutines: they must be quick and never wait.
type Observer interface {
	// Packed hears of each batch of this node: its commands and its bytes.
	Packed(commands, bytes int)
	// Saved hears how long a write of the log took, with its fsync.
	Saved(took time.Duration)
	// Applied hears how long the state machine took for a run of entries, and
	// how many commands were in it.
	Applied(took time.Duration, entries, commands int)
	// Snapshot hears how a piece of work with a snapshot ended. bytes is the
	// size of the body, 0 where the engine itself keeps it.
	Snapshot(work SnapshotWork, took time.Duration, bytes int64, err error)
}

// SnapshotWork is what was done with a snapshot.
type SnapshotWork string

// The kinds of SnapshotWork. Checkpoint is a snapshot for the own log; the
// others are about the body that a lagging member gets.
const (
	SnapshotCheckpoint SnapshotWork = "checkpoint"
	SnapshotBuild      SnapshotWork = "build"
	SnapshotSend       SnapshotWork = "send"
	SnapshotReceive    SnapshotWork = "receive"
	SnapshotInstall    SnapshotWork = "install"
)

// SnapshotWorks lists them.
var SnapshotWorks = []SnapshotWork{SnapshotCheckpoint, SnapshotBuild, SnapshotSend, SnapshotReceive, SnapshotInstall}

// nobody is the Observer where there is none.
type nobody struct{}

func (nobody) Packed(int, int)                                    {}
func (nobody) Saved(time.Duration)                                {}
func (nobody) Applied(time.Duration, int, int)                    {}
func (nobody) Snapshot(SnapshotWork, time.Duration, int64, error) {}

// observedDisk tells how long saving takes.
type observedDisk struct {
	logDisk
	observer Observer
}

func (d observedDisk) Save(hs *raftpb.HardState, entries []*raftpb.Entry) error {
	begin := time.Now()
	err := d.logDisk.Save(hs, entries)
	d.observer.Saved(time.Since(begin))
	return err
}

// observedMachine tells how long the state machine takes.
type observedMachine struct {
	StateMachine
	observer Observer
}

func (m observedMachine) Apply(entries []Entry) error {
	commands := 0
	for i := range entries {
		commands += len(entries[i].Commands)
	}
	begin := time.Now()
	err := m.StateMachine.Apply(entries)
	m.observer.Applied(time.Since(begin), len(entries), commands)
	return err
}

func (m observedMachine) Restore(r io.Reader) error {
	begin, counted := time.Now(), &countedReader{r: r}
	err := m.StateMachine.Restore(counted)
	m.observer.Snapshot(SnapshotInstall, time.Since(begin), counted.n, err)
	return err
}

type countedReader struct {
	r io.Reader
	n int64
}

func (c *countedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// counts are figures of the core since its start.
type counts struct {
	committed     uint64 // commands of this node
	campaigns     uint64
	leaderChanges uint64
	readRounds    uint64 // ReadIndex attempts
	readRequests  uint64 // that were answered by them
	readRetries   uint64 // attempts given up, their requests joined another
}

// Stats are figures about this node since its start.
type Stats struct {
	ProposalsWaiting   int    // commands that wait for a batch
	ProposalsInFlight  int    // commands in batches that are not committed
	ProposalsCommitted uint64 // commands of this node
	Campaigns          uint64 // times that this node asked to be elected
	LeaderChanges      uint64 // times that this node saw a new leader
	ReadRounds         uint64 // ReadIndex rounds asked for
	ReadRequests       uint64 // reads that those served
	ReadRetries        uint64 // rounds without an answer in time
	LogEntries         int    // kept in memory, for members that lag
	LogBytes           int
}

// Stats asks the node loop for its figures.
func (n *Replica) Stats(ctx context.Context) (Stats, error) {
	var s Stats
	done := make(chan error, 1)
	err := send(ctx, n, n.callC, func(c *core) {
		s = c.stats()
		done <- nil
	})
	if err == nil {
		err = n.await(ctx, done)
	}
	if err != nil {
		return Stats{}, err
	}
	s.LogEntries, s.LogBytes = n.log.sizes()
	return s, nil
}
