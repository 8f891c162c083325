package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/access"
	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/audit"
	"github.com/kvd-io/kvd/internal/etcdapi"
	"github.com/kvd-io/kvd/internal/frontdoor"
	"github.com/kvd-io/kvd/internal/httpapi"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/logsink"
	"github.com/kvd-io/kvd/internal/node"
	"github.com/kvd-io/kvd/internal/settings"
)

// daemon is one serving node. Its fields are set before run and belong to the
// goroutine that calls run, which is the only one that drives the parts.
type daemon struct {
	settings *settings.Settings
	log      *zap.Logger
	sink     *logsink.Sink
	stderr   io.Writer // to which the sink writes
	exit     func(code int)
	version  api.Version
	reload   reloading
	above    *supervisor
	certs    certificates
	files    descriptors
	node     *node.Node
	door     *frontdoor.Door
	side     *frontdoor.SideDoor
	etcd     *frontdoor.EtcdDoor // nil without --listen-etcd
	calls    *etcdapi.Server     // likewise
	gate     *access.Gate        // through which every request goes
	audit    *audit.Log          // nil without --audit-log
	options  httpapi.Options     // for requests; the store is added when the node serves
}

// serve runs a node until a signal, its removal from the cluster, or a
// failure. again reads the settings anew, for a reload.
func serve(s *settings.Settings, e environment, again func() (*settings.Settings, error)) error {
	crashBySignal()
	// If the reader of the log goes away, the node must go on. By default Go
	// exits on a broken pipe on standard error.
	signal.Ignore(syscall.SIGPIPE)
	// signal.Notify drops what does not fit, and a second signal must not be lost
	// while the first is handled.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	level := logsink.NewLevel(s.LogLevel)
	defer level.Close()
	log, sink := logsink.New(e.stderr, level, s.LogFormat)
	defer sink.Close()
	limitMemory(memlimit.FromCgroup, mappedFiles(), log)
	for {
		err := serveOnce(s, e, again, log, sink, level, signals)
		// How often that may happen is limited by package datadir.
		if !errors.Is(err, node.ErrRebuild) {
			return err
		}
		log.Warn("restarting the node to rebuild the store", zap.Error(err))
	}
}

// serveOnce runs one node. The process runs another one if the first has to rebuild its
// store, which happens when a node starts.
func serveOnce(s *settings.Settings, e environment, again func() (*settings.Settings, error), log *zap.Logger, sink *logsink.Sink, level *logsink.Level, signals <-chan os.Signal) error {
	d, err := newDaemon(s, e, log, sink, level)
	if err != nil {
		return err
	}
	d.reload = reloading{log: log, again: again, given: s.Given}
	d.reload.add("log-level", level.Reload)
	d.reload.add("certificates", d.certs.reload)
	if d.audit != nil {
		d.reload.add("audit log", d.reopenAudit)
		defer d.audit.Close()
	}
	d.above = newSupervisor(log)
	defer d.above.close()
	defer d.closeSide()
	greet(s, d.version, e.stderr, sink)
	return d.run(signals)
}

// newDaemon binds the ports for clients and metrics and checks the settings of
// the node. The ports come first: a taken one is the most common mistake, and
// must not cost a look at the data.
func newDaemon(s *settings.Settings, e environment, log *zap.Logger, sink *logsink.Sink, level *logsink.Level) (*daemon, error) {
	c, err := loadCertificates(s, log)
	if err != nil {
		return nil, err
	}
	files, err := limitDescriptors(s.MaxConnections, log)
	if err != nil {
		return nil, err
	}
	s.MaxConnections = files.clients
	door, err := frontdoor.Listen(s, c.clients, log)
	if err != nil {
		return nil, err
	}
	etcd, err := door.ListenEtcd(s, c.clients)
	if err != nil {
		return nil, errors.Join(err, door.Close())
	}
	side, err := frontdoor.ListenSide(s, log)
	if err != nil {
		return nil, errors.Join(err, door.Close(), etcd.Close())
	}
	d := &daemon{settings: s, log: log, sink: sink, stderr: e.stderr, exit: e.exit, version: buildVersion(), certs: c, files: files, door: door, etcd: etcd, side: side}
	if err := d.assemble(level); err != nil {
		return nil, errors.Join(err, door.Close(), etcd.Close(), side.Close())
	}
	return d, nil
}

// checkStart reports what would keep a node from starting with these settings,
// by the code that a start runs. It binds no port and touches no data: what
// depends on those (a port in use, a directory that belongs to another member) is
// known only at the start.
func checkStart(s *settings.Settings) error {
	c, err := loadCertificates(s, zap.NewNop())
	if err != nil {
		return err
	}
	cfg := nodeConfig(s, zap.NewNop(), buildVersion())
	cfg.TLS = c.members
	_, err = node.New(cfg)
	return err
}

// assemble makes the metrics, the node, and what requests need of both.
func (d *daemon) assemble(level *logsink.Level) error {
	meters, err := newInstruments(d.version, d.sink.Dropped, requestMemory(d.settings.RequestMemory))
	if err != nil {
		return err
	}
	if err := meters.registry.Register(certificateMetrics{d.certs}); err != nil {
		return err
	}
	cfg := nodeConfig(d.settings, d.log, d.version)
	cfg.Observer = meters.loops
	cfg.HotBytes, cfg.CacheBytes = hotMemory(), cacheMemory()
	cfg.TLS = d.certs.members
	cfg.MaxOpenFiles, cfg.MaxPeerConnections = d.files.engine, d.files.peers
	cfg.FirstRights = firstRights(d.settings, func(ctx context.Context, password string) ([]byte, error) { return d.options.Gate.Hash(ctx, password) })
	if d.node, err = node.New(cfg); err != nil {
		return err
	}
	if err := meters.watch(d.node); err != nil {
		return err
	}
	if d.audit, err = openAudit(d.settings, d.node.ClusterID); err != nil {
		return err
	}
	if err := meters.registry.Register(auditMetrics{d.audit}); err != nil {
		return err
	}
	foreign, err := d.foreignTokens()
	if err != nil {
		return err
	}
	d.gate = node.NewGate(d.node, access.Options{
		CertUser: access.CertUser(d.settings.AuthCertUser), LocalRoot: d.settings.AuthLocalRoot, TTL: d.settings.AuthTokenTTL, BcryptCost: int(d.settings.BcryptCost),
		Foreign: foreign, Insecure: d.settings.InsecureAuth,
	})
	d.options = httpapi.Options{
		Gate: d.gate, AuthMetrics: d.settings.AuthMetrics, Audit: d.audit,
		Replicator: d.recorded(), Members: d.node, Leadership: d.node, Health: d.node, Inspector: d.node, LeaseTimes: d.node, Newcomers: node.Newcomers{Node: d.node}, Watches: d.node.Watches(),
		Logger: d.log, Metrics: meters.handler(), Observer: meters.requests,
		Version: d.version, RootMembers: d.settings.RootMembers, Dialects: d.settings.Dialects, UI: d.settings.UI, MaxInFlight: int(d.settings.MaxInFlight), Memory: meters.memory,
		Hosts: ownNames(d.settings), LogLevel: level, RequestLog: d.settings.RequestLog,
	}
	if d.etcd != nil {
		return d.assembleEtcd(meters)
	}
	return nil
}

// nodeConfig translates the settings for package node. Members without a name
// get one from their position, the same on each node. The replicated settings
// take effect only where this node creates a new cluster.
func nodeConfig(s *settings.Settings, log *zap.Logger, v api.Version) node.Config {
	cfg := node.Config{
		ID: s.ID, Name: s.Name, DataDir: s.DataDir, Engine: s.Engine, RebuildStore: s.RebuildStore, ScrubInterval: s.ScrubInterval,
		ListenPeer: s.ListenPeer, AdvertisePeer: s.AdvertisePeer, AdvertiseClient: s.AdvertiseClient, AdvertiseEtcd: s.AdvertiseEtcd,
		InsecurePeers: s.InsecurePeers,
		Token:         s.ClusterToken, Join: s.Join, JoinURLs: s.JoinURLs,
		RemoveDeadAfter: s.RemoveDeadAfter,
		TickInterval:    s.Heartbeat, ElectionTicks: s.ElectionTicks(),
		CheckpointBytes: s.CheckpointBytes, CatchUpBytes: int(s.CatchUpBytes), MaxWatches: int(s.MaxWatches),
		Logger: log, Version: v,
	}
	for i, m := range s.Cluster {
		name := m.Name
		if name == "" {
			name = fmt.Sprintf("kvd%d", i+1)
		}
		cfg.Initial = append(cfg.Initial, node.Peer{ID: uint64(i + 1), Name: name, URL: m.URL})
	}
	// A node alone has no list of members, so --id is the id itself, not a position.
	if cfg.Alone = !s.Has("cluster") && len(s.JoinURLs) == 0; cfg.Alone {
		cfg.IDGiven = s.Has("id")
		cfg.Initial[0].ID, cfg.Initial[0].Name = s.ID, s.Name
	}
	cfg.Settings = kvstore.DefaultSettings()
	cfg.Settings.MaxValueBytes = s.MaxValueBytes
	cfg.Settings.QuotaBytes = s.QuotaBytes
	for _, g := range []struct {
		name, field string
		value       func(*kvstore.Settings) int64
	}{
		{"quota", "quota_bytes", func(s *kvstore.Settings) int64 { return s.QuotaBytes }},
		{"max-value-bytes", "max_value_bytes", func(s *kvstore.Settings) int64 { return s.MaxValueBytes }},
	} {
		// The cluster may have other values by now. The node then warns, and names
		// where the value comes from that has no effect.
		if s.Has(g.name) {
			cfg.GivenSettings = append(cfg.GivenSettings, node.GivenSetting{Flag: s.Describe(g.name), Field: g.field, Value: g.value})
		}
	}
	return cfg
}

// run serves until the node stops, for whatever reason.
func (d *daemon) run(signals <-chan os.Signal) error {
	d.logStart()
	defer d.certs.watch()()
	over := make(chan struct{})
	var warning sync.WaitGroup
	warning.Go(func() { d.warnOfExposure(over) })
	defer func() { close(over); warning.Wait() }()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- d.node.Run(ctx) }()
	d.above.watch(d.node)
	failed, etcdFailed := d.door.Serve(d.options), d.serveEtcd()
	d.side.Open(d.door, d.settings.Pprof)
	ready := d.node.Ready()
	for {
		select {
		case <-ready:
			ready = nil // it stays closed; this case is for once only
			d.open()
		case sig := <-signals:
			// Closing the terminal of a node that logs to it should end the node, as
			// with other programs. With the log elsewhere, or with nohup, the node is
			// meant to outlive the terminal.
			if sig == syscall.SIGHUP && !logsink.HungUp(d.stderr, lastWordTimeout) {
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
			// It ended by itself, removed or failed. Requests still get the answers
			// that it gave.
			d.door.Shut()
			d.door.Finish(finishTimeout)
			d.door.Cut(cutTimeout)
			d.etcd.Cut(cutTimeout)
			return err
		case err := <-failed:
			cancel()
			return errors.Join(fmt.Errorf("serve clients: %w", err), d.wait(ended))
		case err := <-etcdFailed:
			cancel()
			return errors.Join(fmt.Errorf("serve etcd clients: %w", err), d.wait(ended))
		}
	}
}

// logStart logs what the node was told, and warns of settings that a person
// probably did not mean but that are valid, and so cannot be errors.
func (d *daemon) logStart() {
	s := d.settings
	d.log.Info("starting", zap.String("version", d.version.Version), zap.Uint64("id", s.ID), zap.String("name", s.Name),
		zap.String("data_dir", s.DataDir), zap.String("engine", s.Engine), zap.Int("pid", os.Getpid()), zap.Strings("settings_given", s.Changed()))
	if kind := volatileFileSystem(s.DataDir); kind != "" {
		d.log.Warn("the data directory is on a volatile file system; acknowledged writes will not survive a reboot or the removal of the container",
			zap.String("data_dir", s.DataDir), zap.String("file_system", kind))
	}
	for _, note := range s.Notes {
		d.log.Warn(note)
	}
	if len(s.AdvertiseClient) == 0 {
		d.log.Warn("no client URL to advertise: no URL of --listen-client can be used from other machines; set --advertise-client",
			zap.Strings("listen_client", s.ListenClient))
	}
}

// open lets requests through to the node.
func (d *daemon) open() {
	d.door.Open(d.node.Store())
	if d.calls != nil {
		d.openEtcd()
	}
	d.log.Info("ready to serve client requests", zap.Uint64("id", d.node.ID()),
		zap.Strings("client_urls", d.settings.ListenClient), zap.Strings("etcd_urls", d.settings.ListenEtcd), zap.Strings("metrics_urls", d.settings.ListenMetrics), zap.String("peer_url", d.settings.ListenPeer))
	d.above.ready()
}

// closeSide closes the side door, after everything else.
func (d *daemon) closeSide() {
	if err := d.side.Close(); err != nil {
		d.log.Warn("failed to close the metrics listener", zap.Error(err))
	}
}
