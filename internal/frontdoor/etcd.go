package frontdoor

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/certs"
	"github.com/kvd-io/kvd/internal/etcdapi"
	"github.com/kvd-io/kvd/internal/httpapi"
	"github.com/kvd-io/kvd/internal/settings"
)

// maxSharedStreams bounds the streams of a connection of HTTP/2 that may carry gRPC. With
// gRPC's own transport they have no such bound.
const maxSharedStreams = 10_000

// EtcdDoor serves clients of etcd on --listen-etcd: gRPC, and HTTP for its gateway. It
// goes through the states of a Door, whose places its connections take. Its methods are
// for one goroutine, and a nil EtcdDoor, of a node without such clients, does nothing.
type EtcdDoor struct {
	log       *zap.Logger
	limit     *connectionLimit
	listeners []net.Listener
	server    *etcdapi.Server
	web       *http.Server
	serving   sync.WaitGroup
}

// ListenEtcd binds the addresses for clients of etcd, and returns nil if there are none.
// The connections count against the limit of the door.
func (d *Door) ListenEtcd(s *settings.Settings, bundle *certs.Bundle) (*EtcdDoor, error) {
	if len(s.ListenEtcd) == 0 {
		return nil, nil
	}
	all, err := listenAll(s.ListenEtcd, "set by "+s.Given["listen-etcd"].Origin, func(wanted, got string) {
		if !s.Has("advertise-etcd") {
			replaceURL(s.AdvertiseEtcd, wanted, got)
		}
	})
	if err != nil {
		return nil, err
	}
	e := &EtcdDoor{log: d.log, limit: d.limit}
	for i, l := range all {
		if l = d.limit.wrap(l); strings.HasPrefix(s.ListenEtcd[i], "https:") {
			l = bundle.Listen(l)
		}
		e.listeners = append(e.listeners, l)
	}
	return e, nil
}

// Serve passes calls to the server and other requests to web. Calls of gRPC are let in
// once the server is open. The returned channel reports a listener that failed.
func (e *EtcdDoor) Serve(server *etcdapi.Server, web http.Handler) (failed <-chan error) {
	if e == nil {
		return nil
	}
	e.server, e.web = server, httpapi.NewServer(e.limit.guard(web), e.log)
	e.web.ConnContext = e.limit.mark
	new(newcomers).watch(e.web)
	// Each watch of a client of gRPC that came this way is a stream.
	e.web.HTTP2.MaxConcurrentStreams = maxSharedStreams
	port := etcdapi.NewPort(server, e.web)
	port.Refuse = isExtra
	ended := make(chan error, 1)
	e.serving.Go(func() {
		if err := port.Serve(e.listeners); err != nil {
			ended <- err
		}
	})
	return ended
}

// SendAway makes clients go elsewhere: the listeners are closed, streams end, and
// connections of gRPC are told to begin no further call.
func (e *EtcdDoor) SendAway() error {
	if e == nil {
		return nil
	}
	err := e.Close()
	e.server.SendAway()
	e.serving.Go(e.server.FinishCalls)
	return err
}

// Finish waits for the calls and requests in progress, up to the limit.
func (e *EtcdDoor) Finish(limit time.Duration) {
	if e == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := e.web.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		e.log.Warn("failed to close connections of etcd clients", zap.Error(err))
	}
	finished := make(chan struct{})
	go func() {
		e.serving.Wait()
		close(finished)
	}()
	select {
	case <-finished:
	case <-ctx.Done():
	}
}

// Cut is Finish, after which the connections that are left are closed.
func (e *EtcdDoor) Cut(limit time.Duration) {
	if e == nil {
		return
	}
	_ = e.Close() // a node that ends by itself sends nobody away
	e.Finish(limit)
	_ = e.web.Close() // they are cut off
	e.server.Stop()
	e.serving.Wait()
}

// Close gives the addresses back. Connections stay.
func (e *EtcdDoor) Close() error {
	if e == nil {
		return nil
	}
	return closeAll(e.listeners)
}
