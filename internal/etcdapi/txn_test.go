package etcdapi_test

import (
	"fmt"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/kvd-io/kvd/internal/etcdapi"
	"github.com/kvd-io/kvd/internal/etcdapi/etcdtest"
)

// script returns what a transaction answered, for example
// "then@5 put@5 get@5[a=1] del@5=2 (else@ get@5[])".
func script(r *pb.TxnResponse) string {
	var out strings.Builder
	name := "else"
	if r.GetSucceeded() {
		name = "then"
	}
	fmt.Fprintf(&out, "%s@%d", name, r.GetHeader().GetRevision())
	for _, op := range r.GetResponses() {
		switch u := op.GetResponse().(type) {
		case *pb.ResponseOp_ResponsePut:
			fmt.Fprintf(&out, " put@%d", u.ResponsePut.GetHeader().GetRevision())
		case *pb.ResponseOp_ResponseDeleteRange:
			fmt.Fprintf(&out, " del@%d=%d", u.ResponseDeleteRange.GetHeader().GetRevision(), u.ResponseDeleteRange.GetDeleted())
		case *pb.ResponseOp_ResponseRange:
			var kvs []string
			for _, kv := range u.ResponseRange.GetKvs() {
				kvs = append(kvs, fmt.Sprintf("%s=%s", kv.GetKey(), kv.GetValue()))
			}
			fmt.Fprintf(&out, " get@%d[%s]", u.ResponseRange.GetHeader().GetRevision(), strings.Join(kvs, " "))
		case *pb.ResponseOp_ResponseTxn:
			fmt.Fprintf(&out, " (%s)", script(u.ResponseTxn))
		}
	}
	return out.String()
}

func put(key, value string) clientv3.Op { return clientv3.OpPut(key, value) }

func get(key string, opts ...clientv3.OpOption) clientv3.Op { return clientv3.OpGet(key, opts...) }

func del(key string, opts ...clientv3.OpOption) clientv3.Op { return clientv3.OpDelete(key, opts...) }

func nest(cmps []clientv3.Cmp, then, otherwise []clientv3.Op) clientv3.Op {
	return clientv3.OpTxn(cmps, then, otherwise)
}

type (
	cmps = []clientv3.Cmp
	ops  = []clientv3.Op
)

// Each transaction finds a=1 (revision 2), b=2 (revision 4, version 2), and leaves them so.
func TestTxn(t *testing.T) {
	exists := clientv3.Compare(clientv3.CreateRevision("a"), ">", 0)
	absent := clientv3.Compare(clientv3.CreateRevision("x"), "=", 0)
	prefix := clientv3.WithPrefix()
	for _, c := range []struct {
		what            string
		cmps            cmps
		then, otherwise ops
		want            string // with revisions from 4
	}{
		{"nothing", nil, nil, nil, "then@4"},
		{"comparisons that hold", cmps{exists, absent, clientv3.Compare(clientv3.Version("b"), "=", 2), clientv3.Compare(clientv3.ModRevision("b"), "!=", 3), clientv3.Compare(clientv3.Value("a"), "<", "2"), clientv3.Compare(clientv3.LeaseValue("a"), "=", 0)}, ops{get("a")}, nil, "then@4 get@4[a=1]"},
		{"one that does not", cmps{exists, clientv3.Compare(clientv3.Version("b"), "=", 1)}, ops{put("a", "9")}, ops{get("b")}, "else@4 get@4[b=2]"},
		{"the value of an absent key", cmps{clientv3.Compare(clientv3.Value("x"), "!=", "1")}, nil, nil, "else@4"},
		{"a negative operand", cmps{clientv3.Compare(clientv3.Version("a"), ">", -1)}, nil, nil, "then@4"},
		{"a negative operand that does not hold", cmps{clientv3.Compare(clientv3.Version("a"), "<", -1)}, nil, nil, "else@4"},
		{"all keys of a range", cmps{clientv3.Compare(clientv3.Version("a").WithRange("c"), ">", 0)}, nil, nil, "then@4"},
		{"not all keys of a range", cmps{clientv3.Compare(clientv3.Version("a").WithRange("c"), "=", 1)}, nil, nil, "else@4"},
		{"a range without keys", cmps{clientv3.Compare(clientv3.Version("x").WithPrefix(), "=", 0)}, nil, nil, "then@4"},
		{"an empty range", cmps{clientv3.Compare(clientv3.Version("b").WithRange("a"), "=", 0)}, ops{get("b", clientv3.WithRange("a")), del("b", clientv3.WithRange("a"))}, nil, "then@4 get@4[] del@4=0"},
		{"a read after a write", nil, ops{get("c"), put("c", "3"), get("c"), get("", prefix)}, nil, "then@5 get@4[] put@5 get@5[c=3] get@5[a=1 b=2 c=3]"},
		{"deletes of nothing", nil, ops{del("x"), get("a"), del("y", prefix)}, nil, "then@4 del@4=0 get@4[a=1] del@4=0"},
		{"a delete, and one after it", nil, ops{del("x"), del("a"), del("y"), get("a")}, nil, "then@5 del@4=0 del@5=1 del@5=0 get@5[]"},
		{"the past after a write", nil, ops{put("b", "9"), get("b", clientv3.WithRev(3)), get("b", clientv3.WithSerializable())}, nil, "then@5 put@5 get@5[b=1] get@5[b=9]"},
		{"sorted", nil, ops{get("", prefix, clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend), clientv3.WithLimit(1))}, nil, "then@4 get@4[b=2]"},
		{"nested", cmps{exists}, ops{put("c", "3"), nest(cmps{clientv3.Compare(clientv3.CreateRevision("c"), "=", 0)}, ops{get("c"), put("d", "4")}, nil), get("d")}, nil, "then@5 put@5 (then@0 get@5[c=3] put@5) get@5[d=4]"},
		{"nested in else", cmps{clientv3.Compare(clientv3.Version("a"), "=", 9)}, nil, ops{nest(cmps{clientv3.Compare(clientv3.Version("a"), "=", 9)}, nil, ops{get("a")})}, "else@4 (else@0 get@4[a=1])"},
		{"the same key in branches that exclude each other", nil, ops{nest(cmps{absent}, ops{put("x", "1")}, ops{put("x", "2"), get("a")})}, nil, "then@5 (then@0 put@5)"},
	} {
		t.Run(c.what, func(t *testing.T) {
			_, client := alone(t, nil)
			for _, kv := range []string{"a=1", "b=1", "b=2"} {
				must[*clientv3.PutResponse](t)(client.Put(t.Context(), kv[:1], kv[2:]))
			}
			r := must[*clientv3.TxnResponse](t)(client.Txn(t.Context()).If(c.cmps...).Then(c.then...).Else(c.otherwise...).Commit())
			if got := script((*pb.TxnResponse)(r)); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestTxnRefusals(t *testing.T) {
	n, c := alone(t, &etcdtest.Config{Options: func(o *etcdapi.Options) { o.MaxTxnOps = 4 }})
	must[*clientv3.PutResponse](t)(c.Put(t.Context(), "a", "1"))
	must[*clientv3.PutResponse](t)(c.Put(t.Context(), "a", "2"))
	must[*clientv3.CompactResponse](t)(c.Compact(t.Context(), 3))
	gets := ops{get("a"), get("a"), get("a"), get("a")}
	deep := nest(nil, ops{get("a")}, nil)
	for range 3 {
		deep = nest(nil, ops{deep}, nil)
	}
	prefix := clientv3.WithPrefix()
	for _, r := range []struct {
		what            string
		then, otherwise ops
		want            error
	}{
		{"too many operations", append(gets, get("b")), nil, rpctypes.ErrGRPCTooManyOps},
		{"too many in else", nil, append(gets, get("b")), rpctypes.ErrGRPCTooManyOps},
		{"too many inside", ops{get("a"), get("a"), nest(nil, ops{get("a"), get("a"), get("a")}, nil)}, nil, rpctypes.ErrGRPCTooManyOps},
		{"nested too deep", ops{deep}, nil, rpctypes.ErrGRPCTooManyOps},
		{"two puts", ops{put("b", "1"), put("b", "2")}, nil, rpctypes.ErrGRPCDuplicateKey},
		{"two puts in else", nil, ops{put("b", "1"), put("b", "2")}, rpctypes.ErrGRPCDuplicateKey},
		{"a put and a delete", ops{put("b", "1"), del("b")}, nil, rpctypes.ErrGRPCDuplicateKey},
		{"a delete and a put", ops{del("b"), put("b", "1")}, nil, rpctypes.ErrGRPCDuplicateKey},
		{"a put in a deleted range", ops{del("b", prefix), put("bb", "1")}, nil, rpctypes.ErrGRPCDuplicateKey},
		{"a put inside and outside", ops{put("b", "1"), nest(nil, ops{put("b", "1")}, nil)}, nil, rpctypes.ErrGRPCDuplicateKey},
		{"puts in siblings", ops{nest(nil, ops{put("b", "1")}, nil), nest(nil, nil, ops{put("b", "1")})}, nil, rpctypes.ErrGRPCDuplicateKey},
		{"a put and a delete in siblings", ops{nest(nil, ops{put("b", "1")}, nil), nest(nil, ops{del("b")}, nil)}, nil, rpctypes.ErrGRPCDuplicateKey},
		{"a delete and a put in siblings", ops{nest(nil, ops{del("b")}, nil), nest(nil, ops{put("b", "1")}, nil)}, nil, rpctypes.ErrGRPCDuplicateKey},
		{"an unknown lease behind a put", ops{put("b", "1"), clientv3.OpPut("c", "1", clientv3.WithLease(77))}, nil, rpctypes.ErrGRPCLeaseNotFound},
		{"a value to keep behind a put", ops{put("b", "1"), clientv3.OpPut("c", "", clientv3.WithIgnoreValue())}, nil, rpctypes.ErrGRPCKeyNotFound},
		{"a future revision behind a put", ops{put("b", "1"), get("b", clientv3.WithRev(4))}, nil, rpctypes.ErrGRPCFutureRev},
		{"a compacted revision behind a put", ops{put("b", "1"), get("b", clientv3.WithRev(2))}, nil, rpctypes.ErrGRPCCompacted},
		{"a future revision alone", ops{get("b", clientv3.WithRev(4))}, nil, rpctypes.ErrGRPCFutureRev},
	} {
		_, err := c.Txn(t.Context()).Then(r.then...).Else(r.otherwise...).Commit()
		refused(t, r.what, err, r.want)
	}
	if got := n.Store().Revision(); got != 3 {
		t.Errorf("refused transactions led to revision %d", got)
	}
	raw := pb.NewKVClient(c.ActiveConnection())
	for what, r := range map[string]struct {
		txn  *pb.TxnRequest
		want error
	}{
		"an empty operation":          {&pb.TxnRequest{Failure: []*pb.RequestOp{{}}}, rpctypes.ErrGRPCKeyNotFound},
		"a comparison of nothing":     {&pb.TxnRequest{Compare: []*pb.Compare{{}}}, rpctypes.ErrGRPCEmptyKey},
		"a put of nothing":            {&pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: new(pb.PutRequest)}}}}, rpctypes.ErrGRPCEmptyKey},
		"a range of nothing":          {&pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: new(pb.RangeRequest)}}}}, rpctypes.ErrGRPCEmptyKey},
		"a delete of nothing":         {&pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: new(pb.DeleteRangeRequest)}}}}, rpctypes.ErrGRPCEmptyKey},
		"operations without requests": {&pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{}}, {Request: &pb.RequestOp_RequestTxn{}}}}, rpctypes.ErrGRPCEmptyKey},
	} {
		_, err := raw.Txn(t.Context(), r.txn)
		refused(t, what, err, r.want)
	}
}

// Previous pairs are those before the operation.
func TestTxnPrevious(t *testing.T) {
	_, c := alone(t, nil)
	ctx := t.Context()
	must[*clientv3.TxnResponse](t)(c.Txn(ctx).Then(put("a", "1"), put("b", "2")).Commit())
	r := must[*clientv3.TxnResponse](t)(c.Txn(ctx).Then(clientv3.OpPut("a", "9", clientv3.WithPrevKV()), del("b", clientv3.WithPrefix(), clientv3.WithPrevKV())).Commit())
	before, deleted := r.Responses[0].GetResponsePut().GetPrevKv(), r.Responses[1].GetResponseDeleteRange().GetPrevKvs()
	if string(before.GetKey()) != "a" || string(before.GetValue()) != "1" || before.GetModRevision() != 2 || len(deleted) != 1 || string(deleted[0].GetValue()) != "2" {
		t.Errorf("before the put: %v; deleted: %v", before, deleted)
	}
}
