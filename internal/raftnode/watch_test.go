package raftnode

import (
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// neverElects makes raft's own election timeout longer than any test may
// take: two minutes. What elects a leader is something else.
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

// A leader whose port refuses connections after the watch broke is replaced
// without waiting for the election timeout, and writes go on at the others,
// those under way included.
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
	var watches atomic.Int64
	nodes := startNodesOn(t, 3, neverElects, func(l net.Listener) net.Listener {
		h := &holder{Listener: l}
		held = append(held, h)
		return h
	}, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == watchPath {
				watches.Add(1)
			}
			h.ServeHTTP(w, r)
		})
	})
	old := leaderOf(t, nodes)
	position := old.Position()
	for id := range uint64(10) {
		seen := watches.Load()
		waitFor(t, "both watches", func() bool { return watches.Load() >= 2 })
		for i, h := range held { // the followers' words to each other sometimes arrive
			if id%2 == 0 || uint64(i+1) == old.cfg.ID {
				h.reset()
			}
		}
		waitFor(t, "new watches", func() bool { return watches.Load() >= seen+2 })
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

// The pauses between dials grow, also when the same leader is followed again
// in between, and begin anew after a watch that held.
func TestWatchPausesGrow(t *testing.T) {
	var w watchState
	last := time.Duration(-1)
	for range 11 {
		w.follow(2, 5)
		if w.pause() <= last {
			t.Fatalf("a pause of %v after one of %v", w.pause(), last)
		}
		last = w.pause()
		w.ended(false)
	}
	for range 100 {
		w.ended(false)
	}
	if w.pause() != maxWatchPause {
		t.Errorf("a pause of %v, want %v", w.pause(), maxWatchPause)
	}
	if w.follow(2, 6); w.pause() != 0 {
		t.Errorf("a new leader is dialled after %v", w.pause())
	}
	w.ended(false)
	if w.ended(true); w.pause() != 0 {
		t.Errorf("after a watch that held the dial waits %v", w.pause())
	}
}

// A watch is for members alone, is held open, and there is a limit.
func TestServeWatch(t *testing.T) {
	n := startNodes(t, 1, nil)[0]
	guard := n.Handler(nil).(*peerGuard)
	srv := httptest.NewServer(guard)
	t.Cleanup(srv.Close)
	watch := func(cluster, from string) *http.Response {
		req, err := http.NewRequestWithContext(testContext(t), http.MethodGet, srv.URL+watchPath, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Etcd-Cluster-ID", cluster)
		req.Header.Set("X-Server-From", from)
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		return resp
	}
	if s := watch("8", "2").StatusCode; s != http.StatusPreconditionFailed {
		t.Errorf("a member of another cluster gets %d", s)
	}
	if s := watch("7", "x").StatusCode; s != http.StatusBadRequest {
		t.Errorf("a stranger gets %d", s)
	}
	if s := watch("7", "2").StatusCode; s != http.StatusOK {
		t.Errorf("a member gets %d", s)
	}
	if n := guard.watches.Load(); n != 1 {
		t.Errorf("%d watches are held, want 1", n)
	}
	guard.watches.Add(maxWatches)
	if s := watch("7", "2").StatusCode; s != http.StatusServiceUnavailable {
		t.Errorf("a watch beyond the limit gets %d", s)
	}
	guard.watches.Add(-maxWatches)
	n.stop() // ends the watch, or the node would wait for it
	select {
	case <-n.done:
	case <-time.After(30 * time.Second):
		t.Fatal("the node waits for those who watch it")
	}
}
