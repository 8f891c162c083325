// Package etcdtest runs real nodes that serve clients of etcd inside a test: the shipped
// parts, put together as the daemon does, with the log in the test's directory and the
// keys in memory. Package kvdtest does the same for users, without etcd's face.
package etcdtest

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"strconv"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/access"
	"github.com/kvd-io/kvd/internal/certs"
	"github.com/kvd-io/kvd/internal/etcdapi"
	"github.com/kvd-io/kvd/internal/freeport"
	"github.com/kvd-io/kvd/internal/frontdoor"
	"github.com/kvd-io/kvd/internal/httpapi"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/node"
	"github.com/kvd-io/kvd/internal/settings"
)

const (
	tickInterval  = 20 * time.Millisecond
	tickAlone     = 100 * time.Millisecond
	electionTicks = 10
	startTimeout  = 30 * time.Second
	stopTimeout   = 5 * time.Second
	minBcryptCost = 4
)

// Config says what a test wants other than the defaults. Its functions may be nil.
type Config struct {
	// Settings changes the first values of the replicated settings.
	Settings func(*kvstore.Settings)
	// Gate changes the options of who may do what.
	Gate func(*access.Options)
	// Options changes those of the face, for example to register the watch service.
	Options func(*etcdapi.Options)
	// Register adds services before the face serves.
	Register func(*etcdapi.Server, node.Face)
	// Tick is the heartbeat interval, and a tenth of the election timeout. 0 means 20 ms in
	// a cluster, and 100 ms for a node alone, which nobody replaces while its disk hangs.
	// Tests in which an election must not happen by itself on a busy machine need more.
	Tick time.Duration
	// MaxConnections is the value of --max-connections; "" means its default.
	MaxConnections string
	// Listen is the value of --listen-etcd; the default is a port of 127.0.0.1. Bundle is
	// for its https URLs.
	Listen string
	Bundle *certs.Bundle
	// Web answers requests other than gRPC calls.
	Web func(*etcdapi.Server, node.Face) http.Handler
}

func (c *Config) tick(nodes int) time.Duration {
	if nodes == 1 {
		return cmp.Or(c.Tick, tickAlone)
	}
	return cmp.Or(c.Tick, tickInterval)
}

// Node is a running node.
type Node struct {
	node.Face
	// Etcd and HTTP are the URLs for clients of etcd, and for those of kvd.
	Etcd, HTTP string
	All        []string // URLs of --listen-etcd, Etcd among them
	Calls      *etcdapi.Server
	Gate       *access.Gate

	t       testing.TB
	cfg     node.Config
	want    *Config
	door    *frontdoor.Door
	etcd    *frontdoor.EtcdDoor
	stop    context.CancelFunc
	ended   chan error
	stopped bool
}

// Start starts a cluster of n nodes, which end with the test. It returns once each of them
// serves. c may be nil.
func Start(t testing.TB, n int, c *Config) []*Node {
	t.Helper()
	if c == nil {
		c = new(Config)
	}
	peers := make([]node.Peer, n)
	for i, address := range freeAddresses(t, n) {
		peers[i] = node.Peer{ID: uint64(i + 1), Name: "kvd" + strconv.Itoa(i+1), URL: "http://" + address}
	}
	first := kvstore.DefaultSettings()
	if c.Settings != nil {
		c.Settings(&first)
	}
	nodes := make([]*Node, n)
	for i := range nodes {
		nodes[i] = &Node{t: t, want: c, Etcd: "http://127.0.0.1:0", HTTP: "http://127.0.0.1:0", cfg: node.Config{
			ID: peers[i].ID, Name: peers[i].Name, DataDir: t.TempDir(), Engine: "memory", Initial: peers,
			ListenPeer: peers[i].URL, AdvertisePeer: []string{peers[i].URL}, Token: "etcdtest", Alone: n == 1, IDGiven: true,
			TickInterval: c.tick(n), ElectionTicks: electionTicks, CheckpointBytes: 16 << 20, CatchUpBytes: 4 << 20,
			Settings: first, Logger: zap.NewNop(),
		}}
		t.Cleanup(nodes[i].Stop)
		nodes[i].begin()
	}
	for _, m := range nodes {
		m.await()
	}
	return nodes
}

func freeAddresses(t testing.TB, n int) (out []string) {
	t.Helper()
	for range n {
		address, err := freeport.Address()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, address)
	}
	return out
}

// Restart starts a node again that was stopped.
func (n *Node) Restart() {
	n.t.Helper()
	n.begin()
	n.await()
}

// begin puts a node together without waiting for a leader.
func (n *Node) begin() {
	n.t.Helper()
	n.stopped = false
	layer := settings.Layer{"listen-client": {Text: n.HTTP, Origin: "etcdtest"}, "listen-etcd": {Text: cmp.Or(n.want.Listen, n.Etcd), Origin: "etcdtest"}}
	if most := n.want.MaxConnections; most != "" {
		layer["max-connections"] = settings.Given{Text: most, Origin: "etcdtest"}
	}
	if n.want.Bundle != nil { // which was loaded from files
		layer["tls-cert-file"], layer["tls-key-file"] = settings.Given{Text: "cert"}, settings.Given{Text: "key"}
	}
	s, err := settings.Resolve(layer)
	if err != nil {
		n.t.Fatal(err)
	}
	if n.door, err = frontdoor.Listen(s, nil, zap.NewNop()); err != nil {
		n.t.Fatal(err)
	}
	if n.etcd, err = n.door.ListenEtcd(s, n.want.Bundle); err != nil {
		n.t.Fatal(err)
	}
	n.HTTP, n.Etcd, n.All = s.ListenClient[0], s.ListenEtcd[0], s.ListenEtcd
	n.cfg.AdvertiseClient, n.cfg.AdvertiseEtcd = s.AdvertiseClient, s.AdvertiseEtcd
	replica, err := node.New(n.cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	n.Face = node.Face{Node: replica}
	var ctx context.Context
	ctx, n.stop = context.WithCancel(context.Background())
	n.ended = make(chan error, 1)
	go func() { n.ended <- replica.Run(ctx) }()
	o := access.Options{LocalRoot: true, CertUser: access.CertCN, BcryptCost: minBcryptCost}
	if n.want.Gate != nil {
		n.want.Gate(&o)
	}
	n.Gate = node.NewGate(replica, o)
	n.door.Serve(httpapi.Options{
		Gate:       n.Gate,
		Replicator: replica, Members: replica, Leadership: replica, Health: replica, Inspector: replica,
		LeaseTimes: replica, Watches: replica.Watches(),
	})
	n.serve()
}

// serve begins to serve clients of etcd.
func (n *Node) serve() {
	o := etcdapi.Options{
		Replicator: n, Members: n, Member: n, Leadership: n, Inspector: n, LeaseTimes: n, Watches: n.Watches(), Gate: n.Gate,
		Election: time.Duration(n.cfg.ElectionTicks) * n.cfg.TickInterval,
	}
	if n.want.Options != nil {
		n.want.Options(&o)
	}
	n.Calls = etcdapi.New(o)
	if n.want.Register != nil {
		n.want.Register(n.Calls, n.Face)
	}
	web := http.NotFoundHandler()
	if n.want.Web != nil {
		web = n.want.Web(n.Calls, n.Face)
	}
	n.etcd.Serve(n.Calls, web)
}

// await waits until the node serves.
func (n *Node) await() {
	n.t.Helper()
	timer := time.NewTimer(startTimeout)
	defer timer.Stop()
	select {
	case <-n.Ready():
		n.door.Open(n.Store())
		n.Calls.Open(etcdapi.State{Store: n.Store(), Evaluator: kvstore.NewEvaluator(n.Store()), Limits: n.Store(), LeaseTable: n.Store()})
	case err := <-n.ended:
		n.ended <- err
		n.t.Fatalf("node %d ended: %v", n.cfg.ID, err)
	case <-timer.C:
		n.t.Fatalf("node %d is not ready after %v", n.cfg.ID, startTimeout)
	}
}

// Stop stops the node as the daemon does. Stopping a stopped node does nothing.
func (n *Node) Stop() {
	n.t.Helper()
	if n.stopped {
		return
	}
	n.stopped = true
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	n.Drain(ctx)
	err := errors.Join(n.door.SendAway(), n.etcd.SendAway())
	n.Watches().Close()
	n.door.Finish(stopTimeout)
	n.etcd.Finish(stopTimeout)
	n.stop()
	if ended := <-n.ended; ended != nil && !errors.Is(ended, context.Canceled) {
		err = errors.Join(err, ended)
	}
	n.door.Shut()
	n.door.Cut(stopTimeout)
	n.etcd.Cut(stopTimeout)
	if err != nil {
		n.t.Errorf("stop node %d: %v", n.cfg.ID, err)
	}
}
