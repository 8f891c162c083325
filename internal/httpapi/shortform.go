package httpapi

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/kvd-io/kvd/internal/api"
)

// putShort answers PUT /{key}: 204 once the value is committed and applied.
func (s *Server) putShort(x *exchange) error {
	_, res, err := x.put()
	if err != nil {
		return err
	}
	x.set("Etag", etag(res.KV.ModRevision))
	x.WriteHeader(http.StatusNoContent)
	return nil
}

// shortMemberID reads the path of POST and DELETE as a member's id, in any
// base that Go's literals have, as the ancestor of this form did. What is no
// number was probably meant as a key.
func (x *exchange) shortMemberID(instead string) (uint64, error) {
	if x.arg == "" {
		return 0, checkKey(x.arg)
	}
	id, err := strconv.ParseUint(x.arg, 0, 64)
	if err != nil {
		return 0, badRequest("%s of /{id} changes the members, and %.200q is no member's id; for the key use %s", x.r.Method, x.arg, instead)
	}
	return id, checkMemberID(id)
}

// addShort answers POST /{id}: adds a member by its peer URL, the body. It
// starts as a learner and is promoted once it has caught up.
func (s *Server) addShort(x *exchange) error {
	id, err := x.shortMemberID("POST /v1/kv" + x.shownPath() + "?append")
	if err != nil {
		return err
	}
	body, err := x.readBody(maxDocument)
	if err != nil {
		return err
	}
	m := api.NewMember{ID: id, PeerURLs: []string{strings.TrimSpace(string(body))}}
	if err := normalizeURLs("the body", &m.PeerURLs); err != nil {
		return err
	}
	ctx, cancel, err := x.context()
	if err != nil {
		return err
	}
	defer cancel()
	if _, err := s.opts.Members.AddMember(ctx, m); err != nil {
		return err
	}
	x.WriteHeader(http.StatusNoContent)
	return nil
}

// removeShort answers DELETE /{id}: removes a member, which then shuts itself
// down.
func (s *Server) removeShort(x *exchange) error {
	id, err := x.shortMemberID("DELETE /v1/kv" + x.shownPath())
	if err != nil {
		return err
	}
	return x.remove(id)
}

// shownPath is the path as a message may show it: escaped, and cut where it
// is very long.
func (x *exchange) shownPath() string {
	path := x.r.URL.EscapedPath()
	return path[:min(len(path), 400)]
}
