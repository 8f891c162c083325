package etcdapi

import (
	"context"
	"io"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
)

// Store is the replicated state of this node, as calls about keys read it.
type Store interface {
	// Revision returns the newest revision that is visible here, and CompactRevision
	// the oldest one.
	Revision() uint64
	CompactRevision() uint64
	// Get returns a key at a revision, 0 for the newest, and the revision at which it
	// was read, which it returns with kvstore.ErrKeyNotFound as well.
	Get(key []byte, revision uint64) (kvstore.KV, uint64, error)
	// List calls fn for each item in order, until fn returns false or an error. An
	// item's bytes are valid only during the call.
	List(ctx context.Context, r kvstore.Range, fn func(kvstore.Item) (bool, error)) (uint64, error)
	// ReadTxn evaluates a transaction that only reads. room is asked as by Select.
	ReadTxn(ctx context.Context, t *kvstore.Txn, room func(resultBytes int64) bool) (kvstore.Result, error)
}

// Evaluator answers questions about many pairs at once.
type Evaluator interface {
	// Select reads a range, sorted and filtered. room is asked whether there is room
	// for a result of a size; if not, the error is kvstore.ErrNoRoom.
	Select(ctx context.Context, start, end []byte, read kvstore.Read, room func(resultBytes int64) bool) (kvstore.Result, error)
	// Count returns the number of keys of a range, and the revision at which it has them.
	Count(ctx context.Context, r kvstore.Range) (n, revision uint64, err error)
	// PairsHash returns the hash of the pairs that are live at a revision, 0 for the
	// newest.
	PairsHash(ctx context.Context, revision uint64) (kvstore.PairsHash, error)
}

// Limits are the replicated settings.
type Limits interface {
	Settings() kvstore.Settings
}

// LeaseTable reads the leases that exist.
type LeaseTable interface {
	// Lease returns a lease, or kvstore.ErrLeaseNotFound.
	Lease(id uint64) (kvstore.LeaseInfo, error)
	// Leases returns up to limit leases with ids above after, in order.
	Leases(after uint64, limit int) ([]kvstore.LeaseInfo, error)
	// LeaseKeys returns up to limit keys of a lease from a key on, and whether there
	// may be more.
	LeaseKeys(id uint64, from []byte, limit int) (keys [][]byte, more bool, err error)
}

// State is all of the state that calls read.
type State struct {
	Store
	Evaluator
	Limits
	LeaseTable
}

// NoteStage receives how long a stage of a request took; calls of etcd pass nil.
type NoteStage = func(stage string, took time.Duration)

// Replicator replicates changes and proves that reads are fresh. Its errors are
// *api.Error.
type Replicator interface {
	// Do returns the result of the command once it is committed and applied here.
	Do(ctx context.Context, cmd *kvstore.Command, note NoteStage) (kvstore.Result, error)
	// Barrier returns once a read of the State is linearizable.
	Barrier(ctx context.Context, note NoteStage) error
}

// LeaseTimes asks the leader about leases. Its errors are *api.Error.
type LeaseTimes interface {
	// AskLease returns how long a lease lives on; if renew is set, after it was kept
	// alive.
	AskLease(ctx context.Context, lease uint64, renew bool) (api.LeaseTime, error)
	// RenewLease is AskLease for a keep-alive, without waiting: done gets the outcome, at
	// the latest soon after the given time has passed, and must not wait.
	RenewLease(lease uint64, within time.Duration, done func(api.LeaseTime, error))
	// SortLeases sorts leases by when they end, if this node leads; others do not know.
	SortLeases(ids []uint64)
}

// Members reports and changes the membership. Its errors are *api.Error.
type Members interface {
	// Roster returns the membership as this node has applied it, without asking
	// anybody.
	Roster() ([]api.Member, error)
	AddMember(ctx context.Context, m api.NewMember) (api.AddedMember, error)
	// UpdateMember replaces the URLs; a nil list keeps the current ones.
	UpdateMember(ctx context.Context, id uint64, peerURLs, clientURLs []string) (api.Member, error)
	PromoteMember(ctx context.Context, id uint64) (api.Member, error)
	RemoveMember(ctx context.Context, id uint64) error
}

// Member is this node as a member of its cluster.
type Member interface {
	ID() uint64
	// ClusterID is 16 hexadecimal digits, or empty while it is unknown.
	ClusterID() string
	// Term is raft's current term as this node knows it.
	Term() uint64
	HasLeader() bool
	IsLearner() bool
}

// Leadership reports and transfers the leadership. Its errors are *api.Error.
type Leadership interface {
	IsLeader() bool
	TransferLeader(ctx context.Context, to uint64) error
}

// Inspector reports on this node and the cluster as a whole. Its errors are
// *api.Error.
type Inspector interface {
	Status(ctx context.Context) (api.Status, error)
	ClusterStatus(ctx context.Context) (api.ClusterStatus, error)
	// Snapshot writes a consistent backup of what this node has applied.
	Snapshot(ctx context.Context, w io.Writer) error
}
