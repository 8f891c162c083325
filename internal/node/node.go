// Package node is one member of a kvd cluster: it joins the store and the
// replication layer, finds its place in a cluster when it starts, serves the
// requests of package httpapi, and does what a leader owes its cluster.
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
	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/peers"
	"github.com/kvd-io/kvd/internal/raftnode"
)

// How Run ends other than by a stop or a failure.
var (
	// ErrRemoved: this node is no member any more. A regular end.
	ErrRemoved = raftnode.ErrRemoved
	// ErrRefused: for safety, this directory may not act as the member.
	ErrRefused = raftnode.ErrRefused
	// ErrConfig: the settings contradict each other or the directory.
	ErrConfig = errors.New("settings")
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
	// ListenPeer is the URL to serve members on; the Advertise URLs are what
	// others use, by default the same.
	ListenPeer      string
	AdvertisePeer   []string
	AdvertiseClient []string
	// Initial lists the members of a new cluster, this one included.
	Initial []Peer
	// Token sets clusters of equal members apart.
	Token string
	// Join says that the cluster exists already: Initial lists where to find
	// it, and this node has been added to it.
	Join bool
	// JoinURLs are client or peer URLs of any member: this node asks to be
	// added.
	JoinURLs []string
	// TLS secures the peer listener and everything members say to each other;
	// nil: they talk in the clear.
	TLS *certs.Bundle
	// InsecurePeers lets members have URLs without TLS beyond this machine.
	InsecurePeers bool
	// Settings are the first values of the replicated settings.
	// The zero value leaves kvstore's defaults.
	Settings kvstore.Settings

	TickInterval       time.Duration
	ElectionTicks      int
	CheckpointBytes    int64
	CheckpointInterval time.Duration
	CatchUpBytes       int
	// CacheBytes bounds the engine's block cache; 0 means its default.
	CacheBytes int64

	Logger  *zap.Logger
	Version api.Version
	// Observer hears what the replication layer does; nil for nobody.
	Observer raftnode.Observer
}

// Node is one member.
type Node struct {
	cfg         Config
	lg          *zap.Logger
	started     time.Time
	id          uint64
	clusterID   uint64
	original    atomic.Uint64 // cluster id before a recovery; 0: none
	clusterName atomic.Pointer[clusterName]

	store  *kvstore.Store
	peers  *peerCaller
	finder *http.Client                     // asks client URLs for the members
	raft   atomic.Pointer[raftnode.Replica] // nil until the node has its place

	failed   chan error    // capacity 1; the engine can not go on
	ready    chan struct{} // closed when requests can be served
	leaving  atomic.Bool   // a stop has begun; requests are still served
	draining atomic.Bool   // the store is about to close; requests are refused
	alarms   alarms
	counts   counts
	// peerHandler serves the peer listener: only the calls of package node at
	// first, raft's messages beside them later.
	peerHandler atomic.Pointer[http.Handler]
}

// New checks the settings. It starts nothing and touches no file.
func New(cfg Config) (*Node, error) {
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	if len(cfg.AdvertisePeer) == 0 && cfg.ListenPeer != "" {
		cfg.AdvertisePeer = []string{cfg.ListenPeer}
	}
	var problems []error
	complain := func(format string, args ...any) {
		problems = append(problems, fmt.Errorf(format, args...))
	}
	if cfg.DataDir == "" {
		complain("the data directory is not set")
	}
	if cfg.Engine != "pebble" && cfg.Engine != "memory" {
		complain("engine %q is neither pebble nor memory", cfg.Engine)
	}
	if cfg.ID > raftnode.MaxMemberID || cfg.ID == 0 && len(cfg.JoinURLs) == 0 {
		complain("id %d is not between 1 and 2^53-1", cfg.ID)
	}
	if err := peers.ValidateURLs(cfg.AdvertisePeer); err != nil {
		complain("advertised peer URLs: %w", err)
	}
	for _, p := range cfg.Initial {
		if err := peers.ValidateURLs([]string{p.URL}); err != nil {
			complain("initial member %d: %w", p.ID, err)
		}
	}
	if len(cfg.JoinURLs) == 0 && !slices.ContainsFunc(cfg.Initial, func(p Peer) bool { return p.ID == cfg.ID }) {
		complain("the initial cluster does not contain this node's id %d", cfg.ID)
	}
	if cfg.Settings != (kvstore.Settings{}) {
		if err := cfg.Settings.Validate(); err != nil {
			complain("%w", err)
		}
	}
	if len(problems) > 0 {
		return nil, fmt.Errorf("%w: %w", ErrConfig, errors.Join(problems...))
	}
	n := &Node{
		cfg:       cfg,
		lg:        cfg.Logger,
		id:        cfg.ID,
		clusterID: clusterID(cfg.Token, cfg.Initial),
		failed:    make(chan error, 1),
		ready:     make(chan struct{}),
	}
	security := n.security()
	n.peers = newPeerCaller(&security)
	security.SecureOnly = false
	n.finder = &http.Client{Transport: callTransport(&security), Timeout: callTimeout}
	return n, nil
}

// clusterID is a hash of what makes a cluster: the token and the sorted
// initial ids and URLs. Members of different clusters refuse each other.
func clusterID(token string, initial []Peer) uint64 {
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

// Ready is closed once client requests are served.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// ClusterID returns the cluster's id as 16 hexadecimal digits.
func (n *Node) ClusterID() string {
	id := n.clusterID
	if r := n.raft.Load(); r != nil {
		id = r.Membership().ClusterID
	}
	named := n.clusterName.Load()
	if named == nil || named.id != id {
		named = &clusterName{id: id, text: fmt.Sprintf("%016x", id)}
		n.clusterName.Store(named)
	}
	return named.text
}

// clusterName is a cluster's id with its text, which every answer carries.
type clusterName struct {
	id   uint64
	text string
}

// ID returns the member's id; 0 while a joining node has not got one.
func (n *Node) ID() uint64 { return n.id }

// Run drives the node until the context ends or something ends it; see the
// errors above. A nil error is a regular stop.
func (n *Node) Run(ctx context.Context) (err error) {
	n.started = time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dir, err := datadir.Open(n.cfg.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
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
	r, err := n.findPlace(ctx, dir)
	if err != nil {
		return err
	}
	return n.takePart(ctx, dir, r)
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
			Logger:     engineLogger{n.lg.Named("pebble").Sugar()},
			OnFatal:    n.engineFailed,
		})
		if err != nil {
			return fmt.Errorf("open the store in %s: %w", n.cfg.DataDir, err)
		}
	}
	var err error
	if n.store, err = kvstore.Open(eng, kvstore.Options{}); err != nil {
		return errors.Join(fmt.Errorf("open the store in %s: %w", n.cfg.DataDir, err), eng.Close())
	}
	return nil
}

// engineLogger lowers the engine's running commentary to debug.
type engineLogger struct{ *zap.SugaredLogger }

func (l engineLogger) Infof(format string, args ...any) { l.Debugf(format, args...) }

// engineFailed ends the node: what the engine could not write it never will.
// It may be called with the engine's locks held, so it only leaves a note.
func (n *Node) engineFailed(err error) {
	select {
	case n.failed <- fmt.Errorf("storage engine: %w", err):
	default: // the first failure is the one to report
	}
}

// servePeers listens for other members. The returned function waits for the
// end of the serving, after the context has ended.
func (n *Node) servePeers(ctx context.Context) (wait func(), err error) {
	u, err := url.Parse(n.cfg.ListenPeer)
	if err != nil {
		return nil, fmt.Errorf("%w: peer listener %q: %w", ErrConfig, n.cfg.ListenPeer, err)
	}
	l, err := net.Listen("tcp", u.Host)
	if err != nil {
		return nil, fmt.Errorf("listen for peers on %s (set with --listen-peer or --cluster): %w", u.Host, err)
	}
	if l, err = n.secureListener(l, u.Scheme); err != nil {
		return nil, err
	}
	n.setPeerHandler(n.callsOnly())
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			(*n.peerHandler.Load()).ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: 5 * time.Second, // of a TLS handshake too
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          log.New(&sparseLog{lg: n.lg.Named("peer-http")}, "", 0),
	}
	var done sync.WaitGroup
	done.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			n.lg.Error("peer listener ended", zap.Error(err))
		}
	})
	done.Go(func() {
		<-ctx.Done()
		_ = srv.Close() // streams to peers never end by themselves
	})
	return done.Wait, nil
}

func (n *Node) setPeerHandler(h http.Handler) { n.peerHandler.Store(&h) }

func (n *Node) callsOnly() http.Handler {
	mux := http.NewServeMux()
	for path, h := range n.handlers() {
		mux.Handle(path, h)
	}
	return mux
}

// takePart runs the replication layer and the duties until the end.
func (n *Node) takePart(ctx context.Context, dir *datadir.Dir, r *raftnode.Replica) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var duties sync.WaitGroup
	duties.Go(func() {
		select {
		case err := <-n.failed:
			cancel(err)
		case <-ctx.Done():
		}
	})
	duties.Go(func() { n.announceReady(ctx, r) })
	duties.Go(func() { n.leaderDuties(ctx, r) })
	duties.Go(func() { n.compareHashes(ctx, r) })
	err := r.Run(ctx)
	n.draining.Store(true) // the store is about to close
	cancel(nil)
	duties.Wait()
	if errors.Is(err, ErrRemoved) {
		n.lg.Info("this member was removed from the cluster; shutting down", zap.Uint64("id", n.id))
		if merr := dir.MarkRemoved(); merr != nil {
			return errors.Join(err, merr)
		}
	}
	return err
}

// announceReady waits until this node has applied its own start, and with it
// all that was committed before. A new cluster has its settings before its
// first request.
func (n *Node) announceReady(ctx context.Context, r *raftnode.Replica) {
	select {
	case <-r.Ready():
		n.proposeFirstSettings(ctx, r)
		close(n.ready)
	case <-ctx.Done():
	}
}

// Drain begins a polite stop: this node is not ready from now on, and
// leadership is handed over. Requests are served until Run ends. Drain returns
// when leadership is gone or the context ends.
func (n *Node) Drain(ctx context.Context) {
	if n.leaving.Swap(true) {
		return
	}
	r := n.raft.Load()
	if r == nil || r.Position().Leader != n.id || len(r.Membership().Voters()) < 2 {
		return
	}
	if err := r.TransferLeadership(ctx, 0); err != nil {
		n.lg.Warn("could not hand leadership over before stopping", zap.Error(err))
	}
}

// describeDir names the data directory for messages.
func describeDir(dir string) string {
	if abs, err := filepath.Abs(dir); err == nil {
		return abs
	}
	return dir
}
