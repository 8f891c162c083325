package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/http1"
	"github.com/kvd-io/kvd/internal/httpapi"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/node"
	"github.com/kvd-io/kvd/internal/settings"
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
	settings  *settings.Settings
	log       *zap.Logger
	exit      func(code int)
	version   api.Version
	listeners []net.Listener
	node      *node.Node
	gate      *gate
	server    *http1.Server
	metrics   http.Handler
	observer  httpapi.Observer
	side      *sideDoor
}

// serve runs a node until a signal, its removal from the cluster, or a
// failure.
func serve(s *settings.Settings, e environment) error {
	// A reader of the log that goes away must not take the node with it.
	signal.Ignore(syscall.SIGPIPE)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	log, sink := newLogger(e.stderr, s.LogLevel, s.LogFormat)
	defer sink.Close()
	d, err := newDaemon(s, e, log, sink)
	if err != nil {
		return err
	}
	defer d.side.close()
	return d.run(signals)
}

// newDaemon takes the ports for clients and metrics and checks the settings of the node.
func newDaemon(s *settings.Settings, e environment, log *zap.Logger, sink *logSink) (*daemon, error) {
	l, err := listenForClients(s)
	if err != nil {
		return nil, err
	}
	side, err := newSideDoor(s, log)
	if err != nil {
		return nil, errors.Join(err, closeAll(l))
	}
	d := &daemon{settings: s, log: log, exit: e.exit, version: buildVersion(), listeners: l, side: side}
	if err := d.assemble(sink); err != nil {
		return nil, errors.Join(err, closeAll(l), closeAll(side.listeners))
	}
	return d, nil
}

func (d *daemon) assemble(sink *logSink) (err error) {
	meters, err := newInstruments(d.version, sink.Dropped)
	if err != nil {
		return err
	}
	cfg := nodeConfig(d.settings, d.log, d.version)
	cfg.Observer = meters.loops
	if d.node, err = node.New(cfg); err != nil {
		return err
	}
	if err := meters.watch(d.node); err != nil {
		return err
	}
	d.metrics, d.observer = meters.handler(), meters.requests
	d.gate = newGate(d.version, d.metrics, d.node.Checks)
	whole := httpapi.NewServer(d.gate, d.log)
	new(newcomers).watch(whole)
	d.server = http1.New(whole, httpapi.Small)
	return nil
}

func nodeConfig(s *settings.Settings, log *zap.Logger, v api.Version) node.Config {
	cfg := node.Config{
		ID: s.ID, Name: s.Name, DataDir: s.DataDir, Engine: s.Engine,
		ListenPeer: s.ListenPeer, AdvertisePeer: s.AdvertisePeer, AdvertiseClient: s.AdvertiseClient,
		Token: s.ClusterToken, Join: s.Join, JoinURLs: s.JoinURLs,
		TickInterval: s.Heartbeat, ElectionTicks: s.ElectionTicks(),
		CheckpointBytes: s.CheckpointBytes, CatchUpBytes: int(s.CatchUpBytes),
		Logger: log, Version: v,
	}
	for i, m := range s.Cluster {
		name := m.Name
		if name == "" {
			name = fmt.Sprintf("kvd%d", i+1)
		}
		cfg.Initial = append(cfg.Initial, node.Peer{ID: uint64(i + 1), Name: name, URL: m.URL})
	}
	cfg.Settings = kvstore.DefaultSettings()
	cfg.Settings.MaxValueBytes = s.MaxValueBytes
	cfg.Settings.QuotaBytes = s.QuotaBytes
	return cfg
}

// run serves until something ends it.
func (d *daemon) run(signals <-chan os.Signal) error {
	d.logStart()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended, failed := make(chan error, 1), make(chan error, len(d.listeners))
	go func() { ended <- d.node.Run(ctx) }()
	d.side.open(d.gate, d.settings.Pprof)
	for _, l := range d.listeners {
		go func() { failed <- d.server.Serve(l) }()
	}
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
	d.log.Info("kvd starts", zap.String("version", d.version.Version), zap.Uint64("id", s.ID), zap.String("name", s.Name),
		zap.String("data_dir", s.DataDir), zap.String("engine", s.Engine), zap.Int("pid", os.Getpid()), zap.Strings("settings_given", s.Changed()))
	if len(s.AdvertiseClient) == 0 {
		d.log.Warn("no client URL to tell others: --listen-client has none that others could use; say with --advertise-client which one they can",
			zap.Strings("listen_client", s.ListenClient))
	}
}

// open lets requests through.
func (d *daemon) open() {
	d.gate.open(httpapi.New(httpapi.Options{
		Store: d.node.Store(), Replicator: d.node, Cluster: d.node, Health: d.node,
		Logger: d.log, Metrics: d.metrics, Observer: d.observer,
		Version: d.version, RootMembers: d.settings.RootMembers,
	}))
	d.log.Info("ready to serve client requests", zap.Uint64("id", d.node.ID()),
		zap.Strings("client_urls", d.settings.ListenClient), zap.Strings("metrics_urls", d.settings.ListenMetrics), zap.String("peer_url", d.settings.ListenPeer))
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
