package peers

import (
	"context"
	"net/http"
	"sync"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp"
	"go.uber.org/zap"
)

// Two processes that run on copies of one data directory act as the same member.
// Taken together, their acknowledgments and votes are worth nothing: one may
// acknowledge what only the other has. So each member listens to one process of
// every other member at a time, told by its boot id: as long as a stream of that
// process is open, requests of another process in the name of the same member
// are refused. When a process ends, its connections break, and its successor is
// heard at once.
//
// A process that one member refuses in this way for cloneAfter, without a break,
// is not the successor of anything: it reports ErrCloned to its owner. The bound
// is long enough for a peer that hangs, or a machine that came back so fast that
// the peer still waits for the old connections.
const cloneAfter = 15 * time.Second

// processes are the processes of other members that have streams open.
type processes struct {
	mu struct {
		sync.Mutex                     // held by handlers of the peer port when a stream opens, sends, or ends
		of         map[uint64]*process // by member
	}
}

type process struct {
	boot    string
	streams int // never 0
}

// hear reports whether the process may be listened to.
func (p *processes) hear(id identity) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.mu.of[id.member]
	return now == nil || now.boot == id.boot
}

// hold notes a stream of the process until the context ends or the returned
// function is called. It reports false if another process is listened to.
func (p *processes) hold(ctx context.Context, id identity) (release func(), ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.of == nil {
		p.mu.of = make(map[uint64]*process)
	}
	now := p.mu.of[id.member]
	switch {
	case now == nil:
		now = &process{boot: id.boot}
		p.mu.of[id.member] = now
	case now.boot != id.boot:
		return nil, false
	}
	now.streams++
	ended := sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if now.streams--; now.streams == 0 {
			delete(p.mu.of, id.member)
		}
	})
	// A stream's handler notices only with its next write that the reader is gone.
	stop := context.AfterFunc(ctx, ended)
	return func() { stop(); ended() }, true
}

// clones notes which members refuse this process because they listen to another
// process of this member.
type clones struct {
	mu struct {
		sync.Mutex                      // held by the connections to other members when one has answered
		since      map[string]time.Time // by host
	}
	found chan struct{} // closed when this process is a clone
	once  sync.Once
}

// note takes the answer of the member at a host.
func (c *clones) note(host string, refused bool, now time.Time) (isClone bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	since, before := c.mu.since[host]
	switch {
	case !refused:
		delete(c.mu.since, host)
	case !before:
		c.mu.since[host] = now
	default:
		isClone = now.Sub(since) >= cloneAfter
	}
	return isClone
}

// noteClone looks at the answer to a request of this process.
func (t *Transport) noteClone(r *http.Request, resp *http.Response) {
	if r.URL.Path == rafthttp.ProbingPrefix {
		return // it states no identity, so it is never refused
	}
	refused := resp.StatusCode == http.StatusConflict && resp.Header.Get(headerRefused) == refusedClone.String()
	if !t.clones.note(r.URL.Host, refused, time.Now()) {
		return
	}
	t.clones.once.Do(func() {
		t.lg.Error("another process acts as this member", zap.Uint64("id", t.self.member), zap.String("told_by", r.URL.Host), zap.String("data_dir", t.cfg.Dir))
		close(t.clones.found)
	})
}

// Cloned is closed once another member has refused this process for a while
// because it listens to another process of the same member.
func (t *Transport) Cloned() <-chan struct{} { return t.clones.found }
