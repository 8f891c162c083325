package opjson

import "github.com/kvd-io/kvd/internal/kvstore"

// txnState is what a Parser knows of the transaction that it is reading.
type txnState struct {
	depth       int   // of transactions; 0 outside of one
	operations  int64 // so far, over all levels
	comparisons int64
	size        int64 // of keys and values so far
	selectorAt  int   // where the last operation says which keys it is about
	txns        int32 // transactions so far
	branch      int32 // the one that is being read, an index of branches
	branches    []branch
	writes      []write
}

func (t *txnState) reset() {
	*t = txnState{branches: append(t.branches[:0], branch{}), writes: t.writes[:0]}
}

// transaction reads the object with the parts of a transaction.
func (p *Parser) transaction(c *kvstore.Command) bool {
	if p.txn.depth == kvstore.MaxTxnDepth {
		return p.refuse("transactions can be nested at most %d levels deep", kvstore.MaxTxnDepth)
	}
	if !p.enter('{', "an object") {
		return false
	}
	c.Txn = new(kvstore.Txn)
	p.txn.depth++
	p.txn.txns++
	id := p.txn.txns
	var seen [3]bool
	for p.more('}') {
		name, ok := p.name()
		if !ok {
			return false
		}
		i := partNamed(name)
		switch {
		case i < 0:
			return p.refuse("unknown field; a transaction accepts if, then, else")
		case seen[i]:
			return p.refuse("duplicate field")
		}
		seen[i] = true
		if p.peek() == 'n' && p.takeNull() {
			continue
		}
		if !p.part(c.Txn, i, id) {
			return false
		}
	}
	p.txn.depth--
	return p.err == nil
}

func partNamed(name []byte) int {
	switch string(name) {
	case "if":
		return 0
	case "then":
		return 1
	case "else":
		return 2
	}
	return -1
}

// part reads one of the arrays of the transaction with an id.
func (p *Parser) part(t *kvstore.Txn, part int, id int32) bool {
	if part == 0 {
		return p.comparisons(t)
	}
	outer := p.txn.branch
	p.txn.branches = append(p.txn.branches, branch{parent: outer, txn: id, level: p.txn.branches[outer].level + 1})
	p.txn.branch = int32(len(p.txn.branches) - 1)
	defer func() { p.txn.branch = outer }()
	if part == 1 {
		return p.operations(&t.Then)
	}
	return p.operations(&t.Else)
}

// operations reads an array of operations.
func (p *Parser) operations(list *[]kvstore.Command) bool {
	if !p.enter('[', "an array") {
		return false
	}
	for p.more(']') {
		*list = append(*list, kvstore.Command{})
		if !p.step(&(*list)[len(*list)-1]) {
			return false
		}
	}
	return p.err == nil
}

// step reads one operation of a transaction.
func (p *Parser) step(c *kvstore.Command) bool {
	p.peek()
	at := p.at
	if p.txn.operations++; p.txn.operations > p.limits.MaxTxnOps {
		return p.fail(ErrTooLarge, at, "the transaction has more than %d operations over all levels (max_txn_ops in the settings)", p.limits.MaxTxnOps)
	}
	return p.operation(c, nil) && p.account(at, len(c.Key)+len(c.End)+len(c.Value)) && p.noteWrite(c)
}

// account adds to the size of the transaction.
func (p *Parser) account(at, size int) bool {
	if p.txn.size += int64(size); p.txn.size > p.limits.MaxTxnBytes {
		return p.fail(ErrTooLarge, at, "the transaction has more than %d bytes (max_txn_bytes in the settings)", p.limits.MaxTxnBytes)
	}
	return true
}

// comparisons reads an array of comparisons.
func (p *Parser) comparisons(t *kvstore.Txn) bool {
	if !p.enter('[', "an array") {
		return false
	}
	for p.more(']') {
		p.peek()
		at := p.at
		if p.txn.comparisons++; p.txn.comparisons > p.limits.MaxTxnOps {
			return p.fail(ErrTooLarge, at, "the transaction has more than %d comparisons over all levels (max_txn_ops in the settings)", p.limits.MaxTxnOps)
		}
		t.If = append(t.If, kvstore.Compare{})
		c := &t.If[len(t.If)-1]
		if !p.comparison(c) || !p.account(at, len(c.Key)+len(c.End)+len(c.Value)) {
			return false
		}
	}
	return p.err == nil
}

// targets are the fields of what a comparison can look at.
const targets = fieldRevision | fieldCreateRevision | fieldVersion | anyValue | fieldLease | fieldExists

const targetNames = "revision, create_revision, version, value, value_base64, lease, exists"

// comparison reads one comparison, for example {"key":"a","version":{"gt":3}}.
func (p *Parser) comparison(c *kvstore.Compare) bool {
	given, object, ok := p.fields("a comparison", anyKey|anyRange|targets, func(f, given field) bool { return p.compareField(c, f, given) })
	switch {
	case !ok:
		return false
	case given&(anyKey|anyRange) == 0:
		return p.fail(nil, object, "missing fields; a comparison needs %s", selectors(anyKey))
	case given&targets == 0:
		return p.fail(nil, object, "missing field; a comparison needs one of %s", targetNames)
	case given&anyRange != 0:
		c.Range = true
		c.End, ok = p.rangeEnd(c.Key, c.End, given, object)
	}
	return ok
}

func (p *Parser) compareField(c *kvstore.Compare, f, given field) bool {
	if f&(anyKey|anyRange) != 0 {
		return p.selector(&c.Key, &c.End, f, given)
	}
	if given&targets != f {
		return p.refuse("only one of %s is allowed", targetNames)
	}
	c.Target, c.Relation = targetOf(f), kvstore.Equal
	if p.peek() == '{' {
		return p.relation(c, f)
	}
	return p.operand(c, f)
}

func targetOf(f field) kvstore.CompareTarget {
	switch f {
	case fieldRevision:
		return kvstore.CompareModRevision
	case fieldCreateRevision:
		return kvstore.CompareCreateRevision
	case fieldVersion:
		return kvstore.CompareVersion
	case fieldLease:
		return kvstore.CompareLease
	case fieldExists:
		return kvstore.CompareExists
	}
	return kvstore.CompareValue
}

// relation reads an object with a relation and its operand, such as {"gt":3}.
func (p *Parser) relation(c *kvstore.Compare, f field) bool {
	if !p.enter('{', "an object") {
		return false
	}
	object, found := p.start, false
	for p.more('}') {
		name, ok := p.name()
		if !ok {
			return false
		}
		r := relationNamed(name)
		switch {
		case r == 0:
			return p.refuse("unknown relation; expected one of eq, ne, gt, lt")
		case r > kvstore.NotEqual && f == fieldExists:
			return p.refuse("\"exists\" can only be compared with eq and ne")
		case p.peek() == 'n' && p.takeNull():
			continue
		case found:
			return p.refuse("a second relation; only one is allowed")
		}
		c.Relation, found = r, true
		if !p.operand(c, f) {
			return false
		}
	}
	if p.err == nil && !found {
		return p.fail(nil, object, "no relation; expected one of eq, ne, gt, lt")
	}
	return p.err == nil
}

func relationNamed(name []byte) kvstore.Relation {
	switch string(name) {
	case "eq":
		return kvstore.Equal
	case "ne":
		return kvstore.NotEqual
	case "gt":
		return kvstore.Greater
	case "lt":
		return kvstore.Less
	}
	return 0
}

// operand reads what the target is compared with.
func (p *Parser) operand(c *kvstore.Compare, f field) (ok bool) {
	switch f {
	case fieldExists:
		var exists bool
		if ok = p.boolean(&exists); exists {
			c.Number = 1
		}
	case fieldLease:
		c.Number, ok = p.leaseID(0)
	case fieldValue, fieldValueBase64:
		c.Value, ok = p.bytes(f, f)
	default:
		c.Number, ok = p.revision(0)
	}
	return ok
}
