package etcdapi_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/etcdapi"
	"github.com/kvd-io/kvd/internal/etcdapi/etcdtest"
	"github.com/kvd-io/kvd/internal/kvstore"
)

// refused checks that an error has the code and the text of one of etcd's.
func refused(t *testing.T, what string, got, want error) {
	t.Helper()
	g, w := status.Convert(got), status.Convert(want)
	var known rpctypes.EtcdError
	if errors.As(got, &known) { // the client library has made it one of its own
		g = status.New(known.Code(), known.Error())
	}
	if g.Code() != w.Code() || g.Message() != w.Message() {
		t.Errorf("%s: got %v %q, want %v %q", what, g.Code(), g.Message(), w.Code(), w.Message())
	}
}

func TestPut(t *testing.T) {
	_, c := alone(t, nil)
	ctx := t.Context()
	p := must[*clientv3.PutResponse](t)
	first := p(c.Put(ctx, "a", "1"))
	if h := first.Header; h.Revision != 2 || h.ClusterId == 0 || h.MemberId != 1 || h.RaftTerm == 0 || first.PrevKv != nil {
		t.Errorf("the first put: %v", first)
	}
	second := p(c.Put(ctx, "a", "2", clientv3.WithPrevKV()))
	if kv := second.PrevKv; second.Header.Revision != 3 || string(kv.Key) != "a" || string(kv.Value) != "1" || kv.ModRevision != 2 || kv.Version != 1 {
		t.Errorf("the second put: %v", second)
	}
	p(c.Put(ctx, "a", "", clientv3.WithIgnoreValue()))
	kv := must[*clientv3.GetResponse](t)(c.Get(ctx, "a")).Kvs[0]
	if string(kv.Value) != "2" || kv.CreateRevision != 2 || kv.ModRevision != 4 || kv.Version != 3 || kv.Lease != 0 {
		t.Errorf("after a put that keeps the value: %v", kv)
	}
}

func TestPutRefusals(t *testing.T) {
	n, c := alone(t, nil)
	raw := pb.NewKVClient(c.ActiveConnection())
	long := make([]byte, 4097)
	for what, r := range map[string]struct {
		put  *pb.PutRequest
		want error
	}{
		"no key":                   {&pb.PutRequest{}, rpctypes.ErrGRPCEmptyKey},
		"value given and ignored":  {&pb.PutRequest{Key: []byte("a"), Value: []byte("1"), IgnoreValue: true}, rpctypes.ErrGRPCValueProvided},
		"lease given and ignored":  {&pb.PutRequest{Key: []byte("a"), Lease: 1, IgnoreLease: true}, rpctypes.ErrGRPCLeaseProvided},
		"nothing to keep":          {&pb.PutRequest{Key: []byte("a"), IgnoreValue: true}, rpctypes.ErrGRPCKeyNotFound},
		"no lease to keep":         {&pb.PutRequest{Key: []byte("a"), IgnoreLease: true}, rpctypes.ErrGRPCKeyNotFound},
		"unknown lease":            {&pb.PutRequest{Key: []byte("a"), Lease: 77}, rpctypes.ErrGRPCLeaseNotFound},
		"a key of 4097 bytes":      {&pb.PutRequest{Key: long}, rpctypes.ErrGRPCRequestTooLarge},
		"a value beyond the limit": {&pb.PutRequest{Key: []byte("a"), Value: make([]byte, 1536<<10)}, rpctypes.ErrGRPCRequestTooLarge},
	} {
		_, err := raw.Put(t.Context(), r.put)
		refused(t, what, err, r.want)
	}
	_, err := raw.Put(t.Context(), &pb.PutRequest{Key: []byte("a"), Value: make([]byte, 3<<20)})
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "grpc: received message larger than max") {
		t.Errorf("a message beyond gRPC's limit: %v", err)
	}
	if r := n.Store().Revision(); r != 1 {
		t.Errorf("refused puts led to revision %d", r)
	}
}

// Beyond the quota, puts are refused and deletes work.
func TestQuota(t *testing.T) {
	_, c := alone(t, &etcdtest.Config{Settings: func(s *kvstore.Settings) { s.QuotaBytes = 1 << 20 }})
	ctx, value := t.Context(), strings.Repeat("v", 400<<10)
	for _, key := range []string{"a", "b"} {
		must[*clientv3.PutResponse](t)(c.Put(ctx, key, value))
	}
	_, err := c.Put(ctx, "c", value)
	refused(t, "a put beyond the quota", err, rpctypes.ErrGRPCNoSpace)
	st := must[*clientv3.StatusResponse](t)(c.Status(ctx, c.Endpoints()[0]))
	alarms := must[*clientv3.AlarmResponse](t)(c.AlarmList(ctx)).Alarms
	if len(alarms) != 1 || alarms[0].Alarm != pb.AlarmType_NOSPACE || len(st.Errors) != 1 || !strings.Contains(st.Errors[0], "NOSPACE") {
		t.Errorf("alarms %v, errors %v", alarms, st.Errors)
	}
	must[*clientv3.DeleteResponse](t)(c.Delete(ctx, "a"))
	must[*clientv3.PutResponse](t)(c.Put(ctx, "c", value))
	if alarms := must[*clientv3.AlarmResponse](t)(c.AlarmList(ctx)).Alarms; len(alarms) != 0 {
		t.Errorf("after there was space again: %v", alarms)
	}
}

func TestDeleteRange(t *testing.T) {
	_, c := alone(t, nil)
	ctx := t.Context()
	for _, key := range []string{"a", "b", "b1", "c"} {
		must[*clientv3.PutResponse](t)(c.Put(ctx, key, key))
	}
	del := must[*clientv3.DeleteResponse](t)
	for _, d := range []struct {
		what, key string
		opts      []clientv3.OpOption
		deleted   int64
		revision  int64
		prev      string
	}{
		{"an absent key", "x", nil, 0, 5, ""},
		{"an empty range", "c", []clientv3.OpOption{clientv3.WithRange("a")}, 0, 5, ""},
		{"a prefix", "b", []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithPrevKV()}, 2, 6, "b b1"},
		{"one key", "a", []clientv3.OpOption{clientv3.WithPrevKV()}, 1, 7, "a"},
		{"everything from a key on", "b", []clientv3.OpOption{clientv3.WithFromKey()}, 1, 8, ""},
	} {
		r := del(c.Delete(ctx, d.key, d.opts...))
		var prev []string
		for _, kv := range r.PrevKvs {
			prev = append(prev, string(kv.Value))
		}
		if got := strings.Join(prev, " "); r.Deleted != d.deleted || r.Header.Revision != d.revision || got != d.prev {
			t.Errorf("%s: %d deleted at revision %d, before: %q", d.what, r.Deleted, r.Header.Revision, got)
		}
	}
	_, err := pb.NewKVClient(c.ActiveConnection()).DeleteRange(ctx, &pb.DeleteRangeRequest{})
	refused(t, "no key", err, rpctypes.ErrGRPCEmptyKey)
}

// fill writes n keys k0000, k0001, ..., and one before and behind them.
func fill(t testing.TB, c *clientv3.Client, n int) {
	t.Helper()
	for from := 0; from < n; from += 100 {
		var ops []clientv3.Op
		for i := from; i < min(n, from+100); i++ {
			ops = append(ops, clientv3.OpPut(fmt.Sprintf("k%04d", i), fmt.Sprint("v", i)))
		}
		must[*clientv3.TxnResponse](t)(c.Txn(context.Background()).Then(ops...).Commit())
	}
	must[*clientv3.PutResponse](t)(c.Put(context.Background(), "j", ""))
	must[*clientv3.PutResponse](t)(c.Put(context.Background(), "l", ""))
}

// keysOf returns the keys of an answer, separated by spaces.
func keysOf(r *clientv3.GetResponse) string {
	var keys []string
	for _, kv := range r.Kvs {
		keys = append(keys, string(kv.Key))
	}
	return strings.Join(keys, " ")
}

func TestRange(t *testing.T) {
	_, c := alone(t, nil)
	ctx := t.Context()
	for _, kv := range []string{"a=3", "b=1", "c=2", "b=9", "d=0"} { // revisions 2 to 6
		must[*clientv3.PutResponse](t)(c.Put(ctx, kv[:1], kv[2:]))
	}
	must[*clientv3.DeleteResponse](t)(c.Delete(ctx, "d")) // 7
	all := clientv3.WithFromKey()
	for _, r := range []struct {
		what, key string
		opts      []clientv3.OpOption
		keys      string
		count     int64
		more      bool
	}{
		{"one key", "b", nil, "b", 1, false},
		{"an absent key", "x", nil, "", 0, false},
		{"a key that was deleted", "d", nil, "", 0, false},
		{"its past", "d", []clientv3.OpOption{clientv3.WithRev(6)}, "d", 1, false},
		{"everything", "\x00", []clientv3.OpOption{all}, "a b c", 3, false},
		{"a range", "a", []clientv3.OpOption{clientv3.WithRange("c")}, "a b", 2, false},
		{"an empty range", "c", []clientv3.OpOption{clientv3.WithRange("b")}, "", 0, false},
		{"with a limit", "a", []clientv3.OpOption{all, clientv3.WithLimit(2)}, "a b", 3, true},
		{"with a limit that is just enough", "a", []clientv3.OpOption{all, clientv3.WithLimit(3)}, "a b c", 3, false},
		{"the past", "a", []clientv3.OpOption{all, clientv3.WithRev(3)}, "a b", 2, false},
		{"counted", "a", []clientv3.OpOption{all, clientv3.WithCountOnly(), clientv3.WithLimit(1)}, "", 3, false},
		{"one key counted", "b", []clientv3.OpOption{clientv3.WithCountOnly()}, "", 1, false},
		{"backward", "a", []clientv3.OpOption{all, clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend)}, "c b a", 3, false},
		{"backward, one", "a", []clientv3.OpOption{all, clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend), clientv3.WithLimit(1)}, "c", 3, true},
		{"by value", "a", []clientv3.OpOption{all, clientv3.WithSort(clientv3.SortByValue, clientv3.SortAscend)}, "c a b", 3, false},
		{"by value, keys only", "a", []clientv3.OpOption{all, clientv3.WithSort(clientv3.SortByValue, clientv3.SortNone), clientv3.WithKeysOnly()}, "c a b", 3, false},
		{"by version, last", "a", []clientv3.OpOption{all, clientv3.WithSort(clientv3.SortByVersion, clientv3.SortDescend), clientv3.WithLimit(1)}, "b", 3, true},
		{"by creation, first", "", clientv3.WithFirstCreate(), "a", 3, true},
		{"by modification, last", "", clientv3.WithLastRev(), "b", 3, true},
		{"modified since", "a", []clientv3.OpOption{all, clientv3.WithMinModRev(4)}, "b c", 3, false},
		{"modified until, one", "a", []clientv3.OpOption{all, clientv3.WithMaxModRev(4), clientv3.WithLimit(1)}, "a", 3, true},
		{"created between", "a", []clientv3.OpOption{all, clientv3.WithMinCreateRev(3), clientv3.WithMaxCreateRev(3)}, "b", 3, false},
		{"modified before the beginning", "a", []clientv3.OpOption{all, clientv3.WithMaxModRev(-1)}, "", 3, false},
		{"one key that is filtered", "a", []clientv3.OpOption{clientv3.WithMinModRev(3)}, "", 1, false},
		{"stale", "a", []clientv3.OpOption{all, clientv3.WithSerializable()}, "a b c", 3, false},
	} {
		got, err := c.Get(ctx, r.key, r.opts...)
		if err != nil {
			t.Errorf("%s: %v", r.what, err)
			continue
		}
		if keysOf(got) != r.keys || got.Count != r.count || got.More != r.more || got.Header.Revision != 7 {
			t.Errorf("%s: keys %q, count %d, more %v at %d; want %q, %d, %v at 7", r.what, keysOf(got), got.Count, got.More, got.Header.Revision, r.keys, r.count, r.more)
		}
	}
	only := must[*clientv3.GetResponse](t)(c.Get(ctx, "a", all, clientv3.WithKeysOnly()))
	for _, kv := range only.Kvs {
		if len(kv.Value) > 0 {
			t.Errorf("keys only: %v", kv)
		}
	}
}

func TestRangeRefusals(t *testing.T) {
	_, c := alone(t, nil)
	fill(t, c, 10)
	raw := pb.NewKVClient(c.ActiveConnection())
	must[*clientv3.CompactResponse](t)(c.Compact(t.Context(), 3))
	for what, r := range map[string]struct {
		r    *pb.RangeRequest
		want error
	}{
		"no key":                  {&pb.RangeRequest{}, rpctypes.ErrGRPCEmptyKey},
		"a future revision":       {&pb.RangeRequest{Key: []byte("a"), Revision: 99}, rpctypes.ErrGRPCFutureRev},
		"a future count":          {&pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte{0}, CountOnly: true, Revision: 99}, rpctypes.ErrGRPCFutureRev},
		"a future order":          {&pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte{0}, SortTarget: pb.RangeRequest_MOD, Revision: 99}, rpctypes.ErrGRPCFutureRev},
		"a future empty range":    {&pb.RangeRequest{Key: []byte("b"), RangeEnd: []byte("a"), Revision: 99}, rpctypes.ErrGRPCFutureRev},
		"a compacted revision":    {&pb.RangeRequest{Key: []byte("a"), Revision: 2}, rpctypes.ErrGRPCCompacted},
		"a compacted range":       {&pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte{0}, Revision: 2}, rpctypes.ErrGRPCCompacted},
		"a compacted order":       {&pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte{0}, SortTarget: pb.RangeRequest_MOD, Revision: 2}, rpctypes.ErrGRPCCompacted},
		"an unknown order":        {&pb.RangeRequest{Key: []byte("a"), SortOrder: 7}, rpctypes.ErrGRPCInvalidSortOption},
		"an unknown sort target":  {&pb.RangeRequest{Key: []byte("a"), SortTarget: 7}, rpctypes.ErrGRPCInvalidSortOption},
		"at the compact revision": {&pb.RangeRequest{Key: []byte("a"), Revision: 3}, nil},
	} {
		_, err := raw.Range(t.Context(), r.r)
		refused(t, what, err, r.want)
	}
}

// A listing in pages gets the same counts as one that is not, also if it begins anew.
func TestPages(t *testing.T) {
	_, c := alone(t, nil)
	fill(t, c, 250)
	for range 2 {
		seen, key, rev := int64(0), "k", int64(0)
		for more := true; more; {
			r := must[*clientv3.GetResponse](t)(c.Get(t.Context(), key, clientv3.WithRange("l"), clientv3.WithLimit(40), clientv3.WithRev(rev)))
			if r.Count != 250-seen {
				t.Fatalf("after %d keys the count is %d", seen, r.Count)
			}
			seen += int64(len(r.Kvs))
			key, rev, more = string(r.Kvs[len(r.Kvs)-1].Key)+"\x00", r.Header.Revision, r.More
		}
		if seen != 250 {
			t.Errorf("%d keys", seen)
		}
		must[*clientv3.PutResponse](t)(c.Put(t.Context(), "z", ""))
	}
}

func TestRangeStream(t *testing.T) {
	_, c := alone(t, nil)
	fill(t, c, 30)
	ctx, big := t.Context(), strings.Repeat("v", 300<<10)
	for i := range 5 {
		must[*clientv3.PutResponse](t)(c.Put(ctx, fmt.Sprintf("k%04d", i*7), big))
	}
	raw := pb.NewKVClient(c.ActiveConnection())
	for what, r := range map[string]*pb.RangeRequest{
		"everything":   {Key: []byte{0}, RangeEnd: []byte{0}},
		"with a limit": {Key: []byte("k"), RangeEnd: []byte("l"), Limit: 17},
		"one key":      {Key: []byte("k0001")},
		"no key":       {Key: []byte("x"), RangeEnd: []byte("z")},
		"a count":      {Key: []byte("k"), RangeEnd: []byte("l"), CountOnly: true},
		"the past":     {Key: []byte("k"), RangeEnd: []byte("l"), Revision: 2},
		"by value":     {Key: []byte{0}, RangeEnd: []byte{0}, SortTarget: pb.RangeRequest_VALUE},
	} {
		want := must[*pb.RangeResponse](t)(raw.Range(ctx, r))
		stream := must[pb.KV_RangeStreamClient](t)(raw.RangeStream(ctx, r))
		got, chunks := new(pb.RangeResponse), 0
		for {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			chunk := m.GetRangeResponse()
			if got.GetHeader() != nil {
				t.Errorf("%s: a chunk after the last one", what)
			}
			got.Kvs, got.Header, got.Count, got.More, chunks = append(got.GetKvs(), chunk.GetKvs()...), chunk.GetHeader(), chunk.GetCount(), chunk.GetMore(), chunks+1
		}
		if got.String() != want.String() {
			t.Errorf("%s: the chunks differ from the answer", what)
		}
		if what == "everything" && chunks < 3 {
			t.Errorf("1.5 MiB came in %d chunks", chunks)
		}
	}
	for what, r := range map[string]*pb.RangeRequest{
		"backward": {Key: []byte{0}, RangeEnd: []byte{0}, SortOrder: pb.RangeRequest_DESCEND},
		"filtered": {Key: []byte{0}, RangeEnd: []byte{0}, MinModRevision: 3},
	} {
		stream := must[pb.KV_RangeStreamClient](t)(raw.RangeStream(ctx, r))
		if _, err := stream.Recv(); status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestCompact(t *testing.T) {
	_, c := alone(t, nil)
	ctx := t.Context()
	must[*clientv3.CompactResponse](t)(c.Compact(ctx, 0)) // as for a new etcd
	_, err := c.Compact(ctx, -1)
	refused(t, "what is before everything", err, rpctypes.ErrGRPCCompacted)
	fill(t, c, 10)
	_, err = c.Compact(ctx, 99)
	refused(t, "a future revision", err, rpctypes.ErrGRPCFutureRev)
	if r := must[*clientv3.CompactResponse](t)(c.Compact(ctx, 3)); r.Header.Revision != 4 {
		t.Errorf("the header has revision %d", r.Header.Revision)
	}
	for _, rev := range []int64{3, 2, 0, -1} {
		_, err := c.Compact(ctx, rev)
		refused(t, fmt.Sprint("revision ", rev), err, rpctypes.ErrGRPCCompacted)
	}
}

// TestCompactBehindAnother: a node that learns only with its proof of a compaction elsewhere
// does not say that there was none.
func TestCompactBehindAnother(t *testing.T) {
	l := new(laggard)
	n, c := alone(t, &etcdtest.Config{Options: func(o *etcdapi.Options) { l.Replicator, o.Replicator = o.Replicator, l }})
	fill(t, c, 10)
	l.late = func() {
		res, err := n.Do(t.Context(), &kvstore.Command{Op: kvstore.OpCompact, Revision: 3}, nil)
		if err != nil || res.Outcome != kvstore.OK {
			t.Error(res, err)
		}
	}
	_, err := c.Compact(t.Context(), 1)
	refused(t, "a revision that was compacted", err, rpctypes.ErrGRPCCompacted)
}

// A range of any size is answered, also sorted.
func TestLargeRange(t *testing.T) {
	_, c := alone(t, nil)
	ctx, value := t.Context(), bytes.Repeat([]byte{'v'}, 1<<20)
	for i := range 20 {
		must[*clientv3.PutResponse](t)(c.Put(ctx, fmt.Sprint("k", 10+i), string(value)))
	}
	for _, opts := range [][]clientv3.OpOption{{}, {clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend)}} {
		r := must[*clientv3.GetResponse](t)(c.Get(ctx, "k", append(opts, clientv3.WithPrefix())...))
		if len(r.Kvs) != 20 || len(r.Kvs[19].Value) != 1<<20 {
			t.Errorf("%d pairs", len(r.Kvs))
		}
	}
}

// What large answers hold is returned once they are written, and what they cannot have is
// refused.
func TestMemoryOfAnswers(t *testing.T) {
	memory := budget.New(8 << 20)
	_, c := alone(t, &etcdtest.Config{Options: func(o *etcdapi.Options) { o.Memory = memory }})
	ctx, value := t.Context(), strings.Repeat("v", 1<<20)
	for i := range 4 {
		must[*clientv3.PutResponse](t)(c.Put(ctx, fmt.Sprint("k", i), value, clientv3.WithPrevKV()))
	}
	var readers sync.WaitGroup
	for range 8 {
		readers.Go(func() {
			for range 5 {
				r, err := c.Get(ctx, "k", clientv3.WithPrefix())
				if err == nil && len(r.Kvs) != 4 || err != nil && !errors.Is(err, rpctypes.ErrTooManyRequests) {
					t.Errorf("%v %v", r, err)
				}
			}
		})
	}
	readers.Wait()
	must[*clientv3.TxnResponse](t)(c.Txn(ctx).Then(get("k0")).Commit())
	waitFor(t, "the memory", func() bool {
		small, large := memory.Taken()
		return small == 0 && large == 0
	})
}
