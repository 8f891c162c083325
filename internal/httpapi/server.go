package httpapi

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/access"
	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/audit"
	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/httpapi/batch"
	"github.com/kvd-io/kvd/internal/httpapi/browser"
	"github.com/kvd-io/kvd/internal/httpapi/dialect"
	"github.com/kvd-io/kvd/internal/httpapi/door"
	"github.com/kvd-io/kvd/internal/httpapi/param"
	"github.com/kvd-io/kvd/internal/httpapi/reply"
	"github.com/kvd-io/kvd/internal/httpapi/ui"
	"github.com/kvd-io/kvd/internal/pace"
)

// DefaultMaxInFlight is how many requests are handled at once by default.
const DefaultMaxInFlight = 4096

// Options configure a Server. Those without a word about nil are required.
type Options struct {
	Store        Store
	Transactions Transactions
	Replicator   Replicator
	Members      Members
	Leadership   Leadership
	Health       Health
	Inspector    Inspector
	Watches      Watches
	Leases       Leases
	Locks        Locks
	LeaseTimes   LeaseTimes
	// Gate knows the users, and who may do what; nil means that rights are disabled.
	Gate *access.Gate
	// Newcomers may be nil unless Dialects has raftd.
	Newcomers Newcomers

	// Audit records changes, refusals, and administrative requests; may be nil.
	Audit *audit.Log
	// AuthMetrics keeps /metrics for users while rights are enabled.
	AuthMetrics bool
	// Logger receives what an operator should look at; nil discards it.
	Logger *zap.Logger
	// Metrics answers /metrics; nil means 404.
	Metrics http.Handler
	// Observer is told about every request; may be nil.
	Observer Observer
	// Version is the answer of /version.
	Version api.Version
	// LogLevel answers /v1/operator/log-level; nil means 404.
	LogLevel LogLevel
	// RequestLog selects the requests that Logger receives: RequestLogErrors,
	// RequestLogAll, or "off" or "" for none.
	RequestLog string
	// WatchProgress is the longest time that a watch is silent; 0 means
	// feed.DefaultProgress.
	WatchProgress time.Duration
	// RootMembers allows POST and DELETE of /{id} to change the membership.
	RootMembers bool
	// Dialects are the older systems whose routes are served (package dialect); nil
	// means raftexample alone, whose routes are the short form.
	Dialects []string
	// UI is what is served at /ui/: ui.Read, ui.On, or ui.Off or "" for nothing. With
	// ui.Read, the changes of all web pages are refused.
	UI string
	// Hosts are the names by which clients reach this node, besides IP addresses
	// and localhost. On a loopback address, requests
	// for other names are refused, elsewhere those of browsers.
	Hosts []string
	// MaxInFlight is how many requests are handled at once, not counting probes.
	// Others wait for a moment and are then refused. 0 means DefaultMaxInFlight.
	MaxInFlight int
	// Memory bounds what bodies and answers hold. nil means one of budget.Default
	// for a process without a memory limit.
	Memory *budget.Budget
}

// Server answers the requests of clients. It is an http.Handler, safe for concurrent
// use, and starts no goroutine that outlives its request.
type Server struct {
	opts      Options
	log       *zap.Logger
	router    *router
	browsers  *browser.Guard
	places    *budget.Places // for requests that are being handled
	snapshots *budget.Places // for backups that are being sent
	page      *ui.Page       // nil if there is none
	deadlines pace.Deadlines
	// watching is what the streams of watches may hold of Options.Memory.
	watching *budget.Share
	// turns are those of the streams of operations.
	turns batch.Turns
	// counting holds a token for the range delete that counts its many keys.
	counting chan struct{}
	// lockWaiters counts the requests that wait for a lock.
	lockWaiters atomic.Int64
	// waits ends with SendAway, and with it the requests that wait for a lock.
	waits    context.Context
	endWaits context.CancelFunc
	// refusal answers every request that needs the node; nil if the node serves.
	refusal *api.Error
}

// NewStandby returns the Server of a node that does not serve yet, or no longer. It
// answers probes, metrics and the version just as a Server by New does, and
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
	if opts.Memory == nil {
		opts.Memory = budget.New(budget.Default(0))
	}
	if opts.Dialects == nil {
		opts.Dialects = []string{dialect.Raftexample}
	}
	s := &Server{
		opts: opts, log: opts.Logger, router: newRouter(&opts), browsers: browser.New(opts.Hosts, opts.UI == ui.Read),
		places: budget.NewPlaces(opts.MaxInFlight), snapshots: budget.NewPlaces(maxSnapshots), page: ui.Open(opts.UI),
		watching: opts.Memory.Share(), turns: batch.NewTurns(), counting: make(chan struct{}, 1),
	}
	s.waits, s.endWaits = context.WithCancel(context.Background())
	if opts.Observer != nil {
		s.router.observe(opts.Observer)
	}
	return s
}

// SendAway ends the requests that wait for a lock, so that their clients wait
// elsewhere. All others are answered as before.
func (s *Server) SendAway() { s.endWaits() }

// InFlight returns the number of requests that are being handled, not counting
// probes.
func (s *Server) InFlight() int { return s.places.Taken() }

// exchange is one request and its answer. It is the ResponseWriter that handlers
// write to, so that the status is known afterwards. The goroutine of the request
// owns it.
type exchange struct {
	w      http.ResponseWriter
	r      *http.Request
	srv    *Server
	route  *route
	query  param.Query
	once   *once  // nil for a request that may take effect each time it is sent
	arg    string // the route's parameter, decoded
	status int    // 0 until the header has been written
	id     string // request id, made when it is first needed
	visit  door.Visit
	body   bodyState
	in     int64     // bytes read of the request's body
	out    int64     // bytes written of the answer's body
	start  time.Time // zero if nobody measures the request
	timing *timing   // nil if the client did not ask for it
	held   holdings
	// deadline is when the request times out; zero until startTimeout.
	deadline time.Time
	// singles backs the one-element values of the header map, which saves an
	// allocation for each.
	singles [4]string
	used    int
}

// Header implements http.ResponseWriter.
func (x *exchange) Header() http.Header { return x.w.Header() }

// WriteHeader implements http.ResponseWriter.
func (x *exchange) WriteHeader(status int) {
	if status >= http.StatusOK && status < http.StatusBadRequest {
		if err := x.visit.Unsettled(); err != nil {
			panic(err)
		}
	}
	if x.status == 0 && status >= http.StatusOK {
		x.status = status
	}
	x.w.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (x *exchange) Write(p []byte) (int, error) {
	if x.status == 0 {
		x.WriteHeader(http.StatusOK)
	}
	n, err := x.w.Write(p)
	x.out += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (x *exchange) Unwrap() http.ResponseWriter { return x.w }

// set sets a header to one value. The name must be in canonical form.
func (x *exchange) set(name, value string) {
	if x.used == len(x.singles) { // more headers than expected; correct, but slower
		x.Header()[name] = []string{value}
		return
	}
	x.singles[x.used] = value
	x.Header()[name] = x.singles[x.used : x.used+1 : x.used+1]
	x.used++
}

// requestID returns the name of this request in its answer and in the log.
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
	x := &exchange{w: w, r: r, srv: s, route: s.router.unmatched, visit: door.Visit{Gate: s.opts.Gate, Audit: s.opts.Audit}, held: holdings{places: s.places, memory: s.opts.Memory.Claim()}}
	if o := s.opts.Observer; o != nil {
		x.start = time.Now()
		o.Begin()
		defer func() { x.endpoint().End(x.status, time.Since(x.start)) }()
	}
	if s.opts.RequestLog == RequestLogErrors || s.opts.RequestLog == RequestLogAll {
		defer x.logRequest(time.Now())
	}
	// In this order: a panic is answered before the rest of the body is bounded.
	defer x.boundDrain()
	defer x.recover()
	err := s.serve(x)
	if x.visit.End(err); err != nil {
		x.fail(err)
	}
}

// serve finds the route and runs it.
func (s *Server) serve(x *exchange) error {
	rt, arg, err := s.router.find(x.r)
	if rt == nil {
		return err
	}
	// From here on the route is known to metrics and the log, also for a refusal.
	x.route, x.arg = rt, arg
	x.r = x.visit.Record(x.r, methodLabel(x.r.Method), rt.pattern, arg, x.requestID)
	if err := s.browsers.Refuse(x.r); err != nil {
		return err
	}
	return x.dispatch()
}

// dispatch checks what all methods have in common, waits for a place, and calls the
// handler.
func (x *exchange) dispatch() error {
	// Before anything else is checked: whether a request is valid is of no interest
	// to a client that has to go elsewhere.
	if refusal := x.srv.refusal; refusal != nil && !x.route.standby {
		return refusal
	}
	m := x.route.method(x.r.Method)
	if m == nil {
		return x.wrongMethod()
	}
	var err error
	if x.r, err = x.visit.Admit(x.r, m.who); err != nil {
		return err
	}
	if m.mutates {
		if x.once, err = parseOnce(x.r.Header, m); err != nil {
			return err
		}
	}
	if m.unconditional {
		if err := param.RefuseConditions(x.r.Header, "send this request without If-Match and If-None-Match"); err != nil {
			return err
		}
	}
	if !m.anyQuery {
		if err := x.query.Parse(x.r.URL.RawQuery, m.params); err != nil {
			return err
		}
	}
	if err := x.parseTiming(); err != nil {
		return err
	}
	defer x.held.end()
	// A request with a body takes its place once the body has arrived (readBody).
	if !m.body || x.r.ContentLength == 0 {
		if err := x.held.enter(x); err != nil {
			return err
		}
	}
	return m.handle(x.srv, x)
}

// fail answers with the error, or closes the connection if the answer has begun
// (H4).
func (x *exchange) fail(err error) {
	p := reply.Problem(err)
	if bug := x.visit.Tells(p.Code); bug != nil {
		err, p = fmt.Errorf("%w: %w", bug, err), reply.Problem(bug)
	}
	if p.Code == api.Internal || reply.Status(p.Code) == http.StatusInternalServerError {
		x.srv.log.Error("request failed", x.logFields(err)...)
	}
	x.srv.rejected(p.Code)
	if x.status != 0 {
		panic(http.ErrAbortHandler)
	}
	x.writeProblem(p)
}

// recover answers 500 for a panic of the handler, so that a bug costs one request
// and not the node.
func (x *exchange) recover() {
	v := recover()
	if v == nil {
		return
	}
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(http.ErrAbortHandler)
	}
	fields := append(x.logFields(fmt.Errorf("panic: %v", v)), zap.ByteString("stack", debug.Stack()))
	x.srv.log.Error("panic in a handler", fields...)
	if x.status != 0 {
		panic(http.ErrAbortHandler)
	}
	x.writeProblem(api.Errorf(api.Internal, "the node failed to handle the request; its log has the cause under this request id"))
}

// methods are those that metrics and logs name. All others share the last place, so
// that a client cannot make up labels (H6).
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

// methodLabel returns the name of a method in metrics and logs.
func methodLabel(m string) string { return methods[methodIndex(m)] }

// endpoint returns who is told how this request ended.
func (x *exchange) endpoint() Endpoint { return x.route.endpoints[methodIndex(x.r.Method)] }
