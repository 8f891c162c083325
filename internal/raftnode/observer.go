package raftnode

import (
	"io"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/kvd-io/kvd/internal/raftlog"
)

// Observer receives what the loops do, for metrics. Its methods are called on
// the path of writes, from several goroutines: they must be quick and never
// wait.
type Observer interface {
	// Packed is called with the commands and bytes of each batch of this node.
	Packed(commands, bytes int)
	// Saved is called with the duration of each write of the log, including its
	// fsync.
	Saved(took time.Duration)
	// Applied is called with the time that the state machine took for a run of
	// entries, and the commands in it.
	Applied(took time.Duration, entries, commands int)
	// Snapshot is called when a piece of work with a snapshot ended. bytes is
	// the size of the body, 0 if the engine itself keeps it.
	Snapshot(work SnapshotWork, took time.Duration, bytes int64, err error)
}

// SnapshotWork is what was done with a snapshot.
type SnapshotWork string

// The kinds of SnapshotWork. A checkpoint is for this node's own log; the others
// are about the body that a lagging member gets.
const (
	SnapshotCheckpoint SnapshotWork = "checkpoint"
	SnapshotBuild      SnapshotWork = "build"
	SnapshotSend       SnapshotWork = "send"
	SnapshotSpool      SnapshotWork = "spool"
	SnapshotReceive    SnapshotWork = "receive"
	SnapshotInstall    SnapshotWork = "install"
)

// SnapshotWorks lists the kinds of SnapshotWork.
var SnapshotWorks = []SnapshotWork{SnapshotCheckpoint, SnapshotBuild, SnapshotSpool, SnapshotSend, SnapshotReceive, SnapshotInstall}

// discardObserver is the default Observer.
type discardObserver struct{}

func (discardObserver) Packed(int, int)                                    {}
func (discardObserver) Saved(time.Duration)                                {}
func (discardObserver) Applied(time.Duration, int, int)                    {}
func (discardObserver) Snapshot(SnapshotWork, time.Duration, int64, error) {}

// observedDisk measures the writes of the log.
type observedDisk struct {
	raftlog.Disk
	observer Observer
}

// Save implements raftlog.Disk.
func (d observedDisk) Save(hs *raftpb.HardState, entries []*raftpb.Entry) error {
	begin := time.Now()
	err := d.Disk.Save(hs, entries)
	d.observer.Saved(time.Since(begin))
	return err
}

// observedMachine measures the state machine.
type observedMachine struct {
	StateMachine
	observer Observer
}

// Apply implements StateMachine.
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

// Restore implements StateMachine.
func (m observedMachine) Restore(r io.Reader) error {
	begin, counted := time.Now(), &countedReader{r: r}
	err := m.StateMachine.Restore(counted)
	m.observer.Snapshot(SnapshotInstall, time.Since(begin), counted.n, err)
	return err
}

// countedReader counts the bytes that are read through it.
type countedReader struct {
	r io.Reader
	n int64
}

// Read implements io.Reader.
func (c *countedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// counts are the figures of the core since its start.
type counts struct {
	committed     uint64 // commands of this node
	campaigns     uint64
	leaderChanges uint64
	readRounds    uint64 // ReadIndex attempts
	readRequests  uint64 // requests that they answered
	readRetries   uint64 // attempts given up; their requests joined another
}
