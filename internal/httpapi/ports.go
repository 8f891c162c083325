package httpapi

import (
	"context"
	"io"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
)

// Store reads the replicated state of this node.
type Store interface {
	// Revision is the newest revision applied here.
	Revision() uint64
	// Get reads a key as of a revision, 0 for the newest, and returns the
	// revision it read at, also with kvstore.ErrKeyNotFound.
	Get(key []byte, revision uint64) (kvstore.KV, uint64, error)
	// List calls fn for each item in order until it returns false or an
	// error. The item's bytes are valid during the call only.
	List(r kvstore.Range, fn func(kvstore.Item) (bool, error)) (uint64, error)
	// Count counts the keys of the range.
	Count(r kvstore.Range) (n, revision uint64, err error)
	// Settings are the replicated limits.
	Settings() kvstore.Settings
}

// Replicator takes changes and proves freshness. Its errors are *api.Error.
type Replicator interface {
	// DoTimed has the command committed and applied here, and returns what it
	// came to. Where t is not nil it gets what the time went into.
	DoTimed(ctx context.Context, cmd *kvstore.Command, t *api.Timing) (kvstore.Result, error)
	// Encode appends the command in the form that DoGroup takes.
	Encode(dst []byte, cmd *kvstore.Command) []byte
	// DoGroup is DoTimed for several commands: they take effect in their order with
	// nothing in between, or, with an error as that of DoTimed, all have the same
	// fate. They must not be changed any more after an error.
	DoGroup(ctx context.Context, commands [][]byte, t *api.Timing) ([]*kvstore.Result, error)
	// Barrier returns once this node's state is as fresh as o asks.
	Barrier(ctx context.Context, o api.ReadOptions) error
}

// Cluster answers for the membership and changes it. Its errors are
// *api.Error.
type Cluster interface {
	Members(ctx context.Context) ([]api.Member, error)
	AddMember(ctx context.Context, m api.NewMember) (api.AddedMember, error)
	// UpdateMember replaces the URLs; a nil list keeps what is there.
	UpdateMember(ctx context.Context, id uint64, peerURLs, clientURLs []string) (api.Member, error)
	PromoteMember(ctx context.Context, id uint64) (api.Member, error)
	RemoveMember(ctx context.Context, id uint64) error
	Leader() (api.Leader, error)
	TransferLeader(ctx context.Context, to uint64) error
}

// Health tells how this node and the cluster are. Its errors are *api.Error.
type Health interface {
	Status(ctx context.Context) (api.Status, error)
	ClusterStatus(ctx context.Context) (api.ClusterStatus, error)
	// Checks are those of readiness, each under a name of its own.
	Checks(ctx context.Context) []api.Check
	// ClusterID is 16 hexadecimal digits, empty while not known yet.
	ClusterID() string
	IsLeader() bool
	// Snapshot writes a consistent backup. An error before the first byte
	// becomes an answer; a later one breaks the connection.
	Snapshot(ctx context.Context, w io.Writer) error
}

// LogLevel is the severity from which on the node logs.
type LogLevel interface {
	// LogLevel returns the level, and until when it holds; zero is for good.
	LogLevel() (level string, until time.Time)
	// SetLogLevel changes it, for good where period is 0. The error says why
	// the level is none.
	SetLogLevel(level string, period time.Duration) error
}

// Observer hears of every request: Begin when it arrives, and its endpoint's
// End when it is answered.
type Observer interface {
	Begin()
	// Endpoint returns who hears how the requests to a route by a method end.
	// It is asked once for each when a server is made. The route is the pattern
	// of the route table, so that it takes few values.
	Endpoint(route, method string) Endpoint
	// Rejected hears of each error that is answered.
	Rejected(code api.Code)
}

// Endpoint is one route by one method.
type Endpoint interface {
	End(status int, took time.Duration)
}
