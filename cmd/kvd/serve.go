package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/frontdoor"
	"github.com/kvd-io/kvd/internal/http1"
	"github.com/kvd-io/kvd/internal/httpapi"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/logsink"
	"github.com/kvd-io/kvd/internal/node"
	"github.com/kvd-io/kvd/internal/settings"
)

// daemon is one serving node with its client listener.
type daemon struct {
	settings  *settings.Settings
	limit     *frontdoor.ConnectionLimit
	log       *zap.Logger
	sink      *logsink.Sink
	level     *logsink.Level
	reload    reloading
	above     *supervisor
	exit      func(code int)
	version   api.Version
	listeners []net.Listener
	node      *node.Node
	gate      *frontdoor.Gate
	server    *http1.Server
	whole     *http.Server // behind server, and alone for TLS
	certs     certificates
	metrics   http.Handler
	observer  httpapi.Observer
	side      *frontdoor.SideDoor
}

// serve runs a node until a signal, its removal from the cluster, or a
// failure.
func serve(s *settings.Settings, e environment, again func() (*settings.Settings, error)) error {
	crashBySignal()
	// A reader of the log that goes away must not take the node with it.
	signal.Ignore(syscall.SIGPIPE)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	level := logsink.NewLevel(s.LogLevel)
	defer level.Close()
	log, sink := logsink.New(e.stderr, level.Atomic, s.LogFormat)
	defer sink.Close()
	level.Log = log
	limitMemory(e.environ, log)
	d, err := newDaemon(s, e, log, sink)
	if err != nil {
		return err
	}
	d.level = level
	d.reload = reloading{log: log, again: again, given: s.Given}
	d.reload.add("log-level", level.Reload)
	d.reload.add("certificates", d.certs.reload)
	if d.above, err = newSupervisor(e.environ, os.Getpid(), log); err != nil {
		log.Warn("the supervisor will not hear of this node", zap.Error(err))
	}
	defer d.above.close()
	defer d.side.Close()
	return d.run(signals)
}

// newDaemon takes the ports for clients and metrics and checks the settings of the node.
func newDaemon(s *settings.Settings, e environment, log *zap.Logger, sink *logsink.Sink) (*daemon, error) {
	c, err := loadCertificates(s, log)
	if err != nil {
		return nil, err
	}
	l, err := frontdoor.ListenForClients(s)
	if err != nil {
		return nil, err
	}
	limit := frontdoor.NewConnectionLimit(s.MaxConnections)
	limit.Wrap(l)
	c.secure(l, s.ListenClient)
	side, err := frontdoor.NewSideDoor(s, log)
	if err != nil {
		return nil, errors.Join(err, frontdoor.CloseAll(l))
	}
	d := &daemon{settings: s, limit: limit, log: log, exit: e.exit, version: buildVersion(), listeners: l, side: side, sink: sink, certs: c}
	if err := d.assemble(sink); err != nil {
		return nil, errors.Join(err, frontdoor.CloseAll(l), frontdoor.CloseAll(side.Listeners))
	}
	return d, nil
}

func (d *daemon) assemble(sink *logsink.Sink) (err error) {
	meters, err := newInstruments(d.version, sink.Dropped)
	if err != nil {
		return err
	}
	if err := meters.registry.Register(certificateMetrics{d.certs}); err != nil {
		return err
	}
	cfg := nodeConfig(d.settings, d.log, d.version)
	cfg.Observer = meters.loops
	cfg.TLS = d.certs.members
	if d.node, err = node.New(cfg); err != nil {
		return err
	}
	if err := meters.watch(d.node); err != nil {
		return err
	}
	d.metrics, d.observer = meters.handler(), meters.requests
	d.limit.Rejected = d.observer.Rejected
	d.gate = frontdoor.NewGate(d.version, d.metrics, d.node.Checks, d.observer.Rejected)
	d.whole = httpapi.NewServer(d.limit.Guard(d.gate), d.log)
	d.whole.ConnContext = d.limit.Mark
	new(frontdoor.Newcomers).Watch(d.whole)
	d.server = http1.New(d.whole, httpapi.Small)
	return nil
}

func nodeConfig(s *settings.Settings, log *zap.Logger, v api.Version) node.Config {
	cfg := node.Config{
		ID: s.ID, Name: s.Name, DataDir: s.DataDir, Engine: s.Engine,
		ListenPeer: s.ListenPeer, AdvertisePeer: s.AdvertisePeer, AdvertiseClient: s.AdvertiseClient,
		InsecurePeers: s.InsecurePeers,
		Token:         s.ClusterToken, Join: s.Join, JoinURLs: s.JoinURLs,
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
	defer d.certs.watch()()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended, failed := make(chan error, 1), make(chan error, len(d.listeners))
	go func() { ended <- d.node.Run(ctx) }()
	d.above.watch(d.node)
	d.side.Open(d.gate, d.settings.Pprof)
	for _, l := range d.listeners {
		go func() { failed <- d.serveOn(l) }()
	}
	ready := d.node.Ready()
	for {
		select {
		case <-ready:
			ready = nil
			d.open()
		case sig := <-signals:
			if sig == syscall.SIGHUP {
				d.above.reloading()
				d.reload.run()
				d.above.reloaded()
				continue
			}
			d.above.stopping()
			d.log.Info("stopping", zap.Stringer("signal", sig))
			defer d.exitOnSecond(signals)()
			return d.stop(cancel, ended)
		case err := <-ended:
			d.gate.Shut()
			d.finishRequests(finishTimeout)
			d.cutRequests()
			return err
		case err := <-failed:
			cancel()
			return errors.Join(fmt.Errorf("serve clients: %w", err), d.wait(ended))
		}
	}
}

func (d *daemon) serveOn(l net.Listener) error {
	if _, ok := l.(secured); ok {
		return d.whole.Serve(l)
	}
	return d.server.Serve(l)
}

func (d *daemon) logStart() {
	s := d.settings
	d.log.Info("kvd starts", zap.String("version", d.version.Version), zap.Uint64("id", s.ID), zap.String("name", s.Name),
		zap.String("data_dir", s.DataDir), zap.String("engine", s.Engine), zap.Int("pid", os.Getpid()), zap.Strings("settings_given", s.Changed()))
	if kind := forgetfulFileSystem(s.DataDir); kind != "" {
		d.log.Warn("the data directory is on a file system that forgets: what is acknowledged goes with this machine's memory or this container; put it on a volume",
			zap.String("data_dir", s.DataDir), zap.String("file_system", kind))
	}
	for _, note := range s.Notes {
		d.log.Warn(note)
	}
	if len(s.AdvertiseClient) == 0 {
		d.log.Warn("no client URL to tell others: --listen-client has none that others could use; say with --advertise-client which one they can",
			zap.Strings("listen_client", s.ListenClient))
	}
}

// open lets requests through.
func (d *daemon) open() {
	d.gate.Open(httpapi.New(httpapi.Options{
		Store: d.node.Store(), Replicator: d.node, Members: d.node, Leadership: d.node, Health: d.node, Inspector: d.node,
		Logger: d.log, Metrics: d.metrics, Observer: d.observer,
		Version: d.version, RootMembers: d.settings.RootMembers, MaxInFlight: int(d.settings.MaxInFlight),
		Hosts: ownNames(d.settings), LogLevel: d.level, RequestLog: d.settings.RequestLog,
	}))
	d.log.Info("ready to serve client requests", zap.Uint64("id", d.node.ID()),
		zap.Strings("client_urls", d.settings.ListenClient), zap.Strings("metrics_urls", d.settings.ListenMetrics), zap.String("peer_url", d.settings.ListenPeer))
	d.above.ready()
}
