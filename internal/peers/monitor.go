package peers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/kvd-io/kvd/internal/limits"
)

// MonitorPath is the path of the request that a member holds open with its
// leader, in order to notice when the leader's process is gone; the package comment
// tells how. The path keeps its old name because members of different versions must
// understand each other.
const MonitorPath = raftPathPrefix + "/watch"

// maxMonitors bounds the monitors that this member serves: one for each member,
// and some whose end has not been noticed yet.
const maxMonitors = 4 * limits.MaxMembers

// newMonitorClient returns the client of holdMonitor.
func (t *Transport) newMonitorClient() *http.Client {
	dialer := &net.Dialer{Timeout: t.cfg.DialTimeout}
	rt := &http.Transport{DisableKeepAlives: true, ResponseHeaderTimeout: dialer.Timeout}
	// DialWith uses no proxy. Its refusal would prove nothing about the leader.
	t.cfg.Security.DialWith(rt, dialer.DialContext)
	return &http.Client{
		Transport:     rt,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// holdMonitor connects to one of the URLs of a member, and returns when the
// connection breaks, when there is none, or when the context ends. up reports that
// there was a connection. refused reports that there was none because every URL
// refused it; that is the only proof that the process is gone.
func (t *Transport) holdMonitor(ctx context.Context, urls []string) (up, refused bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()
	refused = len(urls) > 0
	for _, u := range urls {
		up, err := t.holdURL(ctx, u)
		if up {
			return true, false
		}
		refused = refused && errors.Is(err, syscall.ECONNREFUSED)
	}
	return false, refused
}

// holdURL holds a monitor with one URL until it breaks.
func (t *Transport) holdURL(ctx context.Context, url string) (up bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(url, "/")+MonitorPath, nil)
	if err != nil {
		return false, err
	}
	t.self.stamp(req.Header)
	resp, err := t.monitor.Do(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return false, fmt.Errorf("monitor %s: status %s", url, resp.Status)
	}
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1)) // blocks: nothing is sent
	return true, err
}

// serveMonitor serves a monitor until it breaks or this member stops.
func (g *guard) serveMonitor(w *guardedWriter, r *http.Request, _ uint64) {
	if g.monitors.Add(1) > maxMonitors {
		g.monitors.Add(-1)
		g.refuse(w, refusef(refusedBusy, "too many monitors at the same time"))
		return
	}
	defer g.monitors.Add(-1)
	_ = w.ctl.SetReadDeadline(time.Time{})
	w.WriteHeader(http.StatusOK)
	w.Flush()
	select {
	case <-r.Context().Done():
	case <-g.t.ctx.Done():
	}
}
