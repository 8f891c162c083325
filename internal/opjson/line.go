package opjson

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
)

// Op is the operation that a line of a batch asks for. Its bytes are valid
// until the next line is parsed.
type Op struct {
	Op       kvstore.Op // 0: a get
	Key      []byte
	Value    []byte // put, append
	Delta    int64  // incr
	Revision uint64 // get: the one to read at; 0: as the lines before left it
	// IfRevision is a condition where Conditional is set.
	IfRevision  uint64
	Conditional bool
	Previous    bool // asks for the pair as it was

	hasKey, hasOperand bool
}

// ErrNotJSON marks a line that cannot be parsed: with it a batch ends, since
// what its sender meant by the lines after it is anybody's guess.
var ErrNotJSON = errors.New("no JSON")

// Parser parses lines. The zero value is ready.
type Parser struct {
	scratch []byte // holds strings that are not in the line as they are
}

// Parse reads a line. Nearly all have a few plain shapes, which it reads
// itself; anything else goes through the strict decoder of documents. Both
// come to the same verdict wherever the first has one (FuzzBatchLine).
func (p *Parser) Parse(line []byte, maxValueBytes int64) (Op, error) {
	op, ok := p.plain(line)
	if !ok {
		var err error
		if op, err = strictLine(line); err != nil {
			return Op{}, err
		}
	}
	return op, op.check(maxValueBytes)
}

// check refuses what no operation can be made of.
func (o *Op) check(maxValueBytes int64) error {
	if !o.hasKey {
		return badRequest("the operation has no \"key\" (or \"key_base64\")")
	}
	if len(o.Key) == 0 {
		return badRequest("the key is empty; keys have 1 to %d bytes", kvstore.MaxKeyBytes)
	}
	if len(o.Key) > kvstore.MaxKeyBytes {
		return api.Errorf(api.TooLarge, "the key has %d bytes, over the limit of %d", len(o.Key), kvstore.MaxKeyBytes)
	}
	switch {
	case o.hasOperand:
	case o.Op == kvstore.OpPut, o.Op == kvstore.OpAppend:
		return badRequest("the operation has no \"value\" (or \"value_base64\"); an empty one is \"\"")
	case o.Op == kvstore.OpIncr:
		return badRequest("incr has no \"delta\", the number to add")
	}
	if int64(len(o.Value)) > maxValueBytes {
		return api.Errorf(api.TooLarge, "the value has %d bytes, the limit is %d (max_value_bytes of the settings)", len(o.Value), maxValueBytes)
	}
	return nil
}

// Command is the operation as the log takes it; conds backs its conditions.
func (o *Op) Command(conds *[1]kvstore.Condition, revs *[1]uint64) kvstore.Command {
	c := kvstore.Command{Op: o.Op, Key: o.Key, Value: o.Value, Delta: o.Delta, ReturnPrevious: o.Previous}
	if o.Conditional {
		revs[0] = o.IfRevision
		conds[0] = kvstore.Condition{Kind: kvstore.IfRevision, Revisions: revs[:]}
		c.Conditions = conds[:]
	}
	return c
}

// lineScan is a place in a line.
type lineScan struct {
	b  []byte
	at int
}

// token skips white space and takes the byte if it comes next.
func (s *lineScan) token(c byte) bool {
	for s.at < len(s.b) && (s.b[s.at] == ' ' || s.b[s.at] == '\t' || s.b[s.at] == '\r') {
		s.at++
	}
	if s.at < len(s.b) && s.b[s.at] == c {
		s.at++
		return true
	}
	return false
}

// end takes the brace that closes the line, and what blanks follow it.
func (s *lineScan) end() bool {
	return s.token('}') && len(bytes.TrimLeft(s.b[s.at:], " \t\r")) == 0
}

// name takes a field's name and the colon.
func (s *lineScan) name() ([]byte, bool) {
	if !s.token('"') {
		return nil, false
	}
	n := bytes.IndexByte(s.b[s.at:], '"')
	if n < 0 {
		return nil, false
	}
	name := s.b[s.at : s.at+n]
	s.at += n + 1
	return name, s.token(':')
}

// text takes a string; escaped ones are put together in p.scratch.
func (s *lineScan) text(p *Parser) ([]byte, bool) {
	if !s.token('"') {
		return nil, false
	}
	rest := s.b[s.at:]
	n := bytes.IndexByte(rest, '"')
	if n < 0 {
		return nil, false
	}
	if bytes.IndexByte(rest[:n], '\\') >= 0 {
		return s.escaped(p)
	}
	s.at += n + 1
	return rest[:n], plainText(rest[:n])
}

// escaped takes a string with escapes, after its first quote. \u is left to
// the strict decoder.
func (s *lineScan) escaped(p *Parser) ([]byte, bool) {
	from := len(p.scratch)
	for {
		n := bytes.IndexAny(s.b[s.at:], `"\`)
		if n < 0 {
			return nil, false
		}
		p.scratch = append(p.scratch, s.b[s.at:s.at+n]...)
		// Judged before its escapes are put in: those may be control characters.
		if !plainText(s.b[s.at : s.at+n]) {
			return nil, false
		}
		s.at += n + 1
		if s.b[s.at-1] == '"' {
			return p.scratch[from:], true
		}
		if s.at == len(s.b) {
			return nil, false
		}
		i := strings.IndexByte(`"\/bfnrt`, s.b[s.at])
		if i < 0 {
			return nil, false
		}
		p.scratch = append(p.scratch, "\"\\/\b\f\n\r\t"[i])
		s.at++
	}
}

// plainText reports whether the bytes stand for themselves in a JSON string:
// UTF-8 without control characters. It looks at eight bytes at once.
func plainText(b []byte) bool {
	const low, high = 0x0101010101010101, 0x8080808080808080
	rest := b
	var beyond uint64 // high bits of bytes above 0x7F
	for ; len(rest) >= 8; rest = rest[8:] {
		x := binary.LittleEndian.Uint64(rest)
		beyond |= x & high
		if (x-low*' ')&^x&high != 0 { // some byte is below a blank
			return false
		}
	}
	for _, c := range rest {
		beyond |= uint64(c & 0x80)
		if c < ' ' {
			return false
		}
	}
	return beyond == 0 || utf8.Valid(b)
}

// base64 takes a string of base64.
func (s *lineScan) base64(p *Parser) ([]byte, bool) {
	t, ok := s.text(p)
	if !ok {
		return nil, false
	}
	from := len(p.scratch)
	var err error
	p.scratch, err = base64.StdEncoding.AppendDecode(p.scratch, t)
	return p.scratch[from:], err == nil
}

// number takes a whole number of at most 18 digits.
func (s *lineScan) number() (n int64, ok bool) {
	negative := s.token('-') // a blank after it is caught below
	from := s.at
	for s.at < len(s.b) && s.b[s.at] >= '0' && s.b[s.at] <= '9' {
		n = n*10 + int64(s.b[s.at]-'0')
		if s.at++; s.at-from > 18 {
			return 0, false
		}
	}
	digits := s.at - from
	if digits == 0 || s.b[from] == '0' && (digits > 1 || negative) {
		return 0, false
	}
	if negative {
		n = -n
	}
	return n, true
}

// plain parses the plain shapes: {"op":{"field":…,…}} with names as they are
// documented, each once. It gives up on everything else.
func (p *Parser) plain(line []byte) (o Op, ok bool) {
	p.scratch = p.scratch[:0]
	s := lineScan{b: line}
	if !s.token('{') {
		return o, false
	}
	name, ok := s.name()
	if !ok || !s.token('{') || !o.setKind(name) {
		return o, false
	}
	for {
		if name, ok = s.name(); !ok || !o.plainField(p, &s, name) {
			return o, false
		}
		if s.token(',') {
			continue
		}
		return o, s.token('}') && s.end()
	}
}

func (o *Op) setKind(name []byte) bool {
	switch string(name) {
	case "put":
		o.Op = kvstore.OpPut
	case "get":
		o.Op = 0
	case "delete":
		o.Op = kvstore.OpDelete
	case "append":
		o.Op = kvstore.OpAppend
	case "incr":
		o.Op = kvstore.OpIncr
	default:
		return false
	}
	return true
}

// plainField takes the value of a field that the operation has and that was
// not there before.
func (o *Op) plainField(p *Parser, s *lineScan, name []byte) (ok bool) {
	value := o.Op == kvstore.OpPut || o.Op == kvstore.OpAppend
	switch string(name) {
	case "key":
		if o.hasKey {
			return false
		}
		o.hasKey = true
		o.Key, ok = s.text(p)
	case "key_base64":
		if o.hasKey {
			return false
		}
		o.hasKey = true
		o.Key, ok = s.base64(p)
	case "value":
		if o.hasOperand || !value {
			return false
		}
		o.hasOperand = true
		o.Value, ok = s.text(p)
	case "value_base64":
		if o.hasOperand || !value {
			return false
		}
		o.hasOperand = true
		o.Value, ok = s.base64(p)
	case "delta":
		if o.hasOperand || o.Op != kvstore.OpIncr {
			return false
		}
		o.hasOperand = true
		o.Delta, ok = s.number()
	case "if_revision":
		if o.Conditional || o.Op == 0 {
			return false
		}
		o.Conditional = true
		o.IfRevision, ok = s.revision()
	}
	return ok
}

// revision takes a number that can be a revision.
func (s *lineScan) revision() (uint64, bool) {
	n, ok := s.number()
	return uint64(n), ok && n >= 0 && n <= maxSafeInteger
}
