package raftnode

import (
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/rights"
)

// Clients of etcd. All but the guests are root.

// etcdUser makes a random request.
func etcdUser(c *client) {
	switch n := c.w.s.rng.IntN(20); {
	case n < 5:
		c.etcdWrite("KV/Put", c.etcdPut())
	case n < 7:
		key, end := c.etcdRange()
		c.etcdWrite("KV/DeleteRange", &pb.DeleteRangeRequest{Key: key, RangeEnd: end, PrevKv: c.half()})
	case n < 13:
		t := c.etcdTxn(1)
		for etcdConflict(t) && !c.one(10) {
			t = c.etcdTxn(1)
		}
		c.etcdTransact(t)
	case n < 18:
		c.etcdRead(c.etcdQuery())
	case n < 19:
		c.etcdCompact()
	default:
		c.etcdTime(c.w.etcd.lease)
	}
}

func (c *client) half() bool { return c.w.s.rng.IntN(2) == 0 }

// one reports whether something happens that happens once in n times.
func (c *client) one(n int) bool { return c.w.s.rng.IntN(n) == 0 }

func (c *client) etcdKey() []byte { return append([]byte(etcdPrefix), "abcde"[c.w.s.rng.IntN(5)]) }

// etcdRange returns a key, all keys, keys from one on, or a range that may be empty.
func (c *client) etcdRange() (key, end []byte) {
	switch c.w.s.rng.IntN(6) {
	case 0:
		return []byte(etcdPrefix), prefixEnd(etcdPrefix)
	case 1:
		return c.etcdKey(), []byte{0}
	case 2:
		return c.etcdKey(), c.etcdKey()
	}
	return c.etcdKey(), nil
}

func (c *client) etcdPut() *pb.PutRequest {
	rng := c.w.s.rng
	r := &pb.PutRequest{Key: c.etcdKey(), PrevKv: c.half(), IgnoreValue: c.one(6), IgnoreLease: c.one(4)}
	if !r.IgnoreValue {
		r.Value = []byte{'0' + byte(rng.IntN(3))}
	}
	switch {
	case r.IgnoreLease:
	case c.one(2):
		r.Lease = c.w.etcd.lease
	case c.one(10):
		r.Lease = 1 << 42 // which nobody has
	}
	return r
}

// etcdRevision is a revision that exists, or did, or will.
func (c *client) etcdRevision() int64 {
	switch newest := c.w.etcd.acked; {
	case c.one(6):
		return newest + 1 + c.w.s.rng.Int64N(3)
	case c.one(4):
		return c.w.s.rng.Int64N(newest + 1)
	default:
		return max(newest-c.w.s.rng.Int64N(30), 0)
	}
}

func (c *client) etcdQuery() *pb.RangeRequest {
	rng := c.w.s.rng
	key, end := c.etcdRange()
	r := &pb.RangeRequest{
		Key: key, RangeEnd: end, Limit: rng.Int64N(4), Serializable: c.one(3), KeysOnly: c.one(4), CountOnly: c.one(6),
		SortOrder: pb.RangeRequest_SortOrder(rng.IntN(3)), SortTarget: pb.RangeRequest_SortTarget(rng.IntN(5)),
	}
	if c.one(3) {
		r.Revision = c.etcdRevision()
	}
	if c.one(5) {
		r.MinModRevision, r.MaxCreateRevision = c.etcdRevision(), c.etcdRevision()
	}
	if c.one(5) {
		r.MinCreateRevision, r.MaxModRevision = c.etcdRevision(), c.etcdRevision()
	}
	return r
}

func (c *client) etcdTxn(depth int) *pb.TxnRequest {
	rng, t := c.w.s.rng, new(pb.TxnRequest)
	if depth == 1 && c.one(6) {
		return c.etcdNested()
	}
	for range rng.IntN(3) {
		t.Compare = append(t.Compare, c.etcdCompare())
	}
	for range rng.IntN(4) {
		t.Success = append(t.Success, c.etcdOp(depth))
	}
	for range rng.IntN(3) {
		t.Failure = append(t.Failure, c.etcdOp(depth))
	}
	return t
}

// etcdNested is a transaction with another one behind a put of what that compares.
func (c *client) etcdNested() *pb.TxnRequest {
	put, q := c.etcdPut(), c.etcdCompare()
	q.Key, q.RangeEnd = put.GetKey(), nil
	inner := &pb.TxnRequest{Compare: []*pb.Compare{q}, Success: []*pb.RequestOp{c.etcdOp(4)}, Failure: []*pb.RequestOp{c.etcdOp(4)}}
	return &pb.TxnRequest{Success: []*pb.RequestOp{
		{Request: &pb.RequestOp_RequestPut{RequestPut: put}}, {Request: &pb.RequestOp_RequestTxn{RequestTxn: inner}},
	}}
}

func (c *client) etcdCompare() *pb.Compare {
	rng := c.w.s.rng
	q := &pb.Compare{Key: c.etcdKey(), Result: pb.Compare_CompareResult(rng.IntN(4)), Target: pb.Compare_CompareTarget(rng.IntN(5))}
	if c.one(4) {
		q.Key, q.RangeEnd = c.etcdRange()
	}
	switch q.Target {
	case pb.Compare_VERSION:
		q.TargetUnion = &pb.Compare_Version{Version: rng.Int64N(4) - 1}
	case pb.Compare_CREATE:
		q.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: c.etcdRevision()}
	case pb.Compare_MOD:
		q.TargetUnion = &pb.Compare_ModRevision{ModRevision: c.etcdRevision()}
	case pb.Compare_VALUE:
		q.TargetUnion = &pb.Compare_Value{Value: []byte{'0' + byte(rng.IntN(3))}}
	case pb.Compare_LEASE:
		q.TargetUnion = &pb.Compare_Lease{Lease: c.w.etcd.lease * rng.Int64N(2)}
	}
	return q
}

func (c *client) etcdOp(depth int) *pb.RequestOp {
	switch n := c.w.s.rng.IntN(8); {
	case n < 2 && depth < 4:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: c.etcdTxn(depth + 1)}}
	case n < 4:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: c.etcdQuery()}}
	case n < 5:
		key, end := c.etcdRange()
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: key, RangeEnd: end, PrevKv: c.half()}}}
	}
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: c.etcdPut()}}
}

// etcdWrite makes a request that goes through the log, and judges the answer.
func (c *client) etcdWrite(method string, req proto.Message) proto.Message {
	call, answer, err := c.etcd(c.w.s.anyNode(), rights.Root, method, req)
	if answer == nil && err == nil {
		return nil
	}
	if call.id == 0 {
		c.w.s.violate("X9: %v was answered with %v, %v, and was not proposed", req, answer, err)
		return nil
	}
	call.judge(answer, err)
	return answer
}

// etcdTransact runs a transaction. Those that write a key twice are refused at the door,
// and those that only read do not go through the log.
func (c *client) etcdTransact(t *pb.TxnRequest) {
	if etcdConflict(t) {
		c.w.s.reach(etcdDuplicate)
		_, answer, err := c.etcd(c.w.s.anyNode(), rights.Root, "KV/Txn", t)
		if answer != nil || err != nil && !sameEtcdError(err, rpctypes.ErrGRPCDuplicateKey) {
			c.w.s.violate("X9: %v writes a key twice, and was answered with %v, %v", t, answer, err)
		}
		return
	}
	if etcdWrites(t) {
		c.etcdWrite("KV/Txn", t)
		return
	}
	serializable := true
	for _, op := range slices.Concat(t.GetSuccess(), t.GetFailure()) {
		serializable = serializable && op.GetRequestRange().GetSerializable()
	}
	call, answer, err := c.etcd(c.w.s.anyNode(), rights.Root, "KV/Txn", t)
	if answer == nil && err == nil {
		return
	}
	a, _ := answer.(etcdAnswer)
	call.judgeRead(a, err, serializable, etcdRevisions(t), func(v *etcdView) (proto.Message, error) { return v.txn(t, v) })
}

// etcdWrites reports whether any operation writes.
func etcdWrites(t *pb.TxnRequest) bool {
	for _, op := range slices.Concat(t.GetSuccess(), t.GetFailure()) {
		if nested := op.GetRequestTxn(); nested != nil && etcdWrites(nested) || nested == nil && op.GetRequestRange() == nil {
			return true
		}
	}
	return false
}

// etcdRevisions returns the revisions that the reads of a transaction name.
func etcdRevisions(t *pb.TxnRequest) (out []int64) {
	for _, op := range slices.Concat(t.GetSuccess(), t.GetFailure()) {
		if nested := op.GetRequestTxn(); nested != nil {
			out = append(out, etcdRevisions(nested)...)
		}
		out = append(out, op.GetRequestRange().GetRevision())
	}
	return out
}

func (c *client) etcdRead(r *pb.RangeRequest) {
	call, answer, err := c.etcd(c.w.s.anyNode(), rights.Root, "KV/Range", r)
	if answer == nil && err == nil {
		return
	}
	c.w.s.reachIf(etcdFutureRead, sameEtcdError(err, rpctypes.ErrGRPCFutureRev))
	c.w.s.reachIf(etcdPastRead, sameEtcdError(err, rpctypes.ErrGRPCCompacted))
	a, _ := answer.(etcdAnswer)
	c.w.s.reachIf(etcdStaleRead, err == nil && a.GetHeader().GetRevision() < call.acked)
	call.judgeRead(a, err, r.GetSerializable(), []int64{r.GetRevision()}, func(v *etcdView) (proto.Message, error) { return v.read(r) })
}

// etcdCompact compacts, physically or not, to a revision that may be none.
func (c *client) etcdCompact() {
	if !c.one(4) {
		return
	}
	r := &pb.CompactionRequest{Revision: max(c.etcdRevision(), 2), Physical: c.half()}
	if c.etcdWrite("KV/Compact", r) != nil {
		c.w.stats.compacted++
	}
}

// etcdTime asks how long a lease lives on.
func (c *client) etcdTime(lease int64) {
	if lease == 0 {
		return
	}
	r := &pb.LeaseTimeToLiveRequest{ID: lease, Keys: c.half()}
	call, answer, err := c.etcd(c.w.s.anyNode(), rights.Root, "Lease/LeaseTimeToLive", r)
	switch {
	case answer != nil:
		call.judgeTime(r, answer.(*pb.LeaseTimeToLiveResponse))
	case err != nil && !sameEtcdError(err, rpctypes.ErrGRPCLeaseNotFound): // between the time and the keys
		c.w.s.violate("X9: %v was answered with %v", r, err)
	}
}

// etcdTenant has a lease with keys for a while, as a session of etcd does.
func etcdTenant(c *client) {
	begin := c.w.s.now
	r := &pb.LeaseGrantRequest{TTL: 2 + c.w.s.rng.Int64N(3)}
	if c.half() {
		c.w.etcd.leases++
		r.ID = 1<<41 + c.w.etcd.leases
	} else if c.one(4) && c.w.etcd.lease != 0 {
		r.ID = c.w.etcd.lease // which may exist, or be revoked
		c.w.etcd.shared[r.ID] = true
	}
	answer, _ := c.etcdWrite("Lease/LeaseGrant", r).(*pb.LeaseGrantResponse)
	if answer == nil {
		return
	}
	lease := answer.GetID()
	c.w.stats.granted++
	c.w.etcd.lease = lease
	if !c.w.etcd.shared[lease] {
		c.w.truth.promise(uint64(lease), begin+c.w.promised(answer.GetTTL()*second))
	}
	for range c.w.s.rng.IntN(10) {
		if c.one(3) {
			put := c.etcdPut()
			put.Lease, put.IgnoreLease = lease, false
			c.etcdWrite("KV/Put", put)
		}
		if c.half() {
			c.etcdTime(lease)
		}
		if !c.w.etcd.shared[lease] {
			c.keepAlive(uint64(lease))
		}
		c.pause(span{100 * milli, 1200 * milli})
	}
	if c.one(3) {
		c.w.truth.fate(uint64(lease)).givenUp = true
		c.w.etcd.shared[lease] = true
		c.etcdWrite("Lease/LeaseRevoke", &pb.LeaseRevokeRequest{ID: lease})
	}
}
