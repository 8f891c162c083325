package frontdoor

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/certs"
	"github.com/kvd-io/kvd/internal/http1"
	"github.com/kvd-io/kvd/internal/httpapi"
	"github.com/kvd-io/kvd/internal/settings"
)

// Door serves clients on --listen-client. Its methods are for one goroutine,
// in the order that the package comment gives; requests run on goroutines of
// their own and share only the limit and the gate with it.
type Door struct {
	log   *zap.Logger
	limit *connectionLimit
	gate  *gate
	// plain and secure are the listeners without and with TLS.
	plain, secure []net.Listener
	// whole is net/http's server, and small reads connections in front of it.
	// TLS connections go to whole directly: it needs the *tls.Conn itself to
	// speak HTTP/2.
	whole *http.Server
	small *http1.Server
	// peerURLs are those that the node advertises to members.
	peerURLs []string
}

// Listen binds the addresses for clients. Where any port would do (port 0), it
// writes the one it got into the settings. The bundle may be nil if no URL
// asks for TLS.
func Listen(s *settings.Settings, bundle *certs.Bundle, log *zap.Logger) (*Door, error) {
	all, err := listenAll(s.ListenClient, originOf(s, "port", "listen-client"), advertised(s))
	if err != nil {
		return nil, err
	}
	d := &Door{log: log, limit: newConnectionLimit(s.MaxConnections, spareConnections), peerURLs: s.AdvertisePeer}
	for i, l := range all {
		l = d.limit.wrap(l)
		if strings.HasPrefix(s.ListenClient[i], "https:") {
			d.secure = append(d.secure, bundle.Listen(l))
			continue
		}
		d.plain = append(d.plain, l)
	}
	return d, nil
}

// Serve answers requests from now on: as a node that is starting, until Open.
// Of the options only Store and Transactions may be missing. The returned channel reports a
// listener that failed; it has room for all of them.
func (d *Door) Serve(opts httpapi.Options) (failed <-chan error) {
	if opts.Observer != nil {
		d.limit.rejected = opts.Observer.Rejected
	}
	d.gate = newGate(opts, d.peerURLs)
	d.whole = httpapi.NewServer(d.limit.guard(d.gate), d.log)
	d.whole.ConnContext = d.limit.mark
	new(newcomers).watch(d.whole)
	d.small = http1.New(d.whole, small, httpapi.Streams)
	d.small.Refusal = httpapi.Malformed
	ended := make(chan error, len(d.plain)+len(d.secure))
	for _, l := range d.plain {
		go func() { ended <- d.small.Serve(l) }()
	}
	for _, l := range d.secure {
		go func() { ended <- d.whole.Serve(l) }()
	}
	return ended
}

// small reports whether http1 serves a request. Those who probe a node keep a connection
// each for it, of which one of net/http would cost several times as much.
func small(method, target string) bool {
	path, _, _ := strings.Cut(target, "?")
	return httpapi.Small(method, target) || method == http.MethodGet && path != "/metrics" && forMachines(path)
}

// ServeHTTP answers a request as the listeners do, the limit on connections
// aside. The side door passes its requests on to it.
func (d *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) { d.gate.ServeHTTP(w, r) }

// Open lets requests through to the node, whose store it is.
func (d *Door) Open(store State) { d.gate.open(store) }

// Shut refuses requests from now on: the node behind the gate has ended.
func (d *Door) Shut() { d.gate.shut() }

// SendAway makes clients go elsewhere without cutting off a request. The
// listeners are closed before connections end with their next answer: a client
// that was sent away would otherwise come back, wait in the queue of a
// listener that is about to be closed, and see its connection reset.
func (d *Door) SendAway() error {
	err := d.Close()
	d.gate.lastAnswers()
	return err
}

// Finish waits for the requests in progress, up to the limit, and closes the
// connections that have none.
func (d *Door) Finish(limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	err := d.small.Shutdown(ctx)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, net.ErrClosed) {
		d.log.Warn("failed to close client connections", zap.Error(err))
	}
}

// Cut is Finish, after which the connections whose requests are still
// unanswered are closed too.
func (d *Door) Cut(limit time.Duration) {
	d.Finish(limit)
	if err := d.small.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		d.log.Warn("failed to close client connections", zap.Error(err))
	}
}

// Close gives the addresses back. Connections stay.
func (d *Door) Close() error {
	return errors.Join(closeAll(d.plain), closeAll(d.secure))
}
