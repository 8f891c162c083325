package opjson

import (
	"encoding/base64"
	"math"
	"strings"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/limits"
)

// The bounds of a list in a transaction or a stream, as of a page of a listing.
const (
	defaultListLimit = 1000
	maxListLimit     = 10_000
)

// Limits are what a Parser accepts at most.
type Limits struct {
	MaxValueBytes int64
	// MaxTxnOps bounds the operations of a transaction over all its levels, and
	// likewise its comparisons.
	MaxTxnOps int64
	// MaxTxnBytes bounds the keys and values of a transaction. What else belongs to
	// its command is judged when it is applied.
	MaxTxnBytes int64
}

// textOverhead is room for everything in a text but its largest byte strings.
const textOverhead = 64 << 10

// TextLimit returns the length of the longest text that can be an operation: with
// its bytes in base64, or most of them escaped by a backslash.
func (l *Limits) TextLimit() int64 { return 2*max(l.MaxValueBytes, l.MaxTxnBytes) + textOverhead }

// Parser reads operations. The zero value is ready for use. A Parser must not be
// used by several goroutines at once.
type Parser struct {
	scan
	limits  Limits
	command kvstore.Command // the one that is returned
	// What commands point to. When one of these grows, the commands so far keep
	// the old array.
	conditions  []kvstore.Condition
	revisions   []uint64
	reads       []kvstore.Read
	idempotency kvstore.Idempotency
	txn         txnState
}

// Parse reads one operation, for example {"put":{"key":"a","value":"x"}}. The
// command is valid until the Parser reads the next one or the text is changed. The
// error is an *Error.
//
// The operation may have an "idempotency_key" beside it; the Fingerprint is left to
// the caller.
func (p *Parser) Parse(text []byte, l Limits) (*kvstore.Command, error) {
	p.begin(text, l)
	return p.finish(p.line(&p.command))
}

// ParseTxn reads a transaction: the object that is the "txn" of an operation.
func (p *Parser) ParseTxn(text []byte, l Limits) (*kvstore.Command, error) {
	p.begin(text, l)
	p.command.Op = kvstore.OpTxn
	return p.finish(p.transaction(&p.command))
}

func (p *Parser) begin(text []byte, l Limits) {
	p.scan.reset(text)
	p.limits, p.command = l, kvstore.Command{}
	p.conditions, p.revisions, p.reads = p.conditions[:0], p.revisions[:0], p.reads[:0]
	p.txn.reset()
}

func (p *Parser) finish(ok bool) (*kvstore.Command, error) {
	if ok && p.end() && p.checkWrites() {
		return &p.command, nil
	}
	return nil, p.failure()
}

// kind is the name that an operation has in JSON.
type kind uint8

const (
	kindGet kind = iota + 1
	kindPut
	kindDelete
	kindAppend
	kindIncr
	kindList
	kindTxn
	kinds
)

var kindNames = [kinds]string{kindGet: "get", kindPut: "put", kindDelete: "delete", kindAppend: "append", kindIncr: "incr", kindList: "list", kindTxn: "txn"}

// ops has the store's operation for each kind. A delete of a range becomes
// OpDeleteRange once its fields are known.
var ops = [kinds]kvstore.Op{
	kindGet: kvstore.OpGet, kindPut: kvstore.OpPut, kindDelete: kvstore.OpDelete, kindAppend: kvstore.OpAppend,
	kindIncr: kvstore.OpIncr, kindList: kvstore.OpList, kindTxn: kvstore.OpTxn,
}

// takes has the fields that each kind accepts. A txn is read on its own.
var takes = [kinds]field{
	kindGet:    anyKey | fieldRevision,
	kindPut:    anyKey | anyValue | fieldIfRevision | fieldReturn | fieldTTL | fieldLease | fieldKeepValue | fieldKeepLease,
	kindDelete: anyKey | anyRange | fieldIfRevision | fieldReturn,
	kindAppend: anyKey | anyValue | fieldIfRevision | fieldReturn | fieldTTL | fieldLease,
	kindIncr:   anyKey | fieldDelta | fieldIfRevision | fieldReturn | fieldTTL | fieldLease,
	kindList:   anyRange | fieldRevision | fieldLimit | fieldReverse | fieldKeysOnly | fieldCountOnly,
}

func kindNamed(name []byte) kind {
	switch string(name) {
	case "get":
		return kindGet
	case "put":
		return kindPut
	case "delete":
		return kindDelete
	case "append":
		return kindAppend
	case "incr":
		return kindIncr
	case "list":
		return kindList
	case "txn":
		return kindTxn
	}
	return 0
}

// line reads an object that contains one operation, and perhaps an idempotency key.
func (p *Parser) line(c *kvstore.Command) bool {
	keyAt := -1
	if !p.operation(c, &keyAt) {
		return false
	}
	if c.Idempotency != nil && (c.Op == kvstore.OpGet || c.Op == kvstore.OpList) {
		return p.fail(nil, keyAt, "an operation that only reads takes no idempotency key")
	}
	return true
}

// operation reads an object that contains one operation. keyAt receives the place
// of an idempotency key; nil means that there may be none.
func (p *Parser) operation(c *kvstore.Command, keyAt *int) bool {
	if !p.enter('{', "an object") {
		return false
	}
	object := p.start
	var seen [kinds]bool
	for p.more('}') {
		name, ok := p.name()
		if !ok {
			return false
		}
		k := kindNamed(name)
		switch {
		case k != 0 && seen[k]:
			return p.refuse("duplicate field")
		case k == 0 && keyAt != nil && string(name) == "idempotency_key":
			if !p.readIdempotencyKey(c, keyAt) {
				return false
			}
			continue
		case k == 0:
			return p.refuse("unknown operation; expected one of %s", strings.Join(kindNames[1:], ", "))
		}
		seen[k] = true
		switch {
		case p.peek() == 'n' && p.takeNull():
			continue
		case c.Op != 0:
			return p.refuse("a second operation; only one is allowed")
		}
		c.Op = ops[k]
		if !p.content(c, k) {
			return false
		}
	}
	if p.err == nil && c.Op == 0 {
		return p.fail(nil, object, "no operation; expected one of %s, for example {\"put\":{\"key\":\"a\",\"value\":\"x\"}}", strings.Join(kindNames[1:], ", "))
	}
	return p.err == nil
}

// readIdempotencyKey reads the key of a line.
func (p *Parser) readIdempotencyKey(c *kvstore.Command, keyAt *int) bool {
	if *keyAt >= 0 {
		return p.refuse("duplicate field")
	}
	*keyAt = p.start
	if p.peek() == 'n' && p.takeNull() {
		return true
	}
	key, ok := p.str()
	if !ok {
		return false
	}
	if !ValidIdempotencyKey(string(key)) {
		return p.refuse("an idempotency key has 1 to %d visible ASCII characters", kvstore.MaxIdempotencyKeyBytes)
	}
	p.idempotency = kvstore.Idempotency{Key: string(key)}
	c.Idempotency = &p.idempotency
	return true
}

// ValidIdempotencyKey reports whether a key may identify a request.
func ValidIdempotencyKey(key string) bool {
	visible := strings.IndexFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
	return visible && key != "" && len(key) <= kvstore.MaxIdempotencyKeyBytes
}

// content reads the object that belongs to an operation.
func (p *Parser) content(c *kvstore.Command, k kind) bool {
	if k == kindTxn {
		return p.transaction(c)
	}
	given, object, ok := p.fields(kindNames[k], takes[k], func(f, given field) bool { return p.field(c, f, given) })
	return ok && p.complete(c, k, given, object)
}

// fields reads an object with some of the fields in accepts, each by read, which also
// gets the fields so far. It returns the fields that are not null.
func (p *Parser) fields(what string, accepts field, read func(f, given field) bool) (given field, object int, ok bool) {
	if !p.enter('{', "an object") {
		return 0, 0, false
	}
	object = p.start
	var seen field
	for p.more('}') {
		name, ok := p.name()
		if !ok {
			return 0, 0, false
		}
		f := fieldNamed(name)
		switch {
		case f&accepts == 0:
			return 0, 0, p.refuse("unknown field; %s accepts %v", what, accepts)
		case f&seen != 0:
			return 0, 0, p.refuse("duplicate field")
		}
		seen |= f
		if p.peek() == 'n' && p.takeNull() {
			continue
		}
		if given |= f; !read(f, given) {
			return 0, 0, false
		}
	}
	return given, object, p.err == nil
}

// complete checks that the object at an offset lacks no required field, and ends the
// range of an operation.
func (p *Parser) complete(c *kvstore.Command, k kind, given field, object int) bool {
	keeps := given&fieldKeepValue != 0 && c.KeepValue
	switch {
	case given&(anyKey|anyRange) == 0 && takes[k]&anyRange == 0:
		return p.fail(nil, object, "missing field \"key\" or \"key_base64\"")
	case given&(anyKey|anyRange) == 0:
		return p.fail(nil, object, "missing fields; %s needs %s", kindNames[k], selectors(takes[k]))
	case given&anyValue == 0 && takes[k]&anyValue != 0 && !keeps:
		return p.fail(nil, object, "missing field \"value\" or \"value_base64\" (an empty value is \"\")")
	case given&anyValue != 0 && keeps:
		return p.fail(nil, object, "a value and keep_value contradict each other")
	case given&(fieldTTL|fieldLease) != 0 && c.KeepLease:
		return p.fail(nil, object, "ttl or lease and keep_lease contradict each other")
	case given&fieldDelta == 0 && takes[k]&fieldDelta != 0:
		return p.fail(nil, object, "missing field \"delta\" (the number to add)")
	case given&anyRange != 0:
		return p.completeRange(c, k, given, object)
	}
	return true
}

// completeRange makes the operation one on a range.
func (p *Parser) completeRange(c *kvstore.Command, k kind, given field, object int) bool {
	var ok bool
	if c.End, ok = p.rangeEnd(c.Key, c.End, given, object); !ok {
		return false
	}
	switch {
	case k != kindDelete:
		p.completeList(c)
	case given&fieldIfRevision != 0:
		return p.fail(nil, object, "if_revision applies to a single key; a range cannot be deleted conditionally")
	case len(c.Key) == 0 && given&anyEnd == 0:
		// An empty prefix is most likely a variable that was not set.
		return p.fail(nil, object, "specify what to delete with a prefix that is not empty, or with start and end; \"start\":\"\\u0000\" without end deletes everything")
	default:
		c.Op = kvstore.OpDeleteRange
	}
	return true
}

// completeList sets the limit of a list that has none.
func (p *Parser) completeList(c *kvstore.Command) {
	r := p.read(c)
	if r.Limit == 0 && !r.CountOnly {
		r.Limit = defaultListLimit
	}
}

// rangeEnd returns the end of the range that given selects.
func (p *Parser) rangeEnd(start, end []byte, given field, object int) ([]byte, bool) {
	switch {
	case given&anyPrefix != 0:
		return kvstore.Prefix(start).End(), true
	case given&anyEnd == 0:
		return nil, true
	case len(end) == 0:
		return nil, p.fail(nil, object, "the end of the range is empty; omit \"end\" for a range up to the last key")
	case string(end) < string(start):
		return nil, p.fail(nil, object, "the end of the range is before its start")
	}
	return end, true
}

// read returns what says how a get or list reads, and makes it if there is none.
func (p *Parser) read(c *kvstore.Command) *kvstore.Read {
	if c.Read == nil {
		p.reads = append(p.reads, kvstore.Read{})
		c.Read = &p.reads[len(p.reads)-1]
	}
	return c.Read
}

// field reads the value of a field. given has the fields so far, including this
// one.
func (p *Parser) field(c *kvstore.Command, f, given field) (ok bool) {
	switch {
	case f&(anyKey|anyRange) != 0:
		return p.selector(&c.Key, &c.End, f, given)
	case f&anyValue != 0:
		if c.Value, ok = p.bytes(f, given); ok && int64(len(c.Value)) > p.limits.MaxValueBytes {
			return p.fail(ErrTooLarge, p.start, "the value has %d bytes, but the limit is %d (max_value_bytes in the settings)", len(c.Value), p.limits.MaxValueBytes)
		}
		return ok
	case f == fieldDelta:
		c.Delta, ok = p.integer(math.MinInt64, math.MaxInt64)
		return ok
	case f&(fieldRevision|fieldLimit|fieldReverse|fieldKeysOnly|fieldCountOnly) != 0:
		return p.readField(p.read(c), f)
	case f == fieldIfRevision:
		return p.condition(c)
	case f&(fieldTTL|fieldLease) != 0:
		return p.binding(c, f, given)
	case f == fieldKeepValue:
		return p.boolean(&c.KeepValue)
	case f == fieldKeepLease:
		return p.boolean(&c.KeepLease)
	}
	what, ok := p.str() // fieldReturn is the only one left
	if c.ReturnPrevious = string(what) == "previous"; ok && !c.ReturnPrevious {
		return p.refuse("expected \"previous\", found %.40q", what)
	}
	return ok
}

// readField reads a field of a get or list.
func (p *Parser) readField(r *kvstore.Read, f field) (ok bool) {
	switch f {
	case fieldRevision:
		r.Revision, ok = p.revision(1)
	case fieldLimit:
		var n int64
		n, ok = p.integer(1, maxListLimit)
		r.Limit = uint64(n)
	case fieldReverse:
		ok = p.boolean(&r.Reverse)
	case fieldKeysOnly:
		ok = p.boolean(&r.KeysOnly)
	case fieldCountOnly:
		ok = p.boolean(&r.CountOnly)
	}
	return ok
}

func (p *Parser) condition(c *kvstore.Command) bool {
	revision, ok := p.revision(0)
	p.revisions = append(p.revisions, revision)
	n := len(p.revisions)
	p.conditions = append(p.conditions, kvstore.Condition{Kind: kvstore.IfRevision, Revisions: p.revisions[n-1 : n : n]})
	n = len(p.conditions)
	c.Conditions = p.conditions[n-1 : n : n]
	return ok
}

// binding reads what a key is bound to.
func (p *Parser) binding(c *kvstore.Command, f, given field) (ok bool) {
	if given&(fieldTTL|fieldLease) == fieldTTL|fieldLease {
		return p.refuse("only one of ttl, lease is allowed")
	}
	if f == fieldTTL {
		c.TTLMillis, ok = p.ttl()
	} else {
		c.Lease, ok = p.leaseID(1)
	}
	return ok
}

// selector reads a field that says which keys are meant: a key, a prefix, or the
// start or end of a range.
func (p *Parser) selector(key, end *[]byte, f, given field) (ok bool) {
	if mixed := given & (anyKey | anyRange); mixed&anyKey != mixed && mixed&anyPrefix != mixed && mixed&(anyStart|anyEnd) != mixed {
		return p.refuse("only one of %s is allowed", selectors(anyKey|anyRange))
	}
	if p.txn.depth > 0 && given&(anyKey|anyRange)&^f == 0 {
		p.txn.selectorAt = p.start // points to the name until the value is read
	}
	if f&anyEnd != 0 {
		*end, ok = p.bytes(f, given)
		return ok && p.checkLength(*end)
	}
	if *key, ok = p.bytes(f, given); ok && f&anyKey != 0 && len(*key) == 0 {
		return p.refuse("the key is empty; a key has 1 to %d bytes", kvstore.MaxKeyBytes)
	}
	return ok && p.checkLength(*key)
}

func (p *Parser) checkLength(key []byte) bool {
	if len(key) > kvstore.MaxKeyBytes {
		return p.fail(ErrTooLarge, p.start, "the key has %d bytes, but the limit is %d", len(key), kvstore.MaxKeyBytes)
	}
	return true
}

// bytes reads a byte string, as text or as base64 depending on the field, which may
// be given in only one of the two forms.
func (p *Parser) bytes(f, given field) ([]byte, bool) {
	if both := f | f>>1&inText | f&inText<<1; given&both == both {
		return nil, p.refuse("only one of %v is allowed", both)
	}
	text, ok := p.str()
	if !ok || f&inText != 0 {
		return text, ok
	}
	from := len(p.scratch)
	decoded, err := base64.StdEncoding.AppendDecode(p.scratch, text)
	if err != nil {
		return nil, p.refuse("invalid base64; expected the standard alphabet with padding (RFC 4648, section 4)")
	}
	p.scratch = decoded
	return decoded[from:], true
}

func (s *scan) revision(low int64) (uint64, bool) {
	n, ok := s.integer(low, limits.MaxSafeInteger)
	return uint64(n), ok
}
