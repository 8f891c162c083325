package e2e

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// openRoutes are those that ask nobody who they are, and userRoutes those that every user
// may call, whatever roles the user has.
var (
	openRoutes = []string{
		"POST /v1/auth/login", "GET /healthz", "GET /livez", "GET /readyz", "GET /readyz/{check}", "GET /health", "GET /version", "GET /openapi.yaml",
		"GET /ui", "GET /ui/", "GET /ui/{file}", "GET /metrics",
	}
	userRoutes = []string{
		"POST /v1/batch", "POST /v1/txn", "GET /v1/leases", "GET /v1/locks", "GET /v1/members", "GET /v1/leader", "GET /v1/status", "GET /v1/cluster", "GET /v1/settings",
		"GET /v1/tokens", "GET /v1/auth", "GET /v1/auth/whoami", "POST /v1/auth/check",
	}
	// tellingRoutes tell requests without credentials how to get some.
	tellingRoutes = []string{"GET /v1/auth", "GET /v1/auth/whoami"}
)

// routes returns the methods and paths of openapi.yaml, which has all routes (a test of
// package httpapi says so).
func routes(t testing.TB) (all []string) {
	t.Helper()
	text, err := os.ReadFile("../../openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct{ Paths map[string]map[string]any }
	if err := yaml.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	for path, methods := range doc.Paths {
		for method := range methods {
			if method = strings.ToUpper(method); slices.Contains([]string{http.MethodGet, http.MethodPut, http.MethodPost, http.MethodPatch, http.MethodDelete}, method) {
				all = append(all, method+" "+path)
			}
		}
	}
	slices.Sort(all)
	return all
}

// TestEveryRouteOfRealNodes calls each route of one node and of three with credentials of
// every kind that gives no right. Package httpapi has the table of those that do.
func TestEveryRouteOfRealNodes(t *testing.T) {
	t.Parallel()
	all := routes(t)
	for _, r := range slices.Concat(openRoutes, userRoutes) {
		if !slices.Contains(all, r) {
			t.Errorf("%s is no route", r)
		}
	}
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d nodes", n), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, n, quick...)
			ann := guard(t, c.leader())
			made := func(body string) string {
				return field(t, send(c.node(1), "POST", "/v1/tokens", body, asRoot...), "secret")
			}
			expectAllowed(t, c.node(1), ann)
			if a := send(c.node(1), "PUT", "/v1/users/poor", `{"roles":[]}`, asRoot...); a.status != 201 {
				t.Fatal(a)
			}
			revoked := send(c.node(1), "POST", "/v1/tokens", `{"user":"poor"}`, asRoot...)
			if a := send(c.node(1), "DELETE", "/v1/tokens/"+field(t, revoked, "id"), "", asRoot...); a.status != 200 {
				t.Fatal(a)
			}
			strangers := map[string][]string{
				"none": nil, "a wrong token": {"Authorization", "Bearer kvd_wrong"}, "a revoked token": {"Authorization", "Bearer " + field(t, revoked, "secret")},
				"an expired token": {"Authorization", "Bearer " + made(`{"user":"ann","ttl":"1ms"}`)}, "another scheme": {"Authorization", "Negotiate x"},
			}
			poor := []string{"Authorization", "Bearer " + made(`{"user":"poor"}`)}
			for _, m := range c.nodes {
				eventually(t, m.String()+" knows the token", func() error {
					if a := get(m, "/v1/auth/whoami", poor...); a.status != 200 {
						return fmt.Errorf("%v", a)
					}
					return nil
				})
				for _, r := range all {
					expectRoute(t, m, r, strangers, poor)
				}
			}
			if a := get(c.node(1), "/v1/kv/a1", asRoot...); a.body != "of ann" {
				t.Errorf("the key is now %v", a)
			}
			unguard(t, c.node(1))
		})
	}
}

func expectRoute(t *testing.T, m *member, route string, strangers map[string][]string, poor []string) {
	t.Helper()
	method, path, _ := strings.Cut(route, " ")
	path = strings.NewReplacer("{key}", "a1", "{name}", "a1", "{id}", "7", "{file}", "app.js", "{check}", "store").Replace(path)
	open := slices.Contains(openRoutes, route)
	body := "{}"
	if method == http.MethodGet || method == http.MethodDelete {
		body = ""
	}
	for name, header := range strangers {
		a := send(m, method, path, body, header...)
		if !open && header == nil && a.code() == "bad_request" {
			continue // what an incomplete request needs is not known
		}
		if header == nil && slices.Contains(tellingRoutes, route) {
			if a.status != 200 {
				t.Errorf("%v: %s without credentials: %v", m, route, a)
			}
			continue
		}
		switch refused := a.status == 401 && a.code() == "unauthenticated" && a.header.Get("WWW-Authenticate") != ""; {
		case open == refused:
			t.Errorf("%v: %s with %s: %v", m, route, name, a)
		case !open && strings.Contains(a.body, "of ann"):
			t.Errorf("%v: %s with %s shows %v", m, route, name, a)
		}
	}
	if a := send(m, method, path, body, poor...); a.status == 401 || !open && a.status/100 == 2 && !slices.Contains(userRoutes, route) {
		t.Errorf("%v: %s by a user without rights: %v", m, route, a)
	}
	// Root's request is not complete, so that it changes nothing.
	if a := send(m, method, path+"?unknown=x", "", asRoot...); a.status == 401 || a.status == 403 {
		t.Errorf("%v: %s by root: %v", m, route, a)
	}
}
