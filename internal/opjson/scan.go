package opjson

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// MaxDepth bounds the nesting of a text, and so the recursion of its reader.
const MaxDepth = 32

// maxKeptScratch is the largest buffer that a Parser keeps for the next text. A
// batch that once carried a value of many megabytes must not hold on to them.
const maxKeptScratch = 256 << 10

// scan is a position in a JSON text. Each of its methods reads one token, after
// skipping white space. A method that cannot returns false and leaves the reason
// in err; the caller must then stop. One goroutine owns a scan.
type scan struct {
	text  []byte
	at    int // of the next byte to read
	start int // of the last name or value read, where refuse points
	depth int // open objects and arrays
	// first is set after the bracket that opens an object or array, until its
	// first element.
	first bool
	// scratch holds the decoded strings of this text, one after the other.
	// Growing it leaves the earlier ones valid in the old array.
	scratch []byte
	err     *Error
}

func (s *scan) reset(text []byte) {
	s.text, s.at, s.depth, s.err = text, 0, 0, nil
	s.scratch = s.scratch[:0]
	if cap(s.scratch) > maxKeptScratch { // it had a very large value
		s.scratch = nil
	}
}

// fail records a mistake at an offset and returns false. Only the first counts:
// what follows a mistake is often just its consequence.
func (s *scan) fail(kind error, offset int, format string, args ...any) bool {
	if s.err == nil {
		s.err = &Error{Offset: offset, Reason: fmt.Sprintf(format, args...), kind: kind}
	}
	return false
}

// refuse records a mistake in the content of the last name or value.
func (s *scan) refuse(format string, args ...any) bool {
	return s.fail(nil, s.start, format, args...)
}

// failure returns the error of a text that could not be read: the first mistake
// in the content, unless there is one in the syntax behind it (P2).
func (s *scan) failure() error {
	found := s.err
	if found.kind != ErrSyntax {
		rest := scan{text: s.text}
		if !rest.skip() || !rest.end() {
			found = rest.err
		}
	}
	found.Path = pathOf(s.text, found.Offset)
	return found
}

// peek skips white space and returns the next byte, 0 at the end.
func (s *scan) peek() byte {
	if s.at < len(s.text) && s.text[s.at] > ' ' {
		return s.text[s.at] // short enough to be inlined
	}
	return s.skipSpace()
}

func (s *scan) skipSpace() byte {
	for s.at < len(s.text) {
		switch c := s.text[s.at]; c {
		case ' ', '\t', '\n', '\r':
			s.at++
		default:
			return c
		}
	}
	return 0
}

// unexpected records a mistake in the syntax at the next byte.
func (s *scan) unexpected(wanted string) bool {
	if s.at >= len(s.text) {
		return s.fail(ErrSyntax, s.at, "unexpected end of input, expected %s", wanted)
	}
	if r, size := utf8.DecodeRune(s.text[s.at:]); r != utf8.RuneError || size > 1 {
		return s.fail(ErrSyntax, s.at, "unexpected %q, expected %s", r, wanted)
	}
	return s.fail(ErrSyntax, s.at, "unexpected byte 0x%02x, expected %s", s.text[s.at], wanted)
}

// wrongType records that the next value is not of the type that is wanted. If
// no value begins here, that is a mistake in the syntax.
func (s *scan) wrongType(wanted string) bool {
	found := ""
	switch c := s.peek(); {
	case c == '"':
		found = "a string"
	case c == '{':
		found = "an object"
	case c == '[':
		found = "an array"
	case c == '-', c >= '0' && c <= '9':
		found = "a number"
	case c == 't', c == 'f':
		found = "a boolean"
	case c == 'n':
		found = "null"
	default:
		return s.unexpected(wanted)
	}
	return s.fail(nil, s.at, "expected %s, found %s", wanted, found)
}

// enter reads the bracket that opens an object or array.
func (s *scan) enter(open byte, what string) bool {
	if s.peek() != open {
		return s.wrongType(what)
	}
	if s.depth == MaxDepth {
		return s.fail(ErrSyntax, s.at, "nested deeper than %d levels", MaxDepth)
	}
	s.start = s.at
	s.at++
	s.depth++
	s.first = true
	return true
}

// more reports whether another element follows, and reads the comma before it.
// At the end it reads the closing bracket. It also returns false after a
// mistake.
func (s *scan) more(shut byte) bool {
	c := s.peek()
	switch {
	case c == shut:
		s.at++
		s.depth--
		s.first = false
		return false
	case s.first:
		s.first = false
		return true // the reader of the element finds what is wrong with it
	case c == ',':
		s.at++
		return true
	}
	return s.unexpected("a comma or '" + string(shut) + "'")
}

// name reads the name of a field and the colon after it.
func (s *scan) name() ([]byte, bool) {
	if s.peek() != '"' {
		return nil, s.unexpected("a field name in double quotes")
	}
	name, ok := s.shortString()
	if !ok {
		if name, ok = s.str(); !ok {
			return nil, false
		}
	}
	if s.peek() != ':' {
		return nil, s.unexpected("a colon after the field name")
	}
	s.at++
	return name, true
}

// str reads a string and decodes its escapes.
func (s *scan) str() ([]byte, bool) {
	raw, escaped, ok := s.rawString()
	if !ok || !escaped {
		return raw, ok
	}
	return s.unescape(raw)
}

// rawString reads a string as it is written, without its quotes, and reports
// whether it has escapes.
func (s *scan) rawString() (raw []byte, escaped, ok bool) {
	if s.peek() != '"' {
		return nil, false, s.wrongType("a string")
	}
	s.start = s.at
	s.at++
	end := s.nextQuote(s.at)
	for at := s.at; end >= 0; {
		n := bytes.IndexByte(s.text[at:end], '\\')
		if n < 0 {
			break
		}
		escaped = true
		at += n
		size := escapeSize(s.text[at:])
		if size == 0 {
			return nil, false, s.fail(ErrSyntax, at, "invalid escape in a string")
		}
		if at += size; at > end { // the quote was escaped
			end = s.nextQuote(at)
		}
	}
	if end < 0 {
		return nil, false, s.fail(ErrSyntax, len(s.text), "unexpected end of input in a string")
	}
	if raw = s.text[s.at:end]; !plainText(raw) {
		return nil, false, s.badText(raw)
	}
	s.at = end + 1
	return raw, escaped, true
}

// low and high are the lowest and the highest bit of each byte in a word.
const low, high = 0x0101010101010101, 0x8080808080808080

// zeroBytes sets the high bit of the lowest byte of x that is 0 and of no byte
// below it. Higher bytes may be wrong: the subtraction borrows from them. (Hank
// Warren, Hacker's Delight, section 6-1.)
func zeroBytes(x uint64) uint64 { return (x - low) &^ x & high }

// controlBytes does the same for bytes below a space.
func controlBytes(x uint64) uint64 { return (x - low*' ') &^ x & high }

// shortString reads a string of fewer than 16 ASCII characters without escapes,
// as field names are, eight bytes at a time. It reads nothing and returns false
// for others. For names this is three times as fast as rawString, whose three
// searches pay off only for longer strings. The caller has seen the quote.
func (s *scan) shortString() ([]byte, bool) {
	from := s.at + 1
	for at := from; at < from+16 && at+8 <= len(s.text); at += 8 {
		x := binary.LittleEndian.Uint64(s.text[at:])
		quote := zeroBytes(x ^ low*'"')
		other := controlBytes(x) | zeroBytes(x^low*'\\') | x&high
		if quote|other == 0 {
			continue
		}
		// The mask covers the bytes before the quote. Without a quote in this
		// word q is 64 and the mask is all ones.
		q := bits.TrailingZeros64(quote)
		if other&(1<<q-1) != 0 {
			return nil, false
		}
		end := at + q/8
		s.start, s.at = s.at, end+1
		return s.text[from:end], true
	}
	return nil, false
}

// nextQuote finds the next quote from an offset on, -1 if there is none.
func (s *scan) nextQuote(from int) int {
	n := bytes.IndexByte(s.text[from:], '"')
	if n < 0 {
		return -1
	}
	return from + n
}

// escapes maps the byte after a backslash to what it stands for, except u.
var escapes = [256]byte{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

// escapeSize returns the length of the escape at the beginning of b, or 0 if it
// is invalid.
func escapeSize(b []byte) int {
	switch {
	case len(b) < 2:
		return 0
	case escapes[b[1]] != 0:
		return 2
	case escapedUnit(b) >= 0:
		return 6
	}
	return 0
}

// escapedUnit returns the UTF-16 code unit of the \uXXXX at the beginning of b,
// or -1 if there is none.
func escapedUnit(b []byte) rune {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return -1
	}
	unit := rune(0)
	for _, c := range b[2:6] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return -1
		}
		unit = unit<<4 | rune(c)
	}
	return unit
}

// plainText reports whether the bytes may stand in a JSON string: UTF-8 without
// control characters.
func plainText(b []byte) bool {
	rest := b
	var control, beyond uint64
	for ; len(rest) >= 32; rest = rest[32:] {
		x, y := binary.LittleEndian.Uint64(rest), binary.LittleEndian.Uint64(rest[8:])
		z, w := binary.LittleEndian.Uint64(rest[16:]), binary.LittleEndian.Uint64(rest[24:])
		control |= controlBytes(x) | controlBytes(y) | controlBytes(z) | controlBytes(w)
		beyond |= x | y | z | w
	}
	for _, c := range rest {
		beyond |= uint64(c)
		if c < ' ' {
			return false
		}
	}
	return control == 0 && (beyond&high == 0 || utf8.Valid(b))
}

// badText records what plainText found in the string that begins at s.at.
func (s *scan) badText(raw []byte) bool {
	for i := 0; i < len(raw); {
		r, size := utf8.DecodeRune(raw[i:])
		switch {
		case r < ' ':
			return s.fail(ErrSyntax, s.at+i, "control character 0x%02x must be escaped as \\u%04x", r, r)
		case r == utf8.RuneError && size == 1:
			return s.fail(ErrSyntax, s.at+i, "invalid UTF-8 byte 0x%02x; send bytes that are not text as base64 (\"key_base64\", \"value_base64\")", raw[i])
		}
		i += size
	}
	panic("opjson: plainText and badText disagree")
}

// unescape returns the string that raw stands for. JSON can express half of a
// surrogate pair, "\ud800", which has no encoding in UTF-8 (P4).
func (s *scan) unescape(raw []byte) ([]byte, bool) {
	from := len(s.scratch)
	for rest := raw; ; {
		n := bytes.IndexByte(rest, '\\')
		if n < 0 {
			s.scratch = append(s.scratch, rest...)
			return s.scratch[from:], true
		}
		s.scratch = append(s.scratch, rest[:n]...)
		rest = rest[n:]
		if c := escapes[rest[1]]; c != 0 {
			s.scratch = append(s.scratch, c)
			rest = rest[2:]
			continue
		}
		r := escapedUnit(rest)
		size := 6
		if utf16.IsSurrogate(r) {
			if r = utf16.DecodeRune(r, escapedUnit(rest[6:])); r == utf8.RuneError {
				return nil, s.refuse("unpaired surrogate %s is not a character; send bytes that are not text as base64", rest[:6])
			}
			size = 12
		}
		s.scratch = utf8.AppendRune(s.scratch, r)
		rest = rest[size:]
	}
}

// number reads a number as it is written.
func (s *scan) number() ([]byte, bool) {
	if c := s.peek(); c != '-' && (c < '0' || c > '9') {
		return nil, s.wrongType("a number")
	}
	s.start = s.at
	s.byteIn("-")
	if !s.byteIn("0") && !s.digits() {
		return nil, s.unexpected("a digit")
	}
	if s.byteIn(".") && !s.digits() {
		return nil, s.unexpected("a digit")
	}
	if s.byteIn("eE") {
		s.byteIn("+-")
		if !s.digits() {
			return nil, s.unexpected("a digit")
		}
	}
	return s.text[s.start:s.at], true
}

// byteIn reads the next byte if it is in the set.
func (s *scan) byteIn(set string) bool {
	for i := range len(set) {
		if s.at < len(s.text) && s.text[s.at] == set[i] {
			s.at++
			return true
		}
	}
	return false
}

// digits reads all digits that follow, and reports whether there are any.
func (s *scan) digits() bool {
	from := s.at
	for s.at < len(s.text) && s.text[s.at] >= '0' && s.text[s.at] <= '9' {
		s.at++
	}
	return s.at > from
}

// integer reads an integer from low to high. 1e3 and 1.0 are not accepted: a
// reader that keeps numbers as doubles may have changed them on the way.
func (s *scan) integer(low, high int64) (int64, bool) {
	written, ok := s.number()
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseInt(string(written), 10, 64)
	if err != nil || n < low || n > high {
		return 0, s.refuse("expected an integer from %d to %d, found %.40s", low, high, written)
	}
	return n, true
}

// word reads a literal (true, false or null) if it comes next.
func (s *scan) word(w string) bool {
	s.peek()
	if !bytes.HasPrefix(s.text[s.at:], []byte(w)) {
		return false
	}
	s.start = s.at
	s.at += len(w)
	return true
}

// takeNull reads a null if it comes next. It leaves start at the field's name.
func (s *scan) takeNull() bool {
	name := s.start
	taken := s.word("null")
	s.start = name
	return taken
}

// end checks that nothing follows the document.
func (s *scan) end() bool {
	if s.peek(); s.at < len(s.text) {
		return s.unexpected("the end")
	}
	return true
}

// skip reads any value and checks only its syntax.
func (s *scan) skip() bool {
	switch c := s.peek(); c {
	case '"':
		_, _, ok := s.rawString()
		return ok
	case '{':
		return s.skipObject()
	case '[':
		for ok := s.enter('[', "an array"); ok && s.more(']'); {
			ok = s.skip()
		}
		return s.err == nil
	case 't', 'f', 'n':
		return s.word("true") || s.word("false") || s.word("null") || s.unexpected("a value")
	}
	if c := s.peek(); c != '-' && (c < '0' || c > '9') {
		return s.unexpected("a value")
	}
	_, ok := s.number()
	return ok
}

func (s *scan) skipObject() bool {
	for ok := s.enter('{', "an object"); ok && s.more('}'); {
		if s.peek() != '"' {
			return s.unexpected("a field name in double quotes")
		}
		if _, _, ok = s.rawString(); !ok {
			return false
		}
		if s.peek() != ':' {
			return s.unexpected("a colon after the field name")
		}
		s.at++
		ok = s.skip()
	}
	return s.err == nil
}
