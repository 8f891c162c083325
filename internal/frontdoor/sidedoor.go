package frontdoor

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/connlimit"
	"github.com/kvd-io/kvd/internal/http1"
	"github.com/kvd-io/kvd/internal/httpapi"
	"github.com/kvd-io/kvd/internal/link"
	"github.com/kvd-io/kvd/internal/settings"
)

// SideCloseTimeout bounds the last answers of the side door in a stop. They
// come after everything else, within the ten seconds that supervisors give.
const SideCloseTimeout = 300 * time.Millisecond

// sideConnections are enough for a few scrapers, probes and a person.
const sideConnections = 64

// SideDoor serves --listen-metrics: metrics and probes for machines that must
// not reach the data, and profiles if asked for. It closes last (I5).
type SideDoor struct {
	log       *zap.Logger
	listeners []net.Listener
	server    *http1.Server  // nil until Open
	serving   sync.WaitGroup // one goroutine for each listener; Close waits for them
}

// ListenSide binds the addresses for metrics; there may be none.
func ListenSide(s *settings.Settings, log *zap.Logger) (*SideDoor, error) {
	all, err := listenAll(s.ListenMetrics, originOf(s, "listen-metrics"), func(string, string) {})
	if err != nil {
		return nil, err
	}
	places := connlimit.New(sideConnections)
	d := &SideDoor{log: log}
	for _, l := range all {
		d.listeners = append(d.listeners, connlimit.Listen(l, places, func() {}))
	}
	return d, nil
}

// Open begins to serve the routes that machines ask for, answered by the
// handler for clients, and profiles.
func (d *SideDoor) Open(clients http.Handler, profiles bool) {
	whole := httpapi.NewServer(SideHandler(clients, profiles), d.log)
	whole.ConnContext = link.Label
	new(newcomers).watch(whole)
	// net/http serves everything. What it refuses before a handler sees it gets the
	// same document here as from the front door.
	none := func(string, string) bool { return false }
	d.server = http1.New(whole, none, none)
	d.server.Refusal = httpapi.Malformed
	for _, l := range d.listeners {
		d.serving.Go(func() {
			if err := d.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				d.log.Error("metrics listener failed", zap.Stringer("address", l.Addr()), zap.Error(err))
			}
		})
	}
}

// Close ends the side door and gives its addresses back.
func (d *SideDoor) Close() error {
	if d.server == nil {
		return closeAll(d.listeners)
	}
	ctx, cancel := context.WithTimeout(context.Background(), SideCloseTimeout)
	defer cancel()
	err := d.server.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = d.server.Close() // cuts off clients that are still reading
	}
	d.serving.Wait()
	return err
}

// SideHandler lets a few routes of the handler for clients through.
func SideHandler(clients http.Handler, profiles bool) http.Handler {
	var profiler http.Handler
	if profiles {
		profiler = profileHandler()
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.EscapedPath()
		switch {
		case forMachines(path):
			clients.ServeHTTP(w, r)
		case profiler != nil && strings.HasPrefix(path, "/debug/pprof/"):
			profiler.ServeHTTP(w, r)
		default:
			httpapi.WriteProblem(w, &api.Error{
				Code: api.NotFound,
				Detail: "this listener serves /metrics, /livez, /readyz, /healthz, and /version, " +
					"and /debug/pprof/ with --pprof=on; data is served on --listen-client",
			})
		}
	})
}

// profileHandler uses a mux of its own: net/http/pprof registers itself with
// the default one, which kvd does not serve.
func profileHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}
