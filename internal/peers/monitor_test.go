package peers

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// A monitor is for members alone, is held open, and there is a limit.
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
