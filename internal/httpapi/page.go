package httpapi

import (
	"net/http"

	"github.com/kvd-io/kvd/internal/api"
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

// toPage answers GET /ui, for people who forget the slash. The address is relative, so
// that it holds behind a proxy that adds a prefix.
func toPage(s *Server, x *exchange) error {
	if s.page == nil {
		return getPage(s, x)
	}
	x.set("Location", "ui/")
	x.WriteHeader(http.StatusPermanentRedirect)
	return nil
}
