package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// contractRequest is a request, and what the model says about its answer.
type contractRequest struct {
	what         string // for messages and counts
	method, path string
	body         string
	header       []string
	writes       bool // so that it takes an Idempotency-Key

	status int
	code   string // of a problem
	fields object // that the document must have, among others
	json   object // the whole document, without the "revision" of single results
	raw    *string
	etag   uint64
	// inner is set for documents with results that have a "revision" of their own,
	// which is checked apart.
	inner bool
	lines []contractLine // of a batch
	sent  int            // how often it was sent
	next  bool           // of a list: there is another page
	drop  []string       // fields that must be there, with any value
	ttl   bool           // there may be a "ttl", if the lease of an earlier version is still there
	// after checks what the model cannot know before.
	after func(got object) error
}

// contractLine is the answer to a line of a batch.
type contractLine struct {
	read   bool // a read that is repeated may see what later lines wrote
	status int
	code   string
	json   object
}

// contractGenerator makes requests. Its choices depend on its source and the model
// alone, so that a seed repeats them.
type contractGenerator struct {
	random  *rand.Rand
	m       *contractModel
	batches int // so far
}

var contractKeys = []string{"a", "a/1", "a/2", "a\x00", "a\x00\x01", "b", "b/é", "\xff\xfe", "c d+e", "%2F", "..", "z"}

var contractValues = []string{"", "0", "7", "-3", "9223372036854775807", "-9223372036854775808", "007", "x", "pä\"ck\n", "\x00\xff\x80"}

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

func (g *contractGenerator) key() string { return pick(g.random, contractKeys) }

func (g *contractGenerator) once(n int) bool { return g.random.IntN(n) == 0 }

func (g *contractGenerator) value() string {
	switch {
	case g.once(10): // so that members that were away need a snapshot
		return strings.Repeat("long ", 4000+g.random.IntN(8000))
	case g.once(2):
		return fmt.Sprintf("v%d", g.random.IntN(1000))
	}
	return pick(g.random, contractValues)
}

// rangeOf chooses a range: an interval or a prefix.
func (g *contractGenerator) rangeOf() (start, end string, prefix bool) {
	if g.once(2) {
		start = pick(g.random, []string{"a", "a/", "b", "\xff", "c", "none"})
		return start, prefixEnd(start), true
	}
	start, end = g.key(), g.key()
	if start > end {
		start, end = end, start
	}
	if g.once(6) || start == end {
		end = ""
	}
	return start, end, false
}

// prefixEnd returns the least key after all with the prefix.
func prefixEnd(prefix string) string {
	b := []byte(prefix)
	for len(b) > 0 && b[len(b)-1] == 0xff {
		b = b[:len(b)-1]
	}
	if len(b) == 0 {
		return ""
	}
	b[len(b)-1]++
	return string(b)
}

// escaped writes a key into a path or query, byte for byte.
func escaped(key string) string {
	var b strings.Builder
	for i := range len(key) {
		if c := key[i]; 'a' <= c && c <= 'z' || '0' <= c && c <= '9' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// next makes a request and applies it to the model.
func (g *contractGenerator) next() *contractRequest {
	if g.m.compact == 1 && g.m.revision > 100 {
		return g.compact()
	}
	for {
		kinds := []func() *contractRequest{
			g.put, g.put, g.put, g.get, g.get, g.remove, g.appendTo, g.incr, g.incr, g.list, g.list, g.removeRange, g.batch, g.past, g.compact,
			g.txn, g.txn, g.txn, g.txn, g.grant, g.lease, g.lease, g.lock, g.lock,
		}
		if r := pick(g.random, kinds)(); r != nil {
			return r
		}
	}
}

// outcome fills in what the model says.
func (r *contractRequest) outcome(status int, out object, f *failure) *contractRequest {
	if f != nil {
		r.status, r.code, r.fields = f.status, f.code, f.fields
		return r
	}
	r.status, r.json = status, out
	return r
}

// condition adds one to a write of a key, which holds about half of the time.
func (g *contractGenerator) condition(o *contractOp, r *contractRequest, query url.Values) (holds bool) {
	now := g.m.keys[o.key].mod
	guess := now
	if g.once(2) {
		guess = uint64(g.random.Int64N(int64(g.m.revision) + 2))
	}
	switch g.random.IntN(6) {
	case 0:
		query.Set("if_revision", strconv.FormatUint(guess, 10))
		return guess == now
	case 1:
		r.header = append(r.header, "If-Match", fmt.Sprintf(`"%d"`, guess))
		return guess == now && now != 0
	case 2:
		r.header = append(r.header, "If-None-Match", "*")
		return now == 0
	}
	return true
}

// single carries out an operation on one key over its own route.
func (g *contractGenerator) single(o *contractOp, method string, query url.Values) *contractRequest {
	r := &contractRequest{what: o.kind, method: method, writes: true}
	if o.previous = g.once(4); o.previous {
		query.Set("return", "previous")
	}
	holds := g.condition(o, r, query)
	r.path = "/v1/kv/" + escaped(o.key)
	if encoded := query.Encode(); encoded != "" {
		r.path += "?" + encoded
	}
	_, existed := g.m.keys[o.key]
	if !holds {
		return r.outcome(0, nil, &failure{412, "precondition_failed", object{"revision": number(g.m.keys[o.key].mod)}})
	}
	out, f := g.m.alone(o)
	status := 200
	if out != nil {
		out["revision"] = number(g.m.revision)
	}
	if o.kind == "delete" {
		delete(out, "key")
		delete(out, "key_base64")
	} else if !existed {
		status = 201
	}
	return r.outcome(status, out, f)
}

func (g *contractGenerator) put() *contractRequest {
	o := &contractOp{kind: "put", key: g.key(), value: g.value()}
	query := url.Values{}
	if g.once(4) {
		o.lease = pick(g.random, contractLeases)
		query.Set("lease", strconv.FormatUint(o.lease, 10))
	}
	r := g.single(o, http.MethodPut, query)
	r.body = o.value
	return r
}

func (g *contractGenerator) appendTo() *contractRequest {
	o := &contractOp{kind: "append", key: g.key(), value: pick(g.random, contractValues)}
	if len(g.m.keys[o.key].value) > 100_000 {
		return nil
	}
	r := g.single(o, http.MethodPost, url.Values{"append": {""}})
	r.body = o.value
	return r
}

func (g *contractGenerator) incr() *contractRequest {
	o := &contractOp{kind: "incr", key: g.key(), delta: int64(g.random.IntN(21) - 10)}
	return g.single(o, http.MethodPost, url.Values{"incr": {strconv.FormatInt(o.delta, 10)}})
}

func (g *contractGenerator) remove() *contractRequest {
	return g.single(&contractOp{kind: "delete", key: g.key()}, http.MethodDelete, url.Values{})
}

// get reads a key raw or with its metadata, now or with a condition.
func (g *contractGenerator) get() *contractRequest {
	key := g.key()
	rec, existed := g.m.keys[key]
	r := &contractRequest{what: "get", method: http.MethodGet, path: "/v1/kv/" + escaped(key)}
	switch {
	case !existed:
		return r.outcome(0, nil, refusal(404, "key_not_found"))
	case g.once(3):
		r.header, r.status = []string{"If-None-Match", fmt.Sprintf(`"%d"`, rec.mod)}, 304
	case g.once(2):
		r.path += "?meta"
		r.status, r.json = 200, pairOf(key, rec)
		if rec.lease != 0 {
			r.drop = []string{"ttl"} // what is left of it
		}
	default:
		r.status, r.raw, r.etag = 200, &rec.value, rec.mod
	}
	return r
}

// past reads a key as of an earlier revision.
func (g *contractGenerator) past() *contractRequest {
	key, revision := g.key(), 1+uint64(g.random.Int64N(int64(g.m.revision)))
	r := &contractRequest{what: "past", method: http.MethodGet, path: fmt.Sprintf("/v1/kv/%s?meta&revision=%d", escaped(key), revision)}
	rec, existed := g.m.past[revision][key]
	switch {
	case revision < g.m.compact:
		return r.outcome(0, nil, &failure{410, "revision_compacted", object{"compact_revision": number(g.m.compact)}})
	case !existed:
		return r.outcome(0, nil, refusal(404, "key_not_found"))
	}
	r.ttl = rec.lease != 0
	return r.outcome(200, pairOf(key, rec), nil)
}

func (g *contractGenerator) rangeQuery(o *contractOp) url.Values {
	o.ranged = true
	o.key, o.end, o.prefix = g.rangeOf()
	query := url.Values{}
	if o.prefix {
		query.Set("prefix", o.key)
		return query
	}
	query.Set("start", o.key)
	if o.end != "" {
		query.Set("end", o.end)
	}
	return query
}

func (g *contractGenerator) list() *contractRequest {
	o := &contractOp{kind: "list"}
	query := g.rangeQuery(o)
	if o.countOnly = g.once(5); o.countOnly {
		query.Set("count_only", "")
	} else {
		if o.reverse = g.once(3); o.reverse {
			query.Set("reverse", "")
		}
		if o.keysOnly = g.once(3); o.keysOnly {
			query.Set("keys_only", "")
		}
		if g.once(2) {
			o.limit = 1 + g.random.IntN(5)
			query.Set("limit", strconv.Itoa(o.limit))
		}
	}
	r := &contractRequest{what: "list", method: http.MethodGet, path: "/v1/kv?" + query.Encode()}
	out := g.m.runList(o)
	_, r.next = out["more"]
	delete(out, "more")
	out["revision"] = number(g.m.revision)
	return r.outcome(200, out, nil)
}

func (g *contractGenerator) removeRange() *contractRequest {
	if !g.once(3) {
		return nil
	}
	o := &contractOp{kind: "delete"}
	query := g.rangeQuery(o)
	r := &contractRequest{what: "delete range", method: http.MethodDelete, path: "/v1/kv?" + query.Encode(), writes: true}
	out, f := g.m.alone(o)
	out["revision"] = number(g.m.revision)
	return r.outcome(200, out, f)
}

func (g *contractGenerator) compact() *contractRequest {
	if g.m.compact == 1 && g.m.revision > 100 { // in time for the watches that begin late
		g.m.compact = g.m.revision - 50
		r := &contractRequest{what: "compact", method: http.MethodPost, path: fmt.Sprintf("/v1/compact?revision=%d", g.m.compact), writes: true}
		return r.outcome(200, object{"revision": number(g.m.revision), "compact_revision": number(g.m.compact)}, nil)
	}
	if !g.once(4) {
		return nil
	}
	revision := 1 + uint64(g.random.Int64N(int64(g.m.revision)+1))
	r := &contractRequest{what: "compact", method: http.MethodPost, path: fmt.Sprintf("/v1/compact?revision=%d", revision), writes: true}
	if revision > g.m.revision {
		return r.outcome(0, nil, refusal(400, "future_revision"))
	}
	g.m.compact = max(g.m.compact, revision)
	return r.outcome(200, object{"revision": number(g.m.revision), "compact_revision": number(g.m.compact)}, nil)
}

// change makes an operation that writes one key, for a batch or a transaction.
func (g *contractGenerator) change(key string) contractOp {
	o := contractOp{kind: pick(g.random, []string{"put", "put", "append", "incr", "delete"}), key: key, previous: g.once(4)}
	switch o.kind {
	case "put":
		o.value = g.value()
		if g.once(5) {
			o.value, o.keepValue = "", true
		}
		switch {
		case g.once(6):
			o.keepLease = true
		case g.once(4):
			o.lease = pick(g.random, contractLeases)
		}
	case "append":
		o.value = pick(g.random, contractValues)
		if len(g.m.keys[key].value) > 100_000 {
			o.kind, o.value = "delete", ""
		}
	case "incr":
		o.delta = int64(g.random.IntN(21) - 10)
	}
	if g.once(6) {
		revision := g.m.keys[key].mod
		if g.once(2) {
			revision++
		}
		o.ifRevision = &revision
	}
	return o
}

// batch sends several operations as lines, each of which takes effect on its own. Each
// that writes has its own idempotency key, so that the whole can be sent again.
func (g *contractGenerator) batch() *contractRequest {
	if !g.once(2) {
		return nil
	}
	g.batches++
	r := &contractRequest{what: "batch", method: http.MethodPost, path: "/v1/batch", status: 200}
	for i := range 1 + g.random.IntN(8) {
		o := g.line()
		doc := o.document()
		line := contractLine{read: o.kind == "get" || o.kind == "list"}
		if !line.read {
			doc["idempotency_key"] = fmt.Sprintf("batch-%d-%d", g.batches, i)
		}
		r.body += encode(doc) + "\n"
		line.expect(g.m, &o)
		r.lines = append(r.lines, line)
	}
	return r
}

// line makes an operation for a batch.
func (g *contractGenerator) line() contractOp {
	switch g.random.IntN(8) {
	case 0:
		return contractOp{kind: "get", key: g.key()}
	case 1:
		o := contractOp{kind: "list", ranged: true, limit: 1 + g.random.IntN(4), reverse: g.once(3), keysOnly: g.once(3)}
		o.key, o.end, o.prefix = g.rangeOf()
		return o
	case 2:
		o := contractOp{kind: "delete", ranged: true}
		o.key, o.end, o.prefix = g.rangeOf()
		return o
	case 3:
		return g.transaction(1, new(claims))
	}
	return g.change(g.key())
}

// expect carries out the operation in the model.
func (l *contractLine) expect(m *contractModel, o *contractOp) {
	_, existed := m.keys[o.key]
	out, f := m.alone(o)
	l.status, l.json = 200, out
	switch {
	case f != nil:
		l.status, l.code = f.status, f.code
		return
	case o.kind == "get" && !existed:
		l.status, l.code = 404, "key_not_found"
		return
	case o.kind == "put" || o.kind == "append" || o.kind == "incr":
		if !existed {
			l.status = 201
		}
	}
	out["revision"] = number(m.revision)
	if !o.ranged && o.kind != "get" {
		delete(out, "key") // the client knows it by the number of the line
		delete(out, "key_base64")
	}
}

// txn sends a transaction with comparisons, overlapping ranges, and nested ones.
func (g *contractGenerator) txn() *contractRequest {
	o := g.transaction(2, new(claims))
	r := &contractRequest{what: "txn", method: http.MethodPost, path: "/v1/txn", body: encode(o.txnDocument()), writes: true, inner: true}
	out, f := g.m.alone(&o)
	if f == nil {
		out["revision"] = number(g.m.revision)
	}
	return r.outcome(200, out, f)
}

// claims are the intervals that a transaction writes. Two that overlap are refused, even
// if no key lies in both.
type claims [][2]string

// claim reports whether the interval overlaps none so far. An empty end is open.
func (c *claims) claim(start, end string) bool {
	for _, other := range *c {
		if (end == "" || other[0] < end) && (other[1] == "" || start < other[1]) {
			return false
		}
	}
	*c = append(*c, [2]string{start, end})
	return true
}

// transaction makes one in which no path writes a key twice: written has the keys that
// something on the way writes.
func (g *contractGenerator) transaction(depth int, written *claims) contractOp {
	o := contractOp{kind: "txn"}
	for range g.random.IntN(3) {
		o.compares = append(o.compares, g.compare())
	}
	for range g.random.IntN(5) {
		if step, ok := g.step(depth, written); ok {
			o.onTrue = append(o.onTrue, step)
		}
	}
	for range g.random.IntN(4) {
		if step, ok := g.step(depth, written); ok {
			o.onElse = append(o.onElse, step)
		}
	}
	return o
}

func (g *contractGenerator) step(depth int, written *claims) (contractOp, bool) {
	switch g.random.IntN(8) {
	case 0:
		return contractOp{kind: "get", key: g.key()}, true
	case 1:
		o := contractOp{kind: "list", ranged: true, limit: g.random.IntN(4), reverse: g.once(3), keysOnly: g.once(3)}
		o.key, o.end, o.prefix = g.rangeOf()
		if g.once(4) {
			o.countOnly, o.limit, o.reverse, o.keysOnly = true, 0, false, false
		}
		return o, true
	case 2:
		o := contractOp{kind: "delete", ranged: true, previous: g.once(3)}
		o.key, o.end, o.prefix = g.rangeOf()
		return o, written.claim(o.key, o.end)
	case 3:
		if depth == 0 {
			return contractOp{}, false
		}
		return g.transaction(depth-1, written), true
	}
	key := g.key()
	return g.change(key), written.claim(key, key+"\x00")
}

// compare makes a comparison that holds about half of the time.
func (g *contractGenerator) compare() contractCompare {
	c := contractCompare{
		target:   pick(g.random, []string{"revision", "create_revision", "version", "value", "lease", "exists"}),
		relation: pick(g.random, []string{"eq", "eq", "ne", "gt", "lt"}),
	}
	if g.once(3) {
		c.ranged = true
		c.key, c.end, c.prefix = g.rangeOf()
	} else {
		c.key = g.key()
	}
	rec := g.m.keys[c.key]
	switch c.target {
	case "revision":
		c.number = rec.mod
	case "create_revision":
		c.number = rec.create
	case "version":
		c.number = rec.version
	case "lease":
		c.number = rec.lease
	case "exists":
		c.exists = g.once(2)
		if c.relation != "eq" {
			c.relation = "ne"
		}
	case "value":
		if c.text = rec.value; g.once(3) {
			c.text = g.value()
		}
	}
	if g.once(4) && c.number > 0 {
		c.number--
	}
	return c
}
