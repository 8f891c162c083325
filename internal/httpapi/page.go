package httpapi

import (
	"net/http"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi/param"
)

// getPage answers GET /ui/ and its files. It needs nothing of the node, so the page is
// there while the node starts, and can say so.
func getPage(s *Server, x *exchange) error {
	if s.page == nil {
		return api.Errorf(api.NotFound, "this node serves no web page; start it with --ui=read or --ui=on")
	}
	status, body, ok := s.page.Answer(x.arg, x.r.Header, x.Header())
	if !ok {
		return api.Errorf(api.NotFound, "the web page has no file %.100q; it begins at /ui/", x.arg)
	}
	if status == http.StatusNotModified {
		x.WriteHeader(status)
		return nil
	}
	x.writeWhole(status, body)
	return nil
}

// wantsPage reports whether a person with a browser asks for the root, which no key can be.
func wantsPage(x *exchange) bool {
	return x.srv.page != nil && x.route == x.srv.router.short && param.Prefers(x.r.Header["Accept"], "text/html", jsonType)
}

// toPage sends people to the page from /ui and, in a browser, from /. The address is
// relative, so that it holds behind a proxy that adds a prefix; and browsers do not keep
// it, since another start may have another --ui.
func toPage(s *Server, x *exchange) error {
	if s.page == nil {
		return getPage(s, x)
	}
	x.set("Location", "ui/")
	x.Header()["Vary"] = varyAccept
	x.WriteHeader(http.StatusTemporaryRedirect)
	return nil
}
