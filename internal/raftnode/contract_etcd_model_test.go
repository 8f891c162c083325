package raftnode

import (
	"bytes"
	"cmp"
	"maps"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/proto"
)

// A plain model of etcd, in etcd's terms: it executes requests as they are, and knows no
// command of kvd. It has all versions of the keys below etcdPrefix, and the leases that
// were granted to clients of etcd.

// etcdPrefix is behind the keys of all others, so that open ranges have these alone.
const etcdPrefix = "~e/"

type etcdModel struct {
	revision, compact int64
	keys              map[string][]etcdVersion
	leases            map[int64]bool
	granted           map[int64]map[int64]bool     // the times to live with which an id was granted
	changes           map[int64][]*mvccpb.KeyValue // by revision; a deleted key has version 0
	// differs is called when a nested transaction takes another branch than it would by
	// what was changed before it in its own transaction.
	differs func()
}

// etcdVersion is a key from a revision on; nil: it is deleted.
type etcdVersion struct {
	revision int64
	pair     *mvccpb.KeyValue
}

func newEtcdModel() *etcdModel {
	return &etcdModel{
		revision: 1, compact: 1, keys: make(map[string][]etcdVersion), leases: make(map[int64]bool),
		granted: make(map[int64]map[int64]bool), changes: make(map[int64][]*mvccpb.KeyValue), differs: func() {},
	}
}

// etcdView is the state at a revision, with what a request has changed so far.
type etcdView struct {
	m        *etcdModel
	revision int64
	draft    map[string]*mvccpb.KeyValue // nil: deleted
	changes  []*mvccpb.KeyValue
}

func (m *etcdModel) at(revision int64) *etcdView {
	return &etcdView{m: m, revision: revision, draft: make(map[string]*mvccpb.KeyValue)}
}

func (v *etcdView) get(key string) *mvccpb.KeyValue {
	if kv, changed := v.draft[key]; changed {
		return kv
	}
	versions := v.m.keys[key]
	for i := len(versions) - 1; i >= 0; i-- {
		if versions[i].revision <= v.revision {
			return versions[i].pair
		}
	}
	return nil
}

// etcdHas reports whether a range of a request has a key.
func etcdHas(start, end []byte, key string) bool {
	switch {
	case len(end) == 0:
		return key == string(start)
	case string(end) == "\x00":
		return key >= string(start)
	}
	return key >= string(start) && key < string(end)
}

// in returns the pairs of a range, by key.
func (v *etcdView) in(start, end []byte) (out []*mvccpb.KeyValue) {
	names := slices.Collect(maps.Keys(v.m.keys))
	for key := range v.draft {
		if _, known := v.m.keys[key]; !known {
			names = append(names, key)
		}
	}
	slices.Sort(names)
	for _, key := range names {
		if kv := v.get(key); kv != nil && etcdHas(start, end, key) {
			out = append(out, kv)
		}
	}
	return out
}

func (v *etcdView) put(r *pb.PutRequest) (*pb.PutResponse, error) {
	if r.GetLease() != 0 && !v.m.leases[r.GetLease()] {
		return nil, rpctypes.ErrGRPCLeaseNotFound
	}
	before := v.get(string(r.GetKey()))
	if before == nil && (r.GetIgnoreValue() || r.GetIgnoreLease()) {
		return nil, rpctypes.ErrGRPCKeyNotFound
	}
	now := &mvccpb.KeyValue{
		Key: r.GetKey(), Value: r.GetValue(), Lease: r.GetLease(), CreateRevision: v.revision + 1, ModRevision: v.revision + 1, Version: 1,
	}
	if before != nil {
		now.CreateRevision, now.Version = before.GetCreateRevision(), before.GetVersion()+1
	}
	if r.GetIgnoreValue() {
		now.Value = before.GetValue()
	}
	if r.GetIgnoreLease() {
		now.Lease = before.GetLease()
	}
	v.change(now)
	out := new(pb.PutResponse)
	if r.GetPrevKv() {
		out.PrevKv = before
	}
	return out, nil
}

func (v *etcdView) change(kv *mvccpb.KeyValue) {
	v.changes = append(v.changes, kv)
	if v.draft[string(kv.GetKey())] = kv; kv.GetVersion() == 0 {
		v.draft[string(kv.GetKey())] = nil
	}
}

func (v *etcdView) delete(pairs []*mvccpb.KeyValue) {
	for _, kv := range pairs {
		v.change(&mvccpb.KeyValue{Key: kv.GetKey(), ModRevision: v.revision + 1})
	}
}

func (v *etcdView) deleteRange(r *pb.DeleteRangeRequest) *pb.DeleteRangeResponse {
	gone := v.in(r.GetKey(), r.GetRangeEnd())
	v.delete(gone)
	out := &pb.DeleteRangeResponse{Deleted: int64(len(gone))}
	if r.GetPrevKv() {
		out.PrevKvs = gone
	}
	return out
}

func (v *etcdView) read(r *pb.RangeRequest) (*pb.RangeResponse, error) {
	from := v
	switch at := r.GetRevision(); {
	case at > v.revision:
		return nil, rpctypes.ErrGRPCFutureRev
	case at > 0 && at < v.m.compact:
		return nil, rpctypes.ErrGRPCCompacted
	case at > 0:
		from = v.m.at(at)
	}
	all := from.in(r.GetKey(), r.GetRangeEnd())
	out := &pb.RangeResponse{Count: int64(len(all))}
	if r.GetCountOnly() {
		return out, nil
	}
	all = slices.DeleteFunc(all, func(kv *mvccpb.KeyValue) bool {
		return outside(kv.GetModRevision(), r.GetMinModRevision(), r.GetMaxModRevision()) || outside(kv.GetCreateRevision(), r.GetMinCreateRevision(), r.GetMaxCreateRevision())
	})
	slices.SortStableFunc(all, func(a, b *mvccpb.KeyValue) int {
		if r.GetSortOrder() == pb.RangeRequest_DESCEND {
			return etcdOrder(r.GetSortTarget(), b, a)
		}
		return etcdOrder(r.GetSortTarget(), a, b)
	})
	if n := int(r.GetLimit()); n > 0 && len(all) > n && len(r.GetRangeEnd()) > 0 {
		all, out.More = all[:n], true
	}
	for _, kv := range all {
		if r.GetKeysOnly() {
			kv = proto.CloneOf(kv)
			kv.Value = nil
		}
		out.Kvs = append(out.Kvs, kv)
	}
	return out, nil
}

func outside(n, least, most int64) bool { return least > 0 && n < least || most != 0 && n > most }

func etcdOrder(by pb.RangeRequest_SortTarget, a, b *mvccpb.KeyValue) int {
	switch by {
	case pb.RangeRequest_VERSION:
		return cmp.Compare(a.GetVersion(), b.GetVersion())
	case pb.RangeRequest_CREATE:
		return cmp.Compare(a.GetCreateRevision(), b.GetCreateRevision())
	case pb.RangeRequest_MOD:
		return cmp.Compare(a.GetModRevision(), b.GetModRevision())
	case pb.RangeRequest_VALUE:
		return bytes.Compare(a.GetValue(), b.GetValue())
	}
	return bytes.Compare(a.GetKey(), b.GetKey())
}

// holds judges a comparison: of each key of a range, or of an absent one if there is none.
func (v *etcdView) holds(c *pb.Compare) bool {
	pairs := v.in(c.GetKey(), c.GetRangeEnd())
	if len(pairs) == 0 {
		return c.GetTarget() != pb.Compare_VALUE && etcdRelation(c, new(mvccpb.KeyValue))
	}
	return !slices.ContainsFunc(pairs, func(kv *mvccpb.KeyValue) bool { return !etcdRelation(c, kv) })
}

func etcdRelation(c *pb.Compare, kv *mvccpb.KeyValue) bool {
	order := 0
	switch c.GetTarget() {
	case pb.Compare_VERSION:
		order = cmp.Compare(kv.GetVersion(), c.GetVersion())
	case pb.Compare_CREATE:
		order = cmp.Compare(kv.GetCreateRevision(), c.GetCreateRevision())
	case pb.Compare_MOD:
		order = cmp.Compare(kv.GetModRevision(), c.GetModRevision())
	case pb.Compare_VALUE:
		order = bytes.Compare(kv.GetValue(), c.GetValue())
	case pb.Compare_LEASE:
		order = cmp.Compare(kv.GetLease(), c.GetLease())
	}
	switch c.GetResult() {
	case pb.Compare_EQUAL:
		return order == 0
	case pb.Compare_NOT_EQUAL:
		return order != 0
	case pb.Compare_GREATER:
		return order > 0
	}
	return order < 0
}

// txn carries out a transaction. before is the state by which comparisons are judged, those
// of nested transactions, too.
func (v *etcdView) txn(r *pb.TxnRequest, before *etcdView) (*pb.TxnResponse, error) {
	out := &pb.TxnResponse{Succeeded: true}
	again := true // as it would be judged by what was changed so far
	for _, c := range r.GetCompare() {
		out.Succeeded, again = out.Succeeded && before.holds(c), again && v.holds(c)
	}
	if again != out.Succeeded {
		v.m.differs()
	}
	ops := r.GetFailure()
	if out.Succeeded {
		ops = r.GetSuccess()
	}
	for _, op := range ops {
		answer, err := v.op(op, before)
		if err != nil {
			return nil, err
		}
		out.Responses = append(out.Responses, answer)
	}
	return out, nil
}

func (v *etcdView) op(op *pb.RequestOp, before *etcdView) (*pb.ResponseOp, error) {
	switch u := op.GetRequest().(type) {
	case *pb.RequestOp_RequestRange:
		a, err := v.read(u.RequestRange)
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: a}}, err
	case *pb.RequestOp_RequestPut:
		a, err := v.put(u.RequestPut)
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: a}}, err
	case *pb.RequestOp_RequestDeleteRange:
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: v.deleteRange(u.RequestDeleteRange)}}, nil
	default:
		a, err := v.txn(op.GetRequestTxn(), before)
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseTxn{ResponseTxn: a}}, err
	}
}

// run carries out a request at the end of the log. chosen is the id that a grant of a
// lease without one has got.
func (m *etcdModel) run(req proto.Message, chosen int64) (proto.Message, error) {
	v := m.at(m.revision)
	var out proto.Message
	var err error
	switch r := req.(type) {
	case *pb.PutRequest:
		out, err = v.put(r)
	case *pb.DeleteRangeRequest:
		out = v.deleteRange(r)
	case *pb.TxnRequest:
		out, err = v.txn(r, m.at(m.revision))
	case *pb.LeaseGrantRequest:
		return m.grant(r, chosen)
	case *pb.LeaseRevokeRequest:
		if !m.leases[r.GetID()] {
			return nil, rpctypes.ErrGRPCLeaseNotFound
		}
		m.end(r.GetID())
		return new(pb.LeaseRevokeResponse), nil
	case *pb.CompactionRequest:
		switch {
		case r.GetRevision() <= m.compact:
			return nil, rpctypes.ErrGRPCCompacted
		case r.GetRevision() > m.revision:
			return nil, rpctypes.ErrGRPCFutureRev
		}
		m.compact = r.GetRevision()
		return new(pb.CompactionResponse), nil
	}
	if err != nil {
		return nil, err
	}
	m.commit(v)
	return out, nil
}

func (m *etcdModel) commit(v *etcdView) {
	if len(v.changes) == 0 {
		return
	}
	m.revision++
	m.changes[m.revision] = append(m.changes[m.revision], v.changes...)
	for key, kv := range v.draft {
		m.keys[key] = append(m.keys[key], etcdVersion{m.revision, kv})
	}
}

func (m *etcdModel) grant(r *pb.LeaseGrantRequest, chosen int64) (proto.Message, error) {
	id := cmp.Or(r.GetID(), chosen)
	if m.leases[id] {
		return nil, rpctypes.ErrGRPCLeaseExist
	}
	m.begin(id, r.GetTTL())
	return &pb.LeaseGrantResponse{ID: id, TTL: r.GetTTL()}, nil
}

func (m *etcdModel) begin(id, seconds int64) {
	m.leases[id] = true
	if m.granted[id] == nil {
		m.granted[id] = make(map[int64]bool)
	}
	m.granted[id][seconds] = true
}

// end ends a lease, and deletes its keys in one revision.
func (m *etcdModel) end(id int64) {
	delete(m.leases, id)
	v := m.at(m.revision)
	v.delete(v.bound(id))
	m.commit(v)
}

// bound returns the pairs of a lease.
func (v *etcdView) bound(id int64) []*mvccpb.KeyValue {
	return slices.DeleteFunc(v.in([]byte(etcdPrefix), []byte{0}), func(kv *mvccpb.KeyValue) bool { return kv.GetLease() != id })
}

// etcdConflict reports whether a path through a transaction would write a key twice, other
// than by deleting it.
func etcdConflict(r *pb.TxnRequest) bool {
	for _, branch := range [][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
		if slices.ContainsFunc(etcdPaths(branch), pathConflicts) {
			return true
		}
	}
	return false
}

// etcdPaths returns the writes of each path through a branch.
func etcdPaths(branch []*pb.RequestOp) [][]*pb.RequestOp {
	paths := [][]*pb.RequestOp{nil}
	for _, op := range branch {
		choices := [][]*pb.RequestOp{{op}}
		if t := op.GetRequestTxn(); t != nil {
			choices = append(etcdPaths(t.GetSuccess()), etcdPaths(t.GetFailure())...)
		}
		var longer [][]*pb.RequestOp
		for _, p := range paths {
			for _, c := range choices {
				longer = append(longer, slices.Concat(p, c))
			}
		}
		paths = longer
	}
	return paths
}

func pathConflicts(path []*pb.RequestOp) bool {
	for i, op := range path {
		put := op.GetRequestPut()
		if put == nil {
			continue
		}
		for j, other := range path {
			del := other.GetRequestDeleteRange()
			if i != j && other.GetRequestPut() != nil && bytes.Equal(put.GetKey(), other.GetRequestPut().GetKey()) ||
				del != nil && etcdHas(del.GetKey(), del.GetRangeEnd(), string(put.GetKey())) {
				return true
			}
		}
	}
	return false
}
