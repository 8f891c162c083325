package httpapi

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi/param"
)

// putShort answers PUT /{key} with 204 once the value is committed and applied.
func (s *Server) putShort(x *exchange) error {
	_, res, err := x.put()
	if err != nil {
		return err
	}
	x.set("Etag", param.ETag(res.KV.ModRevision))
	x.WriteHeader(http.StatusNoContent)
	return nil
}

// shortMemberID reads the path of POST and DELETE as a member id, in any base that Go's
// literals have, as etcd's raftexample does. A path that is not a number was most likely
// meant as a key; the error then says how to write that.
func shortMemberID(x *exchange, instead string) (uint64, error) {
	if x.arg == "" {
		return 0, checkKey(x.arg)
	}
	id, err := strconv.ParseUint(x.arg, 0, 64)
	if err != nil {
		return 0, badRequest("%s of /{id} changes the membership, and %.200q is not a member id; for a key use %s", x.r.Method, x.arg, instead)
	}
	return id, checkMemberID(id)
}

// addShort answers POST /{id}, whose body is a peer URL: it adds a member, as a learner
// that is promoted once it has caught up.
func (s *Server) addShort(x *exchange) error {
	id, err := shortMemberID(x, "POST /v1/kv"+shownPath(x.r)+"?append")
	if err != nil {
		return err
	}
	body, err := x.readBody(maxDocument, "")
	if err != nil {
		return err
	}
	m := api.NewMember{ID: id, PeerURLs: []string{strings.TrimSpace(string(body))}}
	if err := normalizeURLs("the body", &m.PeerURLs); err != nil {
		return err
	}
	ctx, cancel, err := x.signedContext()
	if err != nil {
		return err
	}
	defer cancel()
	if _, err := s.opts.Members.AddMember(ctx, m); err != nil {
		return err
	}
	x.markReplayed()
	x.WriteHeader(http.StatusNoContent)
	return nil
}

// removeShort answers DELETE /{id}: it removes a member, which then shuts itself down.
func (s *Server) removeShort(x *exchange) error {
	id, err := shortMemberID(x, "DELETE /v1/kv"+shownPath(x.r))
	if err != nil {
		return err
	}
	return s.remove(x, id)
}

// shownPath returns the path for a message: escaped, and shortened if it is very long.
func shownPath(r *http.Request) string {
	path := r.URL.EscapedPath()
	return path[:min(len(path), 400)]
}
