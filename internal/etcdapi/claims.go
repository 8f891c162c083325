package etcdapi

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// claims are the keys that one path through a transaction writes. Operations that would
// write a key twice are refused, whatever is stored: two puts, or a put of a key that
// another operation deletes. Two deletes of a key do not conflict.
//
// etcd looks at the deletes of a level before the puts, so that the order of operations
// does not matter, except across nested transactions: where an earlier one puts a key
// that a later one deletes, it gives the key two events in one revision. Here a key has
// one version in a revision, and the order never matters.
type claims struct {
	puts map[string]bool
	dels []span
}

// branch claims what the operations of a branch write. They are alternatives to nothing:
// all of them are carried out.
func (c *claims) branch(ops []*pb.RequestOp) error {
	if c.puts == nil {
		c.puts = make(map[string]bool)
	}
	for _, op := range ops {
		if err := c.op(op); err != nil {
			return err
		}
	}
	return nil
}

func (c *claims) op(op *pb.RequestOp) error {
	switch u := op.GetRequest().(type) {
	case *pb.RequestOp_RequestPut:
		return c.put(string(u.RequestPut.GetKey()))
	case *pb.RequestOp_RequestDeleteRange:
		return c.del(spanOf(u.RequestDeleteRange.GetKey(), u.RequestDeleteRange.GetRangeEnd()))
	case *pb.RequestOp_RequestTxn:
		return c.nested(u.RequestTxn)
	}
	return nil
}

// nested claims what either branch of a nested transaction writes. The two exclude each
// other, so each is held against what was claimed before, but not against the other.
func (c *claims) nested(r *pb.TxnRequest) error {
	var then, otherwise claims
	if err := then.branch(r.GetSuccess()); err != nil {
		return err
	}
	if err := otherwise.branch(r.GetFailure()); err != nil {
		return err
	}
	for _, side := range []*claims{&then, &otherwise} {
		if err := c.meets(side); err != nil {
			return err
		}
	}
	for _, side := range []*claims{&then, &otherwise} {
		for key := range side.puts {
			c.puts[key] = true
		}
		c.dels = append(c.dels, side.dels...)
	}
	return nil
}

// meets refuses what conflicts with the claims of another part of the same path.
func (c *claims) meets(o *claims) error {
	for key := range o.puts {
		if c.puts[key] || anyHas(c.dels, key) {
			return rpctypes.ErrGRPCDuplicateKey
		}
	}
	for key := range c.puts {
		if anyHas(o.dels, key) {
			return rpctypes.ErrGRPCDuplicateKey
		}
	}
	return nil
}

func (c *claims) put(key string) error {
	if c.puts[key] || anyHas(c.dels, key) {
		return rpctypes.ErrGRPCDuplicateKey
	}
	c.puts[key] = true
	return nil
}

func (c *claims) del(s span) error {
	c.dels = append(c.dels, s)
	for key := range c.puts {
		if s.has(key) {
			return rpctypes.ErrGRPCDuplicateKey
		}
	}
	return nil
}

func anyHas(spans []span, key string) bool {
	for i := range spans {
		if spans[i].has(key) {
			return true
		}
	}
	return false
}

func (s *span) has(key string) bool {
	switch {
	case s.single:
		return key == string(s.start)
	case key < string(s.start):
		return false
	}
	return s.end == nil || key < string(s.end)
}
