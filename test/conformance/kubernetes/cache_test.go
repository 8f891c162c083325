package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apiserver/pkg/apis/example"
	examplev1 "k8s.io/apiserver/pkg/apis/example/v1"
	"k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher"
	"k8s.io/apiserver/pkg/storage/etcd3"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"
	"k8s.io/apiserver/pkg/storage/value/encrypt/identity"
	clientfeatures "k8s.io/client-go/features"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"
)

// cached is a watch cache over a rig.
type cached struct {
	*cacher.CacheDelegator
	rig *rig
	own *cacher.Cacher
}

// protoCodec is the encoding that API servers store.
func protoCodec() runtime.Codec {
	p := protobuf.NewSerializer(scheme, scheme)
	return codecs.CodecForVersions(p, p, schema.GroupVersions{examplev1.SchemeGroupVersion}, nil)
}

// stored changes a rig to store as API servers do.
func stored(s *setup) {
	s.codec, s.prefix, s.transformer = protoCodec(), "/registry", identity.NewEncryptCheckTransformer()
}

// newCache starts a cluster, and a cache that has seen one failed list and is
// in step.
func newCache(t *testing.T, change func(*cacher.Config), options ...func(*setup)) *cached {
	t.Helper()
	r := newRig(t, append([]func(*setup){stored}, options...)...)
	source := &storagetesting.StorageInjectingListErrors{Interface: r, Errors: 1}
	if clientfeatures.FeatureGates().Enabled(clientfeatures.WatchListClient) {
		source.Errors = 0 // it does not list, so nothing would fail
	}
	config := cacher.Config{
		Storage: source, Versioner: storage.APIObjectVersioner{}, GroupResource: pods, EventsHistoryWindow: cacher.DefaultEventFreshDuration,
		ResourcePrefix: "/pods/", KeyFunc: func(o runtime.Object) (string, error) { return storage.NamespaceKeyFunc("/pods/", o) },
		GetAttrsFunc: attributes, NewFunc: newPod, NewListFunc: newPodList, Indexers: &cache.Indexers{}, Codec: r.codec, Clock: clock.RealClock{},
	}
	if change != nil {
		change(&config)
	}
	own, err := cacher.NewCacherFromConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(own.Stop)
	await(t, func() bool { done, _ := source.ErrorsConsumed(); return done })
	if err := own.Wait(r.ctx); err != nil {
		t.Fatal(err)
	}
	c := &cached{cacher.NewCacheDelegator(own, source), r, own}
	t.Cleanup(c.Stop)
	return c
}

// attributes are those of pods by which lists and watches select.
func attributes(o runtime.Object) (labels.Set, fields.Set, error) {
	pod, ok := o.(*example.Pod)
	if !ok {
		return nil, nil, errors.New("not a pod")
	}
	return pod.Labels, fields.Set{
		"metadata.name": pod.Name, "metadata.namespace": pod.Namespace, "spec.nodeName": pod.Spec.NodeName,
		"spec.restartPolicy": string(pod.Spec.RestartPolicy), "status.phase": string(pod.Status.Phase),
	}, nil
}

// indexed adds the indexes that API servers have for pods.
func indexed(c *cacher.Config) {
	node := func(o any) string { return o.(*example.Pod).Spec.NodeName }
	c.IndexerFuncs = storage.IndexerFuncs{"spec.nodeName": func(o runtime.Object) string { return node(o) }}
	c.Indexers = &cache.Indexers{
		"f:spec.nodeName":      func(o any) ([]string, error) { return []string{node(o)}, nil },
		"f:metadata.namespace": func(o any) ([]string, error) { return []string{o.(*example.Pod).Namespace}, nil },
	}
}

// flat is for resources without namespaces.
func flat(c *cacher.Config) {
	indexed(c)
	c.KeyFunc = func(o runtime.Object) (string, error) { return storage.NoNamespaceKeyFunc("/pods/", o) }
}

// compact compacts the store, and then the cache, which by itself looks four
// times a minute.
func (c *cached) compact(ctx context.Context, t *testing.T, resourceVersion string) {
	t.Helper()
	c.rig.compact(ctx, t, resourceVersion)
	if err := c.own.Compact(resourceVersion); err != nil {
		t.Fatal(err)
	}
}

// follow compacts the store and waits until the cache has noticed.
func (c *cached) follow(ctx context.Context, t *testing.T, resourceVersion string) {
	t.Helper()
	c.rig.compact(ctx, t, resourceVersion)
	await(t, func() bool { return c.CompactRevision() == c.rig.CompactRevision() })
}

// hasty is a clock for a cache that looks often whether the store was compacted.
type hasty struct{ clock.RealClock }

func (h hasty) NewTimer(d time.Duration) clock.Timer {
	return hastyTimer{h.RealClock.NewTimer(soon(d))}
}

type hastyTimer struct{ clock.Timer }

func (t hastyTimer) Reset(d time.Duration) bool { return t.Timer.Reset(soon(d)) }

func soon(d time.Duration) time.Duration { return min(d, 50*time.Millisecond) }

// caughtUp is a cache that has seen each object that was created through it.
type caughtUp struct{ *cached }

func (c caughtUp) Create(ctx context.Context, key string, object, out runtime.Object, ttl uint64) error {
	if err := c.cached.Create(ctx, key, object, out, ttl); err != nil {
		return err
	}
	for ctx.Err() == nil {
		seen := newPod()
		err := c.Get(ctx, key, storage.GetOptions{ResourceVersion: "0"}, seen)
		if err == nil && reflect.DeepEqual(seen, out) {
			return nil
		}
		if err != nil && !storage.IsNotFound(err) {
			return err
		}
	}
	return ctx.Err()
}

// unchecked: what the cache stores, the tests of the store have checked.
func unchecked(context.Context, *testing.T, string) {}

// uncounted: pages are the store's business.
func uncounted(*testing.T, uint64, uint64) {}

// through makes a test of a cache of one that needs nothing but the store.
func through(run func(context.Context, *testing.T, storage.Interface), change ...func(*cacher.Config)) func(*testing.T) {
	return func(t *testing.T) {
		var c func(*cacher.Config)
		if len(change) > 0 {
			c = change[0]
		}
		cache := newCache(t, c)
		run(cache.rig.ctx, t, cache)
	}
}

// inStep is through, for tests that read from the cache what they have just
// created.
func inStep(run func(context.Context, *testing.T, storage.Interface)) func(*testing.T) {
	return func(t *testing.T) {
		c := newCache(t, nil)
		run(c.rig.ctx, t, caughtUp{c})
	}
}

var cacheTests = map[string]func(*testing.T){
	"Create": func(t *testing.T) {
		c := newCache(t, nil)
		storagetesting.RunTestCreate(c.rig.ctx, t, c, unchecked)
	},
	"CreateWithTTL":                          through(storagetesting.RunTestCreateWithTTL),
	"CreateWithKeyExist":                     through(storagetesting.RunTestCreateWithKeyExist),
	"Get":                                    through(storagetesting.RunTestGet),
	"UnconditionalDelete":                    through(storagetesting.RunTestUnconditionalDelete),
	"ConditionalDelete":                      through(storagetesting.RunTestConditionalDelete),
	"DeleteWithConflict":                     through(storagetesting.RunTestDeleteWithConflict),
	"DeleteWithSuggestion":                   through(storagetesting.RunTestDeleteWithSuggestion),
	"DeleteWithSuggestionAndConflict":        through(storagetesting.RunTestDeleteWithSuggestionAndConflict),
	"DeleteWithSuggestionOfDeletedObject":    through(storagetesting.RunTestDeleteWithSuggestionOfDeletedObject),
	"ValidateDeletionWithSuggestion":         through(storagetesting.RunTestValidateDeletionWithSuggestion),
	"ValidateDeletionWithOnlySuggestion":     through(storagetesting.RunTestValidateDeletionWithOnlySuggestionValid),
	"PreconditionalDeleteWithSuggestion":     through(storagetesting.RunTestPreconditionalDeleteWithSuggestion),
	"PreconditionalDeleteWithOnlySuggestion": through(storagetesting.RunTestPreconditionalDeleteWithOnlySuggestionPass),
	"ListPaging":                             through(storagetesting.RunTestListPaging),
	"ListRecursivePrefix":                    through(storagetesting.RunTestGetListRecursivePrefix),
	"ListContinuation":                       throughPages(storagetesting.RunTestListContinuation),
	"ListPaginationRareObject":               throughPages(storagetesting.RunTestListPaginationRareObject),
	"ListContinuationWithFilter":             throughPages(storagetesting.RunTestListContinuationWithFilter),
	"NamespaceScopedList":                    through(storagetesting.RunTestNamespaceScopedList, indexed),
	"GuaranteedUpdateWithTTL":                through(storagetesting.RunTestGuaranteedUpdateWithTTL),
	"GuaranteedUpdateWithConflict":           through(storagetesting.RunTestGuaranteedUpdateWithConflict),
	"GuaranteedUpdateWithSuggestion":         through(storagetesting.RunTestGuaranteedUpdateWithSuggestionAndConflict),
	"KeySchema":                              through(storagetesting.RunTestKeySchema),
	"CompactRevision": func(t *testing.T) {
		gate(t, features.ListFromCacheSnapshot, true)
		c := newCache(t, func(c *cacher.Config) { c.Clock = hasty{} })
		storagetesting.RunTestCompactRevision(c.rig.ctx, t, c, c.rig.raise, c.follow)
	},

	"Watch":                    through(storagetesting.RunTestWatch),
	"WatchFromNonZero":         through(storagetesting.RunTestWatchFromNonZero),
	"DeleteTriggerWatch":       through(storagetesting.RunTestDeleteTriggerWatch),
	"DelayedWatchDelivery":     through(storagetesting.RunTestDelayedWatchDelivery),
	"WatcherTimeout":           through(storagetesting.RunTestWatcherTimeout),
	"WatchDeleteHasLatestRV":   through(storagetesting.RunTestWatchDeleteEventObjectHaveLatestRV),
	"WatchInitialization":      through(storagetesting.RunTestWatchInitializationSignal),
	"ClusterScopedWatch":       through(storagetesting.RunTestClusterScopedWatch, flat),
	"NamespaceScopedWatch":     through(storagetesting.RunTestNamespaceScopedWatch, indexed),
	"BookmarksHaveVersion":     through(storagetesting.RunTestOptionalWatchBookmarksWithCorrectResourceVersion),
	"InitialEventsOfOldClient": through(storagetesting.RunSendInitialEventsBackwardCompatibility),
	"WatchBookmarks": func(t *testing.T) {
		c := newCache(t, nil)
		storagetesting.RunTestWatchDispatchBookmarkEvents(c.rig.ctx, t, c, true)
	},
	"WatchSemantics":             inStep(storagetesting.RunWatchSemantics),
	"WatchSemanticInitialEvents": inStep(storagetesting.RunWatchSemanticInitialEventsExtended),
	"WatchListMatchSingle":       inStep(storagetesting.RunWatchListMatchSingle),
}

// throughPages makes a test of lists by pages.
func throughPages(run func(context.Context, *testing.T, storage.Interface, storagetesting.CallsValidation)) func(*testing.T) {
	return func(t *testing.T) {
		c := newCache(t, nil)
		run(c.rig.ctx, t, c, uncounted)
	}
}

func TestCache(t *testing.T) {
	for _, name := range sorted(cacheTests) {
		t.Run(name, cacheTests[name])
	}
}

// TestCacheLists has the lists that may come from a snapshot that the cache
// keeps, or from the store.
func TestCacheLists(t *testing.T) {
	for _, on := range []bool{false, true} {
		t.Run(fmt.Sprintf("FromSnapshot=%t", on), func(t *testing.T) {
			gate(t, features.ListFromCacheSnapshot, on)
			t.Run("List", func(t *testing.T) {
				c := newCache(t, nil)
				storagetesting.RunTestList(c.rig.ctx, t, c, c.compact, true, c.rig.lists)
			})
			t.Run("ConsistentList", func(t *testing.T) {
				c := newCache(t, nil)
				storagetesting.RunTestConsistentList(c.rig.ctx, t, c, c.rig.raise, true, true, on)
			})
			t.Run("ListNonRecursive", func(t *testing.T) {
				c := newCache(t, nil)
				storagetesting.RunTestGetListNonRecursive(c.rig.ctx, t, c.rig.raise, c)
			})
		})
	}
}

// TestCacheStats: sizes are estimated from the cache, or not at all.
func TestCacheStats(t *testing.T) {
	for _, sized := range []bool{false, true} {
		t.Run(fmt.Sprintf("sized=%t", sized), func(t *testing.T) {
			gate(t, features.SizeBasedListCostEstimate, sized)
			c := newCache(t, nil)
			storagetesting.RunTestStats(c.rig.ctx, t, c, c.rig.codec, identity.NewEncryptCheckTransformer(), sized)
		})
	}
}

// TestCacheUnreadable has the tests of objects that can no longer be read.
func TestCacheUnreadable(t *testing.T) {
	gate(t, features.AllowUnsafeMalformedObjectDeletion, true)
	newTransformer := func() (failingTransformer, func(*setup)) {
		f := failingTransformer{&failing{Transformer: identity.NewEncryptCheckTransformer()}}
		return f, func(s *setup) { s.transformer = f }
	}
	t.Run("DeleteConflictWithoutExpectedError", func(t *testing.T) {
		f, with := newTransformer()
		c := newCache(t, nil, with)
		storagetesting.RunTestDeleteWithConflictAndMissingExpectedTransformOrDecodeError(c.rig.ctx, t, c, f.set)
	})
	t.Run("DeleteWithTransformError", func(t *testing.T) {
		f, with := newTransformer()
		c := newCache(t, nil, with)
		storagetesting.RunTestDeleteExpectedTransformOrDecodeError(c.rig.ctx, t, c, f.set)
	})
	t.Run("DeleteWithDecodeError", func(t *testing.T) {
		etcd3.TestOnlySetFatalOnDecodeError(t, false)
		f := failingCodec{&failing{Codec: protoCodec()}}
		c := newCache(t, nil, func(s *setup) { s.codec = f })
		storagetesting.RunTestDeleteExpectedTransformOrDecodeError(c.rig.ctx, t, c, f.set)
	})
	t.Run("DeleteWithSuggestionWithoutExpectedError", func(t *testing.T) {
		c := newCache(t, nil)
		storagetesting.RunTestDeleteWithSuggestionAndMissingExpectedTransformOrDecodeError(c.rig.ctx, t, c)
	})
}
