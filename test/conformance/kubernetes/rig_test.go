package kubernetes

import (
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.uber.org/zap"
	"google.golang.org/grpc/grpclog"
	"k8s.io/apimachinery/pkg/api/apitesting"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/apis/example"
	examplev1 "k8s.io/apiserver/pkg/apis/example/v1"
	"k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/etcd3"
	etcdfeature "k8s.io/apiserver/pkg/storage/feature"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"
	"k8s.io/apiserver/pkg/storage/value"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/component-base/featuregate"
	featuregatetesting "k8s.io/component-base/featuregate/testing"
	"k8s.io/utils/clock"

	"github.com/kvd-io/kvd/test/conformance/cluster"
)

var (
	scheme = runtime.NewScheme()
	codecs = serializer.NewCodecFactory(scheme)
	pods   = schema.GroupResource{Resource: "pods"}
)

// valuePrefix is put before each stored object, to see that every path through
// the store transforms what it reads and writes.
const valuePrefix = "stored:"

func TestMain(m *testing.M) {
	metav1.AddToGroupVersion(scheme, metav1.SchemeGroupVersion)
	if err := errors.Join(example.AddToScheme(scheme), examplev1.AddToScheme(scheme)); err != nil {
		panic(err)
	}
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, os.Stderr))
	os.Exit(m.Run())
}

// sorted returns the names of tests in an order that is the same in each run.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func newPod() runtime.Object     { return &example.Pod{} }
func newPodList() runtime.Object { return &example.PodList{} }

// jsonCodec is the encoding of the tests of the store.
func jsonCodec() runtime.Codec { return apitesting.TestCodec(codecs, examplev1.SchemeGroupVersion) }

// etcdStore is what etcd3.New returns, whose type is not exported.
type etcdStore interface {
	storage.Interface
	Close()
}

// rig is a store over a fresh cluster, with the handles that the tests need.
type rig struct {
	etcdStore
	ctx    context.Context
	client *kubernetes.Client
	reads  *storagetesting.KVRecorder
	lists  *storagetesting.KubernetesRecorder
	codec  runtime.Codec
	// prefix transforms, unless a test has put another transformer before it.
	prefix *storagetesting.PrefixTransformer
	dial   *dial
	// prefixOfKeys is where the store keeps its pods.
	prefixOfKeys string
}

// setup is what tests ask for beyond the defaults.
type setup struct {
	codec       runtime.Codec
	transformer value.Transformer // nil: one that the test can exchange
	prefix      string
	lease       etcd3.LeaseManagerConfig
}

// newRig starts a cluster and opens a store on it.
func newRig(t *testing.T, options ...func(*setup)) *rig {
	t.Helper()
	s := setup{codec: jsonCodec(), lease: etcd3.NewDefaultLeaseManagerConfig()}
	// Objects with a time to live share leases for a while. The tests wait for at
	// most half a minute for an object to go.
	s.lease.ReuseDurationSeconds = 1
	for _, o := range options {
		o(&s)
	}
	c := cluster.Start(t, "--watch-progress-notify-interval=1s", "--unsafe-no-fsync")
	r := &rig{ctx: context.Background(), codec: s.codec, prefixOfKeys: s.prefix + "/pods/"}
	r.client, r.lists, r.reads = connect(t, c.Endpoints())
	r.prefix = storagetesting.NewPrefixTransformer([]byte(valuePrefix), false)
	r.dial = &dial{}
	r.dial.mu.to = r.prefix
	if s.transformer == nil {
		s.transformer = r.dial
	}
	compactor := etcd3.NewCompactor(r.client.Client, 0, clock.RealClock{}, nil)
	t.Cleanup(compactor.Stop)
	versioner := storage.APIObjectVersioner{}
	store, err := etcd3.New(r.client, compactor, s.codec, newPod, newPodList, s.prefix, "/pods/", pods, s.transformer, s.lease,
		etcd3.NewDefaultDecoder(s.codec, versioner), versioner)
	if err != nil {
		t.Fatal(err)
	}
	r.etcdStore = store
	t.Cleanup(store.Close)
	return r
}

// connect returns Kubernetes' client of the endpoints, with its calls recorded.
func connect(t *testing.T, endpoints []string) (*kubernetes.Client, *storagetesting.KubernetesRecorder, *storagetesting.KVRecorder) {
	t.Helper()
	client, err := kubernetes.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	lists := storagetesting.NewKubernetesRecorder(client.Kubernetes)
	reads := storagetesting.NewKVRecorder(client.KV, lists)
	client.KV, client.Kubernetes = reads, lists
	return client, lists, reads
}

// dial is a transformer that stands for another one, which a test may exchange
// while the store uses it.
type dial struct {
	mu struct {
		sync.Mutex
		to value.Transformer
	}
}

func (d *dial) current() value.Transformer {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.to
}

// set returns a function that undoes it.
func (d *dial) set(to value.Transformer) (undo func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	before := d.mu.to
	d.mu.to = to
	return func() { d.set(before) }
}

func (d *dial) TransformFromStorage(ctx context.Context, data []byte, of value.Context) ([]byte, bool, error) {
	return d.current().TransformFromStorage(ctx, data, of)
}

func (d *dial) TransformToStorage(ctx context.Context, data []byte, of value.Context) ([]byte, error) {
	return d.current().TransformToStorage(ctx, data, of)
}

// UpdatePrefixTransformer makes a rig a storagetesting.InterfaceWithPrefixTransformer.
func (r *rig) UpdatePrefixTransformer(modify storagetesting.PrefixTransformerModifier) func() {
	changed := *r.prefix
	return r.dial.set(modify(&changed))
}

// UpdateTransformer makes a rig a storagetesting.InterfaceWithTransformerOverride.
func (r *rig) UpdateTransformer(modify storagetesting.TransformerModifier) func() {
	return r.dial.set(modify(r.dial.current()))
}

// failing is a transformer or a codec that fails while a test says so.
type failing struct {
	value.Transformer
	runtime.Codec
	mu struct {
		sync.Mutex
		on bool
	}
}

func (f *failing) set(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.on = on
}

func (f *failing) err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.on {
		return errors.New("this object cannot be read, says the test")
	}
	return nil
}

// failingTransformer fails to transform what it reads.
type failingTransformer struct{ *failing }

func (f failingTransformer) TransformFromStorage(ctx context.Context, data []byte, of value.Context) ([]byte, bool, error) {
	if err := f.err(); err != nil {
		return nil, false, err
	}
	return f.Transformer.TransformFromStorage(ctx, data, of)
}

// failingCodec fails to decode.
type failingCodec struct{ *failing }

func (f failingCodec) Encode(o runtime.Object, w io.Writer) error { return f.Codec.Encode(o, w) }
func (f failingCodec) Identifier() runtime.Identifier             { return f.Codec.Identifier() }
func (f failingCodec) Decode(data []byte, kind *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	if err := f.err(); err != nil {
		return nil, nil, err
	}
	return f.Codec.Decode(data, kind, into)
}

// gate switches a feature of Kubernetes for the rest of the test. What was
// learned about the server meanwhile is forgotten with it.
func gate(t *testing.T, f featuregate.Feature, on bool) {
	t.Helper()
	featuregatetesting.SetFeatureGateDuringTest(t, utilfeature.DefaultFeatureGate, f, on)
	known := etcdfeature.DefaultFeatureSupportChecker
	etcdfeature.DefaultFeatureSupportChecker = etcdfeature.NewDefaultFeatureSupportChecker()
	t.Cleanup(func() { etcdfeature.DefaultFeatureSupportChecker = known })
}

// raise moves the revision of the store past that of its pods.
func (r *rig) raise(ctx context.Context, t *testing.T) int64 {
	t.Helper()
	put, err := r.client.KV.Put(ctx, "unrelated", "")
	if err != nil {
		t.Fatal(err)
	}
	return put.Header.Revision
}

// compact compacts as the API server does, by the key on which its instances
// agree. The first attempt may only learn what the others did.
func (r *rig) compact(ctx context.Context, t *testing.T, resourceVersion string) {
	t.Helper()
	rv, err := storage.APIObjectVersioner{}.ParseResourceVersion(resourceVersion)
	if err != nil {
		t.Fatal(err)
	}
	known, _, _, err := etcd3.Compact(ctx, r.client.Client, 0, int64(rv))
	if err != nil {
		_, _, _, err = etcd3.Compact(ctx, r.client.Client, known, int64(rv))
	}
	if err != nil {
		t.Fatal(err)
	}
	if utilfeature.DefaultFeatureGate.Enabled(features.ListFromCacheSnapshot) {
		await(t, func() bool { return r.CompactRevision() == int64(rv) })
	}
}

// await waits for what another goroutine is about to do.
func await(t *testing.T, done func() bool) {
	t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatal("what was awaited did not happen within 30 s")
		}
	}
}
