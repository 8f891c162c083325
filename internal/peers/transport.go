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
)

// errStopping answers what comes after Stop.
var errStopping = errors.New("node is stopping")

// Receiver is the node as its transport sees it. All methods may be
// called from any goroutine. All but Process may be called from inside Send
// and SendSnapshot, that is from the node loop itself: they must only note
// what they are told, and never wait for that loop.
type Receiver interface {
	// Process takes a message that passed ValidateMessage. It may wait for
	// room, but must return when the context ends.
	Process(ctx context.Context, m *raftpb.Message) error
	// IsRemoved reports whether the id was once a member and never will be
	// again. Such a sender is told so, and gives itself up.
	IsRemoved(id uint64) bool
	// Unreachable says that a message to the peer was lost.
	Unreachable(id uint64)
	// SnapshotStatus says how a MsgSnap ended.
	SnapshotStatus(id uint64, ok bool)
}

// Config describes a Transport.
type Config struct {
	ID        uint64
	ClusterID uint64
	// PeerURLs are this member's own. No peer may have one of them.
	PeerURLs []string
	// Snapshotter stores the bodies of received snapshots.
	Snapshotter *snap.Snapshotter
	Logger      *zap.Logger // nil: silent
	Receiver    Receiver
	Security    Security
	// Lookup asks reachable members for the URLs of a sender that is neither
	// known nor removed. It runs on a goroutine of its own, seldom; nil means
	// that unknown senders stay unknown.
	Lookup func(ctx context.Context, id uint64) (urls []string, ok bool)

	// DialTimeout bounds connecting to a peer. Default 2 s.
	DialTimeout time.Duration
	// SnapshotStall is for how long a transfer may make no progress. It covers
	// the receiver's fsync of the whole body. Default 1 min.
	SnapshotStall time.Duration
	// ReadStall is for how long a peer that sends a request may pause.
	// Default 30 s.
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
		errs = append(errs, errors.New("no snapshotter"))
	}
	if c.Receiver == nil {
		errs = append(errs, errors.New("no receiver"))
	}
	return errors.Join(errs...)
}

// maxRemotes bounds the senders added by look-up: rafthttp cannot forget one.
const maxRemotes = limits.MaxMembers

// Transport carries raft's messages to the other members, over etcd's
// rafthttp: long-lived HTTP streams between members, single POSTs where no
// stream is up. None of its methods waits for the network; delivery is never
// promised. After Stop all of them do nothing, except that SendSnapshot still
// closes the body and reports failure.
//
// rafthttp trusts its surroundings, so everything goes through this type:
//
//	in    guard (headers, limits) → rafthttp → raftSide (validate, known?) → Receiver
//	out   Send → rafthttp; SendSnapshot → at most maxOutgoingSnapshots transfers
//
// Invariants:
//
//	T1  each MsgSnap ends in exactly one SnapshotStatus, and its body is closed
//	T2  rafthttp only gets URLs that passed ValidateURLs, and none after
//	    Stop: it panics otherwise
//	T3  the Receiver only gets messages that ValidateMessage accepts, from a
//	    peer or remote
//	T4  no callback that rafthttp may make while it holds its lock takes one of
//	    the locks here
type Transport struct {
	cfg      Config
	lg       *zap.Logger
	self     identity
	tr       *rafthttp.Transport
	own      []*http.Transport // that make rafthttp's requests
	refusals refusalCounts
	monitor  *http.Client // of HoldMonitor

	ctx     context.Context // ends with Stop
	cancel  context.CancelFunc
	removed chan struct{}
	watch   sync.Once // starts watchRemoval with the first peer
	stop    sync.Once

	// change is held while rafthttp's list of peers changes; taken before mu.
	change sync.Mutex

	mu struct {
		sync.RWMutex
		stopped bool
		peers   map[uint64][]string // id → URLs
		remotes map[uint64][]string
		sending map[uint64]bool // peers that a snapshot is being sent to
		// expected counts the MsgSnap whose body the snapshot handler takes.
		expected map[snapshotKey]int
	}
	stopped atomic.Bool // mu.stopped, for Send
	lookups lookupState
	// running counts what Stop waits for; Add only under mu, before stopped.
	running sync.WaitGroup
}

// New makes a transport without peers; no goroutine runs before
// the first one is added.
func New(cfg Config) (*Transport, error) {
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("peer transport: %w", err)
	}
	t := &Transport{cfg: cfg, lg: cfg.Logger, self: identity{member: cfg.ID, cluster: cfg.ClusterID}, removed: make(chan struct{})}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.monitor = t.newMonitorClient()
	t.mu.peers = make(map[uint64][]string)
	t.mu.remotes = make(map[uint64][]string)
	t.mu.sending = make(map[uint64]bool)
	t.mu.expected = make(map[snapshotKey]int)
	t.lookups.mu.next = make(map[uint64]time.Time)
	id := types.ID(cfg.ID)
	lg := newTransportLogger(cfg.Logger, &t.stopped)
	// URLs stays empty: rafthttp would announce them in X-PeerURLs, which
	// receivers must not believe.
	t.tr = &rafthttp.Transport{
		Logger:      lg,
		DialTimeout: cfg.DialTimeout,
		ID:          id,
		ClusterID:   types.ID(cfg.ClusterID),
		Raft:        raftSide{t},
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

// Removed is closed when a peer said that this member was removed from the
// cluster for good.
func (t *Transport) Removed() <-chan struct{} { return t.removed }

// Refusals returns how often each kind of outside nonsense was refused.
func (t *Transport) Refusals() map[string]uint64 { return t.refusals.snapshot() }

// Send hands the messages over, in order. Those for unknown peers and those
// that find a full queue are dropped. A MsgSnap does not belong here: it is
// dropped and reported as failed. rafthttp may call Receiver.Unreachable from
// inside it.
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

// dropSnapshots keeps MsgSnap out of rafthttp's queues, where it would travel
// without its body.
func (t *Transport) dropSnapshots(msgs []*raftpb.Message) []*raftpb.Message {
	rest := make([]*raftpb.Message, 0, len(msgs))
	for _, m := range msgs {
		if isSnapshotMessage(m) {
			t.cfg.Receiver.SnapshotStatus(m.GetTo(), false)
		} else {
			rest = append(rest, m)
		}
	}
	return rest
}

// AddPeer connects to a member; one that is known gets the new URLs.
func (t *Transport) AddPeer(id uint64, urls []string) error {
	if err := t.checkPeer(id, urls); err != nil {
		return fmt.Errorf("add peer: %w", err)
	}
	t.change.Lock()
	defer t.change.Unlock()
	known, ok := t.notePeer(id, urls, true)
	switch {
	case !ok:
	case known:
		t.tr.UpdatePeer(types.ID(id), urls)
	default:
		t.watch.Do(func() { t.spawn(t.watchRemoval) })
		t.tr.AddPeer(types.ID(id), urls)
	}
	return nil
}

// UpdatePeer changes the URLs of a peer; an unknown one is left alone.
func (t *Transport) UpdatePeer(id uint64, urls []string) error {
	if err := t.checkPeer(id, urls); err != nil {
		return fmt.Errorf("update peer: %w", err)
	}
	t.change.Lock()
	defer t.change.Unlock()
	if known, ok := t.notePeer(id, urls, false); ok && known {
		t.tr.UpdatePeer(types.ID(id), urls)
	}
	return nil
}

// AddRemote makes it possible to answer a member that the local configuration
// does not contain yet.
func (t *Transport) AddRemote(id uint64, urls []string) error {
	if err := t.checkPeer(id, urls); err != nil {
		return fmt.Errorf("add remote: %w", err)
	}
	t.change.Lock()
	defer t.change.Unlock()
	added, err := t.noteRemote(id, urls)
	if err != nil || !added {
		return err
	}
	t.watch.Do(func() { t.spawn(t.watchRemoval) })
	t.tr.AddRemote(types.ID(id), urls)
	return nil
}

// RemovePeer forgets a member. It waits until the peer's goroutines have
// noticed, which takes no network.
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

// reconnect gives up everything under way with a peer and starts afresh:
// the only way to end a transfer that hangs in rafthttp.
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

// ActiveSince returns since when the connection works, zero while it does not.
func (t *Transport) ActiveSince(id uint64) time.Time {
	if t.stopped.Load() {
		return time.Time{}
	}
	return t.tr.ActiveSince(types.ID(id))
}

// Stop closes the connections, ends the transfers and
// waits for everything that calls the Receiver. It must not be called from a
// handler or a callback.
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

// checkPeer refuses what would make rafthttp panic or talk to itself.
func (t *Transport) checkPeer(id uint64, urls []string) error {
	if !limits.ValidMemberID(id) || id == t.cfg.ID {
		return fmt.Errorf("member id %d cannot be a peer of member %d", id, t.cfg.ID)
	}
	for _, u := range urls {
		if slices.Contains(t.cfg.PeerURLs, u) {
			return fmt.Errorf("member %d: %s is this member's own peer URL", id, u)
		}
	}
	if err := ValidateURLs(urls); err != nil {
		return fmt.Errorf("member %d: %w", id, err)
	}
	return nil
}

// notePeer records the URLs; ok is false once the transport is stopped.
func (t *Transport) notePeer(id uint64, urls []string, add bool) (known, ok bool) {
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

func (t *Transport) noteRemote(id uint64, urls []string) (added bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, peer := t.mu.peers[id]; peer || t.mu.remotes[id] != nil || t.mu.stopped {
		return false, nil
	}
	if len(t.mu.remotes) >= maxRemotes {
		return false, fmt.Errorf("add remote: there are %d already", maxRemotes)
	}
	t.mu.remotes[id] = slices.Clone(urls)
	return true, nil
}

// known reports whether the id is a peer or a remote.
func (t *Transport) known(id uint64) bool { return t.urlsOf(id) != nil }

// urlsOf returns the URLs of a peer or remote, nil for others.
func (t *Transport) urlsOf(id uint64) []string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if urls := t.mu.peers[id]; urls != nil {
		return urls
	}
	return t.mu.remotes[id]
}

// enter begins something that Stop has to wait for; leave ends it.
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

// spawn runs f on a goroutine that Stop waits for.
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

// watchRemoval waits for the one error that rafthttp reports: a peer answered
// that this member is removed.
func (t *Transport) watchRemoval() {
	select {
	case err := <-t.tr.ErrorC:
		t.lg.Warn("a peer refuses this member", zap.Error(err))
		close(t.removed)
	case <-t.ctx.Done():
	}
}
