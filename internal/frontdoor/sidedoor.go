package frontdoor

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi"
	"github.com/kvd-io/kvd/internal/settings"
)

// SideCloseTimeout is what the last answers on the side door may take in a
// stop. It comes after all the rest, within the same ten seconds.
const SideCloseTimeout = 300 * time.Millisecond

// sideConnections are as many as a few scrapers, probes and a person need.
const sideConnections = 64

// SideDoor serves --listen-metrics: metrics and probes for machines that must
// not reach the data, and profiles where asked for. It closes last, so that
// probes see the node leave.
type SideDoor struct {
	log       *zap.Logger
	Listeners []net.Listener
	server    *http.Server
	serving   sync.WaitGroup
}

// NewSideDoor binds the addresses; there may be none.
func NewSideDoor(s *settings.Settings, log *zap.Logger) (*SideDoor, error) {
	l, err := listenAll(s.ListenMetrics, originOf(s, "listen-metrics"), func(string, string) {})
	if err != nil {
		return nil, err
	}
	return &SideDoor{log: log, Listeners: l}, nil
}

// Open begins to serve: what of the client interface machines ask for, and
// profiles.
func (d *SideDoor) Open(clients http.Handler, profiles bool) {
	d.server = httpapi.NewServer(SideHandler(clients, profiles), d.log)
	new(Newcomers).Watch(d.server)
	for _, l := range d.Listeners {
		d.serving.Go(func() {
			if err := d.server.Serve(&fewConnections{Listener: l, limit: sideConnections}); !errors.Is(err, http.ErrServerClosed) {
				d.log.Error("metrics are no longer served", zap.Stringer("address", l.Addr()), zap.Error(err))
			}
		})
	}
}

// Close ends it, after everything else.
func (d *SideDoor) Close() {
	if d.server == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), SideCloseTimeout)
	defer cancel()
	if d.server.Shutdown(ctx) != nil {
		_ = d.server.Close() // whoever is still reading is cut off
	}
	d.serving.Wait()
}

// SideHandler is the handler of the side door.
func SideHandler(clients http.Handler, profiles bool) http.Handler {
	h := sideHandler{clients: clients}
	if profiles {
		h.profiles = profileHandler()
	}
	return h
}

// sideHandler lets a few routes of the client interface through.
type sideHandler struct {
	clients  http.Handler
	profiles http.Handler // nil: not served
}

// ServeHTTP implements http.Handler.
func (h sideHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.EscapedPath()
	switch {
	case forMachines(path):
		h.clients.ServeHTTP(w, r)
	case h.profiles != nil && strings.HasPrefix(path, "/debug/pprof/"):
		h.profiles.ServeHTTP(w, r)
	default:
		writeProblem(w, http.StatusNotFound, api.NotFound,
			"this listener has /metrics, /livez, /readyz, /healthz and /version, and with --pprof=on /debug/pprof/; data is on --listen-client")
	}
}

// profileHandler is a mux of its own: nothing serves the default one, in which
// net/http/pprof puts itself.
func profileHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// fewConnections closes what comes when its limit is reached.
type fewConnections struct {
	net.Listener
	limit int64
	open  atomic.Int64
}

// Accept implements net.Listener.
func (l *fewConnections) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= l.limit {
			return &oneOfFew{Conn: c, gone: func() { l.open.Add(-1) }}, nil
		}
		l.open.Add(-1)
		_ = c.Close() // nothing was said on it
	}
}

// oneOfFew makes room when it is closed.
type oneOfFew struct {
	net.Conn
	once sync.Once
	gone func()
}

// Close implements net.Conn.
func (c *oneOfFew) Close() error {
	c.once.Do(c.gone)
	return c.Conn.Close()
}
