package peers

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// TestServeMonitor checks that a monitor is served to members only, is held open
// until the transport stops, and that their number is bounded.
func TestServeMonitor(t *testing.T) {
	p := startPeer(t, 1)
	guard := p.Handler(nil).(*guard)
	srv := httptest.NewServer(guard)
	t.Cleanup(srv.Close)
	monitor := func(cluster, from string) *http.Response {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+MonitorPath, nil)
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
	if s := monitor("c2", "2").StatusCode; s != http.StatusPreconditionFailed {
		t.Errorf("a member of another cluster gets %d", s)
	}
	if s := monitor("c1", "x").StatusCode; s != http.StatusBadRequest {
		t.Errorf("a stranger gets %d", s)
	}
	if s := monitor("c1", "2").StatusCode; s != http.StatusOK {
		t.Errorf("a member gets %d", s)
	}
	if n := guard.monitors.Load(); n != 1 {
		t.Errorf("%d monitors are held, want 1", n)
	}
	guard.monitors.Add(maxMonitors)
	if s := monitor("c1", "2").StatusCode; s != http.StatusServiceUnavailable {
		t.Errorf("a monitor beyond the limit gets %d", s)
	}
	guard.monitors.Add(-maxMonitors)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		p.Stop() // ends the monitor, or it would wait for it
	}()
	wait(t, stopped, "the transport to stop")
}

type held struct{ up, refused bool }

// hold runs holdMonitor in the background.
func hold(p *testPeer, urls ...string) <-chan held {
	done := make(chan held, 1)
	go func() {
		up, refused := p.holdMonitor(context.Background(), urls)
		done <- held{up, refused}
	}()
	return done
}

// TestHoldMonitor checks what each way to lose a monitor means. Only a refusal by
// every URL proves that the process behind them is gone.
func TestHoldMonitor(t *testing.T) {
	busy := httptest.NewServer(http.NotFoundHandler())
	defer busy.Close()
	follower, leader := startPeer(t, 1), startPeer(t, 2)
	for name, test := range map[string]struct {
		urls []string
		want held
	}{
		"no URL":                     {nil, held{}},
		"refused":                    {[]string{closedURL(t)}, held{refused: true}},
		"refused by both":            {[]string{closedURL(t), closedURL(t)}, held{refused: true}},
		"refused by one of two":      {[]string{closedURL(t), busy.URL}, held{}},
		"answered by something else": {[]string{busy.URL}, held{}},
	} {
		if got := wait(t, hold(follower, test.urls...), name); got != test.want {
			t.Errorf("%s: %+v, want %+v", name, got, test.want)
		}
	}
	// It holds although the first URL refuses, and ends with the connection.
	monitors := &leader.server.Config.Handler.(*guard).monitors
	done := hold(follower, closedURL(t), leader.url)
	waitUntil(t, "the monitor", func() bool { return monitors.Load() == 1 })
	leader.server.CloseClientConnections()
	if got := wait(t, done, "the end of the monitor"); got != (held{up: true}) {
		t.Errorf("after a broken connection: %+v", got)
	}
	waitUntil(t, "its end at the leader", func() bool { return monitors.Load() == 0 })
	// It also ends when its own transport stops.
	done = hold(follower, leader.url)
	waitUntil(t, "another monitor", func() bool { return monitors.Load() == 1 })
	follower.Stop()
	wait(t, done, "the end of the monitor of a stopped transport")
}

// waitUntil polls a condition for which there is no event.
func waitUntil(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(deliveryPatience)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
