package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// object is a JSON object, as encoding/json decodes it with numbers kept as text.
type object = map[string]any

func number(n uint64) json.Number { return json.Number(strconv.FormatUint(n, 10)) }

// setBytes adds a byte string under its name, or under name_base64 if it is not UTF-8.
func setBytes(o object, name, b string) {
	if utf8.ValidString(b) {
		o[name] = b
	} else {
		o[name+"_base64"] = base64.StdEncoding.EncodeToString([]byte(b))
	}
}

// leaseNumber is the id of a lease: a string where programs that keep numbers as doubles
// would change it.
func leaseNumber(id uint64) any {
	if id >= 1<<53 {
		return strconv.FormatUint(id, 10)
	}
	return number(id)
}

// record is a key of the model.
type record struct {
	value                string
	create, mod, version uint64
	lease                uint64
}

func (r *record) meta(o object) {
	o["create_revision"], o["mod_revision"], o["version"] = number(r.create), number(r.mod), number(r.version)
}

// pairOf is a pair as kvd shows it.
func pairOf(key string, r record) object {
	o := object{"lease": leaseNumber(r.lease)}
	setBytes(o, "key", key)
	setBytes(o, "value", r.value)
	r.meta(o)
	return o
}

// event is a change of a key, as a watch shows it.
type event struct {
	key      string
	revision uint64
	deleted  bool
	now      record
	previous *record
}

// contractModel is what kvd promises, as plain maps. It sees one request after the other.
type contractModel struct {
	keys     map[string]record
	revision uint64
	compact  uint64
	past     map[uint64]map[string]record // by revision
	events   []event
	leases   map[uint64]bool
	locks    map[string]*heldLock
	token    uint64 // the greatest so far
	// touched are the events of the revision being built, with their order.
	touched []event
}

func newContractModel() *contractModel {
	m := &contractModel{keys: make(map[string]record), revision: 1, compact: 1, past: make(map[uint64]map[string]record), leases: make(map[uint64]bool), locks: make(map[string]*heldLock)}
	m.past[1] = map[string]record{}
	return m
}

// failure is an outcome that changes nothing.
type failure struct {
	status int
	code   string
	fields object // some of those in the problem document
}

func (f *failure) Error() string { return f.code }

func refusal(status int, code string) *failure { return &failure{status: status, code: code} }

// contractOp is one operation of the contract, in the form of POST /v1/txn.
type contractOp struct {
	kind           string // put, get, list, delete, append, incr, txn
	key            string
	ranged         bool
	end            string // of a range; "" is open
	prefix         bool   // the range is that of the prefix key
	value          string
	delta          int64
	previous       bool
	lease          uint64
	keepValue      bool
	keepLease      bool
	ifRevision     *uint64
	limit          int
	reverse        bool
	keysOnly       bool
	countOnly      bool
	compares       []contractCompare
	onTrue, onElse []contractOp
}

type contractCompare struct {
	key      string
	ranged   bool
	end      string
	prefix   bool
	target   string // revision, create_revision, version, value, lease, exists
	relation string // eq, ne, gt, lt
	number   uint64
	text     string
	exists   bool
}

// inRange lists the keys of a range in order.
func (m *contractModel) inRange(start, end string) (keys []string) {
	for k := range m.keys {
		if k >= start && (end == "" || k < end) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

// begin and commit surround what may become one revision.
func (m *contractModel) begin() (undo map[string]record) {
	m.touched = nil
	return maps.Clone(m.keys)
}

// commit ends a revision if anything changed.
func (m *contractModel) commit() {
	if len(m.touched) == 0 {
		return
	}
	m.revision++
	m.events = append(m.events, m.touched...)
	m.touched = nil
	m.past[m.revision] = maps.Clone(m.keys)
}

func (m *contractModel) note(key string, before record, existed, deleted bool) {
	e := event{key: key, revision: m.revision + 1, deleted: deleted, now: m.keys[key]}
	if existed {
		e.previous = &before
	}
	m.touched = append(m.touched, e)
}

func (m *contractModel) write(key, value string, lease uint64) record {
	before, existed := m.keys[key]
	r := record{value: value, create: before.create, mod: m.revision + 1, version: before.version + 1, lease: lease}
	if !existed {
		r.create = r.mod
	}
	m.keys[key] = r
	m.note(key, before, existed, false)
	return r
}

func (m *contractModel) remove(key string) {
	before := m.keys[key]
	delete(m.keys, key)
	m.note(key, before, true, true)
}

// alone carries out one operation as a request of its own.
func (m *contractModel) alone(o *contractOp) (object, *failure) {
	undo := m.begin()
	out, f := m.run(o)
	if f != nil {
		m.keys, m.touched = undo, nil
		return nil, f
	}
	m.commit()
	return out, nil
}

// run carries out an operation on the state that is being built.
func (m *contractModel) run(o *contractOp) (object, *failure) {
	if o.ifRevision != nil && m.keys[o.key].mod != *o.ifRevision {
		return nil, &failure{412, "precondition_failed", object{"revision": number(m.keys[o.key].mod)}}
	}
	switch o.kind {
	case "put", "append", "incr":
		return m.runWrite(o)
	case "get":
		r, ok := m.keys[o.key]
		if ok {
			return pairOf(o.key, r), nil
		}
		out := object{"exists": false}
		setBytes(out, "key", o.key)
		return out, nil
	case "delete":
		return m.runDelete(o), nil
	case "list":
		return m.runList(o), nil
	}
	return m.runTxn(o)
}

func (m *contractModel) runWrite(o *contractOp) (object, *failure) {
	before, existed := m.keys[o.key]
	value, lease := o.value, before.lease // append and incr keep the lease
	switch o.kind {
	case "append":
		value = before.value + o.value
	case "incr":
		sum, f := increased(before.value, existed, o.delta, before.mod)
		if f != nil {
			return nil, f
		}
		value = sum
	case "put":
		if o.lease != 0 && !m.leases[o.lease] {
			return nil, refusal(404, "lease_not_found")
		}
		if (o.keepValue || o.keepLease) && !existed {
			return nil, refusal(404, "key_not_found")
		}
		if o.keepValue {
			value = before.value
		}
		if !o.keepLease {
			lease = o.lease
		}
	}
	r := m.write(o.key, value, lease)
	out := object{}
	setBytes(out, "key", o.key)
	r.meta(out)
	if o.kind == "incr" {
		out["value"] = value
	}
	if r.lease != 0 {
		out["lease"] = leaseNumber(r.lease)
	}
	m.addPrevious(out, o, before, existed)
	return out, nil
}

func (m *contractModel) addPrevious(out object, o *contractOp, before record, existed bool) {
	switch {
	case !o.previous:
	case existed:
		out["previous"] = pairOf(o.key, before)
	default:
		out["previous"] = nil
	}
}

func increased(text string, existed bool, delta int64, revision uint64) (string, *failure) {
	if !existed {
		text = "0"
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || delta > 0 && n > math.MaxInt64-delta || delta < 0 && n < math.MinInt64-delta {
		return "", &failure{412, "precondition_failed", object{}}
	}
	return strconv.FormatInt(n+delta, 10), nil
}

func (m *contractModel) runDelete(o *contractOp) object {
	if !o.ranged {
		before, existed := m.keys[o.key]
		deleted := uint64(0)
		if existed {
			m.remove(o.key)
			deleted = 1
		}
		out := object{"deleted": number(deleted)}
		setBytes(out, "key", o.key)
		m.addPrevious(out, o, before, existed)
		return out
	}
	pairs := []any{}
	for _, k := range m.inRange(o.key, o.end) {
		pairs = append(pairs, pairOf(k, m.keys[k]))
		m.remove(k)
	}
	out := object{"deleted": number(uint64(len(pairs)))}
	if o.previous {
		out["previous"] = pairs
	}
	return out
}

func (m *contractModel) runList(o *contractOp) object {
	keys := m.inRange(o.key, o.end)
	if o.countOnly {
		return object{"count": number(uint64(len(keys)))}
	}
	if o.reverse {
		slices.Reverse(keys)
	}
	out := object{}
	if o.limit > 0 && len(keys) > o.limit {
		keys = keys[:o.limit]
		out["more"] = true
	}
	kvs := []any{}
	for _, k := range keys {
		p := pairOf(k, m.keys[k])
		if o.keysOnly {
			delete(p, "value")
			delete(p, "value_base64")
		}
		kvs = append(kvs, p)
	}
	out["kvs"], out["count"] = kvs, number(uint64(len(kvs)))
	return out
}

// runTxn judges all comparisons of all levels against the state before, and then runs
// the operations on the path.
func (m *contractModel) runTxn(o *contractOp) (object, *failure) {
	return m.walk(o, &contractModel{keys: maps.Clone(m.keys)})
}

func (m *contractModel) walk(o *contractOp, before *contractModel) (object, *failure) {
	succeeded := !slices.ContainsFunc(o.compares, func(c contractCompare) bool { return !before.holds(&c) })
	taken := o.onElse
	if succeeded {
		taken = o.onTrue
	}
	results := []any{}
	for i := range taken {
		var out object
		var f *failure
		if taken[i].kind == "txn" {
			out, f = m.walk(&taken[i], before)
		} else {
			out, f = m.run(&taken[i])
		}
		if f != nil {
			return nil, f
		}
		results = append(results, out)
	}
	return object{"succeeded": succeeded, "results": results}, nil
}

// holds judges a comparison: of a range, for every key in it; an empty range counts as
// an absent key.
func (m *contractModel) holds(c *contractCompare) bool {
	keys := []string{c.key}
	if c.ranged {
		if keys = m.inRange(c.key, c.end); len(keys) == 0 {
			keys = []string{"\x00absent"}
		}
	}
	return !slices.ContainsFunc(keys, func(k string) bool { return !m.holdsFor(c, k) })
}

func (m *contractModel) holdsFor(c *contractCompare, key string) bool {
	r, existed := m.keys[key]
	order := 0
	switch c.target {
	case "exists":
		return (existed == c.exists) == (c.relation == "eq")
	case "value":
		if !existed {
			return false // as in etcd: there is nothing to compare with
		}
		order = strings.Compare(r.value, c.text)
	case "revision":
		order = compareNumbers(r.mod, c.number)
	case "create_revision":
		order = compareNumbers(r.create, c.number)
	case "version":
		order = compareNumbers(r.version, c.number)
	case "lease":
		order = compareNumbers(r.lease, c.number)
	}
	return map[string]bool{"eq": order == 0, "ne": order != 0, "gt": order > 0, "lt": order < 0}[c.relation]
}

func compareNumbers(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// heldLock is a lock of the model. Nobody waits for it.
type heldLock struct {
	lease, token uint64
	text         string
}

// keysOf lists the keys of a lease in order.
func (m *contractModel) keysOf(id uint64) (keys []string) {
	for _, k := range m.inRange("", "") {
		if m.keys[k].lease == id {
			keys = append(keys, k)
		}
	}
	return keys
}

func (m *contractModel) locksOf(id uint64) (n uint64) {
	for _, l := range m.locks {
		if l.lease == id {
			n++
		}
	}
	return n
}

// endLease deletes the keys of a lease in one revision, and releases its locks.
func (m *contractModel) endLease(id uint64) (deleted uint64) {
	delete(m.leases, id)
	m.begin()
	for _, k := range m.keysOf(id) {
		m.remove(k)
		deleted++
	}
	m.commit()
	maps.DeleteFunc(m.locks, func(_ string, l *heldLock) bool { return l.lease == id })
	return deleted
}

// document returns the operation as the object that names it.
func (o *contractOp) document() object {
	if o.kind == "txn" {
		return object{"txn": o.txnDocument()}
	}
	d := object{}
	selector(d, o.key, o.end, o.ranged, o.prefix)
	set := func(name string, on bool) {
		if on {
			d[name] = true
		}
	}
	switch o.kind {
	case "put", "append":
		if !o.keepValue {
			setBytes(d, "value", o.value)
		}
	case "incr":
		d["delta"] = o.delta
	}
	set("keep_value", o.keepValue)
	set("keep_lease", o.keepLease)
	set("reverse", o.reverse)
	set("keys_only", o.keysOnly)
	set("count_only", o.countOnly)
	if o.previous {
		d["return"] = "previous"
	}
	if o.lease != 0 {
		d["lease"] = leaseNumber(o.lease)
	}
	if o.limit != 0 {
		d["limit"] = o.limit
	}
	if o.ifRevision != nil {
		d["if_revision"] = *o.ifRevision
	}
	return object{o.kind: d}
}

func selector(d object, key, end string, ranged, prefix bool) {
	switch {
	case !ranged:
		setBytes(d, "key", key)
		return
	case prefix:
		setBytes(d, "prefix", key)
		return
	}
	setBytes(d, "start", key)
	if end != "" {
		setBytes(d, "end", end)
	}
}

func (o *contractOp) txnDocument() object {
	list := func(ops []contractOp) []any {
		out := []any{}
		for i := range ops {
			out = append(out, ops[i].document())
		}
		return out
	}
	compares := []any{}
	for _, c := range o.compares {
		compares = append(compares, c.document())
	}
	return object{"if": compares, "then": list(o.onTrue), "else": list(o.onElse)}
}

func (c *contractCompare) document() object {
	d := object{}
	selector(d, c.key, c.end, c.ranged, c.prefix)
	var operand any = c.number
	name := c.target
	switch c.target {
	case "exists":
		operand = c.exists
	case "lease":
		operand = leaseNumber(c.number)
	case "value":
		v := object{}
		setBytes(v, "value", c.text)
		for name, operand = range v { // the one field
		}
	}
	if c.relation != "eq" {
		operand = object{c.relation: operand}
	}
	d[name] = operand
	return d
}

func encode(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encode %v: %v", v, err))
	}
	return string(b)
}
