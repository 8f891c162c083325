package frontdoor

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestSideDoorHasItsRoutesOnly(t *testing.T) {
	clients := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "client "+r.URL.Path) })
	for _, c := range []struct {
		path     string
		profiles bool
		code     int
		body     string
	}{
		{"/metrics", false, 200, "client /metrics"},
		{"/livez", false, 200, "client /livez"},
		{"/readyz", false, 200, "client /readyz"},
		{"/readyz/leader", false, 200, "client /readyz/leader"},
		{"/healthz", false, 200, "client /healthz"},
		{"/version", false, 200, "client /version"},
		{"/v1/kv/a", true, 404, "--listen-client"},
		{"/v1/status", true, 404, "--listen-client"},
		{"/key", true, 404, "--listen-client"},
		{"/", true, 404, "--listen-client"},
		{"/debug/pprof/", false, 404, "--pprof"},
		{"/debug/pprof/", true, 200, "goroutine"},
		{"/debug/pprof/goroutine?debug=1", true, 200, "goroutine profile"},
		{"/debug/pprof/cmdline", true, 200, ""},
		{"/debug/vars", true, 404, ""},
	} {
		if w := ask(SideHandler(clients, c.profiles), "GET", c.path); w.Code != c.code || !strings.Contains(w.Body.String(), c.body) {
			t.Errorf("%s, profiles %v: %d %.200s, want %d with %q", c.path, c.profiles, w.Code, w.Body, c.code, c.body)
		}
	}
}
