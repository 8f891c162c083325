package raftnode

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"reflect"
	"slices"
	"strconv"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/kvstore/engine"
)

// Clients of keys: transactions, and requests that take effect once.

const (
	accounts      = 4
	accountsTotal = 1000
)

func account(i int) []byte { return fmt.Appendf(nil, "acct/%d", i) }

func prefixEnd(prefix string) []byte { return kvstore.Prefix(prefix).End() }

// bank moves money between accounts. The sum is the same whenever anybody looks (X2).
func bank(c *client) {
	n := c.w.s.anyNode()
	if !c.fresh(n) {
		return
	}
	pairs := c.look(n)
	if pairs == nil {
		c.openAccounts()
		return
	}
	from, to := c.w.s.rng.IntN(accounts), c.w.s.rng.IntN(accounts-1)
	if to >= from {
		to++
	}
	amount := c.w.s.rng.IntN(50)
	cmd := kvstore.Command{Op: kvstore.OpTxn, Txn: transfer(&pairs[from], &pairs[to], amount)}
	r := c.do(c.w.s.anyNode(), &cmd)
	if r == nil || r.Outcome != kvstore.OK {
		return
	}
	last := r.Results[len(r.Results)-1]
	c.sum("a transaction", last.Pairs)
	if r.Succeeded {
		c.w.stats.transfers++
	}
}

// transfer moves an amount if nobody else has changed the accounts. Either branch ends
// with a look at all accounts, the first in a nested transaction.
func transfer(from, to *kvstore.KV, amount int) *kvstore.Txn {
	look := kvstore.Command{Op: kvstore.OpList, Key: []byte("acct/"), End: prefixEnd("acct/")}
	unchanged := func(kv *kvstore.KV) kvstore.Compare {
		return kvstore.Compare{Key: kv.Key, Target: kvstore.CompareModRevision, Relation: kvstore.Equal, Number: kv.ModRevision}
	}
	move := func(kv *kvstore.KV, by int) kvstore.Command {
		return kvstore.Command{Op: kvstore.OpPut, Key: kv.Key, Value: strconv.AppendInt(nil, int64(balance(kv)+by), 10)}
	}
	nested := kvstore.Command{Op: kvstore.OpTxn, Txn: &kvstore.Txn{
		If:   []kvstore.Compare{unchanged(to)}, // judged by the state before all of it
		Then: []kvstore.Command{move(to, amount)},
	}}
	return &kvstore.Txn{
		If:   []kvstore.Compare{unchanged(from), unchanged(to)},
		Then: []kvstore.Command{move(from, -amount), nested, look},
		Else: []kvstore.Command{look},
	}
}

func balance(kv *kvstore.KV) int {
	n, _ := strconv.Atoi(string(kv.Value))
	return n
}

// look reads all accounts of a member at one position; nil if there are none.
func (c *client) look(n *simNode) []kvstore.KV {
	if !n.up {
		return nil
	}
	r, err := storeOf(n).store.ReadTxn(context.Background(), &kvstore.Txn{
		Then: []kvstore.Command{{Op: kvstore.OpList, Key: []byte("acct/"), End: prefixEnd("acct/")}},
	}, func(int64) bool { return true })
	if engine.IsDamage(err) {
		return nil
	}
	if err != nil || r.Outcome != kvstore.OK {
		c.w.s.violate("X2: read the accounts: %+v, %v", r, err)
		return nil
	}
	pairs := r.Results[0].Pairs
	if len(pairs) == 0 {
		return nil
	}
	c.sum(fmt.Sprintf("member %d", n.id), pairs)
	c.w.stats.checkedReads++
	return pairs
}

func (c *client) sum(who string, pairs []kvstore.KV) {
	sum := 0
	for i := range pairs {
		sum += balance(&pairs[i])
	}
	if len(pairs) > 0 && sum != accountsTotal {
		c.w.s.violate("X2: %s sees a sum of %d in %d accounts, want %d", who, sum, len(pairs), accountsTotal)
	}
}

func (c *client) openAccounts() {
	t := &kvstore.Txn{If: []kvstore.Compare{{Key: account(0), Target: kvstore.CompareExists, Relation: kvstore.Equal}}}
	for i := range accounts {
		t.Then = append(t.Then, kvstore.Command{Op: kvstore.OpPut, Key: account(i), Value: strconv.AppendInt(nil, accountsTotal/accounts, 10)})
	}
	c.do(c.w.s.anyNode(), &kvstore.Command{Op: kvstore.OpTxn, Txn: t})
}

// counter increments a counter of its own, one of all clients, and appends to a text, with
// a new idempotency key for each request that it repeats until it has an answer.
type counter struct {
	total *int // of all clients
	done  int
	seen  map[string]bool // values of the counter of all clients
	text  []byte
}

func (k *counter) use(c *client) {
	k.done++
	key := fmt.Sprintf("%s/%d", c.name, k.done)
	own := fmt.Appendf(nil, "count/%s", c.name)
	switch k.done % 3 {
	case 0:
		piece := fmt.Appendf(nil, "%d,", k.done)
		c.once(key, kvstore.Command{Op: kvstore.OpAppend, Key: slices.Concat([]byte("text/"), []byte(c.name)), Value: piece})
		k.text = append(k.text, piece...)
	case 1:
		r := c.once(key, kvstore.Command{Op: kvstore.OpIncr, Key: own, Delta: 1})
		if want := strconv.Itoa((k.done + 2) / 3); string(r.KV.Value) != want {
			c.w.s.violate("X1: request %s makes the counter %s, want %s", key, r.KV.Value, want)
		}
	default:
		r := c.once(key, kvstore.Command{Op: kvstore.OpIncr, Key: []byte("count/all"), Delta: 1})
		if k.seen[string(r.KV.Value)] {
			c.w.s.violate("X1: two requests make the common counter %s", r.KV.Value)
		}
		k.seen[string(r.KV.Value)] = true
		*k.total++
	}
}

// check compares the counters in the end.
func (k *counter) check(w *contractWorld, name string, store *kvstore.Store) {
	w.expect(store, "count/"+name, strconv.Itoa((k.done+2)/3), k.done > 0)
	w.expect(store, "text/"+name, string(k.text), len(k.text) > 0)
	w.expect(store, "count/all", strconv.Itoa(*k.total), *k.total > 0)
}

func (w *contractWorld) expect(store *kvstore.Store, key, want string, exists bool) {
	kv, _, err := store.Get([]byte(key), 0)
	if !exists && errors.Is(err, kvstore.ErrKeyNotFound) {
		return
	}
	if err != nil || string(kv.Value) != want {
		w.s.violate("X1: %s is %q, want %q (%v)", key, kv.Value, want, err)
	}
}

// once sends a request until there is an answer, sometimes to two members at a time.
func (c *client) once(key string, cmd kvstore.Command) *kvstore.Result {
	h := fnv.New128a()
	h.Write([]byte(key[len(key)-1:])) // requests with one sequence number look alike
	cmd.Idempotency = &kvstore.Idempotency{Key: key, Fingerprint: [16]byte(h.Sum(nil))}
	var sent []*op
	for {
		if c.w.s.chance(0.2) {
			sent = append(sent, c.attempt(key, cmd))
		}
		o := c.attempt(key, cmd)
		sent = append(sent, o)
		if c.await(o, c.patience()) {
			c.w.stats.once++
			c.forget(key, sent)
			return o.result.value.(*kvstore.Result)
		}
		c.pause(span{10 * milli, 200 * milli})
	}
}

// attempt sends a request once. Its answer is judged whenever it comes.
func (c *client) attempt(key string, cmd kvstore.Command) *op {
	o := c.w.propose(c.w.s.anyNode(), &cmd)
	o.whenDone(func() {
		if o.outcome != succeeded {
			return
		}
		r := o.result.value.(*kvstore.Result)
		c.w.observeRepeat(o.node, key, r)
		first := c.w.answers[key]
		switch {
		case r.Outcome != kvstore.OK:
			c.w.s.violate("X1: request %s was answered with %+v", key, r)
		case first == nil:
			c.w.answers[key] = r
		case !sameAnswer(first, r):
			c.w.s.violate("X1: request %s was answered with %+v and with %+v", key, first, r)
		default:
			c.w.stats.repeats++
		}
	})
	return o
}

// forget releases a key, if all attempts have ended for sure: one that is still on its way
// would take effect again.
func (c *client) forget(key string, sent []*op) {
	for _, o := range sent {
		if o.outcome == open || o.outcome == unknown {
			return
		}
	}
	if c.w.s.chance(0.3) {
		c.do(c.w.s.anyNode(), &kvstore.Command{Op: kvstore.OpForget, Release: []string{key}})
	}
}

func sameAnswer(a, b *kvstore.Result) bool {
	x, y := *a, *b
	x.Replayed, y.Replayed = false, false
	return reflect.DeepEqual(x, y)
}

// writer changes keys at random, also ranges, many in one transaction, and some under a
// lease of their own.
func writer(c *client) {
	rng := c.w.s.rng
	var cmd kvstore.Command
	switch rng.IntN(8) {
	case 0:
		cmd = kvstore.Command{Op: kvstore.OpDeleteRange, Key: []byte("r/a"), End: []byte{'r', '/', "bcde"[rng.IntN(4)]}, ReturnPrevious: rng.IntN(2) == 0}
	case 1:
		cmd = c.smallWrite()
		cmd.TTLMillis = 2000 + rng.Int64N(2000)
	case 2:
		t := &kvstore.Txn{}
		for i := range 1 + rng.IntN(5) {
			t.Then = append(t.Then, kvstore.Command{Op: kvstore.OpPut, Key: fmt.Appendf(nil, "r/t%d", i), Value: make([]byte, rng.IntN(200))})
		}
		cmd = kvstore.Command{Op: kvstore.OpTxn, Txn: t}
	case 3:
		cmd = kvstore.Command{Op: kvstore.OpDelete, Key: c.smallWrite().Key, ReturnPrevious: true}
	default:
		cmd = c.smallWrite()
	}
	c.do(c.w.s.anyNode(), &cmd)
}

func (c *client) smallWrite() kvstore.Command {
	rng := c.w.s.rng
	return kvstore.Command{
		Op: []kvstore.Op{kvstore.OpPut, kvstore.OpAppend}[rng.IntN(2)], Key: []byte{'r', '/', "abcdef"[rng.IntN(6)]},
		Value: make([]byte, rng.IntN(100)), ReturnPrevious: rng.IntN(2) == 0,
	}
}

// compacting compacts what is older than a few revisions, or nothing for a while.
func compacting(c *client) {
	c.pause(span{0, 4 * second})
	revision := c.w.truth.store.Revision()
	r := c.do(c.w.s.anyNode(), &kvstore.Command{Op: kvstore.OpCompact, Revision: revision - c.w.s.rng.Uint64N(min(revision, 200))})
	if r != nil && r.Outcome == kvstore.OK {
		c.w.stats.compacted++
	}
	c.w.s.reachIf(compactRefused, r != nil && r.Outcome == kvstore.Compacted)
}
