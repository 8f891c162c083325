package raftnode

import (
	"github.com/kvd-io/kvd/internal/kvstore"
)

// Clients like those of etcd: transactions in transactions with everything in them, also
// what has to be refused, and leases whose ids are granted again.

// composer runs a random transaction.
func composer(c *client) {
	r := c.do(c.w.s.anyNode(), &kvstore.Command{Op: kvstore.OpTxn, Txn: c.compose(1)})
	if r == nil {
		return
	}
	c.w.s.reachIf(txnElse, r.Outcome == kvstore.OK && !r.Succeeded)
	c.w.s.reachIf(txnRefused, r.Outcome != kvstore.OK)
	for i := range r.Results {
		c.w.s.reachIf(txnInTxn, len(r.Results[i].Results) > 0)
	}
}

func (c *client) compose(depth int) *kvstore.Txn {
	rng, t := c.w.s.rng, &kvstore.Txn{}
	for range rng.IntN(3) {
		t.If = append(t.If, c.comparison())
	}
	for range rng.IntN(4) {
		t.Then = append(t.Then, c.operation(depth))
	}
	for range rng.IntN(3) {
		t.Else = append(t.Else, c.operation(depth))
	}
	return t
}

func (c *client) comparison() kvstore.Compare {
	rng := c.w.s.rng
	q := kvstore.Compare{
		Key: c.someKey(), Relation: kvstore.Relation(1 + rng.IntN(4)),
		Target: kvstore.CompareTarget(1 + rng.IntN(6)), Number: rng.Uint64N(3),
	}
	switch q.Target {
	case kvstore.CompareModRevision, kvstore.CompareCreateRevision:
		q.Number = rng.Uint64N(c.w.truth.store.Revision() + 2)
	case kvstore.CompareValue:
		q.Number, q.Value = 0, []byte{'0' + byte(rng.IntN(3))}
	case kvstore.CompareExists:
		q.Number = rng.Uint64N(2)
	}
	if rng.IntN(3) == 0 {
		q.Range, q.End = true, []byte("e/z")
	}
	return q
}

func (c *client) someKey() []byte { return []byte{'e', '/', "abcde"[c.w.s.rng.IntN(5)]} }

func (c *client) operation(depth int) kvstore.Command {
	rng := c.w.s.rng
	cmd := kvstore.Command{Key: c.someKey()}
	switch n := rng.IntN(9); {
	case n == 0 && depth < 4:
		return kvstore.Command{Op: kvstore.OpTxn, Txn: c.compose(depth + 1)}
	case n < 2:
		cmd.Op = kvstore.OpGet
	case n < 3:
		cmd.Op, cmd.End = kvstore.OpList, []byte("e/z")
		cmd.Read = &kvstore.Read{
			Limit: rng.Uint64N(4), Reverse: rng.IntN(2) == 0, KeysOnly: rng.IntN(3) == 0, CountOnly: rng.IntN(4) == 0,
			SortBy: kvstore.SortBy(rng.IntN(5)),
		}
	case n < 4:
		cmd.Op, cmd.End, cmd.ReturnPrevious = kvstore.OpDeleteRange, []byte("e/z"), rng.IntN(2) == 0
	case n < 5:
		cmd.Op, cmd.ReturnPrevious = kvstore.OpDelete, rng.IntN(2) == 0
	default:
		cmd.Op, cmd.ReturnPrevious = kvstore.OpPut, rng.IntN(2) == 0
		cmd.KeepValue, cmd.KeepLease = rng.IntN(6) == 0, rng.IntN(6) == 0
		if !cmd.KeepValue {
			cmd.Value = []byte{'0' + byte(rng.IntN(3))}
		}
		if !cmd.KeepLease && rng.IntN(4) == 0 {
			cmd.Lease = c.w.lastLease
		}
	}
	return cmd
}

// swapped is a key whose value is often the same as some time ago.
var swapped = []byte("swap")

// swapper changes it if nobody else has done so since it looked (X2).
func swapper(c *client) {
	n := c.w.s.anyNode()
	if !c.fresh(n) || !n.up {
		return
	}
	kv, _, _ := storeOf(n).store.Get(swapped, 0)
	c.pause(span{0, 50 * milli})
	put := kvstore.Command{Op: kvstore.OpPut, Key: swapped, Value: []byte{'x' + byte(c.w.s.rng.IntN(2))}, ReturnPrevious: true}
	r := c.do(c.w.s.anyNode(), &kvstore.Command{Op: kvstore.OpTxn, Txn: &kvstore.Txn{
		If:   []kvstore.Compare{{Key: swapped, Target: kvstore.CompareModRevision, Relation: kvstore.Equal, Number: kv.ModRevision}},
		Then: []kvstore.Command{put},
	}})
	if r == nil || !r.Succeeded {
		return
	}
	before := uint64(0)
	if p := r.Results[0].Previous; p != nil {
		before = p.ModRevision
	}
	if before != kv.ModRevision {
		c.w.s.violate("X2: %q was to be changed as of revision %d, and was as of revision %d", swapped, kv.ModRevision, before)
	}
}

// grantAgain gives up a lease about when it ends by itself, and grants its id once more.
// An expiry that is on its way then means the earlier grant.
func (c *client) grantAgain(lease uint64) {
	c.pause(span{1500 * milli, 3500 * milli})
	c.w.truth.fate(lease).givenUp = true
	revoked := c.do(c.w.s.anyNode(), &kvstore.Command{Op: kvstore.OpLeaseRevoke, Lease: lease})
	ttl := 2000 + c.w.s.rng.Int64N(1500)
	begin := c.w.s.now
	r := c.do(c.w.s.anyNode(), &kvstore.Command{Op: kvstore.OpLeaseGrant, Lease: lease, TTLMillis: ttl})
	// A revocation without an answer may still be on its way, and end the new lease.
	if r != nil && revoked != nil && r.Outcome == kvstore.OK {
		c.w.truth.promise(lease, begin+c.w.promised(ttl*milli))
	}
}
