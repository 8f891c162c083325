// Package kvdtest runs real kvd nodes inside a test:
//
//	func TestCache(t *testing.T) {
//		kvd := kvdtest.New(t)
//		c := kvd.Client()
//		...
//	}
//
// A node is the shipped daemon without its process: it serves HTTP on a loopback
// port of its own, keeps its log in the test's temporary directory and its keys in
// memory, logs nothing, and ends with the test. It starts in about 15 ms.
//
// The members of a Cluster can be stopped, killed, and started, and cut off from the others:
//
//	nodes := kvdtest.Cluster(t, 3)
//	nodes[0].Cut()      // a minority of one: its clients must go elsewhere
//	...
//	nodes[0].Mend()
package kvdtest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/internal/access"
	"github.com/kvd-io/kvd/internal/certs"
	"github.com/kvd-io/kvd/internal/freeport"
	"github.com/kvd-io/kvd/internal/frontdoor"
	"github.com/kvd-io/kvd/internal/httpapi"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/node"
	"github.com/kvd-io/kvd/internal/settings"
)

const (
	tickInterval  = 20 * time.Millisecond
	electionTicks = 10
	bcryptCost    = 4 // the lowest: tests have nothing to protect
	// startTimeout fails a test whose nodes find no leader.
	startTimeout = 30 * time.Second
	stopTimeout  = 5 * time.Second
)

// Node is a node. Its methods must be called by the goroutine of the test.
type Node struct {
	// Endpoint is the URL for clients, for example http://127.0.0.1:41973. It stays
	// the same over Stop and Start.
	Endpoint string
	// TLS is how clients connect to Endpoint; nil without the option TLS.
	TLS *tls.Config

	t       testing.TB
	network *network
	clients *certs.Bundle // nil without TLS
	cfg     node.Config
	listen  string                 // address for clients; port 0 until the first start
	tune    func(*httpapi.Options) // nil outside of this package's own tests
	running *instance
}

// instance is a node between Start and Stop.
type instance struct {
	node  *node.Node
	door  *frontdoor.Door
	stop  context.CancelFunc
	ended chan error // capacity 1: what Node.Run returned
}

// New starts a cluster of one node, which ends with the test.
func New(t testing.TB, options ...Option) *Node {
	t.Helper()
	return Cluster(t, 1, options...)[0]
}

// Cluster starts a cluster of n nodes, which end with the test. It returns once each
// of them serves.
func Cluster(t testing.TB, n int, with ...Option) Nodes {
	t.Helper()
	var o options
	for _, option := range with {
		option(&o)
	}
	nodes := plan(t, n, &o)
	for _, m := range nodes {
		m.begin()
	}
	for _, m := range nodes {
		m.await()
	}
	return nodes
}

// plan returns nodes that are not started.
func plan(t testing.TB, n int, o *options) Nodes {
	t.Helper()
	id, scheme := new(identity), "http://"
	if o.tls {
		id, scheme = newIdentity(t), "https://"
	}
	network, peers := newNetwork(), make([]node.Peer, n)
	for i, address := range freeAddresses(t, n) {
		peers[i] = node.Peer{ID: uint64(i + 1), Name: "kvd" + strconv.Itoa(i+1), URL: scheme + address}
		network.ids[address] = peers[i].ID
	}
	nodes := make(Nodes, n)
	for i := range nodes {
		nodes[i] = &Node{t: t, network: network, TLS: id.client, clients: id.clients, listen: scheme + "127.0.0.1:0", cfg: node.Config{
			ID: peers[i].ID, Name: peers[i].Name, DataDir: t.TempDir(), Engine: "memory", Initial: peers,
			ListenPeer: peers[i].URL, AdvertisePeer: []string{peers[i].URL}, Token: "kvdtest", Alone: n == 1, IDGiven: true,
			TLS: id.members, DialPeers: network.from(peers[i].ID),
			TickInterval: tickInterval, ElectionTicks: electionTicks, CheckpointBytes: 16 << 20, CatchUpBytes: 4 << 20,
			Settings: kvstore.DefaultSettings(), Logger: zap.NewNop(),
		}}
		if o.unix {
			nodes[i].listen = "unix://" + filepath.Join(t.TempDir(), "kvd.sock")
		}
		t.Cleanup(nodes[i].Stop)
	}
	return nodes
}

// freeAddresses returns loopback addresses that nobody listens on.
func freeAddresses(t testing.TB, n int) []string {
	t.Helper()
	var out []string
	for range n {
		address, err := freeport.Address()
		if err != nil {
			t.Fatalf("kvdtest: %v", err)
		}
		out = append(out, address)
	}
	return out
}

// Nodes are the nodes of a cluster, the member with id 1 first.
type Nodes []*Node

// Endpoints returns the URLs of all nodes.
func (ns Nodes) Endpoints() []string {
	var out []string
	for _, n := range ns {
		out = append(out, n.Endpoint)
	}
	return out
}

// Client returns a client of all nodes, which is closed with the test.
func (ns Nodes) Client() *client.Client { return ns[0].newClient(ns.Endpoints()) }

// Client returns a client of this node alone, which is closed with the test.
func (n *Node) Client() *client.Client { return n.newClient([]string{n.Endpoint}) }

func (n *Node) newClient(endpoints []string) *client.Client {
	n.t.Helper()
	c, err := client.New(client.Config{Endpoints: endpoints, TLS: n.TLS})
	if err != nil {
		n.t.Fatalf("kvdtest: %v", err)
	}
	n.t.Cleanup(c.Close)
	return c
}

// Cut cuts the node off from all other members of its cluster, until Mend. Clients still
// reach it.
func (n *Node) Cut() { n.network.set(true, n.links()...) }

// Mend ends Cut. It does not wait until the node has caught up.
func (n *Node) Mend() { n.network.set(false, n.links()...) }

func (n *Node) links() (out []link) {
	for _, id := range n.network.ids {
		if id != n.cfg.ID {
			out = append(out, linkOf(n.cfg.ID, id))
		}
	}
	return out
}

// Start starts a node that was stopped, with what it had on disk, and waits until it
// serves.
func (n *Node) Start() {
	n.t.Helper()
	if n.running != nil {
		n.t.Fatalf("kvdtest: node %d is running", n.cfg.ID)
	}
	n.begin()
	n.await()
}

// begin starts the node without waiting for a leader.
func (n *Node) begin() {
	n.t.Helper()
	i, err := n.launch()
	if err != nil {
		n.t.Fatalf("kvdtest: start node %d: %v", n.cfg.ID, err)
	}
	n.running = i
}

// launch puts a node together as the daemon does.
func (n *Node) launch() (*instance, error) {
	layer := settings.Layer{"listen-client": {Text: n.listen, Origin: "kvdtest"}}
	if n.clients != nil {
		// The settings want to know the files of the certificates, which are loaded already.
		for _, name := range []string{"tls-cert-file", "tls-key-file"} {
			layer[name] = settings.Given{Text: "kvdtest", Origin: "kvdtest"}
		}
	}
	s, err := settings.Resolve(layer)
	if err != nil {
		return nil, err
	}
	door, err := frontdoor.Listen(s, n.clients, zap.NewNop())
	if err != nil {
		return nil, err
	}
	n.listen, n.Endpoint = s.ListenClient[0], s.ListenClient[0]
	cfg := n.cfg
	cfg.AdvertiseClient = s.ListenClient
	replica, err := node.New(cfg)
	if err != nil {
		return nil, errors.Join(err, door.Close())
	}
	ctx, stop := context.WithCancel(context.Background())
	i := &instance{node: replica, door: door, stop: stop, ended: make(chan error, 1)}
	go func() { i.ended <- replica.Run(ctx) }()
	o := httpapi.Options{
		Gate:       node.NewGate(replica, access.Options{LocalRoot: true, BcryptCost: bcryptCost}),
		Replicator: replica, Members: replica, Leadership: replica, Health: replica, Inspector: replica, LeaseTimes: replica, Watches: replica.Watches(), RootMembers: true,
	}
	if n.tune != nil {
		n.tune(&o)
	}
	door.Serve(o)
	return i, nil
}

// await waits until the node serves.
func (n *Node) await() {
	n.t.Helper()
	timer := time.NewTimer(startTimeout)
	defer timer.Stop()
	select {
	case <-n.running.node.Ready():
		n.running.door.Open(n.running.node.Store())
	case err := <-n.running.ended:
		n.running.ended <- err
		n.t.Fatalf("kvdtest: node %d ended: %v", n.cfg.ID, err)
	case <-timer.C:
		n.t.Fatalf("kvdtest: node %d is not ready after %v", n.cfg.ID, startTimeout)
	}
}

// Stop stops the node. Stopping a stopped node does nothing.
func (n *Node) Stop() {
	n.t.Helper()
	if n.running == nil {
		return
	}
	i := n.running
	n.running = nil
	if err := i.end(); err != nil {
		n.t.Errorf("kvdtest: node %d: %v", n.cfg.ID, err)
	}
}

// Kill ends the node as the death of its process would: requests in progress get no answer,
// and nobody takes over from it. What it has on disk stays.
func (n *Node) Kill() {
	n.t.Helper()
	if n.running == nil {
		return
	}
	i := n.running
	n.running = nil
	defer n.network.silence(n.cfg.ID)()
	if err := i.abort(); err != nil {
		n.t.Errorf("kvdtest: node %d: %v", n.cfg.ID, err)
	}
}

// abort breaks all connections before the node ends.
func (i *instance) abort() error {
	err := i.door.Close()
	i.door.Cut(0)
	i.stop()
	if ended := <-i.ended; ended != nil && !errors.Is(ended, context.Canceled) {
		err = errors.Join(err, fmt.Errorf("ended: %w", ended))
	}
	i.door.Shut()
	return err
}

// end stops serving before the node, so that each request in progress is answered.
func (i *instance) end() error {
	err := i.door.SendAway()
	i.node.Watches().Close()
	i.door.Finish(stopTimeout)
	i.stop()
	if ended := <-i.ended; ended != nil && !errors.Is(ended, context.Canceled) {
		err = errors.Join(err, fmt.Errorf("ended: %w", ended))
	}
	i.door.Shut()
	i.door.Cut(stopTimeout)
	return err
}
