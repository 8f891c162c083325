package raftnode

import (
	"context"
	"io"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/limits"
	"github.com/kvd-io/kvd/internal/peers"
	"github.com/kvd-io/kvd/internal/roster"
)

// Config describes one replica. Zero values of the tunables mean the defaults.
type Config struct {
	// ID is the member's, between 1 and limits.MaxMemberID.
	ID        uint64
	ClusterID uint64
	// Dir is the data directory, which the caller has locked.
	Dir string
	// Nonce is the data directory's.
	Nonce string
	// Boot is drawn at random for this process. The default is a fresh one.
	Boot string
	// Starts is the number of this start of the directory; 0 if it does not count.
	Starts uint64
	// Name, PeerURLs and ClientURLs are announced to the cluster.
	Name       string
	PeerURLs   []string
	ClientURLs []string
	// Faces are announced too: the URLs for clients of other protocols, by face.
	Faces map[string][]string
	// Initial is the members of a cluster that is being bootstrapped. It is
	// used only if Dir has no log yet, and is empty when joining.
	Initial []roster.Member
	// Seed fills the state machine with the state of a backup, the same at all initial
	// members. It is called only if Initial is used, and again after a crash. If it is
	// nil, the cluster begins with nothing.
	Seed func() error
	// Known is the members to connect to before the membership has been
	// received, when joining.
	Known []roster.Member

	StateMachine StateMachine
	// VerifyBody reads a whole snapshot body, checks everything that
	// StateMachine.Restore would, and changes nothing. Several goroutines may
	// call it.
	VerifyBody func(r io.Reader) (BodyInfo, error)
	// FetchBody writes to path, durably, a body of one of the members that is at
	// the given entry or later. It is called by Open for a store that is to be
	// rebuilt. If it is nil, Open refuses a store that lacks what the log no longer
	// has.
	FetchBody func(members []roster.Member, after uint64, path string) error
	Logger    *zap.Logger
	// Observer receives what the loops do. It may be nil.
	Observer Observer
	// Security is how members authenticate each other.
	Security peers.Security
	// Lookup returns the peer URLs of a member that this replica does not know
	// yet, by asking those that it knows.
	Lookup func(ctx context.Context, id uint64) (urls []string, ok bool)

	// TickInterval is the unit of raft's time: one heartbeat. Default 100 ms.
	TickInterval time.Duration
	// ElectionTicks is the election timeout in ticks. Default 10.
	ElectionTicks int
	// ReplaceAfter is how long the leader must not have heard from a member before
	// another directory can take its place. Default 10 s.
	ReplaceAfter time.Duration
	// RemoveDeadAfter is the silence after which the leader removes a member; 0 means
	// never.
	RemoveDeadAfter time.Duration
	// MaxBatchBytes bounds the commands packed into one entry, unless one proposal
	// alone has more. Default limits.MaxBatchBytes, which is also the maximum.
	MaxBatchBytes int
	// MaxQueueBytes bounds the commands that wait in each of two queues: for the
	// batch in flight, and to be packed. Default limits.MaxQueueBytes.
	MaxQueueBytes int
	// CatchUpBytes bounds the applied entries kept in memory for followers that
	// lag. Default 16 MiB.
	CatchUpBytes int
	// CheckpointBytes is the amount of log after which the state is flushed and
	// the log before it released. A restart reads about twice as much. Default
	// 32 MiB.
	CheckpointBytes int64
	// CheckpointInterval is the time after which that happens even with less
	// log. Default 30 s.
	CheckpointInterval time.Duration
	// StallExit is how long one write to the log may hang before the replica
	// gives up. Default 60 s.
	StallExit time.Duration
}

// The defaults of raft's time.
const (
	DefaultTickInterval  = 100 * time.Millisecond
	DefaultElectionTicks = 10
	DefaultReplaceAfter  = 10 * time.Second
)

func (c *Config) setDefaults() {
	setDefault(&c.TickInterval, DefaultTickInterval)
	setDefault(&c.ElectionTicks, DefaultElectionTicks)
	setDefault(&c.ReplaceAfter, DefaultReplaceAfter)
	setDefault(&c.MaxBatchBytes, limits.MaxBatchBytes)
	setDefault(&c.MaxQueueBytes, limits.MaxQueueBytes)
	setDefault(&c.CatchUpBytes, 16<<20)
	setDefault(&c.CheckpointBytes, 32<<20)
	setDefault(&c.CheckpointInterval, 30*time.Second)
	setDefault(&c.StallExit, time.Minute)
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	if c.Observer == nil {
		c.Observer = discardObserver{}
	}
}

// ticks returns a duration in ticks, rounded up: no silence may be taken for a longer one.
func (c *Config) ticks(d time.Duration) uint64 {
	return uint64((d + c.TickInterval - 1) / c.TickInterval)
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}
