package main

import (
	"context"

	"go.uber.org/zap"
	"go.uber.org/zap/zapgrpc"
	"google.golang.org/grpc/grpclog"

	"github.com/kvd-io/kvd/internal/etcdapi"
	"github.com/kvd-io/kvd/internal/etcdapi/gateway"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/node"
)

// assembleEtcd makes the server for clients of etcd. It shares the memory for requests
// with the other clients.
func (d *daemon) assembleEtcd(meters *instruments) error {
	s := d.settings
	metrics := etcdapi.NewMetrics()
	if err := meters.registry.Register(metrics); err != nil {
		return err
	}
	// gRPC would write lines of its own form to standard error. Below an error they are
	// about clients that went away.
	grpclog.SetLoggerV2(zapgrpc.NewLogger(d.log.Named("grpc").WithOptions(zap.IncreaseLevel(zap.ErrorLevel))))
	face := node.Face{Node: d.node}
	d.calls = etcdapi.New(etcdapi.Options{
		Replicator: d.recorded(), Members: face, Member: face, Leadership: face, Inspector: face, LeaseTimes: face, Watches: face.Watches(), Gate: d.gate, Audit: d.audit,
		Logger: d.log, RequestLog: s.RequestLog, Metrics: metrics, MaxInFlight: int(s.MaxInFlight), Memory: meters.memory,
		MaxRequestBytes: int(s.MaxRequestBytes), MaxTxnOps: int(s.MaxTxnOps), MaxLearners: int(s.MaxLearners),
		Election: s.Election, WatchProgress: s.WatchProgress,
	})
	return nil
}

// openEtcd lets calls through to the node.
func (d *daemon) openEtcd() {
	store := d.node.Store()
	d.calls.Open(etcdapi.State{Store: store, Evaluator: kvstore.NewEvaluator(store), Limits: store, LeaseTable: store})
}

// serveEtcd answers clients of etcd from now on. Requests other than gRPC calls go to the
// gateway.
func (d *daemon) serveEtcd() (failed <-chan error) {
	if d.etcd == nil {
		return nil
	}
	var mayMeasure func(context.Context) error
	if d.settings.AuthMetrics {
		mayMeasure = d.calls.Somebody
	}
	return d.etcd.Serve(d.calls, gateway.New(gateway.Options{
		MayMeasure: mayMeasure,
		Calls:      d.calls, Health: d.calls.Probes(), Memory: d.options.Memory, MaxMessage: d.calls.MaxMessage(), Metrics: d.options.Metrics,
		Version: gateway.Version{Server: etcdapi.Version, Cluster: etcdapi.ClusterVersion, Storage: etcdapi.StorageVersion},
	}))
}
