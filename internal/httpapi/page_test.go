package httpapi

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi/ui"
)

func TestPage(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.UI = ui.On })
	if a := f.do("GET", "/ui/", "").want(200); !strings.Contains(a.header.Get("Content-Type"), "text/html") || !strings.Contains(a.body, "<main") {
		t.Errorf("%v %.80s", a.header, a.body)
	}
	tag := f.do("GET", "/ui/app.js", "").want(200).header.Get("Etag")
	f.do("GET", "/ui/app.js", "", "If-None-Match: "+tag).want(304)
	f.do("HEAD", "/ui/style.css", "").want(200)
	f.do("GET", "/ui/nothing.js", "").problem(404, api.NotFound, "nothing.js")
	f.do("PUT", "/ui/app.js", "x").problem(400, api.BadRequest, "/v1/kv/ui/app.js")
	f.do("DELETE", "/ui/", "").problem(405, api.MethodNotAllowed)
}

// A browser finds the page at the root; a program learns that this is no key.
func TestRootLeadsToThePage(t *testing.T) {
	html := "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
	f := newFixture(t, func(o *Options) { o.UI = ui.Read })
	f.http.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	f.do("GET", "/", "", html).want(307).wantHeader("Location", "ui/")
	f.do("GET", "/ui", "").want(307).wantHeader("Location", "ui/")
	f.do("GET", "/", "").problem(400, api.BadRequest, "key is empty")
	f.do("GET", "/v1/kv/", "", html).problem(400, api.BadRequest, "key is empty")
	f = newFixture(t)
	f.do("GET", "/", "", html).problem(400, api.BadRequest, "key is empty")
	f.do("GET", "/ui/", "").problem(404, api.NotFound, "--ui")
}

// The page is there before the node serves, so that it can say so.
func TestPageOfANodeThatStarts(t *testing.T) {
	s := NewStandby(Options{Health: &testHealth{}, UI: ui.On}, api.Errorf(api.Starting, "not yet"))
	for path, want := range map[string]int{"/ui/": 200, "/ui/app.js": 200, "/v1/cluster": 503} {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != want {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}
