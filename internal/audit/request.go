package audit

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"strings"
	"sync/atomic"
	"unicode"
	"unicode/utf8"

	"github.com/kvd-io/kvd/internal/access"
	"github.com/kvd-io/kvd/internal/api"
)

// The faces.
const (
	FaceHTTP = "http"
	FaceEtcd = "etcd"
)

// Subject identifies a request.
type Subject struct {
	// RequestID names the request in the log and in its answer; empty to make one up.
	RequestID string
	Face      string
	Operation string // the route with its method, or the RPC
	Caller    *access.Caller
	// Client is where the request came from, if there is no caller.
	Client string
}

// Request records what one request does. Its methods may be called from any goroutine,
// and on nil, which records nothing.
type Request struct {
	log      *Log
	subject  Subject
	caller   atomic.Pointer[access.Caller]
	noted    atomic.Pointer[error]
	target   atomic.Pointer[string]
	intended atomic.Bool // its intent is in the log
	recorded atomic.Bool // a command of it is in the log
}

// Begin returns the Request to record; nil if the log is nil.
func (l *Log) Begin(s Subject) *Request {
	if l == nil {
		return nil
	}
	if s.RequestID == "" {
		var b [8]byte
		_, _ = rand.Read(b[:]) // crypto/rand never fails since Go 1.24
		s.RequestID = hex.EncodeToString(b[:])
	}
	r := &Request{log: l, subject: s}
	r.caller.Store(s.Caller)
	return r
}

// ID returns the request id; empty if nothing is recorded.
func (r *Request) ID() string {
	if r == nil {
		return ""
	}
	return r.subject.RequestID
}

// By sets the caller, once it is known. It may be nil.
func (r *Request) By(c *access.Caller) {
	if r != nil && c != nil {
		r.caller.Store(c)
	}
}

// About sets the target of an administrative request, if its path does not name it.
func (r *Request) About(target string) {
	if r != nil {
		r.target.Store(&target)
	}
}

// Note keeps a refusal whose face turns it into an error that says less. It is told if the
// request ends with an error.
func (r *Request) Note(err error) {
	if r != nil && err != nil {
		r.noted.Store(&err)
	}
}

// RefusedAsNoted records the last refusal that was noted, of a request that goes on.
func (r *Request) RefusedAsNoted() {
	if r == nil {
		return
	}
	if noted := r.noted.Swap(nil); noted != nil {
		r.Refused(*noted, "")
	}
}

type requestKey struct{}

// NewContext returns a context for what the request does.
func NewContext(ctx context.Context, r *Request) context.Context {
	if r == nil {
		return ctx
	}
	return context.WithValue(ctx, requestKey{}, r)
}

// FromContext returns the request of a context, or nil.
func FromContext(ctx context.Context) *Request {
	r, _ := ctx.Value(requestKey{}).(*Request)
	return r
}

// line returns what the lines of the request have in common.
func (r *Request) line() line {
	s := &r.subject
	ln := line{RequestID: s.RequestID, Face: s.Face, Client: s.Client, Operation: s.Operation}
	if c := r.caller.Load(); c != nil {
		ln.Client, ln.User, ln.Proof, ln.TokenID = cmp.Or(c.Address, s.Client), c.User, string(c.Proof), c.TokenID
		ln.Claimed = readable(c.Claimed)
	}
	if ln.Client == "@" { // how package net names the other end of a Unix socket
		ln.Client = "unix"
	}
	if ln.Proof == "" {
		ln.Proof = "none"
	}
	return ln
}

// Intend records that an administrative request is about to be carried out, if the log is
// strict. If it returns an error, the request must not be carried out.
func (r *Request) Intend(ctx context.Context, target string) error {
	if r == nil || !r.log.opts.Strict {
		return nil
	}
	ln := r.line()
	ln.Target, ln.Outcome = clip(target), outcomeIntent
	if err := r.log.sink.putAll(ctx, [][]byte{r.log.encode(&ln)}); err != nil {
		return unrecorded(err)
	}
	r.intended.Store(true)
	return nil
}

// unrecorded returns the refusal of a request that cannot be recorded.
func unrecorded(why error) error {
	return api.Errorf(api.AuditFailed, "the audit log of this node cannot be written (%v), and --audit-strict is on; nothing was done; make room for the log, or use another node", why)
}

// Ending is how a request ended, apart from its commands.
type Ending struct {
	// Err is why it failed or was refused.
	Err error
	// Outcome and Refused describe the error if Err is not an *api.Error.
	Outcome string
	Refused bool
	// Administrative says that it is recorded even if it changed nothing.
	Administrative bool
	// Target is what an administrative request is about, for example "member 3".
	Target string
}

// End records a refusal, or an administrative request, unless its commands were.
func (r *Request) End(e Ending) {
	if r == nil {
		return
	}
	if noted := r.noted.Load(); noted != nil && e.Err != nil {
		e.Err = *noted
	}
	code, refused, known := outcomeOf(e.Err)
	if !known {
		code, refused = cmp.Or(e.Outcome, code), e.Refused
	}
	if about := r.target.Load(); about != nil {
		e.Target = *about
	}
	if r.recorded.Load() || !refused && !r.intended.Load() && (!e.Administrative || code == string(api.AuditFailed)) {
		return
	}
	r.write(e.Err, code, e.Target)
}

// maxTargetBytes bounds the target in a line, which clients choose.
const maxTargetBytes = 512

// maxClaimedBytes bounds the name that a refused client gave itself.
const maxClaimedBytes = 128

// readable returns what a line shows of a name that a stranger has sent: so much of it, and
// no bytes that move a terminal's cursor or hide others.
func readable(name string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, name[:min(len(name), maxClaimedBytes)])
}

func clip(target string) string { return target[:min(len(target), maxTargetBytes)] }

// Refused records that part of the request was refused.
func (r *Request) Refused(err error, target string) {
	if r != nil {
		code, _, _ := outcomeOf(err)
		r.write(err, code, target)
	}
}

func (r *Request) write(err error, outcome, target string) {
	ln := r.line()
	ln.Outcome, ln.Target = outcome, clip(target)
	if need, ok := access.NeedOf(err); ok {
		ln.Missing = string(need.Capability)
		if need.Access != 0 {
			ln.Missing = need.Access.String()
			ln.Keys, ln.KeysOmitted = r.log.names([]span{{need.Space, need.Range}})
		}
	}
	_ = r.log.sink.put(r.log.encode(&ln), nil) // lost lines are counted
}

// outcomeOf returns the word for an error, whether it is a refusal, and whether its code is
// known.
func outcomeOf(err error) (outcome string, refused, known bool) {
	var e *api.Error
	switch {
	case err == nil:
		return outcomeOK, false, true
	case !errors.As(err, &e):
		return string(api.Internal), false, false
	}
	switch e.Code {
	case api.Unauthenticated, api.PermissionDenied, api.CrossOrigin, api.TLSRequired:
		return string(e.Code), true, true
	}
	return string(e.Code), false, true
}
