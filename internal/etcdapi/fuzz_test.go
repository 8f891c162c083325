package etcdapi_test

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/etcdapi/etcdtest"
)

// fuzzed is a call with what an answer to it has to satisfy.
type fuzzed struct {
	method string
	input  func() proto.Message
}

var fuzzedCalls = []fuzzed{
	{"/etcdserverpb.KV/Range", func() proto.Message { return new(pb.RangeRequest) }},
	{"/etcdserverpb.KV/Put", func() proto.Message { return new(pb.PutRequest) }},
	{"/etcdserverpb.KV/DeleteRange", func() proto.Message { return new(pb.DeleteRangeRequest) }},
	{"/etcdserverpb.KV/Txn", func() proto.Message { return new(pb.TxnRequest) }},
	{"/etcdserverpb.KV/Compact", func() proto.Message { return new(pb.CompactionRequest) }},
	{"/etcdserverpb.Lease/LeaseGrant", func() proto.Message { return new(pb.LeaseGrantRequest) }},
	{"/etcdserverpb.Lease/LeaseRevoke", func() proto.Message { return new(pb.LeaseRevokeRequest) }},
	{"/etcdserverpb.Lease/LeaseTimeToLive", func() proto.Message { return new(pb.LeaseTimeToLiveRequest) }},
	{"/etcdserverpb.Maintenance/HashKV", func() proto.Message { return new(pb.HashKVRequest) }},
}

// FuzzCalls sends arbitrary bytes as the requests of calls to a real node. No request is
// answered with an error of the server; one that is refused has changed nothing; and what
// a range returns is what was asked for.
func FuzzCalls(f *testing.F) {
	add := func(method int, m proto.Message) {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(method), b)
	}
	put := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("a"), Value: []byte("1"), IgnoreLease: true}}}
	list := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte{0}}}}
	add(0, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Limit: 2, SortOrder: pb.RangeRequest_DESCEND, SortTarget: pb.RangeRequest_VALUE, MinModRevision: 2})
	add(0, &pb.RangeRequest{Key: []byte("b"), RangeEnd: []byte("a"), Revision: -1, Limit: -5, KeysOnly: true, CountOnly: true})
	add(1, &pb.PutRequest{Key: []byte("a"), Value: []byte("v"), PrevKv: true})
	add(1, &pb.PutRequest{Key: []byte("a"), Value: []byte("v"), IgnoreValue: true, Lease: -1})
	add(2, &pb.DeleteRangeRequest{Key: []byte("a"), RangeEnd: []byte("c"), PrevKv: true})
	add(3, &pb.TxnRequest{Compare: []*pb.Compare{{Target: 9, Result: 7, Key: []byte("a")}}, Success: []*pb.RequestOp{put, list}, Failure: []*pb.RequestOp{{}}})
	add(3, &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: []*pb.RequestOp{put}}}}}})
	add(3, &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{}}}})
	add(4, &pb.CompactionRequest{Revision: 1 << 62, Physical: true})
	add(5, &pb.LeaseGrantRequest{TTL: -1, ID: 7})
	add(6, &pb.LeaseRevokeRequest{ID: 7})
	add(7, &pb.LeaseTimeToLiveRequest{ID: 7, Keys: true})
	add(8, &pb.HashKVRequest{Revision: -1})
	f.Add(uint8(0), []byte{0xff, 0xff})
	n := etcdtest.Start(f, 1, nil)[0]
	f.Fuzz(func(t *testing.T, which uint8, request []byte) {
		c := fuzzedCalls[int(which)%len(fuzzedCalls)]
		m := c.input()
		if proto.Unmarshal(request, m) != nil {
			return
		}
		before := n.Store().Revision()
		answer, err := invoke(t.Context(), n, c.method, m)
		if err != nil {
			switch code := status.Code(err); code {
			case codes.Internal, codes.Unknown, codes.Unavailable, codes.DeadlineExceeded, codes.Unimplemented:
				t.Fatalf("%s %v: %v", c.method, m, err)
			}
			if after := n.Store().Revision(); after != before {
				t.Fatalf("%s %v: %v, and the revision went from %d to %d", c.method, m, err, before, after)
			}
			return
		}
		if r, ok := m.(*pb.RangeRequest); ok {
			checkRange(t, n, r, answer.(*pb.RangeResponse))
		}
		if r, ok := m.(*pb.PutRequest); ok {
			kv := pairOf(t, n, r.Key)
			if kv == nil || !r.IgnoreValue && !bytes.Equal(kv.Value, r.Value) || !r.IgnoreLease && kv.Lease != r.Lease || uint64(kv.ModRevision) != before+1 {
				t.Fatalf("%v: %v", r, kv)
			}
		}
		if r, ok := m.(*pb.DeleteRangeRequest); ok {
			if pairOf(t, n, r.Key) != nil && len(r.RangeEnd) == 0 {
				t.Fatalf("%v: the key is still there", r)
			}
		}
	})
}

func invoke(ctx context.Context, n *etcdtest.Node, method string, m proto.Message) (any, error) {
	return n.Calls.Call(ctx, method, func(into any) error {
		proto.Merge(into.(proto.Message), m)
		return nil
	})
}

// pairOf returns the pair of a key, or nil.
func pairOf(t *testing.T, n *etcdtest.Node, key []byte) *pairAnswer {
	answer, err := invoke(t.Context(), n, "/etcdserverpb.KV/Range", &pb.RangeRequest{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	kvs := answer.(*pb.RangeResponse).Kvs
	if len(kvs) == 0 {
		return nil
	}
	return &pairAnswer{kvs[0].Value, kvs[0].Lease, kvs[0].ModRevision}
}

type pairAnswer struct {
	Value       []byte
	Lease       int64
	ModRevision int64
}

// checkRange checks an answer against its request.
func checkRange(t *testing.T, n *etcdtest.Node, r *pb.RangeRequest, a *pb.RangeResponse) {
	whole := len(r.RangeEnd) == 1 && r.RangeEnd[0] == 0
	for _, kv := range a.Kvs {
		in := bytes.Equal(kv.Key, r.Key)
		if len(r.RangeEnd) > 0 {
			in = bytes.Compare(kv.Key, r.Key) >= 0 && (whole || bytes.Compare(kv.Key, r.RangeEnd) < 0)
		}
		if !in || kv.ModRevision < r.MinModRevision || r.MaxModRevision != 0 && kv.ModRevision > r.MaxModRevision || kv.CreateRevision < r.MinCreateRevision ||
			r.MaxCreateRevision != 0 && kv.CreateRevision > r.MaxCreateRevision || r.KeysOnly && len(kv.Value) > 0 || r.Revision > 0 && kv.ModRevision > r.Revision {
			t.Fatalf("%v: %v", r, kv)
		}
	}
	if r.CountOnly && len(a.Kvs) > 0 || r.Limit > 0 && int64(len(a.Kvs)) > r.Limit || int64(len(a.Kvs)) > a.Count || a.More && int64(len(a.Kvs)) >= a.Count {
		t.Fatalf("%v: %d pairs, count %d, more %v", r, len(a.Kvs), a.Count, a.More)
	}
	if r.SortTarget == pb.RangeRequest_KEY || r.SortOrder == pb.RangeRequest_NONE && r.SortTarget > pb.RangeRequest_VALUE {
		up := 1
		if r.SortOrder == pb.RangeRequest_DESCEND {
			up = -1
		}
		if !slices.IsSortedFunc(a.Kvs, func(x, y *mvccpb.KeyValue) int { return up * cmp.Compare(string(x.Key), string(y.Key)) }) {
			t.Fatalf("%v: the keys are not in order", r)
		}
	}
	if int64(n.Store().Revision()) < a.Header.Revision {
		t.Fatalf("%v: answered at revision %d", r, a.Header.Revision)
	}
}
