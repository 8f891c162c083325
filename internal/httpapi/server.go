// Package httpapi is the HTTP contract of kvd: it turns requests into reads
// and commands, and their outcomes into answers.
//
// The way of a request: Server.ServeHTTP makes an exchange, finds its route
// on the escaped path (router), finds the method, parses the query against what
// the method accepts, takes or waits for a place among those in work
// (limiter), and calls the handler. A handler answers or returns an error; an error becomes a problem
// document in one place. What a handler needs of the node it reaches through
// the small interfaces in ports.go.
package httpapi

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/api"
)

// DefaultMaxInFlight bounds the requests in work at once. Each may hold one
// body, so it also bounds memory.
const DefaultMaxInFlight = 4096

// Options configure a Server. Those of the node are required.
type Options struct {
	Store      Store
	Replicator Replicator
	Members    Members
	Leadership Leadership
	Health     Health
	Inspector  Inspector

	// Logger gets what a person must look at; nil discards it.
	Logger *zap.Logger
	// Metrics answers /metrics; nil makes that 404.
	Metrics http.Handler
	// Observer hears of every request; nil for nobody.
	Observer Observer
	// Version is the answer of /version.
	Version api.Version
	// LogLevel answers /v1/operator/log-level; nil makes that 404.
	LogLevel LogLevel
	// RequestLog says which requests go to Logger: "off" or "" for none,
	// "errors", "all".
	RequestLog string
	// RootMembers lets POST and DELETE of /{id} change the membership.
	RootMembers bool
	// Hosts are the names by which clients reach this node, beside addresses
	// and localhost: requests to loopback for other names are refused.
	Hosts []string
	// MaxInFlight is the most requests in work at once, health probes aside;
	// others wait a moment and are then refused. 0 means DefaultMaxInFlight.
	MaxInFlight int
}

// Server answers requests of clients. It is an http.Handler, safe for
// concurrent use. It starts no goroutine that outlives its request.
type Server struct {
	opts      Options
	log       *zap.Logger
	router    *router
	browsers  *browserGuard
	limiter   *limiter
	deadlines deadlinePool
	// groups holds a token for each group of a batch that is on its way
	// through the log.
	groups chan struct{}
	// refusal answers every request that needs the node; nil while it serves.
	refusal *api.Error
}

// NewStandby returns the Server of a node that does not serve yet, or no
// longer: it answers probes, metrics and the version as New's Server does, and
// everything else with the refusal. Of the node it needs only Options.Health.
func NewStandby(opts Options, refusal *api.Error) *Server {
	s := New(opts)
	s.refusal = refusal
	return s
}

// New returns a Server.
func New(opts Options) *Server {
	if opts.Logger == nil {
		opts.Logger = zap.NewNop()
	}
	if opts.MaxInFlight == 0 {
		opts.MaxInFlight = DefaultMaxInFlight
	}
	s := &Server{opts: opts, log: opts.Logger, router: newRouter(opts.RootMembers), browsers: newBrowserGuard(opts.Hosts), limiter: newLimiter(opts.MaxInFlight), groups: make(chan struct{}, maxGroups)}
	if opts.Observer != nil {
		s.router.observe(opts.Observer)
	}
	return s
}

// InFlight is the number of requests in work, health probes aside.
func (s *Server) InFlight() int { return len(s.limiter.places) }

// exchange is one request with its answer. It is the ResponseWriter of its
// handler, so that the status is known afterwards. One goroutine owns it.
type exchange struct {
	w      http.ResponseWriter
	r      *http.Request
	srv    *Server
	route  *route
	query  query
	arg    string // what followed the route's prefix, decoded
	status int    // 0 until the header is written
	id     string // request id, made when first needed
	body   bodyState
	in     int64     // bytes of the body that were read
	out    int64     // bytes of the answer's body
	start  time.Time // of the request; zero where nobody measures
	timing *timing   // nil if the client did not ask for it
	// deadline is when the request runs out of time, once that is known.
	deadline time.Time
	// singles backs the one-element values of the header map, to save an
	// allocation each.
	singles [4]string
	used    int
}

// Header implements http.ResponseWriter.
func (x *exchange) Header() http.Header { return x.w.Header() }

// WriteHeader implements http.ResponseWriter.
func (x *exchange) WriteHeader(status int) {
	if x.status == 0 && status >= http.StatusOK {
		x.status = status
	}
	x.w.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (x *exchange) Write(p []byte) (int, error) {
	if x.status == 0 {
		x.status = http.StatusOK
	}
	n, err := x.w.Write(p)
	x.out += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (x *exchange) Unwrap() http.ResponseWriter { return x.w }

// set gives a header one value. The name must be in canonical form.
func (x *exchange) set(name, value string) {
	if x.used == len(x.singles) {
		x.Header()[name] = []string{value}
		return
	}
	x.singles[x.used] = value
	x.Header()[name] = x.singles[x.used : x.used+1 : x.used+1]
	x.used++
}

// requestID names this request in the answer and in the log.
func (x *exchange) requestID() string {
	if x.id == "" {
		var b [8]byte
		_, _ = rand.Read(b[:]) // crypto/rand never fails since Go 1.24
		x.id = hex.EncodeToString(b[:])
	}
	return x.id
}

func (x *exchange) logFields(err error) []zap.Field {
	return []zap.Field{
		zap.String("request_id", x.requestID()),
		zap.String("route", x.route.pattern),
		zap.String("method", methodLabel(x.r.Method)),
		zap.Error(err),
	}
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{w: w, r: r, srv: s, route: s.router.unmatched}
	if o := s.opts.Observer; o != nil {
		x.start = time.Now()
		o.Begin()
		defer func() { x.endpoint().End(x.status, time.Since(x.start)) }()
	}
	if s.opts.RequestLog == RequestLogErrors || s.opts.RequestLog == RequestLogAll {
		defer x.logRequest(time.Now())
	}
	defer x.boundDrain()
	defer x.recover()
	if err := s.serve(x); err != nil {
		x.fail(err)
	}
}

// serve finds the route and runs it.
func (s *Server) serve(x *exchange) error {
	rt, arg, err := s.router.find(x.r)
	if rt == nil {
		return err
	}
	x.route, x.arg = rt, arg
	if err := s.browsers.refuse(x.r); err != nil {
		return err
	}
	return x.dispatch()
}

// dispatch checks what all methods have in common and calls the handler, within
// the limit in flight.
func (x *exchange) dispatch() error {
	if refusal := x.srv.refusal; refusal != nil && !x.route.standby {
		return refusal
	}
	m := x.route.method(x.r.Method)
	if m == nil {
		return x.wrongMethod()
	}
	if m.mutates {
		if err := x.refuseIdempotency(); err != nil {
			return err
		}
	}
	if err := x.parseQuery(m); err != nil {
		return err
	}
	if x.route.exempt {
		return m.handle(x.srv, x)
	}
	if err := x.srv.limiter.enter(x); err != nil {
		return err
	}
	defer x.srv.limiter.leave()
	return m.handle(x.srv, x)
}

// refuseIdempotency refuses to take a key that would not be honoured: the
// client would repeat the request and trust it to take effect once.
func (x *exchange) refuseIdempotency() error {
	for _, name := range []string{"Idempotency-Key", "Idempotency-Release"} {
		if _, ok := x.r.Header[name]; ok {
			return badRequest("this version of kvd does not offer the header %s; send the request without it", name)
		}
	}
	return nil
}

// fail answers with the error, or breaks the connection where the answer has
// begun: a cut answer must not look whole.
func (x *exchange) fail(err error) {
	p := asProblem(err)
	if p.Code == api.Internal || statusOf(p.Code) == http.StatusInternalServerError {
		x.srv.log.Error("a request failed", x.logFields(err)...)
	}
	if o := x.srv.opts.Observer; o != nil {
		o.Rejected(p.Code)
	}
	if x.status != 0 {
		panic(http.ErrAbortHandler)
	}
	x.writeProblem(p)
}

// recover answers 500 for a panic of a handler, so that one request's bug
// ends with that request.
func (x *exchange) recover() {
	v := recover()
	if v == nil {
		return
	}
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(http.ErrAbortHandler)
	}
	fields := append(x.logFields(fmt.Errorf("panic: %v", v)), zap.ByteString("stack", debug.Stack()))
	x.srv.log.Error("a handler panicked", fields...)
	if x.status != 0 {
		panic(http.ErrAbortHandler)
	}
	x.writeProblem(api.Errorf(api.Internal, "a handler panicked; the node's log has it under this request id"))
}

// methods are those that metrics and logs name; others share a place behind
// them.
var methods = [...]string{
	http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete,
	http.MethodHead, http.MethodOptions, http.MethodPatch, "other",
}

func methodIndex(m string) int {
	for i, name := range methods[:len(methods)-1] {
		if name == m {
			return i
		}
	}
	return len(methods) - 1
}

// methodLabel keeps invented methods out of metrics and logs.
func methodLabel(m string) string { return methods[methodIndex(m)] }

// endpoint is who hears how this request ended.
func (x *exchange) endpoint() Endpoint { return x.route.endpoints[methodIndex(x.r.Method)] }
