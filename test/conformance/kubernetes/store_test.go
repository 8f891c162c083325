package kubernetes

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/apis/example"
	"k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/etcd3"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"
)

// body is a test on a fresh store.
type body func(t *testing.T, r *rig)

// simple makes a body of a test that needs nothing but the store.
func simple(run func(context.Context, *testing.T, storage.Interface)) body {
	return func(t *testing.T, r *rig) { run(r.ctx, t, r) }
}

// exchanging makes a body of a test that exchanges the transformer.
func exchanging(run func(context.Context, *testing.T, storagetesting.InterfaceWithPrefixTransformer)) body {
	return func(t *testing.T, r *rig) { run(r.ctx, t, r) }
}

// storeTests run once on a store with the defaults.
var storeTests = map[string]body{
	"Create":                                 func(t *testing.T, r *rig) { storagetesting.RunTestCreate(r.ctx, t, r, r.storedAlone) },
	"CreateWithTTL":                          simple(storagetesting.RunTestCreateWithTTL),
	"CreateWithKeyExist":                     simple(storagetesting.RunTestCreateWithKeyExist),
	"Get":                                    simple(storagetesting.RunTestGet),
	"UnconditionalDelete":                    simple(storagetesting.RunTestUnconditionalDelete),
	"ConditionalDelete":                      simple(storagetesting.RunTestConditionalDelete),
	"DeleteWithConflict":                     simple(storagetesting.RunTestDeleteWithConflict),
	"DeleteWithSuggestion":                   simple(storagetesting.RunTestDeleteWithSuggestion),
	"DeleteWithSuggestionAndConflict":        simple(storagetesting.RunTestDeleteWithSuggestionAndConflict),
	"DeleteWithSuggestionOfDeletedObject":    simple(storagetesting.RunTestDeleteWithSuggestionOfDeletedObject),
	"ValidateDeletionWithSuggestion":         simple(storagetesting.RunTestValidateDeletionWithSuggestion),
	"ValidateDeletionWithOnlySuggestion":     simple(storagetesting.RunTestValidateDeletionWithOnlySuggestionValid),
	"PreconditionalDeleteWithSuggestion":     simple(storagetesting.RunTestPreconditionalDeleteWithSuggestion),
	"PreconditionalDeleteWithOnlySuggestion": simple(storagetesting.RunTestPreconditionalDeleteWithOnlySuggestionPass),
	"ListPaging":                             simple(storagetesting.RunTestListPaging),
	"ListNonRecursive":                       func(t *testing.T, r *rig) { storagetesting.RunTestGetListNonRecursive(r.ctx, t, r.raise, r) },
	"ListRecursivePrefix":                    simple(storagetesting.RunTestGetListRecursivePrefix),
	"NamespaceScopedList":                    simple(storagetesting.RunTestNamespaceScopedList),
	"KeySchema":                              simple(storagetesting.RunTestKeySchema),
	"ListContinuation":                       func(t *testing.T, r *rig) { storagetesting.RunTestListContinuation(r.ctx, t, r, r.countCalls) },
	"ListContinuationWithFilter": func(t *testing.T, r *rig) {
		storagetesting.RunTestListContinuationWithFilter(r.ctx, t, r, r.countCalls)
	},
	"ListInconsistentContinuation":     func(t *testing.T, r *rig) { storagetesting.RunTestListInconsistentContinuation(r.ctx, t, r, r.compact) },
	"ListResourceVersionMatch":         exchanging(storagetesting.RunTestListResourceVersionMatch),
	"GuaranteedUpdate":                 func(t *testing.T, r *rig) { storagetesting.RunTestGuaranteedUpdate(r.ctx, t, r, r.storedAlone) },
	"GuaranteedUpdateWithTTL":          simple(storagetesting.RunTestGuaranteedUpdateWithTTL),
	"GuaranteedUpdateChecksStoredData": exchanging(storagetesting.RunTestGuaranteedUpdateChecksStoredData),
	"GuaranteedUpdateWithConflict":     simple(storagetesting.RunTestGuaranteedUpdateWithConflict),
	"GuaranteedUpdateWithSuggestion":   simple(storagetesting.RunTestGuaranteedUpdateWithSuggestionAndConflict),
	"TransformationFailure":            exchanging(storagetesting.RunTestTransformationFailure),
	"CurrentResourceVersion":           currentResourceVersion,

	"Watch":                    simple(storagetesting.RunTestWatch),
	"ClusterScopedWatch":       simple(storagetesting.RunTestClusterScopedWatch),
	"NamespaceScopedWatch":     simple(storagetesting.RunTestNamespaceScopedWatch),
	"DeleteTriggerWatch":       simple(storagetesting.RunTestDeleteTriggerWatch),
	"WatchFromZero":            func(t *testing.T, r *rig) { storagetesting.RunTestWatchFromZero(r.ctx, t, r, r.compact) },
	"WatchFromNonZero":         simple(storagetesting.RunTestWatchFromNonZero),
	"DelayedWatchDelivery":     simple(storagetesting.RunTestDelayedWatchDelivery),
	"WatchError":               exchanging(storagetesting.RunTestWatchError),
	"WatchErrorBlocks":         exchanging(storagetesting.RunWatchErrorIsBlockingFurtherEvents),
	"WatchContextCancel":       simple(storagetesting.RunTestWatchContextCancel),
	"WatcherTimeout":           simple(storagetesting.RunTestWatcherTimeout),
	"WatchDeleteHasLatestRV":   simple(storagetesting.RunTestWatchDeleteEventObjectHaveLatestRV),
	"WatchInitialization":      simple(storagetesting.RunTestWatchInitializationSignal),
	"ProgressNotify":           func(t *testing.T, r *rig) { storagetesting.RunOptionalTestProgressNotify(r.ctx, t, r, r.raise) },
	"WatchBookmarks":           func(t *testing.T, r *rig) { storagetesting.RunTestWatchDispatchBookmarkEvents(r.ctx, t, r, false) },
	"InitialEventsOfOldClient": simple(storagetesting.RunSendInitialEventsBackwardCompatibility),
}

func TestStore(t *testing.T) {
	for _, name := range sorted(storeTests) {
		t.Run(name, func(t *testing.T) { storeTests[name](t, newRig(t)) })
	}
}

// streamTests run with and without RangeStream, with which Kubernetes lists.
var streamTests = map[string]body{
	"List": func(t *testing.T, r *rig) { storagetesting.RunTestList(r.ctx, t, r, r.compact, false, r.lists) },
	"ConsistentList": func(t *testing.T, r *rig) {
		storagetesting.RunTestConsistentList(r.ctx, t, r, r.raise, false, true, false)
	},
	"ManyPods":                   manyPods,
	"WatchSemantics":             simple(storagetesting.RunWatchSemantics),
	"WatchSemanticInitialEvents": simple(storagetesting.RunWatchSemanticInitialEventsExtended),
	"WatchListMatchSingle":       simple(storagetesting.RunWatchListMatchSingle),
}

func TestStoreStream(t *testing.T) {
	for _, on := range []bool{false, true} {
		for _, name := range sorted(streamTests) {
			t.Run(fmt.Sprintf("RangeStream=%t/%s", on, name), func(t *testing.T) {
				gate(t, features.EtcdRangeStream, on)
				r := newRig(t)
				streamTests[name](t, r)
				if streams := r.reads.GetStreamReadsAndReset(); !on && streams > 0 {
					t.Errorf("%d streams although the feature is off", streams)
				}
			})
		}
	}
}

// TestStoreFeatures has the tests that need a feature of Kubernetes or a setup
// of their own.
func TestStoreFeatures(t *testing.T) {
	t.Run("ListPaginationRareObject", func(t *testing.T) {
		gate(t, features.ListFromCacheSnapshot, false) // its reads would be counted too
		r := newRig(t)
		storagetesting.RunTestListPaginationRareObject(r.ctx, t, r, r.countCalls)
	})
	t.Run("CompactRevision", func(t *testing.T) {
		gate(t, features.ListFromCacheSnapshot, true)
		r := newRig(t)
		storagetesting.RunTestCompactRevision(r.ctx, t, r, r.raise, r.compact)
	})
	t.Run("ConcurrentWatchDecode", func(t *testing.T) {
		gate(t, features.ConcurrentWatchObjectDecode, true)
		r := newRig(t)
		storagetesting.RunWatchSemantics(r.ctx, t, r)
	})
	for _, sized := range []bool{false, true} {
		t.Run(fmt.Sprintf("Stats/sized=%t", sized), func(t *testing.T) { stats(t, newRig(t), sized) })
	}
	t.Run("LeaseShared", leaseShared)
}

// TestUnreadable has the tests of objects that can no longer be read.
func TestUnreadable(t *testing.T) {
	gate(t, features.AllowUnsafeMalformedObjectDeletion, true)
	newTransformer := func() (failingTransformer, func(*setup)) {
		f := failingTransformer{&failing{Transformer: storagetesting.NewPrefixTransformer([]byte(valuePrefix), false)}}
		return f, func(s *setup) { s.transformer = f }
	}
	newCodec := func() (failingCodec, func(*setup)) {
		f := failingCodec{&failing{Codec: jsonCodec()}}
		return f, func(s *setup) { s.codec = f }
	}
	t.Run("DeleteConflictWithoutExpectedError", func(t *testing.T) {
		f, with := newCodec()
		r := newRig(t, with)
		storagetesting.RunTestDeleteWithConflictAndMissingExpectedTransformOrDecodeError(r.ctx, t, r, f.set)
	})
	t.Run("DeleteWithTransformError", func(t *testing.T) {
		f, with := newTransformer()
		r := newRig(t, with)
		storagetesting.RunTestDeleteExpectedTransformOrDecodeError(r.ctx, t, r, f.set)
	})
	t.Run("DeleteWithDecodeError", func(t *testing.T) {
		etcd3.TestOnlySetFatalOnDecodeError(t, false)
		f, with := newCodec()
		r := newRig(t, with)
		storagetesting.RunTestDeleteExpectedTransformOrDecodeError(r.ctx, t, r, f.set)
	})
	t.Run("DeleteWithSuggestionWithoutExpectedError", func(t *testing.T) {
		r := newRig(t)
		storagetesting.RunTestDeleteWithSuggestionAndMissingExpectedTransformOrDecodeError(r.ctx, t, r)
	})
}

// storedAlone checks that what lies in the store has no metadata of the store.
func (r *rig) storedAlone(ctx context.Context, t *testing.T, key string) {
	t.Helper()
	got, err := r.client.KV.Get(ctx, key)
	if err != nil || len(got.Kvs) != 1 {
		t.Fatalf("get %s: %v, %v", key, got, err)
	}
	object, err := runtime.Decode(r.codec, bytes.TrimPrefix(got.Kvs[0].Value, []byte(valuePrefix)))
	if err != nil {
		t.Fatalf("decode %s: %v", key, err)
	}
	if pod := object.(*example.Pod); pod.ResourceVersion != "" || pod.SelfLink != "" {
		t.Errorf("%s is stored with resource version %q and link %q", key, pod.ResourceVersion, pod.SelfLink)
	}
}

// countCalls checks that a list reads each object once, and that its pages grow
// while they do not fill the answer: twice as large each time.
func (r *rig) countCalls(t *testing.T, page, objects uint64) {
	t.Helper()
	if n := r.prefix.GetReadsAndReset(); n != objects {
		t.Errorf("%d objects were read, want %d", n, objects)
	}
	calls := uint64(1)
	if page > 0 {
		const largestPage = 10_000 // etcd3's
		for seen := uint64(1); seen < objects; calls++ {
			page = min(2*page, largestPage)
			seen += page
		}
	}
	if n := r.reads.GetReadsAndReset() + r.reads.GetStreamReadsAndReset(); n != calls {
		t.Fatalf("%d calls, want %d", n, calls)
	}
}

// manyPods lists more pods than a chunk of a stream has.
func manyPods(t *testing.T, r *rig) {
	const count = 1234
	for i := range count {
		pod := &example.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprintf("pod-%04d", i)}}
		if err := r.Create(r.ctx, "/pods/ns/"+pod.Name, pod, nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	list := func(rv string, match metav1.ResourceVersionMatch) *example.PodList {
		var out example.PodList
		opts := storage.ListOptions{ResourceVersion: rv, ResourceVersionMatch: match, Predicate: storage.Everything, Recursive: true}
		if err := r.GetList(r.ctx, "/pods/", opts, &out); err != nil {
			t.Fatal(err)
		}
		return &out
	}
	first := list("", "")
	if err := r.Create(r.ctx, "/pods/ns/another", &example.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "another"}}, nil, 0); err != nil {
		t.Fatal(err)
	}
	again := list(first.ResourceVersion, metav1.ResourceVersionMatchExact)
	later := list(first.ResourceVersion, metav1.ResourceVersionMatchNotOlderThan)
	if len(first.Items) != count || len(again.Items) != count || len(later.Items) != count+1 {
		t.Errorf("%d pods, then %d at the same revision and %d later", len(first.Items), len(again.Items), len(later.Items))
	}
	if again.ResourceVersion != first.ResourceVersion {
		t.Errorf("listed at %s, got %s", first.ResourceVersion, again.ResourceVersion)
	}
}

// currentResourceVersion: the store's version is etcd's revision, no matter
// who writes.
func currentResourceVersion(t *testing.T, r *rig) {
	want := uint64(r.raise(r.ctx, t))
	if got, err := r.GetCurrentResourceVersion(r.ctx); err != nil || got != want {
		t.Errorf("got %d, %v, want %d", got, err, want)
	}
}

// keys are those of all pods.
func (r *rig) keys(ctx context.Context) (keys []string, _ error) {
	got, err := r.client.KV.Get(ctx, r.prefixOfKeys, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return nil, err
	}
	for _, kv := range got.Kvs {
		keys = append(keys, string(kv.Key))
	}
	return keys, nil
}

func stats(t *testing.T, r *rig, sized bool) {
	if sized {
		if err := r.EnableResourceSizeEstimation(r.keys); err != nil {
			t.Fatal(err)
		}
	}
	storagetesting.RunTestStats(r.ctx, t, r, r.codec, r.prefix, sized)
}

// leaseShared: objects with a time to live share a lease until it is full.
func leaseShared(t *testing.T) {
	r := newRig(t, func(s *setup) { s.lease.MaxObjectCount, s.lease.ReuseDurationSeconds = 2, 60 })
	var leases []int64
	for i := range 3 {
		key := fmt.Sprintf("/pods/ns/%d", i)
		if err := r.Create(r.ctx, key, &example.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprint(i)}}, nil, 120); err != nil {
			t.Fatal(err)
		}
		got, err := r.client.KV.Get(r.ctx, key)
		if err != nil || len(got.Kvs) != 1 {
			t.Fatal(got, err)
		}
		leases = append(leases, got.Kvs[0].Lease)
	}
	if leases[0] == 0 || leases[0] != leases[1] || leases[2] == leases[1] {
		t.Errorf("leases %d", leases)
	}
}
