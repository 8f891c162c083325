package raftnode

import (
	"context"
	"time"

	"github.com/kvd-io/kvd/internal/catchup"
	"github.com/kvd-io/kvd/internal/roster"
)

// This file is what a replica reports about itself. Apart from Progress and Stats,
// which ask the node loop, none of it waits.

// Applied returns the index of the last entry in the state machine.
func (r *Replica) Applied() uint64 { return r.waiters.index() }

// Membership returns the members as of the applied index. After a Barrier it has every change
// that was answered before.
func (r *Replica) Membership() *roster.Membership { return r.membership.Load() }

// Position returns what the replica last knew about term, leader and commit
// index.
func (r *Replica) Position() Position { return *r.position.Load() }

// Ready is closed once this process can take part: its start entry, and so
// everything before it, has been applied.
func (r *Replica) Ready() <-chan struct{} { return r.ready }

// Refusals returns how many requests and messages of other members were refused,
// by reason.
func (r *Replica) Refusals() map[string]uint64 { return r.transport.Refusals() }

// RefusedStarts says which members have last tried to start in vain, and why.
func (r *Replica) RefusedStarts() []string { return r.refused.list() }

// ActiveSince returns since when the connection to the member has been working;
// zero while it is not.
func (r *Replica) ActiveSince(id uint64) time.Time { return r.transport.ActiveSince(id) }

// LogSizeBytes returns the sizes of the log and of the snapshots on disk.
func (r *Replica) LogSizeBytes() (log, snapshots int64) { return r.disk.SizeBytes() }

// Stalled returns how long the current write to the log has been running; zero
// if none is.
func (r *Replica) Stalled() time.Duration {
	age, _ := r.appends.saving.age()
	return age
}

// hungAfter is the time without a tick after which the node loop counts as
// hung: several heartbeats, and longer than a loaded machine makes it wait.
func (r *Replica) hungAfter() time.Duration { return max(5*r.cfg.TickInterval, 5*time.Second) }

// Responsive reports whether the node loop still turns; true before it begins.
func (r *Replica) Responsive() bool {
	age, began := r.ticked.age()
	return !began || age < r.hungAfter()
}

// Freshness is how current a replica's state is, as far as the replica itself
// can tell. Readiness, max_staleness and the status all judge by it.
type Freshness struct {
	Leader  uint64 // the leader that the replica follows, or itself; 0: none
	Commit  uint64 // index up to which it knows entries to be committed
	Applied uint64 // index up to which entries are in the state machine
	// Confirmed is a time of which it is certain that everything that was
	// committed then is applied, with a reading of the monotonic clock; zero if
	// there is none. While nothing is wrong, it is a few heartbeats ago.
	Confirmed time.Time
}

// Lag is the number of entries known to be committed that are not applied.
func (f Freshness) Lag() uint64 { return f.Commit - min(f.Commit, f.Applied) }

// Freshness returns how current this replica's state is.
func (r *Replica) Freshness() Freshness {
	p, applied := r.Position(), r.Applied()
	return Freshness{Leader: p.Leader, Commit: p.Known, Applied: applied, Confirmed: r.fresh.confirmed(applied)}
}

// Progress is what a replica knows about a member.
type Progress struct {
	Behind uint64 // log entries that the member lacks
	Known  bool   // whether Behind is known: only to a leader, and only about members that follow
	Heard  bool   // whether the member sent anything within an election timeout
}

// Progress returns what this replica knows about each member.
func (r *Replica) Progress(ctx context.Context) (map[uint64]Progress, error) {
	return ask(ctx, r, (*core).progress)
}

// Kept describes what is kept for members that get a snapshot.
func (r *Replica) Kept() *catchup.KeptLog { return r.snapshots.state.Load() }

// Stats are figures about this replica since its start.
type Stats struct {
	ProposalsWaiting   int    // commands that wait for a batch
	ProposalsInFlight  int    // commands in batches that are not committed
	ProposalsCommitted uint64 // commands of this node
	Campaigns          uint64 // times that this node asked to be elected
	LeaderChanges      uint64 // times that this node saw a new leader
	ReadRounds         uint64 // ReadIndex rounds that were started
	ReadRequests       uint64 // reads that those served
	ReadRetries        uint64 // rounds that got no answer in time
	LogEntries         int    // kept in memory, for members that lag
	LogBytes           int
	LogFirst           uint64 // index of the oldest entry that can be sent without a snapshot
}

// Stats returns the replica's figures.
func (r *Replica) Stats(ctx context.Context) (Stats, error) {
	s, err := ask(ctx, r, (*core).stats)
	if err != nil {
		return Stats{}, err
	}
	s.LogEntries, s.LogBytes = r.log.Sizes()
	s.LogFirst, err = r.log.FirstIndex()
	return s, err
}

// ask has the node loop ask the core.
func ask[T any](ctx context.Context, r *Replica, question func(*core) T) (T, error) {
	var answer T
	done := make(chan error, 1)
	err := send(ctx, r, r.callC, func(c *core) {
		answer = question(c)
		done <- nil
	})
	if err == nil {
		err = r.await(ctx, done)
	}
	if err != nil { // the loop may still be writing answer
		var none T
		return none, err
	}
	return answer, nil
}
