package node

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"log"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/certs"
	"github.com/kvd-io/kvd/internal/connlimit"
	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/founding"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/limits"
	"github.com/kvd-io/kvd/internal/memberurl"
	"github.com/kvd-io/kvd/internal/peers"
	"github.com/kvd-io/kvd/internal/raftnode"
	"github.com/kvd-io/kvd/internal/repeat"
	"github.com/kvd-io/kvd/internal/rights"
	"github.com/kvd-io/kvd/internal/roster"
	"github.com/kvd-io/kvd/internal/watch"
)

// How Run ends, other than by a stop or a failure.
var (
	// ErrRemoved means that this node is not a member anymore. It is a
	// regular end.
	ErrRemoved = raftnode.ErrRemoved
	// ErrRefused means that it would not be safe for this directory to act as
	// the member.
	ErrRefused = raftnode.ErrRefused
	// ErrRebuild means that the store is damaged and that the next Run on the directory,
	// by another Node, rebuilds it with the help of the other members.
	ErrRebuild = errors.New("the store has to be rebuilt")
	// ErrConfig means that the settings contradict each other or the directory.
	ErrConfig = errors.New("invalid settings")
)

// Peer is one member of the initial cluster.
type Peer struct {
	ID   uint64
	Name string
	URL  string // of its peer listener
}

// Config describes a node. Durations and sizes of zero mean the defaults of
// raftnode.Config.
type Config struct {
	ID      uint64 // 0 with JoinURLs: the cluster chooses
	Name    string
	DataDir string
	Engine  string // "pebble" or "memory"
	// ListenPeer is the URL to serve members on. The Advertise URLs are the
	// ones that others use, by default the same.
	ListenPeer      string
	AdvertisePeer   []string
	AdvertiseClient []string
	// AdvertiseEtcd are the URLs at which clients of etcd reach this node; empty if it
	// does not serve them.
	AdvertiseEtcd []string
	// Initial lists the members of a new cluster, including this one.
	Initial []Peer
	// Alone means that the settings list no initial members: Initial has this node
	// only. A directory that belongs to a cluster knows better, so it may be started
	// without a list; IDGiven then says whether ID was given.
	Alone, IDGiven bool
	// Token distinguishes clusters whose members have the same URLs.
	Token string
	// Join means that the cluster already exists: Initial says where to find
	// it, and this node has been added to it.
	Join bool
	// JoinURLs are client or peer URLs of any member. This node asks that cluster to
	// add it. If they are peer URLs and this node's is among them, they are also the
	// initial members of a cluster to be founded if none exists (rally.go).
	JoinURLs []string
	// ReplaceAfter is how long the leader must not have heard from a member whose
	// directory is lost before it can be replaced; 0 means the default.
	ReplaceAfter time.Duration
	// RemoveDeadAfter is the silence after which this node, as the leader, removes a
	// member; 0 means never.
	RemoveDeadAfter time.Duration
	// TLS secures the peer listener and everything that members say to each
	// other. Without it they use plain HTTP.
	TLS *certs.Bundle
	// InsecurePeers allows member URLs without TLS beyond this machine.
	InsecurePeers bool
	// DialPeers replaces how connections to other members are made; nil leaves it.
	// Package kvdtest cuts nodes off with it.
	DialPeers func(dial peers.Dial) peers.Dial
	// Settings are the first values of the replicated settings. The zero value
	// leaves kvstore's defaults.
	Settings kvstore.Settings
	// GivenSettings are those of Settings that the operator gave, for a warning if
	// the cluster has others.
	GivenSettings []GivenSetting
	// FirstRights returns the change with which a cluster that this node founds begins; an
	// error stops the node. nil means that rights begin disabled.
	FirstRights func() (rights.Change, error)

	TickInterval       time.Duration
	ElectionTicks      int
	CheckpointBytes    int64
	CheckpointInterval time.Duration
	CatchUpBytes       int
	// RebuildStore moves the store aside and fills a new one from the log or from
	// another member.
	RebuildStore bool
	// ScrubInterval is the time in which the store is read once in the background, to
	// look for damage; 0 means never.
	ScrubInterval time.Duration
	// CacheBytes bounds the engine's block cache and memtables. 0 means its default.
	CacheBytes int64
	// HotBytes bounds the memory for the newest pairs of keys that are being read. 0
	// means the default of package kvstore.
	HotBytes int
	// MaxWatches bounds the watches on this node; 0 means the default of package watch.
	MaxWatches int
	// MaxOpenFiles bounds the files of the engine that are open at the same time,
	// and MaxPeerConnections the connections to the peer listener. 0 means the
	// engine's default and no limit.
	MaxOpenFiles       int
	MaxPeerConnections int64

	Logger  *zap.Logger
	Version api.Version
	// Observer receives what the replication layer does. It may be nil.
	Observer raftnode.Observer
}

// GivenSetting is one of the replicated settings that a flag gives a first value.
type GivenSetting struct {
	Flag  string // how it was given, for example, --quota
	Field string // its name in PUT /v1/settings
	Value func(*kvstore.Settings) int64
}

// Node is one kvd process, from the start of Run to its end. Its exported
// methods may be called at any time from any goroutine; while there is no
// member to carry out a request, they say so.
type Node struct {
	cfg     Config
	lg      *zap.Logger
	peering peering
	calls   *peerCaller
	life    lifecycle

	store *kvstore.Store // opened by Run before anything is served
	// files are the engine's, for the scrubber; nil if it keeps nothing on disk.
	files engine.Verifier
	// watches is told of every change by the store.
	watches *watch.Hub
	failed  chan error // capacity 1: why the node cannot continue
	// damaged is the verdict about a store whose damage was found while running.
	damaged atomic.Pointer[datadir.RefusedError]
	// refusing paces the warning about refused connections of peers.
	refusing repeat.Pace

	// identity is written by the joiner, and final once member is set (N2).
	identity atomic.Pointer[identity]
	// acceptor is set while, and after, the directory helps to found a cluster.
	acceptor atomic.Pointer[founding.Acceptor]
	// member is nil until the node has its place.
	member atomic.Pointer[member]
	// peerHandler serves the peer listener: at first only the calls of this
	// package, later raft's messages too.
	peerHandler atomic.Pointer[http.Handler]
}

// identity says which member of which cluster a node is.
type identity struct {
	Member  uint64 // 0 while a joining node has not been given an id
	Cluster uint64 // 0 until the node has a cluster
	// Rendezvous is what the settings of the initial members yield. It only helps
	// them to find each other; 0 if it is not known.
	Rendezvous uint64
	Original   uint64 // the cluster's id before it was recovered; 0 if it never was
	// charter is that of the cluster, if the directory helped to found it.
	charter *datadir.Charter
}

// lifecycle is how far a node has come. Requests are served between ready and
// closing (N3).
type lifecycle struct {
	started time.Time
	ready   chan struct{} // closed when requests can be served
	leaving atomic.Bool   // a stop has begun; requests are still served
	closing atomic.Bool   // the store is about to close; requests are refused
}

// serves returns nil while requests can be served.
func (l *lifecycle) serves() error {
	if l.closing.Load() {
		return retryable(api.Stopping, "this node is stopping; ask another node")
	}
	select {
	case <-l.ready:
		return nil
	default:
		return retryable(api.Starting, "this node is starting and has not caught up yet; try again soon or ask another node")
	}
}

// New checks the settings and reports everything that is wrong with them. It
// starts nothing and touches no file.
func New(cfg Config) (*Node, error) {
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	if len(cfg.AdvertisePeer) == 0 && cfg.ListenPeer != "" {
		cfg.AdvertisePeer = []string{cfg.ListenPeer}
	}
	cfg.listJoining()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	p := peering{tls: cfg.TLS, insecure: cfg.InsecurePeers, through: cfg.DialPeers}
	n := &Node{
		cfg:     cfg,
		lg:      cfg.Logger,
		peering: p,
		calls:   newPeerCaller(p.security()),
		life:    lifecycle{ready: make(chan struct{})},
		failed:  make(chan error, 1),
		watches: watch.New(watch.Options{MaxWatches: cfg.MaxWatches}),
	}
	n.identity.Store(&identity{Member: cfg.ID, Rendezvous: RendezvousID(cfg.Token, cfg.Initial)})
	return n, nil
}

func (cfg *Config) validate() error {
	var problems []error
	add := func(format string, args ...any) {
		problems = append(problems, fmt.Errorf(format, args...))
	}
	if cfg.DataDir == "" {
		add("the data directory is not set")
	}
	if cfg.Engine != "pebble" && cfg.Engine != "memory" {
		add("engine %q is neither pebble nor memory", cfg.Engine)
	}
	if chosen := cfg.ID == 0 && len(cfg.JoinURLs) > 0; !chosen && !limits.ValidMemberID(cfg.ID) {
		add("id %d is not between 1 and 2^53-1", cfg.ID)
	}
	if err := memberurl.Validate(cfg.AdvertisePeer); err != nil {
		add("advertised peer URLs: %w", err)
	}
	for _, p := range cfg.Initial {
		if err := memberurl.Validate([]string{p.URL}); err != nil {
			add("initial member %d: %w", p.ID, err)
		}
	}
	if len(cfg.JoinURLs) == 0 && !slices.ContainsFunc(cfg.Initial, func(p Peer) bool { return p.ID == cfg.ID }) {
		add("the initial cluster does not contain this node's id %d", cfg.ID)
	}
	if cfg.Settings != (kvstore.Settings{}) {
		if err := cfg.Settings.Validate(); err != nil {
			add("%w", err)
		}
	}
	return errors.Join(problems...)
}

// RendezvousID is a hash of what the settings of all initial members have in
// common: the token and the initial ids and URLs. Fresh members with different
// ones do not found a cluster together. It does not identify a cluster: lost
// disks and old settings would yield it a second time.
func RendezvousID(token string, initial []Peer) uint64 {
	h := fnv.New64a()
	put := func(s string) {
		_, _ = h.Write(binary.AppendUvarint(nil, uint64(len(s)))) // a hash never fails
		_, _ = h.Write([]byte(s))
	}
	put(token)
	sorted := slices.SortedFunc(slices.Values(initial), func(a, b Peer) int { return cmp.Compare(a.ID, b.ID) })
	for _, p := range sorted {
		_, _ = h.Write(binary.AppendUvarint(nil, p.ID))
		put(p.URL)
	}
	return max(h.Sum64(), 1)
}

// Run drives the node until the context ends or something stops it; see the
// errors above. A nil error is a regular stop.
//
// The order is part of the design. The lock comes first, so that a second process
// on the directory fails before it has changed anything. The peer port is served
// before the place is found: nodes that start together must hear each other, or
// none of them would ever find a majority. Everything ends in reverse: the store
// is closed only when no peer and no duty can reach it anymore.
func (n *Node) Run(ctx context.Context) (err error) {
	n.life.started = time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dir, err := datadir.Open(n.cfg.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(planRebuild(n, dir, n.verdict(err)), dir.Close()) }()
	if err := checkEngine(&n.cfg, dir); err != nil {
		return err
	}
	if err := prepareRebuild(n, dir); err != nil {
		return err
	}
	if err := n.openStore(); err != nil {
		return err
	}
	defer func() {
		if !errors.Is(err, raftnode.ErrDiskStall) { // closing would hang like the log
			err = errors.Join(err, n.store.Close())
		}
	}()
	served, err := n.servePeers(ctx)
	if err != nil {
		return err
	}
	defer func() { cancel(); served() }()
	m, err := n.join(ctx, dir)
	if err != nil {
		return err
	}
	return n.takePart(ctx, dir, m)
}

func (n *Node) openStore() error {
	var eng engine.Engine
	switch n.cfg.Engine {
	case "memory":
		eng = engine.NewMemory()
	default:
		var err error
		eng, err = engine.OpenPebble(datadir.StorePath(n.cfg.DataDir), engine.PebbleOptions{
			Comparer:   kvstore.Comparer(),
			CacheBytes: n.cfg.CacheBytes,
			OpenFiles:  n.cfg.MaxOpenFiles,
			Logger:     engineLogger{n.lg.Named("pebble").Sugar()},
			OnFatal:    n.engineFailed,
		})
		if err != nil {
			return storeError(n.cfg.DataDir, err)
		}
	}
	var err error
	if n.store, err = kvstore.Open(eng, kvstore.Options{HotBytes: n.cfg.HotBytes, OnSettings: n.settingsChanged, OnRights: logRights(n.lg), Observer: n.watches, Leases: leaseObserver{n}}); err != nil {
		return errors.Join(storeError(n.cfg.DataDir, err), eng.Close())
	}
	n.watches.Attach(n.store)
	n.files, _ = eng.(engine.Verifier)
	return nil
}

// settingsChanged logs a change of the replicated settings, on every member. The first
// ones come from the flags of the first leader; nobody changed them.
func (n *Node) settingsChanged(before, after kvstore.Settings, by kvstore.Origin) {
	if by == (kvstore.Origin{}) {
		n.lg.Info("settings of the cluster", zap.Any("settings", after))
		return
	}
	n.lg.Info("settings changed", zap.Any("before", before), zap.Any("after", after), zap.String("request_id", by.RequestID), zap.String("client", by.Client), zap.String("principal", by.Principal))
}

// engineLogger lowers the engine's running commentary to debug.
type engineLogger struct{ *zap.SugaredLogger }

func (l engineLogger) Infof(format string, args ...any) { l.Debugf(format, args...) }

// engineFailed stops the node: what the engine failed to write it will never
// write. It may be called with the engine's locks held, so it only leaves a
// note.
func (n *Node) engineFailed(err error) {
	err = fmt.Errorf("storage engine: %w", err)
	if engine.IsDamage(err) {
		r := datadir.RefuseStore(n.cfg.DataDir, "the store is damaged", err)
		n.damaged.CompareAndSwap(nil, r)
		err = r
	}
	n.fail(err)
}

// fail stops the node. It does not wait.
func (n *Node) fail(err error) {
	select {
	case n.failed <- err:
	default: // the first failure is the one to report
	}
}

// peerRefused warns of connections to the peer listener beyond its limit.
func (n *Node) peerRefused() {
	if n.refusing.Due(time.Now(), "") {
		n.lg.Warn("connections to the peer port refused: too many are open; members need few, so look for other users of the port",
			zap.Int64("limit", n.cfg.MaxPeerConnections), zap.String("listen_peer", n.cfg.ListenPeer))
	}
}

// join finds the directory's place and opens the replica there.
func (n *Node) join(ctx context.Context, dir *datadir.Dir) (*member, error) {
	j := newJoiner(n, dir)
	at, err := j.find(ctx)
	if err != nil {
		return nil, err
	}
	cfg := n.replicaConfig()
	cfg.ID, cfg.ClusterID, cfg.Nonce, cfg.Starts = at.Member, at.Cluster, at.nonce, at.starts
	cfg.Initial, cfg.Known = at.initial, at.known
	cfg.Boot = datadir.NewNonce()
	n.calls.identify(func(h http.Header) { peers.Stamp(h, at.Member, at.Cluster, cfg.Boot) })
	if at.seeded {
		cfg.Seed = func() error { return plant(dir, n.store, n.lg) }
	}
	if dir.Rebuilding() {
		cfg.FetchBody = n.bodyFetcher(ctx, at.Member, at.Cluster)
	}
	r, err := raftnode.Open(cfg)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(dir.MarkStarted(), dir.KeepEngine(n.cfg.Engine), endRebuild(n, dir), dir.DropSeed()); err != nil {
		return nil, err
	}
	m := newMember(n, r)
	n.member.Store(m)
	n.setPeerHandler(r.Handler(n.peerCalls()))
	return m, nil
}

func (n *Node) replicaConfig() raftnode.Config {
	return raftnode.Config{
		Dir:                n.cfg.DataDir,
		Name:               n.cfg.Name,
		PeerURLs:           n.cfg.AdvertisePeer,
		ClientURLs:         n.cfg.AdvertiseClient,
		Faces:              facesOf(&n.cfg),
		StateMachine:       ledMachine{machine{n.store}, &n.member},
		VerifyBody:         verifyBody,
		Logger:             n.lg,
		Lookup:             n.lookup,
		Security:           n.peering.security(),
		Observer:           n.cfg.Observer,
		TickInterval:       n.cfg.TickInterval,
		ElectionTicks:      n.cfg.ElectionTicks,
		ReplaceAfter:       n.cfg.ReplaceAfter,
		RemoveDeadAfter:    n.cfg.RemoveDeadAfter,
		CheckpointBytes:    n.cfg.CheckpointBytes,
		CheckpointInterval: n.cfg.CheckpointInterval,
		CatchUpBytes:       n.cfg.CatchUpBytes,
	}
}

// servePeers listens for other members. The returned function waits until
// serving has ended, after the context has.
func (n *Node) servePeers(ctx context.Context) (wait func(), err error) {
	u, err := url.Parse(n.cfg.ListenPeer)
	if err != nil {
		return nil, fmt.Errorf("%w: peer listener %q: %w", ErrConfig, n.cfg.ListenPeer, err)
	}
	l, err := net.Listen("tcp", u.Host)
	if err != nil {
		return nil, fmt.Errorf("listen for peers on %s (set with --listen-peer or --cluster): %w", u.Host, err)
	}
	return n.servePeersOn(ctx, l)
}

// servePeersOn is servePeers for a listener.
func (n *Node) servePeersOn(ctx context.Context, l net.Listener) (wait func(), err error) {
	l = connlimit.Listen(l, connlimit.New(n.cfg.MaxPeerConnections), n.peerRefused)
	if l, err = n.peering.listener(l, n.cfg.ListenPeer); err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	for path, h := range n.peerCalls() {
		mux.Handle(path, h)
	}
	n.setPeerHandler(mux)
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			(*n.peerHandler.Load()).ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: 5 * time.Second, // covers the TLS handshake too
		// Streams never idle; a connection between two calls must not keep its place.
		IdleTimeout:    time.Minute,
		MaxHeaderBytes: 64 << 10,
		ErrorLog:       log.New(&repeat.SparseLog{Logger: n.lg.Named("peer-http")}, "", 0),
	}
	var done sync.WaitGroup
	done.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			n.fail(fmt.Errorf("peer listener: %w", err)) // a deaf node would hold up its cluster
		}
	})
	done.Go(func() {
		<-ctx.Done()
		_ = srv.Close() // a graceful shutdown would wait for streams that never end
	})
	return done.Wait, nil
}

func (n *Node) setPeerHandler(h http.Handler) { n.peerHandler.Store(&h) }

// takePart runs the replica and the member's duties until the end. The replica
// ends first, having answered every request; from then on requests are refused
// (N3), and only then the duties are waited for.
func (n *Node) takePart(ctx context.Context, dir *datadir.Dir, m *member) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var duties sync.WaitGroup
	duties.Go(func() {
		select {
		case err := <-n.failed:
			cancel(err)
		case <-ctx.Done():
		}
	})
	duties.Go(func() {
		if err := m.announceReady(ctx); err != nil {
			n.fail(err)
		}
	})
	duties.Go(func() { m.leaderDuties(ctx) })
	duties.Go(func() { m.compareHashes(ctx) })
	duties.Go(func() { m.leases.run(ctx) })
	duties.Go(func() { m.watchAlarms(ctx) })
	duties.Go(func() { scrubStore(ctx, n, m) })
	err := m.replica.Run(ctx)
	n.life.closing.Store(true)
	n.watches.Close()
	cancel(nil)
	duties.Wait()
	switch {
	case errors.Is(err, ErrRemoved):
		n.lg.Info("this member was removed from the cluster; shutting down", zap.Uint64("id", m.id))
		if merr := dir.MarkRemoved(); merr != nil {
			return errors.Join(err, merr)
		}
	case errors.Is(err, roster.ErrStaleDirectory):
		return errors.Join(fmt.Errorf("%s: %w", absolute(n.cfg.DataDir), err), dir.MarkStale())
	}
	return err
}

// Ready is closed once client requests are served.
func (n *Node) Ready() <-chan struct{} { return n.life.ready }

// Drain begins an orderly stop: this node is not ready from now on, and hands
// its leadership over. Requests are served until Run ends. Drain returns when
// another member leads or the context ends.
func (n *Node) Drain(ctx context.Context) {
	if n.life.leaving.Swap(true) {
		return
	}
	m := n.member.Load()
	if m == nil || !m.leads() || len(m.replica.Membership().Voters()) < 2 {
		return
	}
	if err := m.replica.TransferLeadership(ctx, 0); err != nil {
		n.lg.Warn("could not hand leadership over before stopping", zap.Error(err))
	}
}

// lookup finds the URLs of a member that this node does not know yet. The
// replica calls it, and may do so before the node has its member.
func (n *Node) lookup(ctx context.Context, id uint64) ([]string, bool) {
	m := n.member.Load()
	if m == nil {
		return nil, false
	}
	return m.lookup(ctx, id)
}

// absolute names the data directory in messages.
func absolute(dir string) string {
	if abs, err := filepath.Abs(dir); err == nil {
		return abs
	}
	return dir
}
