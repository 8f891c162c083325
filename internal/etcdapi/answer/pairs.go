package answer

import (
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/kvd-io/kvd/internal/kvstore"
)

// Pair returns a pair in etcd's form, which shares its key and value.
func Pair(kv *kvstore.KV) *mvccpb.KeyValue {
	out := new(mvccpb.KeyValue)
	SetPair(out, kv)
	return out
}

// SetPair sets what Pair returns.
func SetPair(out *mvccpb.KeyValue, kv *kvstore.KV) {
	out.Key, out.Value = kv.Key, kv.Value
	out.CreateRevision, out.ModRevision = int64(kv.CreateRevision), int64(kv.ModRevision)
	out.Version, out.Lease = int64(kv.Version), int64(kv.Lease)
}

// Pairs returns pairs in etcd's form, in one allocation for all of them.
func Pairs(kvs []kvstore.KV) []*mvccpb.KeyValue {
	if len(kvs) == 0 {
		return nil
	}
	backing := make([]mvccpb.KeyValue, len(kvs))
	out := make([]*mvccpb.KeyValue, len(kvs))
	for i := range kvs {
		SetPair(&backing[i], &kvs[i])
		out[i] = &backing[i]
	}
	return out
}
