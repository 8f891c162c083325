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

// A leader whose process dies is noticed by its broken connection: every
// member holds a GET of MonitorPath open with its leader, on which nothing is
// ever sent. When it breaks, the member dials anew. Refused: nobody listens
// there any more, the process is gone. Anything else says nothing: a glitch
// of the network, or a machine that vanished; the election timeout serves
// there.
//
// It is a request of its own because rafthttp tells nobody of a broken stream,
// and dials again only after a pause.
const MonitorPath = raftPathPrefix + "/watch"

// maxMonitors bounds the monitors that this member serves: one a member, and
// some that have not noticed their end.
const maxMonitors = 4 * limits.MaxMembers

// newMonitorClient makes the client of HoldMonitor.
func (t *Transport) newMonitorClient() *http.Client {
	dialer := &net.Dialer{Timeout: t.cfg.DialTimeout}
	rt := &http.Transport{DisableKeepAlives: true, ResponseHeaderTimeout: dialer.Timeout}
	// Without a proxy: its refusal would say nothing of the leader.
	t.cfg.Security.DialWith(rt, dialer.DialContext)
	return &http.Client{
		Transport:     rt,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// HoldMonitor tries the URLs of a member, and returns when the connection is
// over: up says that there was one, refused that every URL refused it.
func (t *Transport) HoldMonitor(ctx context.Context, urls []string) (up, refused bool) {
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

// holdURL keeps a monitor until it breaks.
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
		return false, fmt.Errorf("%s answers %s to a monitor", url, resp.Status)
	}
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1)) // waits for the end
	return true, err
}

// serveMonitor holds a monitor until it breaks or this member stops.
func (g *guard) serveMonitor(w *guardedWriter, r *http.Request, _ uint64) {
	if g.monitors.Add(1) > maxMonitors {
		g.monitors.Add(-1)
		g.refuse(w, refusef(refusedBusy, "too many monitors at a time"))
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
