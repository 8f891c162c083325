package opjson

import (
	"encoding/base64"
	"strings"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/limits"
)

// Kind is what an operation does.
type Kind uint8

// The kinds of operations.
const (
	Get Kind = iota + 1
	Put
	Delete
	Append
	Incr
	kinds
)

// String returns the name of the kind in JSON.
func (k Kind) String() string { return kindNames[k] }

var kindNames = [kinds]string{Get: "get", Put: "put", Delete: "delete", Append: "append", Incr: "incr"}

// commands has the store's operation for each kind that changes it.
var commands = [kinds]kvstore.Op{Put: kvstore.OpPut, Delete: kvstore.OpDelete, Append: kvstore.OpAppend, Incr: kvstore.OpIncr}

// Op is one operation. Key and Value are valid until the Parser reads the next
// operation or the text is changed.
type Op struct {
	Kind  Kind
	Key   []byte
	Value []byte // of Put and Append
	Delta int64  // of Incr
	// Revision is the revision that a Get reads at; 0 means the newest.
	Revision uint64
	// IfRevision, if Conditional is set, is the revision that the key must have;
	// 0 means that the key must not exist.
	IfRevision  uint64
	Conditional bool
	// ReturnPrevious asks for the pair as it was before the operation.
	ReturnPrevious bool
}

// Parser reads operations. The zero value is ready for use. A Parser must not be
// used by several goroutines at once.
type Parser struct {
	scan       scan
	conditions [1]kvstore.Condition
	revisions  [1]uint64
}

// Parse reads one operation, for example {"put":{"key":"a","value":"x"}}, with a
// value of at most maxValueBytes. The error is an *Error.
func (p *Parser) Parse(text []byte, maxValueBytes int64) (Op, error) {
	var o Op
	s := &p.scan
	s.reset(text)
	if s.operation(&o, maxValueBytes) && s.end() {
		return o, nil
	}
	return Op{}, s.failure()
}

// Command returns the command that carries out the operation, which must not be a
// Get. It is valid as long as the operation is.
func (p *Parser) Command(o *Op) kvstore.Command {
	c := kvstore.Command{Op: commands[o.Kind], Key: o.Key, Value: o.Value, Delta: o.Delta, ReturnPrevious: o.ReturnPrevious}
	if o.Conditional {
		p.revisions[0] = o.IfRevision
		p.conditions[0] = kvstore.Condition{Kind: kvstore.IfRevision, Revisions: p.revisions[:]}
		c.Conditions = p.conditions[:]
	}
	return c
}

// field is a set of fields of operations.
type field uint16

const (
	fieldKey field = 1 << iota
	fieldKeyBase64
	fieldValue
	fieldValueBase64
	fieldDelta
	fieldRevision
	fieldIfRevision
	fieldReturn
	fieldTTL
	fieldLease

	anyKey   = fieldKey | fieldKeyBase64
	anyValue = fieldValue | fieldValueBase64
	// planned fields are part of the contract, but not supported yet.
	planned = fieldTTL | fieldLease
)

// fieldNames are in the order of the bits.
var fieldNames = [...]string{"key", "key_base64", "value", "value_base64", "delta", "revision", "if_revision", "return", "ttl", "lease"}

func fieldNamed(name []byte) field {
	switch string(name) {
	case "key":
		return fieldKey
	case "key_base64":
		return fieldKeyBase64
	case "value":
		return fieldValue
	case "value_base64":
		return fieldValueBase64
	case "delta":
		return fieldDelta
	case "revision":
		return fieldRevision
	case "if_revision":
		return fieldIfRevision
	case "return":
		return fieldReturn
	case "ttl":
		return fieldTTL
	case "lease":
		return fieldLease
	}
	return 0
}

// String lists the fields of the set.
func (f field) String() string {
	var names []string
	for i, name := range fieldNames {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

// takes has the fields that each kind accepts.
var takes = [kinds]field{
	Get:    anyKey | fieldRevision,
	Put:    anyKey | anyValue | fieldIfRevision | fieldReturn | planned,
	Delete: anyKey | fieldIfRevision | fieldReturn,
	Append: anyKey | anyValue | fieldIfRevision | fieldReturn | planned,
	Incr:   anyKey | fieldDelta | fieldIfRevision | fieldReturn | planned,
}

func kindNamed(name []byte) Kind {
	switch string(name) {
	case "get":
		return Get
	case "put":
		return Put
	case "delete":
		return Delete
	case "append":
		return Append
	case "incr":
		return Incr
	}
	return 0
}

// operation reads an object that contains one operation.
func (s *scan) operation(o *Op, maxValueBytes int64) bool {
	if !s.enter('{', "an object") {
		return false
	}
	object := s.start
	for s.more('}') {
		name, ok := s.name()
		if !ok {
			return false
		}
		kind := kindNamed(name)
		switch {
		case string(name) == "idempotency_key":
			return s.unsupported()
		case kind == 0:
			return s.refuse("unknown operation; expected one of %s", strings.Join(kindNames[1:], ", "))
		case s.peek() == 'n' && s.takeNull():
			continue
		case o.Kind != 0:
			return s.refuse("a second operation; only one is allowed")
		}
		o.Kind = kind
		if !s.fields(o, maxValueBytes) {
			return false
		}
	}
	if s.err == nil && o.Kind == 0 {
		return s.fail(nil, object, "no operation; expected one of %s, for example {\"put\":{\"key\":\"a\",\"value\":\"x\"}}", strings.Join(kindNames[1:], ", "))
	}
	return s.err == nil
}

func (s *scan) unsupported() bool {
	return s.refuse("not supported by this version of kvd; send the operation without this field")
}

// fields reads the object with the fields of an operation.
func (s *scan) fields(o *Op, maxValueBytes int64) bool {
	if !s.enter('{', "an object") {
		return false
	}
	object := s.start
	var seen, given field // given fields are not null
	for s.more('}') {
		name, ok := s.name()
		if !ok {
			return false
		}
		f := fieldNamed(name)
		switch {
		case f&takes[o.Kind] == 0:
			return s.refuse("unknown field; %s accepts %v", o.Kind, takes[o.Kind]&^planned)
		case f&seen != 0:
			return s.refuse("duplicate field")
		}
		seen |= f
		if s.peek() == 'n' && s.takeNull() {
			continue
		}
		if given |= f; !s.field(o, f, given, maxValueBytes) {
			return false
		}
	}
	return s.err == nil && s.complete(o.Kind, given, object)
}

// complete checks that the object at an offset lacks no required field.
func (s *scan) complete(k Kind, given field, object int) bool {
	switch {
	case given&anyKey == 0:
		return s.fail(nil, object, "missing field \"key\" or \"key_base64\"")
	case given&anyValue == 0 && takes[k]&anyValue != 0:
		return s.fail(nil, object, "missing field \"value\" or \"value_base64\" (an empty value is \"\")")
	case given&fieldDelta == 0 && takes[k]&fieldDelta != 0:
		return s.fail(nil, object, "missing field \"delta\" (the number to add)")
	}
	return true
}

// field reads the value of a field. given has the fields so far, including this
// one.
func (s *scan) field(o *Op, f, given field, maxValueBytes int64) (ok bool) {
	switch f {
	case fieldKey, fieldKeyBase64:
		o.Key, ok = s.bytes(f, given, anyKey)
		return ok && s.checkKey(o.Key)
	case fieldValue, fieldValueBase64:
		if o.Value, ok = s.bytes(f, given, anyValue); ok && int64(len(o.Value)) > maxValueBytes {
			return s.fail(ErrTooLarge, s.start, "the value has %d bytes, but the limit is %d (max_value_bytes in the settings)", len(o.Value), maxValueBytes)
		}
		return ok
	case fieldDelta:
		o.Delta, ok = s.integer(-1<<63, 1<<63-1)
		return ok
	case fieldRevision:
		o.Revision, ok = s.revision(1)
		return ok
	case fieldIfRevision:
		o.Conditional = true
		o.IfRevision, ok = s.revision(0)
		return ok
	case fieldReturn:
		what, ok := s.str()
		if o.ReturnPrevious = string(what) == "previous"; ok && !o.ReturnPrevious {
			return s.refuse("expected \"previous\", found %.40q", what)
		}
		return ok
	}
	return s.unsupported()
}

func (s *scan) checkKey(key []byte) bool {
	switch {
	case len(key) == 0:
		return s.refuse("the key is empty; a key has 1 to %d bytes", kvstore.MaxKeyBytes)
	case len(key) > kvstore.MaxKeyBytes:
		return s.fail(ErrTooLarge, s.start, "the key has %d bytes, but the limit is %d", len(key), kvstore.MaxKeyBytes)
	}
	return true
}

func (s *scan) revision(low int64) (uint64, bool) {
	n, ok := s.integer(low, limits.MaxSafeInteger)
	return uint64(n), ok
}

// bytes reads a byte string, as text or as base64 depending on the field. pair
// has both forms, of which only one may be given.
func (s *scan) bytes(f, given, pair field) ([]byte, bool) {
	if given&pair == pair {
		return nil, s.refuse("only one of %v is allowed", pair)
	}
	text, ok := s.str()
	if !ok || f&(fieldKey|fieldValue) != 0 {
		return text, ok
	}
	from := len(s.scratch)
	decoded, err := base64.StdEncoding.AppendDecode(s.scratch, text)
	if err != nil {
		return nil, s.refuse("invalid base64; expected the standard alphabet with padding (RFC 4648, section 4)")
	}
	s.scratch = decoded
	return decoded[from:], true
}
