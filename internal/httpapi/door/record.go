package door

import (
	"net/http"
	"strings"

	"github.com/kvd-io/kvd/internal/audit"
	"github.com/kvd-io/kvd/internal/link"
)

// Record begins the audit record of a request to a route, and returns the request with it in
// its context. id returns the request id.
func (v *Visit) Record(r *http.Request, method, pattern, arg string, id func() string) *http.Request {
	v.method, v.pattern = method, pattern
	if v.Audit == nil {
		return r
	}
	v.target = arg
	v.record = v.Audit.Begin(audit.Subject{RequestID: id(), Face: audit.FaceHTTP, Operation: method + " " + pattern, Client: r.RemoteAddr})
	return r.WithContext(audit.NewContext(r.Context(), v.record))
}

// End records the outcome of the request.
func (v *Visit) End(err error) {
	target := v.target
	if !v.administrative {
		target = "" // arg is a key, which the record has in keys
	}
	v.record.End(audit.Ending{Err: err, Administrative: v.administrative, Target: target})
}

// audited are the routes whose requests are recorded even if they change nothing, in
// addition to the routes that need a capability.
var audited = []string{"/v1/members", "/v1/settings", "/v1/users", "/v1/roles", "/v1/tokens", "/v1/auth"}

// administers reports whether a request is recorded even if it changes nothing.
func (v *Visit) administers(who Audience) bool {
	if v.record == nil {
		return false
	}
	if who.kind == rootOnly || who.kind == capable {
		return true
	}
	for _, prefix := range audited {
		if rest, ok := strings.CutPrefix(v.pattern, prefix); ok && (rest == "" || rest[0] == '/') {
			return rest != "/whoami"
		}
	}
	return false
}

// secretive are the routes, with their method, whose request or response has a password or
// token in it.
var secretive = map[string]string{
	"/v1/users/{name}": http.MethodPut, "/v1/tokens": http.MethodPost, "/v1/auth": http.MethodPut, "/v1/auth/login": http.MethodPost,
}

// shields refuses a request with secrets on an exposed connection.
func (v *Visit) shields(r *http.Request) error {
	return v.Gate.RefuseExposed(secretive[v.pattern] == v.method && link.From(r.Context()).Exposed)
}
