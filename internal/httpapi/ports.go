package httpapi

import (
	"context"
	"io"
	"iter"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/watch"
)

// Store is the replicated state of this node.
type Store interface {
	// Revision returns the newest revision that is applied here.
	Revision() uint64
	// Get returns a key at a revision, 0 for the newest, and the revision at which
	// it was read, which it returns with kvstore.ErrKeyNotFound as well.
	Get(key []byte, revision uint64) (kvstore.KV, uint64, error)
	// List calls fn for each item in order, until fn returns false or an error. An
	// item's bytes are valid only during the call. It stops soon after the context
	// has ended, with its error.
	List(ctx context.Context, r kvstore.Range, fn func(kvstore.Item) (bool, error)) (uint64, error)
	// Count returns the number of keys in a range.
	Count(ctx context.Context, r kvstore.Range) (n, revision uint64, err error)
	// Settings returns the replicated limits.
	Settings() kvstore.Settings
}

// Transactions evaluates transactions that only read.
type Transactions interface {
	// ReadTxn evaluates the transaction against the newest state that is applied
	// here.
	ReadTxn(ctx context.Context, t *kvstore.Txn, room func(resultBytes int64) bool) (kvstore.Result, error)
}

// NoteStage receives how long a stage of a request took. nil means that the
// request is not timed. It is an alias so that an implementation of Replicator
// need not import this package.
type NoteStage = func(stage string, took time.Duration)

// Replicator replicates changes and proves that reads are fresh. Its errors are
// *api.Error.
type Replicator interface {
	// Do returns the result of the command once it is committed and
	// applied here.
	Do(ctx context.Context, cmd *kvstore.Command, note NoteStage) (kvstore.Result, error)
	// Encode appends the command in the form that DoGroup takes.
	Encode(dst []byte, cmd *kvstore.Command) []byte
	// DoGroup is Do for several commands. They take effect in order with
	// nothing in between; an error applies to all of them. The caller must not
	// reuse the commands after an error: they may still be on their way.
	DoGroup(ctx context.Context, commands [][]byte, note NoteStage) ([]*kvstore.Result, error)
	// Barrier returns once a read of the Store is linearizable.
	Barrier(ctx context.Context, note NoteStage) error
	// CheckStaleness returns an error if the state of this node may be older
	// than limit; 0 means no limit.
	CheckStaleness(limit time.Duration) error
}

// Members reports and changes the membership. Its errors are *api.Error.
type Members interface {
	Members(ctx context.Context) ([]api.Member, error)
	AddMember(ctx context.Context, m api.NewMember) (api.AddedMember, error)
	// UpdateMember replaces the URLs; a nil list keeps the current ones.
	UpdateMember(ctx context.Context, id uint64, peerURLs, clientURLs []string) (api.Member, error)
	PromoteMember(ctx context.Context, id uint64) (api.Member, error)
	RemoveMember(ctx context.Context, id uint64) error
}

// Leadership reports and transfers the leadership. Its errors are *api.Error.
type Leadership interface {
	Leader() (api.Leader, error)
	TransferLeader(ctx context.Context, to uint64) error
}

// Health is the part of the node that answers before it serves, too.
type Health interface {
	// Checks yields the readiness checks, each under a name of its own, with nil
	// for those that pass.
	Checks(ctx context.Context) iter.Seq2[string, error]
	// ClusterID is 16 hexadecimal digits, or empty while it is unknown.
	ClusterID() string
	IsLeader() bool
}

// Inspector reports on this node and the cluster as a whole. Its errors are
// *api.Error.
type Inspector interface {
	Status(ctx context.Context) (api.Status, error)
	ClusterStatus(ctx context.Context) (api.ClusterStatus, error)
	// Snapshot writes a consistent backup of what this node has applied; a
	// Barrier before it makes it linearizable. An error before the first byte
	// becomes an answer; a later one breaks the connection.
	Snapshot(ctx context.Context, w io.Writer) error
}

// Watches opens streams of events. The errors are those of package watch.
type Watches interface {
	OpenStream() (*watch.Stream, error)
}

// Leases reads the leases that exist.
type Leases interface {
	// Lease returns a lease, or kvstore.ErrLeaseNotFound.
	Lease(id uint64) (kvstore.LeaseInfo, error)
	// Leases returns up to limit leases with ids above after, in order.
	Leases(after uint64, limit int) ([]kvstore.LeaseInfo, error)
	// LeaseKeys returns up to limit keys of a lease from a key on, and whether there
	// may be more.
	LeaseKeys(id uint64, from []byte, limit int) (keys [][]byte, more bool, err error)
}

// Locks reads the locks that are held, and waits for them.
type Locks interface {
	// Lock returns a lock and up to limit of those who wait, or
	// kvstore.ErrLockNotFound.
	Lock(name []byte, limit int) (kvstore.LockInfo, []kvstore.LockTicket, error)
	// Locks returns up to limit locks from a name on, and where to continue.
	Locks(from []byte, limit int) (locks []kvstore.LockInfo, next []byte, err error)
	// AwaitLock returns nil once the ticket holds its lock, as far as this node has
	// applied, and kvstore.ErrTicketGone if there is no such ticket.
	AwaitLock(ctx context.Context, name []byte, token uint64) error
}

// LeaseTimes asks the leader about leases. Its errors are *api.Error.
type LeaseTimes interface {
	// AskLease returns how long a lease lives on; if renew is set, after it was kept
	// alive. It does not keep the context after it returns.
	AskLease(ctx context.Context, lease uint64, renew bool) (api.LeaseTime, error)
}

// LogLevel is the lowest severity that the node logs.
type LogLevel interface {
	// LogLevel returns the level and until when it holds; the zero time means
	// indefinitely.
	LogLevel() (level string, until time.Time)
	// SetLogLevel changes the level for a period; 0 means indefinitely. The error
	// says why the level is invalid.
	SetLogLevel(level string, period time.Duration) error
}

// Observer is told about every request: Begin when it arrives, and End of its
// endpoint when it has been answered.
type Observer interface {
	Begin()
	// Endpoint returns who is told about the requests to a route by a method. It is
	// called once for each pair when a Server is made. The route is a pattern of
	// the route table, so there are few values.
	Endpoint(route, method string) Endpoint
	// Rejected is told about each error that is answered.
	Rejected(code api.Code)
}

// Endpoint is a route with a method. It is an alias so that an Observer need not import
// this package.
type Endpoint = interface {
	End(status int, took time.Duration)
}
