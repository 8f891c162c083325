package client

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// Txn is a transaction under construction:
//
//	result, err := c.Txn().
//		If(client.ModRevision("config").Equals(7), client.Absent("lock")).
//		Then(client.OpPut("config", value), client.OpIncr("generation", 1)).
//		Else(client.OpGet("config")).
//		Commit(ctx)
//
// All comparisons are judged against the state before the transaction. If all of them
// hold, the operations of Then run in order, otherwise those of Else; each sees what
// the earlier ones did, and all changes have one revision. If one of them cannot be
// carried out, none is.
type Txn struct {
	c               *Client
	cmp             []map[string]any
	then, otherwise []map[string]any
}

// Txn begins a transaction.
func (c *Client) Txn() *Txn { return &Txn{c: c} }

// If adds comparisons, all of which must hold.
func (t *Txn) If(comparisons ...Comparison) *Txn {
	for _, c := range comparisons {
		t.cmp = append(t.cmp, c.doc())
	}
	return t
}

// Then adds operations to run if all comparisons hold.
func (t *Txn) Then(ops ...Op) *Txn {
	t.then = append(t.then, docs(ops)...)
	return t
}

// Else adds operations to run if a comparison does not hold.
func (t *Txn) Else(ops ...Op) *Txn {
	t.otherwise = append(t.otherwise, docs(ops)...)
	return t
}

func docs(ops []Op) []map[string]any {
	var out []map[string]any
	for _, o := range ops {
		out = append(out, map[string]any{o.kind: o.fields})
	}
	return out
}

func (t *Txn) doc() map[string]any {
	doc := map[string]any{}
	for name, list := range map[string][]map[string]any{"if": t.cmp, "then": t.then, "else": t.otherwise} {
		if len(list) > 0 {
			doc[name] = list
		}
	}
	return doc
}

// TxnResult is the result of a transaction.
type TxnResult struct {
	Succeeded bool // all comparisons held
	Revision  uint64
	Results   []OpResult // one for each operation of the branch that ran
}

// OpResult is the result of one operation of a transaction or a batch.
type OpResult struct {
	KV      *KV    // of OpGet, nil if the key is absent
	KVs     []*KV  // of OpList
	Count   uint64 // of OpList: the keys in its range
	Written        // of the operations that change something
	Sum     int64  // of OpIncr
	Txn     *TxnResult
}

// Commit executes the transaction. A transaction whose comparisons do not hold is no
// error. One that only reads never ends with ErrUnknownOutcome.
func (t *Txn) Commit(ctx context.Context) (*TxnResult, error) {
	r, err := change(http.MethodPost, "/v1/txn", nil).withJSON(t.doc())
	if err != nil {
		return nil, err
	}
	r.mutates = !onlyReads(t.then) || !onlyReads(t.otherwise)
	var out wireTxn
	if _, err := t.c.call(ctx, r, &out); err != nil {
		return nil, err
	}
	return out.result()
}

// onlyReads reports whether none of the operations changes anything. One that is a
// transaction itself counts as a change.
func onlyReads(ops []map[string]any) bool {
	for _, op := range ops {
		for kind := range op {
			if kind != "get" && kind != "list" {
				return false
			}
		}
	}
	return true
}

type wireTxn struct {
	Succeeded bool         `json:"succeeded"`
	Revision  uint64       `json:"revision"`
	Results   []wireResult `json:"results"`
}

type wireResult struct {
	wireWritten
	Key       *string      `json:"key"`
	KeyBase64 *string      `json:"key_base64"`
	Value64   *string      `json:"value_base64"`
	KVs       []wireKV     `json:"kvs"`
	Count     uint64       `json:"count"`
	Succeeded *bool        `json:"succeeded"`
	Results   []wireResult `json:"results"`
}

func (w *wireTxn) result() (*TxnResult, error) {
	out := &TxnResult{Succeeded: w.Succeeded, Revision: w.Revision}
	for i := range w.Results {
		r, err := w.Results[i].result()
		if err != nil {
			return nil, fmt.Errorf("results[%d]: %w", i, err)
		}
		out.Results = append(out.Results, r)
	}
	return out, nil
}

func (w *wireResult) result() (r OpResult, err error) {
	r.Count = w.Count
	r.Written = Written{
		Revision: w.Revision, CreateRevision: w.CreateRevision, ModRevision: w.ModRevision, Version: w.Version,
		Created: w.Version == 1, Deleted: w.Deleted, Lease: int64(w.Lease),
	}
	if r.Previous, err = w.Previous.kv(); err != nil {
		return r, err
	}
	// What was read has no revision of its own beside those of the key.
	if w.Revision == 0 && w.ModRevision != 0 {
		read := wireKV{
			Key: w.Key, KeyBase64: w.KeyBase64, Value: &w.Value, ValueBase64: w.Value64,
			CreateRevision: w.CreateRevision, ModRevision: w.ModRevision, Version: w.Version, Lease: w.Lease,
		}
		r.Written = Written{}
		r.KV, err = read.kv()
		return r, err
	}
	for i := range w.KVs {
		kv, err := w.KVs[i].kv()
		if err != nil {
			return r, err
		}
		r.KVs = append(r.KVs, kv)
	}
	if w.Value != "" {
		if r.Sum, err = strconv.ParseInt(w.Value, 10, 64); err != nil {
			return r, err
		}
	}
	if w.Succeeded != nil {
		inner := wireTxn{Succeeded: *w.Succeeded, Revision: w.Revision, Results: w.Results}
		r.Txn, err = inner.result()
	}
	return r, err
}

// Op is an operation of a transaction or a batch.
type Op struct {
	kind   string
	fields map[string]any
}

func keyOp(kind, key string) Op {
	o := Op{kind, map[string]any{}}
	putBytes(o.fields, "key", key)
	return o
}

func rangeOp(kind string, keys Range) Op {
	o := Op{kind, map[string]any{}}
	keys.fields(o.fields)
	return o
}

func (k Range) fields(doc map[string]any) {
	if !k.bounded {
		putBytes(doc, "prefix", k.prefix)
		return
	}
	putBytes(doc, "start", k.start)
	if k.end != "" {
		putBytes(doc, "end", k.end)
	}
}

// OpGet reads a key.
func OpGet(key string) Op { return keyOp("get", key) }

// OpPut stores a value.
func OpPut(key string, value []byte) Op {
	o := keyOp("put", key)
	putBytes(o.fields, "value", string(value))
	return o
}

// OpAppend appends to a value.
func OpAppend(key string, tail []byte) Op {
	o := keyOp("append", key)
	putBytes(o.fields, "value", string(tail))
	return o
}

// OpIncr adds to a decimal number.
func OpIncr(key string, delta int64) Op {
	o := keyOp("incr", key)
	o.fields["delta"] = delta
	return o
}

// OpDelete deletes a key.
func OpDelete(key string) Op { return keyOp("delete", key) }

// OpDeleteRange deletes all keys of a range.
func OpDeleteRange(keys Range) Op { return rangeOp("delete", keys) }

// OpList reads the pairs of a range; 0 means no limit.
func OpList(keys Range, limit int) Op {
	o := rangeOp("list", keys)
	if limit > 0 {
		o.fields["limit"] = limit
	}
	return o
}

// OpTxn nests a transaction.
func OpTxn(t *Txn) Op { return Op{"txn", t.doc()} }

// WithLease binds the key of a put, append, or incr to a lease.
func (o Op) WithLease(lease int64) Op {
	o.fields["lease"] = strconv.FormatInt(lease, 10)
	return o
}

// WithTTL binds the key of a put, append, or incr to a lease of its own.
func (o Op) WithTTL(ttl time.Duration) Op {
	o.fields["ttl"] = ttl.String()
	return o
}

// IfRevision carries out a put, append, incr, or delete of one key only if the key has
// this mod revision; 0 means that it must not exist. In a transaction, a condition that
// does not hold fails the whole transaction; see Txn.If for the alternative.
func (o Op) IfRevision(revision uint64) Op {
	o.fields["if_revision"] = revision
	return o
}

// ReturnPrevious asks for the pair as it was before the operation.
func (o Op) ReturnPrevious() Op {
	o.fields["return"] = "previous"
	return o
}

// Comparison is a comparison of a transaction.
type Comparison struct {
	keys  map[string]any
	field string
	value any
}

func (c Comparison) doc() map[string]any {
	doc := map[string]any{c.field: c.value}
	for name, v := range c.keys {
		doc[name] = v
	}
	return doc
}

// Target is what a comparison looks at.
type Target struct {
	keys  map[string]any
	field string
}

func target(key, field string) Target {
	t := Target{map[string]any{}, field}
	putBytes(t.keys, "key", key)
	return t
}

// In makes the comparison about every key of a range. A range without keys counts as
// an absent key.
func (t Target) In(keys Range) Target {
	t.keys = map[string]any{}
	keys.fields(t.keys)
	return t
}

// ModRevision compares the revision of the last write; 0 if the key is absent.
func ModRevision(key string) Target { return target(key, "revision") }

// CreateRevision compares the revision that created the key; 0 if it is absent.
func CreateRevision(key string) Target { return target(key, "create_revision") }

// Version compares the number of writes since the creation; 0 if the key is absent.
func Version(key string) Target { return target(key, "version") }

// LeaseOf compares the lease of the key; 0 if it has none.
func LeaseOf(key string) Target { return target(key, "lease") }

// Equals holds if the target is n.
func (t Target) Equals(n uint64) Comparison { return Comparison{t.keys, t.field, n} }

// NotEquals holds if the target is not n.
func (t Target) NotEquals(n uint64) Comparison { return t.relation("ne", n) }

// Greater holds if the target is greater than n.
func (t Target) Greater(n uint64) Comparison { return t.relation("gt", n) }

// Less holds if the target is less than n.
func (t Target) Less(n uint64) Comparison { return t.relation("lt", n) }

func (t Target) relation(name string, n uint64) Comparison {
	return Comparison{t.keys, t.field, map[string]any{name: n}}
}

// Exists holds if the key exists.
func Exists(key string) Comparison { return Comparison{target(key, "").keys, "exists", true} }

// Absent holds if the key does not exist.
func Absent(key string) Comparison { return Comparison{target(key, "").keys, "exists", false} }

// ValueIs holds if the key exists and has this value.
func ValueIs(key string, value []byte) Comparison {
	c := Comparison{keys: target(key, "").keys}
	doc := map[string]any{}
	putBytes(doc, "value", string(value))
	for c.field, c.value = range doc {
		continue // the only field
	}
	return c
}
