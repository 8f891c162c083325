package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	writers      = 6
	writerPace   = 10 * time.Millisecond // bounds the number of keys that are read back
	writeTimeout = 2 * time.Second
)

// load is a set of clients that write through all nodes, and the acknowledged
// writes.
type load struct {
	nodes   []*node
	workers []*writer
	acked   atomic.Int64
	failed  atomic.Int64
	end     context.CancelFunc
	done    sync.WaitGroup
}

// writer writes its own keys: each key once, and a single one repeatedly. Its
// fields belong to its goroutine until the load is stopped.
type writer struct {
	id    int
	once  []int // numbers whose key was acknowledged
	tried int   // the last number
	again int   // the last number acknowledged for the one key
}

func (w *writer) onceKey(n int) string { return fmt.Sprintf("/load/w%d/%d", w.id, n) }
func (w *writer) againKey() string     { return fmt.Sprintf("/load/w%d/again", w.id) }

func startLoad(nodes []*node) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{nodes: nodes, end: cancel}
	for i := range writers {
		w := &writer{id: i}
		l.workers = append(l.workers, w)
		l.done.Go(func() { l.write(ctx, w) })
	}
	return l
}

func (l *load) write(ctx context.Context, w *writer) {
	pace := time.NewTicker(writerPace)
	defer pace.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-pace.C:
		}
		w.tried++
		n := w.tried
		if l.put(l.nodes[(n+w.id)%len(l.nodes)], w.onceKey(n), n) {
			w.once = append(w.once, n)
		}
		if l.put(l.nodes[(n+w.id+1)%len(l.nodes)], w.againKey(), n) {
			w.again = n
		}
	}
}

func (l *load) put(m *node, key string, n int) bool {
	status, _, err := m.do("PUT", key+"?timeout=1s", fmt.Sprint(n))
	if err != nil || status/100 != 2 {
		l.failed.Add(1)
		return false
	}
	l.acked.Add(1)
	return true
}

// awaitTraffic waits until the given number of further writes have been
// acknowledged.
func (l *load) awaitTraffic(t *testing.T, n int64) {
	t.Helper()
	goal := l.acked.Load() + n
	eventually(t, fmt.Sprintf("%d more writes are acknowledged", n), func() error {
		if now := l.acked.Load(); now < goal {
			return fmt.Errorf("%d to go", goal-now)
		}
		return nil
	})
}

func (l *load) stop() {
	l.end()
	l.done.Wait()
}

// judge reads all acknowledged writes from a node. The key that was written
// repeatedly must have a value that was sent, and none older than the last
// acknowledged one.
func (l *load) judge(m *node) (read int, err error) {
	var lost []error
	for _, w := range l.workers {
		for _, n := range w.once {
			status, body, err := m.do("GET", w.onceKey(n), "")
			if err != nil || status != http.StatusOK || body != fmt.Sprint(n) {
				lost = append(lost, fmt.Errorf("%s was acknowledged; now %d %q %v", w.onceKey(n), status, body, err))
			}
			read++
		}
		status, body, err := m.do("GET", w.againKey(), "")
		var n int
		if _, scan := fmt.Sscan(body, &n); err != nil || scan != nil || n < w.again || n > w.tried {
			lost = append(lost, fmt.Errorf("%s was acknowledged at %d, sent up to %d; now %d %q %v", w.againKey(), w.again, w.tried, status, body, err))
		}
		read++
	}
	if len(lost) > 5 {
		lost = append(lost[:5], fmt.Errorf("and %d more", len(lost)-5))
	}
	return read, errors.Join(lost...)
}

// client uses no proxy and does not wait for a node that is cut off.
var client = &http.Client{Timeout: writeTimeout, Transport: &http.Transport{MaxIdleConnsPerHost: writers}}

// do sends one request to a node.
func (m *node) do(method, path, body string) (status int, answer string, err error) {
	req, err := http.NewRequest(method, m.url+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, string(b), err
}
