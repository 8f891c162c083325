package e2e

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// links are the connections between the members of a cluster. Each goes through a proxy
// before a peer port, which knows both ends, and can be cut, in one direction or in both:
// then nothing arrives, and nobody is told, as with a cable that was pulled out.
type links struct {
	t       testing.TB
	running sync.WaitGroup
	// late links deliver late, and unreliable ones also break now and then.
	late, unreliable atomic.Bool
	mu               struct {
		sync.Mutex
		listeners map[uint64]net.Listener
		pids      map[int]uint64 // the members that run
		cut       map[link]bool
		changed   chan struct{} // closed and replaced with each change of cut
		conns     map[net.Conn]bool
		closed    bool
	}
}

// link is one direction.
type link struct{ from, to uint64 }

// latest is how late a late link delivers at most, and breaks is how often it takes its
// connection along instead.
const (
	latest = 27 * time.Millisecond
	breaks = 0.01
)

var errBroken = errors.New("the link broke")

// newLinkedCluster prepares n members without starting them; links.start does. Connections
// between them are told apart by the process at their other end.
func newLinkedCluster(t testing.TB, n int, flags ...string) (*cluster, *links) {
	t.Helper()
	if _, err := os.Stat("/proc/net/tcp"); err != nil {
		t.Skipf("NOT TESTED: this system does not tell whose connections are whose: %v", err)
	}
	l := &links{t: t}
	l.mu.listeners, l.mu.pids, l.mu.cut, l.mu.conns = make(map[uint64]net.Listener), make(map[int]uint64), make(map[link]bool), make(map[net.Conn]bool)
	l.mu.changed = make(chan struct{})
	t.Cleanup(l.close)
	c := layOut(t, n, func(id uint64) (client, peer int) { return freePort(t), l.listen(id) }, flags...)
	for _, m := range c.nodes {
		l.lead(m)
	}
	return c, l
}

// place prepares another member of the cluster, which was not added yet.
func (l *links) place(c *cluster) *member {
	l.t.Helper()
	m := c.joining()
	l.lead(m)
	return m
}

// lead makes a member listen behind its links.
func (l *links) lead(m *member) {
	l.t.Helper()
	behind := freePort(l.t)
	m.args = append(m.args, "--listen-peer", "http://"+loopback(behind))
	l.running.Go(func() { l.accept(m.id, loopback(behind)) })
}

// listen makes the address under which the others know a member, and returns its port.
func (l *links) listen(id uint64) int {
	l.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.listeners[id] = listener
	return listener.Addr().(*net.TCPAddr).Port
}

// start starts members, and waits until they are ready.
func (l *links) start(members ...*member) {
	l.t.Helper()
	for _, m := range members {
		p := m.start()
		l.mu.Lock()
		l.mu.pids[p.pid()] = m.id
		l.mu.Unlock()
	}
	for _, m := range members {
		m.awaitReady()
	}
}

// isolate cuts a member off: what it sends, what is sent to it, or both.
func (l *links) isolate(m *member, members []*member, sends, receives bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, other := range members {
		if other != m {
			l.mu.cut[link{m.id, other.id}], l.mu.cut[link{other.id, m.id}] = sends, receives
		}
	}
	l.changedLocked()
}

// heal restores all links.
func (l *links) heal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.mu.cut)
	l.changedLocked()
}

func (l *links) changedLocked() {
	close(l.mu.changed)
	l.mu.changed = make(chan struct{})
}

// pass waits until bytes may pass.
func (l *links) pass(way link) {
	for {
		l.mu.Lock()
		cut, changed := l.mu.cut[way] && !l.mu.closed, l.mu.changed
		l.mu.Unlock()
		if !cut {
			return
		}
		<-changed
	}
}

func (l *links) accept(to uint64, behind string) {
	l.mu.Lock()
	listener := l.mu.listeners[to]
	l.mu.Unlock()
	for {
		dialed, err := listener.Accept()
		if err != nil {
			return
		}
		l.running.Go(func() { l.serve(dialed, to, behind) })
	}
}

// serve forwards a connection until one of its ends is gone.
func (l *links) serve(dialed net.Conn, to uint64, behind string) {
	defer l.forget(dialed)
	if !l.remember(dialed) {
		return
	}
	from, err := l.dialer(dialed)
	if err != nil {
		return // that process is gone
	}
	l.pass(link{from, to})
	l.pass(link{to, from})
	served, err := net.DialTimeout("tcp", behind, time.Second)
	if err != nil {
		return // the member is down
	}
	defer l.forget(served)
	if !l.remember(served) {
		return
	}
	var back sync.WaitGroup
	back.Go(func() { l.pump(dialed, served, link{to, from}) })
	l.pump(served, dialed, link{from, to})
	back.Wait()
}

// pump forwards one direction. Its end is that of both.
func (l *links) pump(to, from net.Conn, way link) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		unreliable := l.unreliable.Load()
		if unreliable || l.late.Load() {
			time.Sleep(rand.N(latest))
		}
		if unreliable && rand.Float64() < breaks && err == nil {
			n, err = 0, errBroken
		}
		l.pass(way)
		if n > 0 {
			if _, failed := to.Write(buffer[:n]); err == nil {
				err = failed
			}
		}
		if err != nil {
			_ = errors.Join(to.Close(), from.Close()) // the other direction may have closed them
			return
		}
	}
}

func (l *links) remember(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.conns[c] = true
	return !l.mu.closed
}

func (l *links) forget(c net.Conn) {
	_ = c.Close() // it may be closed already
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.mu.conns, c)
}

func (l *links) close() {
	l.mu.Lock()
	l.mu.closed = true
	l.changedLocked()
	for _, listener := range l.mu.listeners {
		_ = listener.Close()
	}
	for c := range l.mu.conns {
		_ = c.Close()
	}
	l.mu.Unlock()
	l.running.Wait()
}

// dialer returns the member whose process made the connection. A process that has just
// begun may dial before its pid is known here.
func (l *links) dialer(c net.Conn) (id uint64, err error) {
	err = poll(2*time.Second, func() error {
		l.mu.Lock()
		pids := maps.Clone(l.mu.pids)
		l.mu.Unlock()
		inode, err := socketOf(c.RemoteAddr(), c.LocalAddr())
		if err != nil {
			return hopeless{err}
		}
		for pid, member := range pids {
			if holdsSocket(pid, inode) {
				id = member
				return nil
			}
		}
		return fmt.Errorf("no member holds the other end of %v", c.RemoteAddr())
	})
	return id, err
}

// socketOf returns the inode of the socket that has these addresses.
func socketOf(local, remote net.Addr) (string, error) {
	f, err := os.Open("/proc/net/tcp")
	if err != nil {
		return "", err
	}
	defer f.Close()
	table, err := io.ReadAll(f)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 9 && fields[1] == inTable(local) && fields[2] == inTable(remote) {
			return fields[9], nil
		}
	}
	return "", fmt.Errorf("%v is no longer connected to %v", local, remote)
}

// inTable writes a loopback address as /proc/net/tcp does.
func inTable(a net.Addr) string { return fmt.Sprintf("0100007F:%04X", a.(*net.TCPAddr).Port) }

func holdsSocket(pid int, inode string) bool {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return false
	}
	for _, f := range files {
		if target, err := os.Readlink(f); err == nil && target == "socket:["+inode+"]" {
			return true
		}
	}
	return false
}
