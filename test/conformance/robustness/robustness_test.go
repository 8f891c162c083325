package robustness

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"go.etcd.io/etcd/tests/v3/framework"
	"go.etcd.io/etcd/tests/v3/framework/e2e"
	"go.etcd.io/etcd/tests/v3/robustness/client"
	"go.etcd.io/etcd/tests/v3/robustness/failpoint"
	"go.etcd.io/etcd/tests/v3/robustness/identity"
	"go.etcd.io/etcd/tests/v3/robustness/model"
	"go.etcd.io/etcd/tests/v3/robustness/report"
	"go.etcd.io/etcd/tests/v3/robustness/traffic"
	"go.etcd.io/etcd/tests/v3/robustness/validate"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sync/errgroup"

	"github.com/kvd-io/kvd/test/conformance/cluster"
)

// kills is how often a member is killed in a run. The judge of linearizability
// has to try all orders of what was pending at each of them.
const kills = 3

// basePort keeps this suite apart from those of etcd, which use ports from 20000
// on.
const basePort = 21000

// judgeTimeout is etcd's.
const judgeTimeout = 5 * time.Minute

func TestMain(m *testing.M) { framework.E2eTestRunner.TestMain(m) }

var traffics = []struct {
	name    string
	traffic traffic.Traffic
	load    *traffic.KeyValue
}{
	{"EtcdPut", traffic.EtcdPut, &traffic.KeyValueHigh},
	{"EtcdPutDeleteLease", traffic.EtcdPutDeleteLease, &traffic.KeyValueMedium},
	{"EtcdDelete", traffic.EtcdDelete, &traffic.KeyValueMedium},
	{"Kubernetes", traffic.Kubernetes, &traffic.KeyValueHigh},
	{"KubernetesCreateDelete", traffic.KubernetesCreateDelete, &traffic.KeyValueMedium},
}

func TestRobustness(t *testing.T) {
	framework.E2eTestRunner.BeforeTest(t)
	for _, s := range traffics {
		t.Run(s.name, func(t *testing.T) {
			load := *s.load
			load.MinimalQPS = 1 // how fast it is, is not the question here
			profile := traffic.Profile{KeyValue: &load, Watch: &traffic.WatchDefault, Compaction: &traffic.CompactionDefault}
			if cluster.Size(t) == 1 {
				// While the only member is dead nobody watches, and what is compacted
				// before the watches are back is missing from the record.
				profile.Compaction = nil
			}
			run(t, s.traffic, profile)
		})
	}
}

// run drives the traffic and has the result judged.
func run(t *testing.T, load traffic.Traffic, profile traffic.Profile) {
	log := zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel))
	config := e2e.NewConfig(e2e.WithBasePort(basePort), e2e.WithClusterSize(cluster.Size(t)), e2e.WithWatchProcessNotifyInterval(100*time.Millisecond))
	config.Logger = log
	members, err := e2e.NewEtcdProcessCluster(t.Context(), t, e2e.WithConfig(config))
	if err != nil {
		t.Fatal(err)
	}
	defer stop(members)
	reports := drive(t, log, members, load, profile)
	if t.Failed() {
		return
	}
	operations := 0
	for _, r := range reports {
		operations += len(r.KeyValue)
	}
	persisted, err := persistedRequests(reports)
	if err != nil {
		t.Fatal(err)
	}
	result := validate.ValidateAndReturnVisualize(log, validate.Config{ExpectRevisionUnique: load.ExpectUniqueRevision()}, reports, persisted, judgeTimeout)
	if err := result.Error(); err != nil {
		t.Error(err)
	}
	t.Logf("%d operations, %d of them changed something", operations, len(persisted))
}

// stop kills the members: their data is of no use to anybody.
func stop(members *e2e.EtcdProcessCluster) {
	for _, m := range members.Procs {
		_ = m.Kill()
	}
	_ = members.ConcurrentStop()
}

// drive runs the traffic, the kills, and a watch of everything on each member,
// and returns what the clients saw.
func drive(t *testing.T, log *zap.Logger, members *e2e.EtcdProcessCluster, load traffic.Traffic, profile traffic.Profile) []report.ClientReport {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	begin, ids := time.Now(), identity.NewIDProvider()
	loaders, watchers := client.NewSet(ids, begin), client.NewSet(ids, begin)
	defer loaders.Close()
	defer watchers.Close()
	injected, last := make(chan report.FailpointInjection, 1), make(chan int64, 1)
	var g errgroup.Group
	g.Go(func() error {
		defer close(injected)
		err := killMembers(ctx, t, log, members, begin, ids, injected)
		if err != nil {
			cancel()
		}
		return err
	})
	g.Go(func() error {
		defer close(last)
		done := traffic.SimulateTraffic(ctx, t, log, members, profile, load, injected, loaders)
		last <- report.OperationsMaxRevision(done)
		return nil
	})
	g.Go(func() error {
		return client.CollectClusterWatchEvents(ctx, client.CollectClusterWatchEventsParam{
			Lg: log, Endpoints: members.EndpointsGRPC(), MaxRevisionChan: last, ClientSet: watchers,
		})
	})
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	if err := client.CheckEndOfTestHashKV(ctx, members); err != nil {
		t.Error(err)
	}
	return slices.Concat(loaders.Reports(), watchers.Reports())
}

// killMembers kills a member some times, with undisturbed traffic between, and
// reports the whole as one disturbance.
func killMembers(ctx context.Context, t *testing.T, log *zap.Logger, members *e2e.EtcdProcessCluster, begin time.Time, ids identity.Provider,
	injected chan<- report.FailpointInjection) error {
	calm := time.NewTicker(time.Second)
	defer calm.Stop()
	<-calm.C
	all := report.FailpointInjection{Name: failpoint.KillFailpoint.Name(), Start: time.Since(begin)}
	for range kills {
		if _, err := failpoint.Inject(ctx, t, log, members, failpoint.KillFailpoint, begin, ids); err != nil {
			return fmt.Errorf("kill a member: %w", err)
		}
		<-calm.C
	}
	all.End = time.Since(begin)
	<-calm.C
	injected <- all
	return nil
}

// persistedRequests rebuilds the requests that changed something, in order, from
// the events of all watches, and adds compactions that may have been done.
func persistedRequests(reports []report.ClientReport) ([]model.EtcdRequest, error) {
	revisions := map[int64][]model.PersistedEvent{}
	for _, r := range reports {
		for _, w := range r.Watch {
			if w.Request.Key != "" { // it saw a part
				continue
			}
			for _, response := range w.Responses {
				for revision, events := range byRevision(response.Events) {
					if before, ok := revisions[revision]; ok && !slices.Equal(before, events) {
						return nil, fmt.Errorf("revision %d: one watch saw %v, another %v", revision, before, events)
					}
					revisions[revision] = events
				}
			}
		}
	}
	var requests []model.EtcdRequest
	for i, revision := range slices.Sorted(maps.Keys(revisions)) {
		if want := int64(i) + 2; revision != want {
			return nil, fmt.Errorf("no watch saw revision %d", want)
		}
		requests = append(requests, transaction(revisions[revision]))
	}
	return append(requests, lostCompactions(reports)...), nil
}

// byRevision splits the events of a response. No revision is ever split over
// several responses.
func byRevision(events []model.WatchEvent) map[int64][]model.PersistedEvent {
	all := map[int64][]model.PersistedEvent{}
	for _, e := range events {
		all[e.Revision] = append(all[e.Revision], e.PersistedEvent)
	}
	return all
}

// transaction is a request that would have had these events.
func transaction(events []model.PersistedEvent) model.EtcdRequest {
	var ops []model.EtcdOperation
	for _, e := range events {
		op := model.EtcdOperation{Type: e.Type}
		if e.Type == model.PutOperation {
			op.Put = model.PutOptions{Key: e.Key, Value: e.Value}
		} else {
			op.Delete = model.DeleteOptions{Key: e.Key}
		}
		ops = append(ops, op)
	}
	return model.EtcdRequest{Type: model.Txn, Txn: &model.TxnRequest{OperationsOnSuccess: ops}}
}

// lostCompactions returns those whose outcome no client knows, in the order of
// their revisions. If they were left out, the judge would take them for not done.
// At the end of all requests they allow either.
func lostCompactions(reports []report.ClientReport) (requests []model.EtcdRequest) {
	revisions := map[int64]bool{}
	for _, r := range reports {
		for _, op := range r.KeyValue {
			request, response := op.Input.(model.EtcdRequest), op.Output.(model.MaybeEtcdResponse)
			if request.Type == model.Compact && response.Error != "" {
				revisions[request.Compact.Revision] = true
			}
		}
	}
	for _, revision := range slices.Sorted(maps.Keys(revisions)) {
		requests = append(requests, model.EtcdRequest{Type: model.Compact, Compact: &model.CompactRequest{Revision: revision}})
	}
	return requests
}
