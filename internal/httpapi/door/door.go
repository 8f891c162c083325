// Package door holds a request of package httpapi until somebody has judged it: it finds
// out who sent it (package access), lets routes say whom they are for, and notes whether a
// judgment was made.
//
// Invariants:
//
//	O1  A method that says nothing is for root alone.
//	O2  While rights are enabled, no success leaves the server, and no error that says
//	    something about the state, unless somebody has judged the request (Unsettled). It
//	    is a second lock: a handler that forgets to ask fails, and shows nothing.
//	O3  What was read is judged once more before it is sent (Again). A node may be behind
//	    when a request arrives, and catch up for it: the data may then be newer than the
//	    rights by which the request was let in (TestReadBehindARevocation,
//	    TestAnswerBehindARevocation).
package door

import (
	"net/http"
	"strings"

	"github.com/kvd-io/kvd/internal/access"
	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/audit"
	"github.com/kvd-io/kvd/internal/httpapi/param"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/link"
	"github.com/kvd-io/kvd/internal/rights"
)

// Audience says who may use a route while rights are enabled. The zero value is root only
// (O1).
type Audience struct {
	kind       kind
	capability rights.Capability
}

type kind uint8

const (
	rootOnly kind = iota
	open
	judged
	user
	capable
)

var (
	// ForAll is every client. Credentials are ignored.
	ForAll = Audience{kind: open}
	// ForUsers is every authenticated user.
	ForUsers = Audience{kind: user}
	// ByHandler leaves the check to the handler, which knows the keys of a request.
	ByHandler = Audience{kind: judged}
)

// Having is every user with a capability.
func Having(c rights.Capability) Audience { return Audience{kind: capable, capability: c} }

// String names the audience.
func (a Audience) String() string {
	return [...]string{rootOnly: "root", open: "all", judged: "handler", user: "users", capable: "capability " + string(a.capability)}[a.kind]
}

// Visit is a request at the door. The zero value has not been let in. Only the caller and
// the gate may be used by other goroutines than that of the request.
type Visit struct {
	Gate   *access.Gate
	Caller access.Caller
	// Audit records the request; may be nil.
	Audit *audit.Log

	admitted, settled bool
	// need and command are what was judged last; the command if it is set.
	need            rights.Need
	command         *kvstore.Command
	method, pattern string
	record          *audit.Request
	administrative  bool
	target          string // of an administrative request
}

// Admit authenticates the request, authorizes it unless its route leaves that to the handler,
// and returns it with the caller in its context. If the audit log is strict, an
// administrative request is admitted only after its intent was recorded.
func (v *Visit) Admit(r *http.Request, who Audience) (*http.Request, error) {
	v.admitted, v.administrative = true, v.administers(who)
	err := v.shields(r)
	if err == nil {
		r, err = v.admit(r, who)
	}
	v.record.By(&v.Caller)
	if err == nil && v.administrative {
		err = v.record.Intend(r.Context(), v.target)
	}
	return r, err
}

func (v *Visit) admit(r *http.Request, who Audience) (*http.Request, error) {
	v.need.Capability = who.capability // Again judges it even if rights are disabled so far
	if who.kind == open || !v.Gate.Enabled() {
		v.Caller = access.Caller{Proof: access.Off, Address: r.RemoteAddr}
		if v.Gate.Enabled() {
			v.Caller.Proof = access.None
		}
		return r, v.Settle(nil)
	}
	lines := r.Header["Authorization"]
	if len(lines) > 1 || len(lines) == 1 && lines[0] == "" {
		return r, api.Errorf(api.BadRequest, "the header Authorization is empty, or given more than once; omit it, or give one token or password")
	}
	at := link.From(r.Context())
	cr := access.Credentials{TLS: r.TLS, SameUser: at.SameUser(), Exposed: at.Exposed, Address: r.RemoteAddr}
	if len(lines) == 1 {
		cr.Authorization = lines[0]
	}
	var err error
	if v.Caller, err = v.Gate.Identify(r.Context(), &cr); err != nil {
		return r, err
	}
	r = r.WithContext(access.NewContext(r.Context(), &v.Caller))
	switch who.kind {
	case judged:
		return r, nil
	case user, capable:
		return r, v.Again()
	}
	return r, v.Settle(v.Gate.CheckRoot(&v.Caller))
}

// Settle records that the rights for the request were checked, and returns the result.
func (v *Visit) Settle(refusal error) error {
	v.settled = true
	return refusal
}

// Need refuses the request unless its caller may do that.
func (v *Visit) Need(n rights.Need) error {
	v.need, v.command = n, nil
	return v.Settle(v.Gate.Check(&v.Caller, n))
}

// Again judges once more what was judged last. It is for what was read since (O3).
func (v *Visit) Again() error {
	if v.command != nil {
		return v.Permit(v.command)
	}
	return v.Need(v.need)
}

// NeedStill is Need for a stream that has begun. Its status was sent, so the refusal is
// recorded here.
func (v *Visit) NeedStill(n rights.Need) error { return v.recorded(v.Need(n)) }

// recorded records the refusal of a part of a request.
func (v *Visit) recorded(refusal error) error {
	if refusal != nil {
		v.record.Refused(refusal, "")
	}
	return refusal
}

// ReadsKey, ReadsRange and ReadsLock refuse a read of what the caller may not read.
func (v *Visit) ReadsKey(key string) error {
	return v.Need(rights.Need{Access: rights.Read, Range: rights.Single([]byte(key))})
}

// ReadsRange returns an error unless the caller may read all keys from start to before end.
// A nil end means that there is none.
func (v *Visit) ReadsRange(start, end []byte) error {
	return v.Need(rights.Need{Access: rights.Read, Range: rights.Range{Start: start, End: end}})
}

// ReadsLock returns an error unless the caller may see who holds a lock and who waits for it.
func (v *Visit) ReadsLock(name []byte) error {
	return v.Need(rights.Need{Access: rights.Read, Space: rights.Locks, Range: rights.Single(name)})
}

// ReadsLease returns an error unless the caller may read everything bound to a lease.
func (v *Visit) ReadsLease(id uint64) error {
	return v.Settle(v.Gate.CheckLease(&v.Caller, id, rights.Read))
}

// WritesLease returns an error unless the caller may write everything bound to a lease, as
// ending the lease or keeping it alive requires.
func (v *Visit) WritesLease(id uint64) error {
	return v.Settle(v.Gate.CheckLease(&v.Caller, id, rights.Write))
}

// After is Again for a read that may have failed: the failure comes first.
func (v *Visit) After(failed error) error {
	if failed != nil {
		return failed
	}
	return v.Again()
}

// Permit refuses a command that the caller may not have applied.
func (v *Visit) Permit(cmd *kvstore.Command) error {
	v.command = cmd
	return v.Settle(v.Gate.CheckCommand(&v.Caller, cmd))
}

// Sign writes the caller into a command, so that its rights are checked again when the
// command is applied.
func (v *Visit) Sign(cmd *kvstore.Command) {
	if o := v.Gate.Origin(&v.Caller); o.AuthRevision != 0 {
		cmd.Origin.Principal, cmd.Origin.AuthRevision = o.Principal, o.AuthRevision
	}
}

// Line is Permit and Sign for an operation in a stream. It may be called from any goroutine.
func (v *Visit) Line(cmd *kvstore.Command) error {
	v.Sign(cmd)
	return v.recorded(v.Gate.CheckCommand(&v.Caller, cmd))
}

// Unsettled returns the error to send instead of a success if rights were not checked, and
// nil if they were (O2).
func (v *Visit) Unsettled() error {
	if v.settled {
		return nil
	}
	return api.Errorf(api.Internal, "the node did not check whether this request is permitted, so it does not answer it; its log names the request")
}

// telling are the errors that reveal state.
var telling = map[api.Code]bool{
	api.KeyNotFound: true, api.LeaseNotFound: true, api.LockNotFound: true, api.MemberNotFound: true, api.MemberExists: true, api.LeaseExists: true,
	api.LockHeld: true, api.PreconditionFailed: true, api.RevisionCompacted: true, api.FutureRevision: true, api.IdempotencyMismatch: true,
}

// Tells is Unsettled for an error of an admitted request.
func (v *Visit) Tells(code api.Code) error {
	if v.admitted && telling[code] {
		return v.Unsettled()
	}
	return nil
}

// Challenge returns the header WWW-Authenticate of a 401. For a script in a web page it omits
// Basic, because the browser would open its own password dialog.
func Challenge(h http.Header) string {
	script := strings.HasPrefix(h.Get("User-Agent"), "Mozilla/") && !param.Prefers(h["Accept"], "text/html", "application/json")
	if script || h.Get("Sec-Fetch-Dest") == "empty" {
		return "Bearer"
	}
	return `Bearer, Basic realm="kvd"`
}
