package opjson

import (
	"bytes"
	"slices"

	"github.com/kvd-io/kvd/internal/kvstore"
)

// A transaction may write a key only once, also through the range of a delete: of
// two writes at one revision the history could keep only one. Whether two writes
// collide does not depend on the state, so it is decided here, where the places in the
// text are known. Only writes that can be executed together count: those in the two
// branches of a transaction cannot.

// branch is the "then" or the "else" of a transaction. branches[0] stands for
// everything outside of transactions.
type branch struct {
	parent int32 // the branch that has the transaction
	txn    int32 // which one
	level  int32 // how many branches enclose this one
}

// write is what one operation may change.
type write struct {
	key []byte
	end []byte // of a range; nil means that it is open
	// isRange distinguishes the keys from key to end from the key alone.
	isRange bool
	branch  int32
	at      int // where the text says so
}

// noteWrite remembers what an operation of a transaction writes.
func (p *Parser) noteWrite(c *kvstore.Command) bool {
	switch c.Op {
	case kvstore.OpGet, kvstore.OpList, kvstore.OpTxn:
		return true
	}
	p.txn.writes = append(p.txn.writes, write{c.Key, c.End, c.Op == kvstore.OpDeleteRange, p.txn.branch, p.txn.selectorAt})
	return true
}

// checkWrites refuses a transaction that might write a key twice. It compares each
// write, in the order of keys, with those before it that reach as far.
func (p *Parser) checkWrites() bool {
	if len(p.txn.writes) < 2 {
		return true
	}
	slices.SortFunc(p.txn.writes, func(a, b write) int {
		if c := bytes.Compare(a.key, b.key); c != 0 {
			return c
		}
		return a.at - b.at
	})
	reaching := make([]*write, 0, len(p.txn.writes))
	for i := range p.txn.writes {
		w := &p.txn.writes[i]
		reaching = slices.DeleteFunc(reaching, func(earlier *write) bool { return !earlier.reaches(w.key) })
		for _, earlier := range reaching {
			if w.reaches(w.key) && !p.exclusive(earlier.branch, w.branch) {
				return p.refuseWrites(earlier.at, w.at)
			}
		}
		reaching = append(reaching, w)
	}
	return true
}

// reaches reports whether a write that does not begin after a key affects it.
func (w *write) reaches(key []byte) bool {
	if !w.isRange {
		return bytes.Equal(w.key, key)
	}
	return w.end == nil || bytes.Compare(key, w.end) < 0
}

// refuseWrites records the collision of the writes at two places.
func (p *Parser) refuseWrites(a, b int) bool {
	return p.fail(nil, max(a, b), "writes a key that %s writes, too; a transaction may write each key only once", pathOf(p.text, min(a, b)))
}

// exclusive reports whether two branches are never executed together: because they
// are, or are inside of, the two branches of one transaction.
func (p *Parser) exclusive(a, b int32) bool {
	all := p.txn.branches
	for all[a].level > all[b].level {
		a = all[a].parent
	}
	for all[b].level > all[a].level {
		b = all[b].parent
	}
	for a != b && all[a].parent != all[b].parent {
		a, b = all[a].parent, all[b].parent
	}
	return a != b && all[a].txn == all[b].txn
}
