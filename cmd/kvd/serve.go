package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/node"
)

// The parts of a stop, each with its limit. Together they stay below the ten
// seconds after which supervisors kill.
const (
	drainTimeout  = 2 * time.Second // handing leadership over
	finishTimeout = 3 * time.Second // requests in work
	closeTimeout  = 4 * time.Second // the node's own loops
)

// daemon is one serving node with its client listener.
type daemon struct {
	settings *settings
	log      *zap.Logger
	exit     func(code int)
	version  api.Version
	listener net.Listener
	node     *node.Node
	gate     *gate
	server   *http.Server
	metrics  http.Handler
	observer httpapi.Observer
}

// serve runs a node until a signal, its removal from the cluster, or a
// failure.
func serve(s *settings, e environment) error {
	// A reader of the log that goes away must not take the node with it.
	signal.Ignore(syscall.SIGPIPE)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	log, sink := newLogger(e.stderr, s.logLevel, s.logFormat)
	defer sink.Close()
	d, err := newDaemon(s, e, log, sink)
	if err != nil {
		return err
	}
	return d.run(signals)
}

// newDaemon takes the client port and checks the settings of the node.
func newDaemon(s *settings, e environment, log *zap.Logger, sink *logSink) (*daemon, error) {
	l, err := listenForClients(s)
	if err != nil {
		return nil, err
	}
	d := &daemon{settings: s, log: log, exit: e.exit, version: buildVersion(), listener: l}
	if err := d.assemble(sink); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return d, nil
}

func (d *daemon) assemble(sink *logSink) (err error) {
	if d.node, err = node.New(nodeConfig(d.settings, d.log, d.version)); err != nil {
		return err
	}
	d.metrics, d.observer, err = newMetrics(d.version, d.node, sink.Dropped)
	if err != nil {
		return err
	}
	d.gate = newGate(d.version, d.metrics, d.node.Checks)
	d.server = httpapi.NewServer(d.gate, d.log)
	new(newcomers).watch(d.server)
	return nil
}

// listenForClients binds the client port, and writes the one that it got into
// the settings where any would do (port 0).
func listenForClients(s *settings) (net.Listener, error) {
	u, err := url.Parse(s.listenClient)
	if err != nil {
		return nil, usageError{err}
	}
	l, err := net.Listen("tcp", u.Host)
	if err != nil {
		return nil, fmt.Errorf("cannot serve clients on %s, which is %s: %w", u.Host, s.originOfClient(), err)
	}
	if u.Port() == "0" {
		s.listenClient = "http://" + l.Addr().String()
		if !s.has("advertise-client") && len(s.advertiseClient) > 0 {
			s.advertiseClient = []string{s.listenClient}
		}
	}
	return l, nil
}

// originOfClient says who chose the client port.
func (s *settings) originOfClient() string {
	for _, name := range []string{"port", "listen-client"} {
		if g, ok := s.given[name]; ok {
			return "set by the " + g.origin
		}
	}
	return "the default (--listen-client or --port choose another)"
}

func nodeConfig(s *settings, log *zap.Logger, v api.Version) node.Config {
	cfg := node.Config{
		ID: s.id, Name: s.name, DataDir: s.dataDir, Engine: s.engine,
		ListenPeer: s.listenPeer, AdvertisePeer: s.advertisePeer, AdvertiseClient: s.advertiseClient,
		Token: s.token, Join: s.join, JoinURLs: s.joinURLs,
		TickInterval: s.heartbeat, ElectionTicks: s.electionTicks(),
		CheckpointBytes: s.checkpointBytes, CatchUpBytes: int(s.catchUpBytes),
		Logger: log, Version: v,
	}
	for i, u := range s.cluster {
		cfg.Initial = append(cfg.Initial, node.Peer{ID: uint64(i + 1), Name: fmt.Sprintf("kvd%d", i+1), URL: u})
	}
	cfg.Settings = kvstore.DefaultSettings()
	cfg.Settings.MaxValueBytes = s.maxValueBytes
	cfg.Settings.QuotaBytes = s.quotaBytes
	return cfg
}

// run serves until something ends it.
func (d *daemon) run(signals <-chan os.Signal) error {
	d.logStart()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended, failed := make(chan error, 1), make(chan error, 1)
	go func() { ended <- d.node.Run(ctx) }()
	go func() { failed <- d.server.Serve(d.listener) }()
	ready := d.node.Ready()
	for {
		select {
		case <-ready:
			ready = nil
			d.open()
		case sig := <-signals:
			if d.ignores(sig) {
				continue
			}
			d.log.Info("stopping", zap.Stringer("signal", sig))
			defer d.exitOnSecond(signals)()
			d.drain()
			cancel()
			return d.wait(ended)
		case err := <-ended:
			d.gate.shut()
			d.finishRequests()
			return err
		case err := <-failed:
			cancel()
			return errors.Join(fmt.Errorf("serve clients: %w", err), d.wait(ended))
		}
	}
}

func (d *daemon) logStart() {
	s := d.settings
	var changed []string
	for i := range table {
		if s.has(table[i].name) {
			changed = append(changed, s.describe(table[i].name))
		}
	}
	d.log.Info("kvd starts", zap.String("version", d.version.Version), zap.Uint64("id", s.id), zap.String("name", s.name),
		zap.String("data_dir", s.dataDir), zap.String("engine", s.engine), zap.Int("pid", os.Getpid()), zap.Strings("settings_given", changed))
	if len(s.advertiseClient) == 0 {
		d.log.Warn("no client URL to tell others: --listen-client is for all addresses of this machine; say with --advertise-client which one they can use",
			zap.String("listen_client", s.listenClient))
	}
}

// open lets requests through.
func (d *daemon) open() {
	d.gate.open(httpapi.New(httpapi.Options{
		Store: d.node.Store(), Replicator: d.node, Cluster: d.node, Health: d.node,
		Logger: d.log, Metrics: d.metrics, Observer: d.observer,
		Version: d.version, RootMembers: d.settings.rootMembers,
	}))
	d.log.Info("ready to serve client requests", zap.Uint64("id", d.node.ID()),
		zap.String("client_url", d.settings.listenClient), zap.String("peer_url", d.settings.listenPeer))
}

// ignores swallows signals that do not end the node.
func (d *daemon) ignores(sig os.Signal) bool {
	if sig != syscall.SIGHUP {
		return false
	}
	d.log.Info("SIGHUP is ignored: this version has nothing to reload")
	return true
}

// exitOnSecond ends the process at once for whoever cannot wait for the stop.
// The returned function ends the watch.
func (d *daemon) exitOnSecond(signals <-chan os.Signal) (end func()) {
	stopped := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-stopped:
				return
			case sig := <-signals:
				if !d.ignores(sig) {
					d.log.Error("second signal: exiting without a clean stop", zap.Stringer("signal", sig))
					d.exit(exitFailed)
				}
			}
		}
	})
	return func() { close(stopped); watch.Wait() }
}

// drain brings this node out of the way politely: leadership is handed over,
// and the requests in work are finished.
func (d *daemon) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	d.node.Drain(ctx)
	d.finishRequests()
}

// finishRequests lets the requests in work end, and cuts those that take too
// long. No new connection is taken.
func (d *daemon) finishRequests() {
	ctx, cancel := context.WithTimeout(context.Background(), finishTimeout)
	defer cancel()
	if err := d.server.Shutdown(ctx); err != nil {
		d.log.Warn("requests were cut off", zap.Error(errors.Join(err, d.server.Close())))
	}
}

// wait returns how the node ended, after it was told to.
func (d *daemon) wait(ended <-chan error) error {
	select {
	case err := <-ended:
		if err == nil || errors.Is(err, context.Canceled) {
			d.log.Info("stopped")
			return nil
		}
		return err
	case <-time.After(closeTimeout):
		return fmt.Errorf("the node did not stop within %v", closeTimeout)
	}
}
