package raftnode

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/limits"
	"github.com/kvd-io/kvd/internal/raftlog"
	"github.com/kvd-io/kvd/internal/roster"
)

// lockedMachine is the simulator's machine behind a lock, for goroutines.
type lockedMachine struct {
	mu sync.Mutex
	m  *machine
}

func newLockedMachine(t *testing.T) *lockedMachine {
	m := newMachine(false)
	m.observe = func(*Entry, uint64) {}
	m.violation = t.Errorf
	return &lockedMachine{m: m}
}

func (l *lockedMachine) Apply(e []Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.m.Apply(e)
}

func (l *lockedMachine) View() (View, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.m.View()
}

func (l *lockedMachine) Durable() (View, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.m.Durable()
}

func (l *lockedMachine) Flush() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.m.Flush()
}

func (l *lockedMachine) Restore(r io.Reader) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.m.Restore(r)
}

func (l *lockedMachine) Maintain() (bool, error) { return false, nil }

// faultyDisk fails or hangs on request.
type faultyDisk struct {
	raftlog.Disk
	fail atomic.Pointer[error]
	hang atomic.Pointer[chan struct{}] // saves wait until it is closed
	// before is called at the start of each save.
	before atomic.Pointer[func([]*raftpb.Entry)]
	// forgets is a planted bug: saves are reported, and not made.
	forgets atomic.Bool
}

func (d *faultyDisk) Save(hs *raftpb.HardState, ents []*raftpb.Entry) error {
	if f := d.before.Load(); f != nil {
		(*f)(ents)
	}
	if c := d.hang.Load(); c != nil {
		<-*c
	}
	if err := d.fail.Load(); err != nil {
		return *err
	}
	if d.forgets.Load() {
		return nil
	}
	return d.Disk.Save(hs, ents)
}

// liveNode is a real replica on loopback with a disk that can be made to fail.
type liveNode struct {
	*Replica
	disk *faultyDisk
	done chan error
	stop context.CancelFunc
	srv  *http.Server
}

// kill stops the replica as the end of its process would: before anything
// else, the port refuses connections and the open ones break.
func (n *liveNode) kill() {
	_ = n.srv.Close()
	n.stop()
}

// startNodes runs a cluster of n real replicas until the test ends.
func startNodes(t *testing.T, n int, adjust func(*Config)) []*liveNode {
	return startNodesOn(t, n, adjust, func(l net.Listener) net.Listener { return l }, func(h http.Handler) http.Handler { return h })
}

// startNodesOn is startNodes with something around listeners and handlers.
func startNodesOn(t *testing.T, n int, adjust func(*Config), listen func(net.Listener) net.Listener, handle func(http.Handler) http.Handler) []*liveNode {
	var initial []roster.Member
	var listeners []net.Listener
	for i := range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, l)
		initial = append(initial, roster.Member{ID: uint64(i + 1), PeerURLs: []string{"http://" + l.Addr().String()}})
	}
	var nodes []*liveNode
	for i := range n {
		cfg := Config{
			ID: uint64(i + 1), ClusterID: 7, Dir: t.TempDir(), Nonce: fmt.Sprint("nonce", i),
			PeerURLs: initial[i].PeerURLs, Initial: initial, StateMachine: newLockedMachine(t), VerifyBody: verifyMachineBody,
			Logger: zap.NewNop(), TickInterval: 20 * time.Millisecond,
		}
		if adjust != nil {
			adjust(&cfg)
		}
		nodes = append(nodes, startNode(t, cfg, listen(listeners[i]), handle))
	}
	return nodes
}

func startNode(t *testing.T, cfg Config, l net.Listener, handle func(http.Handler) http.Handler) *liveNode {
	node, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ln := &liveNode{Replica: node, disk: &faultyDisk{Disk: node.appends.writes}, done: make(chan error, 1)}
	node.appends.writes = ln.disk
	srv := &http.Server{Handler: handle(node.Handler(nil))}
	ln.srv = srv
	go func() { _ = srv.Serve(l) }()
	var ctx context.Context
	ctx, ln.stop = context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		ln.done <- node.Run(ctx)
		close(ended)
	}()
	t.Cleanup(func() {
		if c := ln.disk.hang.Swap(nil); c != nil {
			close(*c)
		}
		ln.stop()
		_ = srv.Close()
		<-ended
	})
	return ln
}

func command(id uint64) []byte { return binary.BigEndian.AppendUint64(nil, id) }

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// leaderOf waits for one of the nodes to lead.
func leaderOf(t *testing.T, nodes []*liveNode) *liveNode {
	var leader *liveNode
	waitFor(t, "a leader", func() bool {
		for _, n := range nodes {
			if p := n.Position(); p.Leader == n.cfg.ID {
				leader = n
				return true
			}
		}
		return false
	})
	<-leader.Ready()
	return leader
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for ctx := testContext(t); !cond(); {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Fatalf("no %s", what)
		}
	}
}

// An error of the log's disk stops the replica. The write that it hit is not
// answered with success, and nothing is retried.
func TestFailedFsyncStopsTheNodeAndAnswersNobody(t *testing.T) {
	n := startNodes(t, 1, nil)[0]
	ctx := testContext(t)
	<-n.Ready()
	if _, err := n.Propose(ctx, command(1)); err != nil {
		t.Fatal(err)
	}
	failure := errors.New("fsync: input/output error")
	n.disk.fail.Store(&failure)
	if _, err := n.Propose(ctx, command(2)); err == nil || errors.Is(err, ErrStopping) {
		t.Fatalf("a write whose fsync failed was answered with %v; only an unknown outcome is true", err)
	}
	if err := <-n.done; !errors.Is(err, failure) {
		t.Fatalf("the node ended with %v", err)
	}
	if _, err := n.Propose(ctx, command(3)); !errors.Is(err, ErrStopping) {
		t.Fatalf("a stopped node answered %v", err)
	}
}

// Heartbeats do not need the disk, so a leader whose disk hangs has to give up
// its office on its own.
func TestLeaderWithHangingDiskHandsOver(t *testing.T) {
	nodes := startNodes(t, 3, nil)
	old := leaderOf(t, nodes)
	hang := make(chan struct{})
	old.disk.hang.Store(&hang)
	ctx, cancel := context.WithCancel(testContext(t))
	go func() { _, _ = old.Propose(ctx, command(1)) }() // makes it write
	waitFor(t, "other leader", func() bool {
		for _, n := range nodes {
			if n != old && n.Position().Leader == n.cfg.ID {
				return true
			}
		}
		return false
	})
	cancel()
	if _, err := old.Propose(testContext(t), command(2)); !errors.Is(err, ErrDiskStall) {
		t.Fatalf("a node with a hanging disk answered %v to a write", err)
	}
	if _, err := leaderOf(t, without(nodes, old)).Propose(testContext(t), command(3)); err != nil {
		t.Fatalf("the others cannot write: %v", err)
	}
}

func without(nodes []*liveNode, one *liveNode) []*liveNode {
	var out []*liveNode
	for _, n := range nodes {
		if n != one {
			out = append(out, n)
		}
	}
	return out
}

// A disk that never comes back stops the replica.
func TestHangingDiskEndsTheNode(t *testing.T) {
	n := startNodes(t, 1, func(c *Config) { c.StallExit = 100 * time.Millisecond })[0]
	<-n.Ready()
	hang := make(chan struct{})
	n.disk.hang.Store(&hang)
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	go func() { _, _ = n.Propose(ctx, command(1)) }()
	if err := <-n.done; !errors.Is(err, ErrDiskStall) {
		t.Fatalf("the node ended with %v", err)
	}
}

// A save of the largest value may take its time: the limit grows with what is
// being saved, but stays below the one that ends the node.
func TestStallLimitGrowsWithTheSave(t *testing.T) {
	if got := stallLimit(time.Second, 0); got != 2*time.Second {
		t.Errorf("limit of an empty save: %v", got)
	}
	if got := stallLimit(time.Second, limits.MaxEntryBytes); got < 8*time.Second || got > time.Minute/2 {
		t.Errorf("limit of the largest entry: %v", got)
	}
	n := startNodes(t, 1, nil)[0]
	<-n.Ready()
	// A save that carries the entry must have announced its size before it began.
	var announced atomic.Bool
	n.disk.before.Store(new(func(ents []*raftpb.Entry) {
		if size := entryBytes(ents); size >= 1<<20 && n.appends.savingBytes.Load() >= int64(size) {
			announced.Store(true)
		}
	}))
	if _, err := n.Propose(testContext(t), append(command(1), make([]byte, 1<<20)...)); err != nil || !announced.Load() {
		t.Errorf("%v; the size of the save was announced: %t", err, announced.Load())
	}
}

// The answers to requests in progress when a replica stops say truthfully what
// became of them, and none goes unanswered.
func TestStopAnswersEveryRequest(t *testing.T) {
	n := startNodes(t, 1, nil)[0]
	<-n.Ready()
	const clients = 32
	answers := make(chan error, clients)
	var begun sync.WaitGroup
	begun.Add(clients)
	for i := range clients {
		go func() {
			begun.Done()
			for id := uint64(i); ; id += clients {
				if _, err := n.Propose(context.Background(), command(id+1)); err != nil {
					answers <- err
					return
				}
			}
		}()
	}
	begun.Wait()
	waitFor(t, "writes", func() bool { return n.Applied() > 20 })
	n.stop()
	for range clients {
		if err := <-answers; !errors.Is(err, ErrStopping) && !errors.Is(err, ErrUnknown) {
			t.Errorf("a request was answered %v while stopping", err)
		}
	}
}

// A restarted replica has every acknowledged command, in order, and begins a
// new incarnation.
func TestRestartReplaysTheLog(t *testing.T) {
	dir := t.TempDir()
	var records map[string][]byte
	for round := range uint64(3) {
		sm := newLockedMachine(t) // nothing durable: everything is replayed
		n := startNodes(t, 1, func(c *Config) { c.Dir, c.StateMachine, c.Nonce = dir, sm, "n"; c.PeerURLs = nil })[0]
		<-n.Ready()
		for i := range uint64(10) {
			if _, err := n.Propose(testContext(t), command(round*10+i+1)); err != nil {
				t.Fatal(err)
			}
		}
		n.stop()
		if err := <-n.done; err != nil {
			t.Fatal(err)
		}
		for i, id := range sm.m.cur.IDs {
			if id != uint64(i+1) {
				t.Fatalf("command %d is at place %d", id, i)
			}
		}
		if len(sm.m.cur.IDs) != int(round+1)*10 {
			t.Fatalf("round %d has %d commands", round, len(sm.m.cur.IDs))
		}
		now := sm.m.cur.Records
		const origin = "o\x00\x00\x00\x00\x00\x00\x00\x01" // the key of member 1's
		if len(now[origin]) == 0 || string(now[origin]) == string(records[origin]) {
			t.Error("the restart did not begin an incarnation")
		}
		records = now
	}
}

// A node loop that hangs is noticed from outside, and so is one that
// continues.
func TestHungNodeLoopIsNoticed(t *testing.T) {
	n := startNodes(t, 1, nil)[0]
	<-n.Ready()
	if !n.Responsive() {
		t.Fatal("a running node counts as hung")
	}
	hang, hanging := make(chan struct{}), make(chan struct{})
	n.callC <- func(*core) { close(hanging); <-hang }
	<-hanging
	n.ticked.nanos.Add(-int64(n.hungAfter())) // instead of waiting that long
	if n.Responsive() {
		t.Error("a node whose loop hangs counts as responsive")
	}
	close(hang)
	waitFor(t, "tick after the hang", n.Responsive)
}
