package raftnode

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/peers"
	record "github.com/kvd-io/kvd/internal/proof"
	"github.com/kvd-io/kvd/internal/roster"
)

// A cluster of whole replicas in one bubble: goroutines, logs on disk, rafthttp, and net/http
// are real. Only the sockets are not: a connection is a net.Pipe.

// wire is the network of a bubble.
type wire struct {
	mu        sync.Mutex
	listeners map[string]*pipeListener // by address
	cut       map[string]bool          // addresses that nobody reaches, and that reach nobody
	conns     []wireConn
	down      chan struct{} // closed at the end, as sockets are when their processes end
}

type wireConn struct {
	net.Conn
	from, to string
}

func newWire() *wire {
	return &wire{listeners: make(map[string]*pipeListener), cut: make(map[string]bool), down: make(chan struct{})}
}

// listen opens the port of a member.
func (w *wire) listen(addr string) net.Listener {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := &pipeListener{addr: addr, accepted: make(chan net.Conn), closed: make(chan struct{})}
	w.listeners[addr] = l
	return l
}

// dialTimeout is that of the transport, which has no part in these dials.
const dialTimeout = 2 * time.Second

// dialFrom returns how a member dials: what is cut off does not answer, and a port that
// nobody listens on refuses.
func (w *wire) dialFrom(from string) func(peers.Dial) peers.Dial {
	return func(peers.Dial) peers.Dial {
		return func(ctx context.Context, _, to string) (net.Conn, error) {
			w.mu.Lock()
			l, cut := w.listeners[to], w.cut[from] || w.cut[to]
			w.mu.Unlock()
			refused := &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
			if cut {
				ctx, cancel := context.WithTimeout(ctx, dialTimeout)
				defer cancel()
				select {
				case <-ctx.Done():
					return nil, ctx.Err()
				case <-w.down:
					return nil, refused
				}
			}
			if l == nil {
				return nil, refused
			}
			ours, theirs := net.Pipe()
			select {
			case l.accepted <- theirs:
			case <-l.closed:
				return nil, refused
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.cut[from] || w.cut[to] || w.isDown() {
				_ = ours.Close()
				return nil, refused
			}
			w.conns = append(w.conns, wireConn{ours, from, to})
			return ours, nil
		}
	}
}

// isolate breaks the connections of a member and lets it make no new ones, until heal.
func (w *wire) isolate(addr string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut[addr] = true
	w.conns = slices.DeleteFunc(w.conns, func(c wireConn) bool {
		broken := c.from == addr || c.to == addr
		if broken {
			_ = c.Close()
		}
		return broken
	})
}

// shut breaks all connections for good, and ends the dials that get no answer.
func (w *wire) shut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.down)
	for _, c := range w.conns {
		_ = c.Close()
	}
}

func (w *wire) isDown() bool {
	select {
	case <-w.down:
		return true
	default:
		return false
	}
}

func (w *wire) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.cut)
}

type pipeListener struct {
	addr     string
	accepted chan net.Conn
	closed   chan struct{}
	once     sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accepted:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return pipeAddr(l.addr) }

type pipeAddr string

func (pipeAddr) Network() string  { return "pipe" }
func (a pipeAddr) String() string { return string(a) }

// virtualMember is a member of a cluster in a bubble.
type virtualMember struct {
	*Replica
	addr  string
	disk  *faultyDisk
	sm    *lockedMachine
	srv   *http.Server
	stop  context.CancelFunc
	ended chan error
}

// virtualCluster has its members' directories outside of the bubble, so that another one
// can go on with them.
type virtualCluster struct {
	*wire
	members []*virtualMember
}

// virtualTicks is the election timeout, in ticks.
const virtualTicks = 10

// startVirtual starts a member in each directory, with an election timeout in ticks, after a
// bug was planted in it.
func startVirtual(t *testing.T, dirs []string, ticks int, plant func(*Replica, *faultyDisk)) *virtualCluster {
	t.Helper()
	c := &virtualCluster{wire: newWire()}
	var initial []roster.Member
	for i := range dirs {
		initial = append(initial, roster.Member{ID: uint64(i + 1), PeerURLs: []string{fmt.Sprintf("http://127.0.0.1:%d", i+1)}})
	}
	for i, dir := range dirs {
		m := &virtualMember{addr: fmt.Sprintf("127.0.0.1:%d", i+1), sm: newLockedMachine(t), ended: make(chan error, 1)}
		r, err := Open(Config{
			ID: initial[i].ID, ClusterID: 7, Dir: dir, Nonce: fmt.Sprint("nonce", i), PeerURLs: initial[i].PeerURLs, Initial: initial,
			StateMachine: m.sm, VerifyBody: verifyMachineBody, Logger: zap.NewNop(), TickInterval: virtualTick, ElectionTicks: ticks,
			Security: peers.Security{Through: c.dialFrom(m.addr)},
		})
		if err != nil {
			t.Fatal(err)
		}
		m.Replica, m.disk = r, &faultyDisk{Disk: r.appends.writes}
		r.appends.writes = m.disk
		plant(r, m.disk)
		c.members = append(c.members, m)
	}
	for _, m := range c.members {
		m.run(t.Context(), c.listen(m.addr))
	}
	return c
}

func (m *virtualMember) run(ctx context.Context, l net.Listener) {
	ctx, m.stop = context.WithCancel(ctx)
	m.srv = &http.Server{Handler: m.Handler(nil)}
	go func() { _ = m.srv.Serve(l) }()
	go func() {
		err := m.Run(ctx)
		_ = m.srv.Close() // as when the process ends
		m.ended <- err
	}()
}

// end stops everybody and waits for that.
func (c *virtualCluster) end(t *testing.T) {
	t.Helper()
	for _, m := range c.members {
		m.stop()
	}
	for _, m := range c.members {
		if err := <-m.ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("member %d ended with %v", m.cfg.ID, err)
		}
	}
	c.shut()
}

// await waits in virtual time.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for begin := time.Now(); !cond(); time.Sleep(virtualTick / 10) {
		if time.Since(begin) > time.Minute {
			t.Fatalf("not within a minute of virtual time: %s", what)
		}
	}
}

// leader waits until one of the members leads, other than those that are excepted.
func (c *virtualCluster) leader(t *testing.T, but ...*virtualMember) *virtualMember {
	t.Helper()
	m := c.elected(but...)
	if m == nil {
		t.Fatal("not within a minute of virtual time: a leader")
	}
	return m
}

// elected is leader, and returns nil if there is none for a minute.
func (c *virtualCluster) elected(but ...*virtualMember) *virtualMember {
	for begin := time.Now(); time.Since(begin) < time.Minute; time.Sleep(virtualTick / 10) {
		for _, m := range c.members {
			if m.Position().Leader == m.cfg.ID && !slices.Contains(but, m) {
				return m
			}
		}
	}
	return nil
}

// write proposes a command until it is acknowledged.
func (m *virtualMember) write(t *testing.T, id uint64) {
	t.Helper()
	await(t, fmt.Sprintf("an acknowledged write at member %d", m.cfg.ID), func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 10*virtualTick)
		defer cancel()
		_, err := m.Propose(ctx, command(id))
		id += 1 << 32 // another one, since the outcome may be unknown
		return err == nil
	})
}

// agree waits until all members have the same state.
func (c *virtualCluster) agree(t *testing.T) {
	t.Helper()
	await(t, "agreement", func() bool {
		for _, m := range c.members[1:] {
			if m.state() != c.members[0].state() {
				return false
			}
		}
		return true
	})
}

func (m *virtualMember) state() [2]uint64 {
	m.sm.mu.Lock()
	defer m.sm.mu.Unlock()
	return [2]uint64{m.sm.m.cur.Index, m.sm.m.cur.Hash}
}

func (m *virtualMember) has(id uint64) bool {
	m.sm.mu.Lock()
	defer m.sm.mu.Unlock()
	return m.sm.m.seen[id]
}

func fastDirs(t *testing.T, n int) (dirs []string) {
	for range n {
		dirs = append(dirs, fastDir(t))
	}
	return dirs
}

// TestVirtualClusterShutdownInEveryPhase stops one of three members, or all of them, when its
// n-th save begins, and lets that save take a while: while the first leader is elected, while
// everybody announces its start, and with commands in flight. Everybody gets an answer, the
// others go on, and what was acknowledged is everywhere after the next start.
func TestVirtualClusterShutdownInEveryPhase(t *testing.T) {
	for n := 1; n <= 10; n++ {
		all, takes := n%2 == 0, time.Duration(n%3)*2*time.Second
		t.Run(fmt.Sprintf("save %d takes %v, all stop %t", n, takes, all), func(t *testing.T) {
			acked, lost := lostByClusterInBubbles(t, n, takes, all, nothing)
			if len(lost) > 0 {
				t.Errorf("acknowledged, and not at every member: %v", lost)
			}
			if n > 6 && acked == 0 {
				t.Error("nothing was acknowledged: that proves nothing")
			}
		})
	}
}

// TestVirtualControlClusterForgottenSaves: members that acknowledge what they have not saved
// are noticed when all of them are stopped.
func TestVirtualControlClusterForgottenSaves(t *testing.T) {
	begin := time.Now()
	for n := range 20 {
		if _, lost := lostByClusterInBubbles(t, n+1, 0, true, forgetSaves); len(lost) > 0 {
			record.Caught(t, "virtual time: replicas", "three members acknowledge what they have not saved", n+1, begin)
			return
		}
	}
	t.Error("nothing was lost")
}

// lostByClusterInBubbles stops members at the n-th save of one of them, and returns how many
// commands were acknowledged, and which are not at every member after the next start.
func lostByClusterInBubbles(t *testing.T, n int, takes time.Duration, all bool, plant func(*Replica, *faultyDisk)) (acknowledged int, lost []string) {
	t.Helper()
	dirs := fastDirs(t, 3)
	var acked []uint64
	inBubble(t, func(t *testing.T) { acked = stopClusterAtSave(t, dirs, n, takes, all, plant) })
	inBubble(t, func(t *testing.T) {
		c := startVirtual(t, dirs, virtualTicks, nothing)
		c.leader(t).write(t, 1<<40)
		c.agree(t)
		for _, m := range c.members {
			for _, id := range acked {
				if !m.has(id) {
					lost = append(lost, fmt.Sprintf("command %d at member %d", id, m.cfg.ID))
				}
			}
		}
		c.end(t)
	})
	return len(acked), lost
}

func stopClusterAtSave(t *testing.T, dirs []string, n int, takes time.Duration, all bool, plant func(*Replica, *faultyDisk)) []uint64 {
	c := startVirtual(t, dirs, virtualTicks, plant)
	one := c.members[n%len(c.members)]
	reached := make(chan struct{})
	saves := 0
	before := func([]*raftpb.Entry) {
		if saves++; saves == n {
			close(reached)
			time.Sleep(takes)
		}
	}
	one.disk.before.Store(&before)
	w := writers{pause: virtualTick / 2}
	for _, m := range c.members {
		w.start(t.Context(), m.Replica, 2)
	}
	<-reached
	begin := time.Now()
	for _, m := range c.members {
		if all || m == one {
			m.stop()
		}
	}
	<-one.ended
	if took := time.Since(begin); took > takes+time.Minute {
		t.Errorf("the stop took %v of virtual time", took)
	}
	one.ended <- nil // for end
	if !all {
		c.leader(t, one).write(t, 1<<50) // the others go on
	}
	c.end(t)
	w.Wait() // everybody was answered
	return w.acked
}

// TestVirtualClusterLeaderCutOff: a leader that nobody hears acknowledges nothing, the others
// elect another one within a few election timeouts, and after that everybody agrees.
func TestVirtualClusterLeaderCutOff(t *testing.T) {
	if problem := cutOffInBubble(t, virtualTicks); problem != "" {
		t.Error(problem)
	}
}

// TestVirtualControlNobodyCampaigns: members that never miss their leader are noticed.
func TestVirtualControlNobodyCampaigns(t *testing.T) {
	begin := time.Now()
	if cutOffInBubble(t, 1000*virtualTicks) == "" {
		t.Error("not noticed")
		return
	}
	record.Caught(t, "virtual time: replicas", "members never miss their leader", 1, begin)
}

// cutOffInBubble cuts a leader off, and returns what the members do wrong about it.
func cutOffInBubble(t *testing.T, ticks int) (problem string) {
	t.Helper()
	dirs := fastDirs(t, 3)
	inBubble(t, func(t *testing.T) {
		c := startVirtual(t, dirs, ticks, nothing)
		defer c.end(t)
		old := c.leader(t)
		old.write(t, 1)
		c.isolate(old.addr)
		begin := time.Now()
		lost := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, err := old.Propose(ctx, command(2))
			lost <- err
		}()
		next := c.elected(old)
		if next == nil {
			problem = "nobody leads, a minute after the leader was cut off"
			return
		}
		next.write(t, 3)
		if took := time.Since(begin); took > 6*virtualTicks*virtualTick {
			problem = fmt.Sprintf("writes resumed after %v", took)
		}
		select {
		case err := <-lost:
			if err == nil {
				problem = "a leader that is cut off has acknowledged a write"
			}
		default:
		}
		c.heal()
		if err := <-lost; err == nil && !old.has(2) {
			problem = "a write was acknowledged and is not there"
		}
		old.write(t, 4)
		c.agree(t)
	})
	return problem
}

// TestVirtualClusterDiskStall: a leader whose disk hangs hands over, although it still sends
// heartbeats. The write that the hang caught gets its answer, and the member catches up.
func TestVirtualClusterDiskStall(t *testing.T) {
	if problem := leaderStallInBubble(t, nothing); problem != "" {
		t.Error(problem)
	}
}

// TestVirtualControlClusterStallIgnored: a leader that stays in office while its disk hangs is
// noticed.
func TestVirtualControlClusterStallIgnored(t *testing.T) {
	begin := time.Now()
	if leaderStallInBubble(t, ignoreStalls) == "" {
		t.Error("not noticed")
		return
	}
	record.Caught(t, "virtual time: replicas", "a leader stays in office while its disk hangs", 1, begin)
}

// leaderStallInBubble lets the disk of a leader hang, and returns what the members do wrong
// about it.
func leaderStallInBubble(t *testing.T, plant func(*Replica, *faultyDisk)) (problem string) {
	t.Helper()
	dirs := fastDirs(t, 3)
	inBubble(t, func(t *testing.T) {
		c := startVirtual(t, dirs, virtualTicks, plant)
		defer c.end(t)
		old := c.leader(t)
		old.write(t, 1)
		hang := make(chan struct{})
		old.disk.hang.Store(&hang)
		begin := time.Now()
		caught := make(chan error, 1)
		go func() {
			_, err := old.Propose(t.Context(), command(2))
			caught <- err
		}()
		next := c.elected(old)
		if next == nil {
			problem = "the leader is still in office, a minute after its disk began to hang"
		} else {
			next.write(t, 3)
			if took := time.Since(begin); took > 6*virtualTicks*virtualTick {
				problem = fmt.Sprintf("writes resumed after %v", took)
			}
		}
		old.disk.hang.Store(nil)
		close(hang)
		if err := <-caught; err == nil && !old.has(2) {
			problem = "a write was acknowledged and is not there"
		}
		synctest.Wait()
		old.write(t, 4)
		c.agree(t)
	})
	return problem
}
