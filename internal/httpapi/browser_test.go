package httpapi

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/api"
)

// The guard protects every route: a web page must neither add members nor read under a
// name of its own.
func TestBrowserGuardStandsBeforeRoutes(t *testing.T) {
	srv := New(Options{RootMembers: true, Hosts: []string{"n1.example"}})
	ask := func(method, target, host, site string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, target, strings.NewReader("http://127.0.0.1:42379"))
		r.Host = host
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}))
		if site != "" {
			r.Header.Set("Sec-Fetch-Site", site)
		}
		w := httptest.NewRecorder()
		srv.ServeHTTP(w, r)
		return w
	}
	for _, rt := range srv.router.all {
		target := strings.NewReplacer("{key}", "k", "{id}", "4", "{check}", "log", "{file}", "app.js").Replace(rt.pattern)
		for _, m := range rt.methods {
			if w := ask(m.name, target, "evil.example", ""); w.Code != http.StatusMisdirectedRequest || w.Header().Get("Content-Type") != "application/problem+json" {
				t.Errorf("%s %s for another host: %d %s", m.name, target, w.Code, w.Body)
			}
			safe := m.name == http.MethodGet || m.name == http.MethodHead
			if w := ask(m.name, target, "127.0.0.1", "cross-site"); !safe && (w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), string(api.CrossOrigin))) {
				t.Errorf("%s %s by another site: %d %s", m.name, target, w.Code, w.Body)
			}
		}
	}
}

// With --ui=read, no web page changes anything, on whatever route; programs do, and pages
// read, ask, and log in.
func TestReadOnlyPagesChangeNothing(t *testing.T) {
	srv := New(Options{RootMembers: true, UI: "read"})
	for _, rt := range srv.router.all {
		target := strings.NewReplacer("{key}", "k", "{id}", "4", "{check}", "log", "{file}", "app.js").Replace(rt.pattern)
		for _, m := range rt.methods {
			for header, value := range map[string]string{"Origin": "http://127.0.0.1:12380", "Sec-Fetch-Site": "same-origin"} {
				r := httptest.NewRequest(m.name, "http://127.0.0.1:12380"+target, nil)
				r.Header.Set(header, value)
				refused := srv.browsers.Refuse(r) != nil
				question := target == "/v1/auth/login" || target == "/v1/auth/check"
				if changes := m.name != http.MethodGet && !question; refused != changes {
					t.Errorf("%s %s by the page: refused %v", m.name, target, refused)
				}
				r.Header.Del(header)
				if err := srv.browsers.Refuse(r); err != nil {
					t.Errorf("%s %s by a program: %v", m.name, target, err)
				}
			}
		}
	}
}
