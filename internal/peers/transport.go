package peers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	stats "go.etcd.io/etcd/server/v3/etcdserver/api/v2stats"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/limits"
	"github.com/kvd-io/kvd/internal/memberurl"
)

// errStopping answers requests and messages that arrive after Stop.
var errStopping = errors.New("node is stopping")

// Receiver is the replica as its transport sees it. Its methods may be called
// from any goroutine.
//
// All methods but Process may be called from inside Send and SendSnapshot, that
// is, on the goroutine that sends. They must only take a note: a method that
// waited for that goroutine would wait forever.
type Receiver interface {
	// Process takes a message that passed ValidateMessage. It may wait for room,
	// but returns when the context ends.
	Process(ctx context.Context, m *raftpb.Message) error
	// IsRemoved reports whether the id belonged to a member that was removed.
	// Ids never return, so such a sender is told to stop for good.
	IsRemoved(id uint64) bool
	// Unreachable reports that a message to the peer was lost.
	Unreachable(id uint64)
	// SnapshotStatus reports how the transfer of a snapshot ended. A transfer was
	// successful (nil) once the other side has stored the body, has checked it,
	// and has taken the message. Otherwise the error is the reason, in the words
	// of the other side if it gave one.
	SnapshotStatus(id uint64, err error)
}

// Bodies judges the bodies of received snapshots.
type Bodies interface {
	// Check reads the body of a snapshot, which is durable as a whole and which
	// nothing refers to yet. An error refuses the snapshot and travels to its
	// sender; the body has then been removed. Check returns when the context ends.
	Check(ctx context.Context, s *raftpb.Snapshot) error
	// Room returns why the disk cannot take so many more bytes of a body, or nil.
	Room(bytes int64) error
}

// Config describes a Transport.
type Config struct {
	ID        uint64
	ClusterID uint64
	// Boot is drawn at random for this process. It is stated in each request.
	Boot string
	// Dir is the data directory, for messages.
	Dir string
	// PeerURLs are those of this member. A peer must have different ones, or
	// this member would talk to itself.
	PeerURLs []string
	// Snapshotter stores the bodies of received snapshots.
	Snapshotter *snap.Snapshotter
	Logger      *zap.Logger // nil discards everything
	Receiver    Receiver
	Bodies      Bodies
	Security    Security
	// Lookup asks other members for the URLs of a sender that is neither known
	// nor removed. It runs on a goroutine of its own, at a bounded rate. If it is
	// nil, unknown senders stay unknown.
	Lookup func(ctx context.Context, id uint64) (urls []string, ok bool)

	// DialTimeout bounds connecting to a peer. The default is 2 s.
	DialTimeout time.Duration
	// SnapshotStall is how long an outgoing transfer may make no progress. The
	// receiver, which syncs and checks the whole body at the end, gets another
	// second for each 8 MiB. The default is 1 min.
	SnapshotStall time.Duration
	// ReadStall is how long the sender of a request may pause. The default is
	// 30 s.
	ReadStall time.Duration
}

func (c *Config) setDefaults() {
	c.DialTimeout = cmp.Or(c.DialTimeout, 2*time.Second)
	c.SnapshotStall = cmp.Or(c.SnapshotStall, time.Minute)
	c.ReadStall = cmp.Or(c.ReadStall, 30*time.Second)
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
}

func (c *Config) validate() error {
	var errs []error
	if !limits.ValidMemberID(c.ID) {
		errs = append(errs, fmt.Errorf("member id %d is out of range", c.ID))
	}
	if c.Snapshotter == nil {
		errs = append(errs, errors.New("snapshotter is missing"))
	}
	if c.Bodies == nil {
		errs = append(errs, errors.New("checker of snapshot bodies is missing"))
	}
	if c.Receiver == nil {
		errs = append(errs, errors.New("receiver is missing"))
	}
	return errors.Join(errs...)
}

// maxRemotes bounds the senders added by look-up. rafthttp cannot forget a
// remote, so without a bound strangers could make it grow without end.
const maxRemotes = limits.MaxMembers

// Transport carries raft's messages to the other members and takes theirs. The
// package comment tells how, and lists the invariants T1 to T8.
//
// Only a LeaderMonitor waits for the network, and delivery is never promised. After
// Stop, all methods do nothing, except that SendSnapshot still closes the body and
// reports the failure.
type Transport struct {
	cfg      Config
	lg       *zap.Logger
	self     identity // stated in each request
	tr       *rafthttp.Transport
	own      []*http.Transport // carry rafthttp's requests
	monitor  *http.Client      // carries holdMonitor's
	refusals refusalCounts

	strangers strangers
	processes processes
	clones    clones

	ctx     context.Context // canceled by Stop
	cancel  context.CancelFunc
	removed chan struct{} // closed by awaitRemoval
	await   sync.Once     // starts awaitRemoval together with the first peer
	stop    sync.Once

	// change is held while rafthttp's list of peers is changed, so that the
	// list goes through the same changes as the maps below, in the same order. It
	// is taken before mu (T4).
	change sync.Mutex

	// mu guards the maps. It is held for look-ups and assignments only (T4).
	mu struct {
		sync.RWMutex
		stopped bool
		peers   map[uint64][]string // id → URLs
		remotes map[uint64][]string
		sending map[uint64]*transferBody // outgoing snapshots by peer
		// expected counts, by message, the snapshots that the guard is receiving.
		expected map[snapshotKey]int
	}
	stopped atomic.Bool // a copy of mu.stopped that Send reads without a lock
	lookups lookupState
	// running counts the goroutines and handlers that Stop waits for (T6). It
	// grows only under mu and while stopped is false, so none can slip in behind
	// the Wait.
	running sync.WaitGroup
}

// New returns a transport without peers. It starts no goroutine; the first peer
// does.
func New(cfg Config) (*Transport, error) {
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("peer transport: %w", err)
	}
	t := &Transport{cfg: cfg, lg: cfg.Logger, self: identity{member: cfg.ID, cluster: cfg.ClusterID, boot: cfg.Boot}, removed: make(chan struct{})}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.monitor = t.newMonitorClient()
	t.clones.found, t.clones.mu.since = make(chan struct{}), make(map[string]time.Time)
	t.mu.peers = make(map[uint64][]string)
	t.mu.remotes = make(map[uint64][]string)
	t.mu.sending = make(map[uint64]*transferBody)
	t.mu.expected = make(map[snapshotKey]int)
	t.lookups.mu.next = make(map[uint64]time.Time)
	id := types.ID(cfg.ID)
	lg := newTransportLogger(cfg.Logger, &t.stopped)
	// URLs stays empty. rafthttp would announce them in X-PeerURLs, which
	// receivers do not believe.
	t.tr = &rafthttp.Transport{
		Logger:      lg,
		DialTimeout: cfg.DialTimeout,
		ID:          id,
		ClusterID:   types.ID(cfg.ClusterID),
		Raft:        callbacks{t},
		Snapshotter: cfg.Snapshotter,
		ServerStats: stats.NewServerStats("", id.String()),
		LeaderStats: stats.NewLeaderStats(lg, id.String()),
		ErrorC:      make(chan error, 1),
	}
	if err := t.tr.Start(); err != nil {
		t.cancel()
		return nil, fmt.Errorf("start peer transport: %w", err)
	}
	if err := t.ownRequests(); err != nil {
		t.cancel()
		return nil, fmt.Errorf("peer transport: %w", err)
	}
	return t, nil
}

// Removed is closed once a peer has answered that this member was removed from
// the cluster.
func (t *Transport) Removed() <-chan struct{} { return t.removed }

// Refusals returns how many requests and messages were refused, by reason.
func (t *Transport) Refusals() map[string]uint64 { return t.refusals.snapshot() }

// Send queues the messages, in order. Messages for unknown peers are dropped, and
// so are those that find a full queue; rafthttp then calls Receiver.Unreachable
// before Send returns. A MsgSnap belongs to SendSnapshot: here it is dropped and
// reported as failed.
func (t *Transport) Send(msgs []*raftpb.Message) {
	if t.stopped.Load() {
		return
	}
	if slices.ContainsFunc(msgs, isSnapshotMessage) {
		msgs = t.dropSnapshots(msgs)
	}
	t.tr.Send(msgs)
}

func isSnapshotMessage(m *raftpb.Message) bool { return m.GetType() == raftpb.MsgSnap }

// dropSnapshots keeps MsgSnap out of rafthttp's queues. Such a message would
// arrive without its body, and the follower could not install it.
func (t *Transport) dropSnapshots(msgs []*raftpb.Message) []*raftpb.Message {
	rest := make([]*raftpb.Message, 0, len(msgs))
	for _, m := range msgs {
		if isSnapshotMessage(m) {
			t.cfg.Receiver.SnapshotStatus(m.GetTo(), errWithoutBody)
		} else {
			rest = append(rest, m)
		}
	}
	return rest
}

// AddPeer connects to a member. A peer that is known already gets the new URLs.
func (t *Transport) AddPeer(id uint64, urls []string) error {
	if err := t.checkPeer(id, urls); err != nil {
		return fmt.Errorf("add peer: %w", err)
	}
	t.change.Lock()
	defer t.change.Unlock()
	known, ok := t.recordPeer(id, urls, true)
	switch {
	case !ok:
	case known:
		t.tr.UpdatePeer(types.ID(id), urls)
	default:
		t.await.Do(func() { t.spawn(t.awaitRemoval) })
		t.tr.AddPeer(types.ID(id), urls)
	}
	return nil
}

// UpdatePeer changes the URLs of a peer. It ignores an unknown id.
func (t *Transport) UpdatePeer(id uint64, urls []string) error {
	if err := t.checkPeer(id, urls); err != nil {
		return fmt.Errorf("update peer: %w", err)
	}
	t.change.Lock()
	defer t.change.Unlock()
	if known, ok := t.recordPeer(id, urls, false); ok && known {
		t.tr.UpdatePeer(types.ID(id), urls)
	}
	return nil
}

// addRemote makes it possible to hear and to answer a member that the local
// membership does not contain yet. It ignores a known id.
func (t *Transport) addRemote(id uint64, urls []string) error {
	if err := t.checkPeer(id, urls); err != nil {
		return fmt.Errorf("add remote: %w", err)
	}
	t.change.Lock()
	defer t.change.Unlock()
	added, err := t.recordRemote(id, urls)
	if err != nil || !added {
		return err
	}
	t.await.Do(func() { t.spawn(t.awaitRemoval) })
	t.tr.AddRemote(types.ID(id), urls)
	return nil
}

// RemovePeer disconnects from a member. It waits for the goroutines of that peer,
// but not for the network.
func (t *Transport) RemovePeer(id uint64) {
	t.change.Lock()
	defer t.change.Unlock()
	t.mu.Lock()
	_, known := t.mu.peers[id]
	delete(t.mu.peers, id)
	stopped := t.mu.stopped
	t.mu.Unlock()
	if known && !stopped {
		t.tr.RemovePeer(types.ID(id))
	}
}

// reconnect drops everything under way with a peer and connects again. It is the
// only way to end a transfer that hangs inside rafthttp.
func (t *Transport) reconnect(id uint64) {
	t.change.Lock()
	defer t.change.Unlock()
	t.mu.RLock()
	urls, known := t.mu.peers[id]
	stopped := t.mu.stopped
	t.mu.RUnlock()
	if known && !stopped {
		t.tr.RemovePeer(types.ID(id))
		t.tr.AddPeer(types.ID(id), urls)
	}
}

// ActiveSince returns the time at which the connection to a peer was
// established. It is zero if there is no connection.
func (t *Transport) ActiveSince(id uint64) time.Time {
	if t.stopped.Load() {
		return time.Time{}
	}
	return t.tr.ActiveSince(types.ID(id))
}

// Stop closes the connections, ends the transfers, and waits until nothing calls
// the Receiver anymore (T6). It must not be called from a handler or from the
// Receiver, for which it would wait.
func (t *Transport) Stop() {
	t.stop.Do(func() {
		t.change.Lock()
		t.mu.Lock()
		t.mu.stopped = true
		t.mu.Unlock()
		t.stopped.Store(true)
		t.cancel()
		t.tr.Stop()
		for _, rt := range t.own {
			rt.CloseIdleConnections()
		}
		t.change.Unlock()
	})
	t.running.Wait()
}

// checkPeer refuses what would make rafthttp panic (T2), or make this member
// connect to itself.
func (t *Transport) checkPeer(id uint64, urls []string) error {
	if !limits.ValidMemberID(id) || id == t.cfg.ID {
		return fmt.Errorf("member %d cannot have a peer with id %d", t.cfg.ID, id)
	}
	for _, u := range urls {
		if slices.Contains(t.cfg.PeerURLs, u) {
			return fmt.Errorf("member %d: peer URL %s belongs to this member", id, u)
		}
	}
	if err := memberurl.Validate(urls); err != nil {
		return fmt.Errorf("member %d: %w", id, err)
	}
	return nil
}

// recordPeer stores the URLs of a peer that is known or to be added. ok is false
// once the transport is stopped.
func (t *Transport) recordPeer(id uint64, urls []string, add bool) (known, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.stopped {
		return false, false
	}
	_, known = t.mu.peers[id]
	if known || add {
		t.mu.peers[id] = slices.Clone(urls)
	}
	return known, true
}

// recordRemote stores the URLs of a remote. It reports false if there is nothing
// to add.
func (t *Transport) recordRemote(id uint64, urls []string) (added bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, peer := t.mu.peers[id]; peer || t.mu.remotes[id] != nil || t.mu.stopped {
		return false, nil
	}
	if len(t.mu.remotes) >= maxRemotes {
		return false, fmt.Errorf("add remote: limit of %d remotes reached", maxRemotes)
	}
	t.mu.remotes[id] = slices.Clone(urls)
	return true, nil
}

// known reports whether the id is a peer or a remote.
func (t *Transport) known(id uint64) bool { return t.urlsOf(id) != nil }

// urlsOf returns the URLs of a peer or remote, and nil for anyone else.
func (t *Transport) urlsOf(id uint64) []string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if urls := t.mu.peers[id]; urls != nil {
		return urls
	}
	return t.mu.remotes[id]
}

// enter reports whether something may begin that Stop has to wait for. If so, the
// caller must call leave at the end.
func (t *Transport) enter() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.mu.stopped {
		return false
	}
	t.running.Add(1)
	return true
}

func (t *Transport) leave() { t.running.Done() }

// spawn runs f on a goroutine that Stop waits for. It reports false, and does not
// run f, once the transport is stopped.
func (t *Transport) spawn(f func()) bool {
	if !t.enter() {
		return false
	}
	go func() {
		defer t.leave()
		f()
	}()
	return true
}

// awaitRemoval waits for the only error that rafthttp reports: a peer has
// answered that this member was removed.
func (t *Transport) awaitRemoval() {
	select {
	case err := <-t.tr.ErrorC:
		t.lg.Warn("peer reported that this member was removed", zap.Error(err))
		close(t.removed)
	case <-t.ctx.Done():
	}
}
