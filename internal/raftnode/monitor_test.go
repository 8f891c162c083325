package raftnode

import (
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/kvd-io/kvd/internal/peers"
)

// neverElects makes raft's own election timeout longer than any test may take:
// two minutes. Something else must elect the leader.
func neverElects(c *Config) { c.ElectionTicks = 6000 }

// holder is a listener that can reset the connections it gave out.
type holder struct {
	net.Listener
	mu    sync.Mutex
	conns []*net.TCPConn
}

func (h *holder) Accept() (net.Conn, error) {
	c, err := h.Listener.Accept()
	if t, ok := c.(*net.TCPConn); ok {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.conns = append(h.conns, t)
	}
	return c, err
}

func (h *holder) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.conns {
		_ = c.SetLinger(0) // RST instead of FIN
		_ = c.Close()
	}
	h.conns = nil
}

// A leader whose port refuses connections after its connection broke is
// replaced without waiting for the election timeout. Writes at the other
// members continue, including those in progress.
func TestDeadProcessIsReplacedAtOnce(t *testing.T) {
	nodes := startNodes(t, 3, neverElects)
	old := leaderOf(t, nodes)
	rest := without(nodes, old)
	var writers sync.WaitGroup
	var written atomic.Uint64
	stop := make(chan struct{})
	for i, n := range rest {
		<-n.Ready()
		writers.Go(func() {
			for id := uint64(i + 1); ; id += 2 {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := n.Propose(testContext(t), command(id)); err != nil {
					t.Errorf("a write at member %d: %v", n.cfg.ID, err)
					return
				}
				if err := n.Barrier(testContext(t)); err != nil {
					t.Errorf("a read at member %d: %v", n.cfg.ID, err)
					return
				}
				written.Add(1)
			}
		})
	}
	waitFor(t, "writes", func() bool { return written.Load() > 20 })
	old.kill()
	next := leaderOf(t, rest)
	before := written.Load()
	waitFor(t, "writes after the change", func() bool { return written.Load() > before+20 })
	close(stop)
	writers.Wait()
	if next == old {
		t.Fatal("the dead leader leads")
	}
}

// Connections that break while every process lives change neither the leader
// nor the term.
func TestResetConnectionsElectNobody(t *testing.T) {
	var held []*holder
	var monitors atomic.Int64
	nodes := startNodesOn(t, 3, neverElects, func(l net.Listener) net.Listener {
		h := &holder{Listener: l}
		held = append(held, h)
		return h
	}, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == peers.MonitorPath {
				monitors.Add(1)
			}
			h.ServeHTTP(w, r)
		})
	})
	old := leaderOf(t, nodes)
	position := old.Position()
	for id := range uint64(10) {
		seen := monitors.Load()
		waitFor(t, "both monitors", func() bool { return monitors.Load() >= 2 })
		for i, h := range held { // the followers' words to each other sometimes arrive
			if id%2 == 0 || uint64(i+1) == old.cfg.ID {
				h.reset()
			}
		}
		waitFor(t, "new monitors", func() bool { return monitors.Load() >= seen+2 })
		for _, n := range nodes {
			<-n.Ready()
			if _, err := n.Propose(testContext(t), command(10*n.cfg.ID+id*100)); err != nil {
				t.Fatalf("a write at member %d after a glitch: %v", n.cfg.ID, err)
			}
		}
	}
	for _, n := range nodes {
		if p := n.Position(); p.Leader != position.Leader || p.Term != position.Term {
			t.Errorf("member %d follows %d in term %d, before the glitches %d in term %d", n.cfg.ID, p.Leader, p.Term, position.Leader, position.Term)
		}
	}
}
