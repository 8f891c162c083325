package raftnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/raft/v3"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/limits"
)

// A leader whose process dies is noticed by its broken connection: every
// member holds a GET of watchPath open with its leader, on which nothing is
// ever sent. When it breaks, the member dials anew. Refused: nobody listens
// there any more, the process is gone. Anything else says nothing: a glitch
// of the network, or a machine that vanished; the election timeout serves
// there.
//
// It is a request of its own because rafthttp tells nobody of a broken stream,
// and dials again only after a pause.
const watchPath = raftPathPrefix + "/watch"

const (
	// maxWatchPause bounds the pauses between dials, the shortest is 1 ms.
	maxWatchPause = time.Second
	// watchSettled is for how long a watch must have held before the next
	// break is dialled without a pause.
	watchSettled = 100 * time.Millisecond
	// maxWatches bounds the watches that this member serves: one a member,
	// and some that have not noticed their end.
	maxWatches = 4 * limits.MaxMembers
)

// watchState decides when to dial. It has no clock and no network; the
// simulator runs the same.
//
// Messages that a dead leader had sent before make raft follow it again, so
// that every refusal has to count, not only the first. But where something
// else refuses, a firewall perhaps, a living leader must not be suspected all
// the time: the pauses grow, and go on growing when it is followed again.
type watchState struct {
	leader, term uint64
	failures     int // dials in a row without a watch that held
}

// follow begins with a leader, or goes on with the same one.
func (w *watchState) follow(leader, term uint64) {
	if w.leader != leader || w.term != term {
		*w = watchState{leader: leader, term: term}
	}
}

// pause is how long to wait before the next dial.
func (w *watchState) pause() time.Duration {
	if w.failures == 0 {
		return 0
	}
	return min(time.Millisecond<<min(w.failures-1, 10), maxWatchPause)
}

// ended counts a dial, and whether a watch came of it that held for a while.
func (w *watchState) ended(held bool) {
	if w.failures++; held {
		w.failures = 0
	}
}

// leaderWatch keeps one watch, with the present leader.
type leaderWatch struct {
	n      *Replica
	client *http.Client
	state  watchState
	// leaders brings the present leader; capacity 1, the newest wins.
	leaders chan Position
}

func newLeaderWatch(n *Replica) *leaderWatch {
	dialer := &net.Dialer{Timeout: n.transport.cfg.DialTimeout}
	rt := &http.Transport{DisableKeepAlives: true, ResponseHeaderTimeout: dialer.Timeout}
	// Without a proxy: its refusal would say nothing of the leader.
	n.cfg.Security.DialWith(rt, dialer.DialContext)
	return &leaderWatch{
		n: n,
		client: &http.Client{
			Transport:     rt,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		leaders: make(chan Position, 1),
	}
}

// tell is called by the node loop when its position changed.
func (w *leaderWatch) tell(p Position) {
	select {
	case <-w.leaders: // an older one
	default:
	}
	w.leaders <- p
}

// run follows the leader until the context ends. It waits for the network;
// nothing waits for it.
func (w *leaderWatch) run(ctx context.Context) error {
	end := func() {}
	defer func() { end() }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case p := <-w.leaders:
			end()
			end = w.begin(ctx, p)
		}
	}
}

// begin watches the leader of this position, if it is another member, until
// end is called.
func (w *leaderWatch) begin(ctx context.Context, p Position) (end func()) {
	if p.Leader == raft.None || p.Leader == w.n.cfg.ID {
		return func() {}
	}
	w.state.follow(p.Leader, p.Term)
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { w.watch(ctx) })
	return func() { cancel(); watching.Wait() }
}

// watch dials again and again.
func (w *leaderWatch) watch(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(w.state.pause()):
		}
		began := time.Now()
		up, refused := w.dial(ctx)
		if ctx.Err() != nil {
			return
		}
		w.state.ended(up && time.Since(began) > watchSettled)
		if refused && w.state.failures == 1 {
			w.n.lg.Info("the leader's process is gone: connections to it are refused", zap.Uint64("leader", w.state.leader))
		}
		if refused {
			w.n.events.put(event{suspect: w.state.leader})
		}
	}
}

// dial tries the leader's URLs, and returns when the watch is over: up says
// that there was one, refused that every URL refused the connection.
func (w *leaderWatch) dial(ctx context.Context) (up, refused bool) {
	m, ok := w.n.Membership().Member(w.state.leader)
	if refused = ok && len(m.PeerURLs) > 0; !refused {
		return false, false
	}
	for _, u := range m.PeerURLs {
		up, err := w.hold(ctx, u)
		if up {
			return true, false
		}
		refused = refused && errors.Is(err, syscall.ECONNREFUSED)
	}
	return false, refused
}

// hold keeps a watch until it breaks.
func (w *leaderWatch) hold(ctx context.Context, url string) (up bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(url, "/")+watchPath, nil)
	if err != nil {
		return false, err
	}
	req.Header.Set("X-Etcd-Cluster-ID", types.ID(w.n.cfg.ClusterID).String())
	req.Header.Set("X-Server-From", types.ID(w.n.cfg.ID).String())
	resp, err := w.client.Do(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return false, fmt.Errorf("%s answers %s to a watch", url, resp.Status)
	}
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1)) // waits for the end
	return true, err
}

// serveWatch holds a watch until it breaks or this member stops.
func (g *peerGuard) serveWatch(w *guardedWriter, r *http.Request, _ uint64) {
	if g.watches.Add(1) > maxWatches {
		g.watches.Add(-1)
		g.refuse(w, refusef(refusedBusy, "too many watches at a time"))
		return
	}
	defer g.watches.Add(-1)
	_ = w.ctl.SetReadDeadline(time.Time{})
	w.WriteHeader(http.StatusOK)
	w.Flush()
	select {
	case <-r.Context().Done():
	case <-g.t.ctx.Done():
	}
}
