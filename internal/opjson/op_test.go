package opjson

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore"
)

// lines are inputs with the whole error, or none for a line that is accepted.
var lines = []struct {
	name, line, err string
	kind            error
}{
	{name: "put", line: `{"put":{"key":"a","value":"x"}}`},
	{name: "put of an empty value", line: `{"put":{"key":"a","value":""}}`},
	{name: "put in base64", line: `{"put":{"key_base64":"/w==","value_base64":"AAE="}}`},
	{name: "put with white space", line: " {\t\"put\" : { \"value\" : \"x\" , \"key\" : \"a\" } } \r"},
	{name: "put with escapes", line: `{"put":{"key":"a\"\\\/\b\f\n\r\t","value":"\u00e4\ud83d\ude00"}}`},
	{name: "put with a condition", line: `{"put":{"key":"a","value":"x","if_revision":0,"return":"previous"}}`},
	{name: "get", line: `{"get":{"key":"a"}}`},
	{name: "get of the past", line: `{"get":{"key":"a","revision":7}}`},
	{name: "delete", line: `{"delete":{"key":"a","if_revision":3}}`},
	{name: "append", line: `{"append":{"key":"a","value":"x"}}`},
	{name: "incr", line: `{"incr":{"key":"a","delta":-9223372036854775808}}`},
	{name: "an escape in a name", line: `{"p\u0075t":{"k\u0065y":"a","value":"x"}}`},
	{name: "null is absent", line: `{"get":null,"put":{"key":"a","key_base64":null,"value":"x","lease":null}}`},

	{name: "not JSON", line: `put a x`, kind: ErrSyntax, err: `invalid JSON at byte 1: unexpected 'p', expected an object`},
	{name: "nothing", line: ``, kind: ErrSyntax, err: `invalid JSON at byte 1: unexpected end of input, expected an object`},
	{name: "cut off", line: `{"put":{"key":"a","value":"x"}`, kind: ErrSyntax, err: `invalid JSON at byte 31 (in put): unexpected end of input, expected a comma or '}'`},
	{name: "cut off in a string", line: `{"put":{"key":"a`, kind: ErrSyntax, err: `invalid JSON at byte 17 (in put.key): unexpected end of input in a string`},
	{name: "cut off in an escape", line: `{"put":{"key":"a\u00`, kind: ErrSyntax, err: `invalid JSON at byte 21 (in put.key): unexpected end of input in a string`},
	{name: "a quote in an escape", line: `{"put":{"key":"a\u00"}}`, kind: ErrSyntax, err: `invalid JSON at byte 17 (in put.key): invalid escape in a string`},
	{name: "an unknown escape", line: `{"put":{"key":"a\x"}}`, kind: ErrSyntax, err: `invalid JSON at byte 17 (in put.key): invalid escape in a string`},
	{name: "two documents", line: `{"get":{"key":"a"}}{"get":{"key":"b"}}`, kind: ErrSyntax, err: `invalid JSON at byte 20: unexpected '{', expected the end`},
	{name: "a comma too many", line: `{"get":{"key":"a",}}`, kind: ErrSyntax, err: `invalid JSON at byte 19 (in get): unexpected '}', expected a field name in double quotes`},
	{name: "no comma", line: `{"get":{"key":"a" "revision":1}}`, kind: ErrSyntax, err: `invalid JSON at byte 19 (in get.key): unexpected '"', expected a comma or '}'`},
	{name: "no colon", line: `{"get" {}}`, kind: ErrSyntax, err: `invalid JSON at byte 8 (in get): unexpected '{', expected a colon after the field name`},
	{name: "single quotes", line: `{'get':{}}`, kind: ErrSyntax, err: `invalid JSON at byte 2: unexpected '\'', expected a field name in double quotes`},
	{name: "a control character", line: "{\"get\":{\"key\":\"a\x01\"}}", kind: ErrSyntax, err: `invalid JSON at byte 17 (in get.key): control character 0x01 must be escaped as \u0001`},
	{name: "not UTF-8", line: "{\"get\":{\"key\":\"\xff\"}}", kind: ErrSyntax,
		err: `invalid JSON at byte 16 (in get.key): invalid UTF-8 byte 0xff; send bytes that are not text as base64 ("key_base64", "value_base64")`},
	{name: "not UTF-8 between tokens", line: "{\xff}", kind: ErrSyntax, err: `invalid JSON at byte 2: unexpected byte 0xff, expected a field name in double quotes`},
	{name: "a number with a leading zero", line: `{"incr":{"key":"a","delta":01}}`, kind: ErrSyntax, err: `invalid JSON at byte 29 (in incr.delta): unexpected '1', expected a comma or '}'`},
	{name: "a number without digits", line: `{"incr":{"key":"a","delta":-}}`, kind: ErrSyntax, err: `invalid JSON at byte 29 (in incr.delta): unexpected '}', expected a digit`},
	{name: "an unfinished word", line: `{"get":nul}`, kind: ErrSyntax, err: `invalid JSON at byte 8 (in get): unexpected 'n', expected a value`},
	{name: "a mistake of syntax behind another one", line: `{"list":{"key":[1,{"a":tru}]}}`, kind: ErrSyntax, err: `invalid JSON at byte 24 (in list.key[1].a): unexpected 't', expected a value`},
	{name: "a line feed in a string behind a mistake", line: "{\"list\":{},\"a\":\"\n\"}", kind: ErrSyntax, err: `invalid JSON at byte 17 (in a): control character 0x0a must be escaped as \u000a`},
	{name: "deep", line: `{"list":` + strings.Repeat("[", MaxDepth) + strings.Repeat("]", MaxDepth) + `}`, kind: ErrSyntax,
		err: `invalid JSON at byte 24 (in list[0][0][0][0][0][0][0][0][0][0][0][0][0][0][0]): nested deeper than 16 levels`},

	{name: "not an object", line: `7`, err: `expected an object, found a number`},
	{name: "an operation that is not an object", line: `{"put":"a"}`, err: `put: expected an object, found a string`},
	{name: "no operation", line: `{}`, err: `no operation; expected one of get, put, delete, append, incr, for example {"put":{"key":"a","value":"x"}}`},
	{name: "two operations", line: `{"get":{"key":"a"},"delete":{"key":"a"}}`, err: `delete: a second operation; only one is allowed`},
	{name: "an operation twice", line: `{"get":{"key":"a"},"get":{"key":"a"}}`, err: `get: a second operation; only one is allowed`},
	{name: "unknown operation", line: `{"list":{"prefix":"a"}}`, err: `list: unknown operation; expected one of get, put, delete, append, incr`},
	{name: "unknown operation in another case", line: `{"Put":{"key":"a","value":"x"}}`, err: `Put: unknown operation; expected one of get, put, delete, append, incr`},
	{name: "unknown operation with an odd name", line: `{"a.b[0]":{}}`, err: `"a.b[0]": unknown operation; expected one of get, put, delete, append, incr`},
	{name: "unknown operation with a long name", line: `{"` + strings.Repeat("x", 100) + `":{}}`, err: `"` + strings.Repeat("x", 40) + `": unknown operation; expected one of get, put, delete, append, incr`},
	{name: "unknown field", line: `{"get":{"key":"a","value":"x"}}`, err: `get.value: unknown field; get accepts key, key_base64, revision`},
	{name: "unknown field in another case", line: `{"put":{"KEY":"a","value":"x"}}`, err: `put.KEY: unknown field; put accepts key, key_base64, value, value_base64, if_revision, return`},
	{name: "a field twice", line: `{"get":{"key":"a","key":"b"}}`, err: `get.key: duplicate field`},
	{name: "a field twice in disguise", line: `{"get":{"key":"a","\u006bey":"b"}}`, err: `get."\\u006bey": duplicate field`},
	{name: "a field twice, as null", line: `{"get":{"key":null,"key":"b"}}`, err: `get.key: duplicate field`},
	{name: "half a surrogate pair", line: `{"get":{"key":"\ud800x"}}`, err: `get.key: unpaired surrogate \ud800 is not a character; send bytes that are not text as base64`},
	{name: "a surrogate pair the wrong way round", line: `{"get":{"key":"\ude00\ud83d"}}`, err: `get.key: unpaired surrogate \ude00 is not a character; send bytes that are not text as base64`},
	{name: "no key", line: `{"put":{"value":"x"}}`, err: `put: missing field "key" or "key_base64"`},
	{name: "null key", line: `{"get":{"key":null}}`, err: `get: missing field "key" or "key_base64"`},
	{name: "empty key", line: `{"put":{"key":"","value":"x"}}`, err: `put.key: the key is empty; a key has 1 to 4096 bytes`},
	{name: "key of another type", line: `{"put":{"key":["a"],"value":"x"}}`, err: `put.key: expected a string, found an array`},
	{name: "long key", line: `{"get":{"key":"` + strings.Repeat("k", kvstore.MaxKeyBytes+1) + `"}}`, kind: ErrTooLarge, err: `get.key: the key has 4097 bytes, but the limit is 4096`},
	{name: "no value", line: `{"put":{"key":"a"}}`, err: `put: missing field "value" or "value_base64" (an empty value is "")`},
	{name: "both forms", line: `{"put":{"key":"a","value":"x","value_base64":"eA=="}}`, err: `put.value_base64: only one of value, value_base64 is allowed`},
	{name: "bad base64", line: `{"put":{"key":"a","value_base64":"eA"}}`, err: `put.value_base64: invalid base64; expected the standard alphabet with padding (RFC 4648, section 4)`},
	{name: "large value", line: `{"put":{"key":"a","value":"` + strings.Repeat("v", 101) + `"}}`, kind: ErrTooLarge, err: `put.value: the value has 101 bytes, but the limit is 100 (max_value_bytes in the settings)`},
	{name: "incr of nothing", line: `{"incr":{"key":"a"}}`, err: `incr: missing field "delta" (the number to add)`},
	{name: "incr of a fraction", line: `{"incr":{"key":"a","delta":1.5}}`, err: `incr.delta: expected an integer from -9223372036854775808 to 9223372036854775807, found 1.5`},
	{name: "incr of a string", line: `{"incr":{"key":"a","delta":"1"}}`, err: `incr.delta: expected a number, found a string`},
	{name: "incr of too much", line: `{"incr":{"key":"a","delta":9223372036854775808}}`,
		err: `incr.delta: expected an integer from -9223372036854775808 to 9223372036854775807, found 9223372036854775808`},
	{name: "revision 0", line: `{"get":{"key":"a","revision":0}}`, err: `get.revision: expected an integer from 1 to 9007199254740991, found 0`},
	{name: "a revision beyond 2^53", line: `{"delete":{"key":"a","if_revision":9007199254740992}}`, err: `delete.if_revision: expected an integer from 0 to 9007199254740991, found 9007199254740992`},
	{name: "return of something else", line: `{"delete":{"key":"a","return":"all"}}`, err: `delete.return: expected "previous", found "all"`},
	{name: "ttl", line: `{"put":{"key":"a","value":"x","ttl":"30s"}}`, err: `put.ttl: not supported by this version of kvd; send the operation without this field`},
	{name: "lease", line: `{"incr":{"key":"a","delta":1,"lease":7}}`, err: `incr.lease: not supported by this version of kvd; send the operation without this field`},
	{name: "idempotency key", line: `{"put":{"key":"a","value":"x"},"idempotency_key":"k"}`, err: `idempotency_key: not supported by this version of kvd; send the operation without this field`},
}

func TestParse(t *testing.T) {
	var p Parser // shared by all lines, to show that none affects the next
	for _, c := range lines {
		_, err := p.Parse([]byte(c.line), 100)
		if c.err == "" {
			if err != nil {
				t.Errorf("%s: refused: %v", c.name, err)
			}
			continue
		}
		var e *Error
		if !errors.As(err, &e) || e.Error() != c.err || e.kind != c.kind {
			t.Errorf("%s: got  %v (%v)\nwant %s (%v)", c.name, err, errors.Unwrap(err), c.err, c.kind)
		}
	}
}

// The fields have the values that were given.
func TestParsedFields(t *testing.T) {
	var p Parser
	for line, want := range map[string]Op{
		`{"put":{"key":"a\n","value":"ä\"","if_revision":7}}`:         {Kind: Put, Key: []byte("a\n"), Value: []byte("ä\""), IfRevision: 7, Conditional: true},
		`{"put":{"key_base64":"/w==","value_base64":"AAE="}}`:         {Kind: Put, Key: []byte{0xff}, Value: []byte{0, 1}},
		`{"put":{"key_base64":"\/w=\u003d","value":"\u0000\\"}}`:      {Kind: Put, Key: []byte{0xff}, Value: []byte("\x00\\")},
		`{"append":{"key":"a","value":"\u00e4","return":"previous"}}`: {Kind: Append, Key: []byte("a"), Value: []byte("ä"), ReturnPrevious: true},
		`{"incr":{"key":"a","delta":-12}}`:                            {Kind: Incr, Key: []byte("a"), Delta: -12},
		`{"get":{"key":"a","revision":9}}`:                            {Kind: Get, Key: []byte("a"), Revision: 9},
		`{"delete":{"key":"a","if_revision":0}}`:                      {Kind: Delete, Key: []byte("a"), Conditional: true},
	} {
		if got, err := p.Parse([]byte(line), 100); err != nil || !sameOp(got, want) {
			t.Errorf("%s: %+v %v, want %+v", line, got, err, want)
		}
	}
}

func sameOp(a, b Op) bool {
	if !bytes.Equal(a.Key, b.Key) || !bytes.Equal(a.Value, b.Value) {
		return false
	}
	a.Key, a.Value, b.Key, b.Value = nil, nil, nil, nil
	return a.Kind == b.Kind && a.Delta == b.Delta && a.Revision == b.Revision &&
		a.IfRevision == b.IfRevision && a.Conditional == b.Conditional && a.ReturnPrevious == b.ReturnPrevious
}

func TestCommand(t *testing.T) {
	var p Parser
	c := p.Command(&Op{Kind: Incr, Key: []byte("k"), Delta: 5, IfRevision: 3, Conditional: true, ReturnPrevious: true})
	if c.Op != kvstore.OpIncr || string(c.Key) != "k" || c.Delta != 5 || !c.ReturnPrevious {
		t.Errorf("%+v", c)
	}
	if len(c.Conditions) != 1 || c.Conditions[0].Kind != kvstore.IfRevision || c.Conditions[0].Revisions[0] != 3 {
		t.Errorf("conditions %+v", c.Conditions)
	}
	for kind, op := range map[Kind]kvstore.Op{Put: kvstore.OpPut, Delete: kvstore.OpDelete, Append: kvstore.OpAppend} {
		if c := p.Command(&Op{Kind: kind, Value: []byte("v")}); c.Op != op || string(c.Value) != "v" || c.Conditions != nil {
			t.Errorf("%v: %+v", kind, c)
		}
	}
}

// The lines of a bulk load do not allocate, even with escapes or base64.
func TestLinesDoNotAllocate(t *testing.T) {
	for _, line := range []string{
		`{"put":{"key":"a key","value":"` + strings.Repeat("v", 256) + `"}}`,
		`{"put": {"key": "a", "value": "a \"quoted\" word\n"}}`, `{"put":{"key":"ä","value_base64":"AAE="}}`,
		`{"delete":{"key":"a","if_revision":12}}`, `{"incr":{"key":"a","delta":-5}}`, `{"get":{"key":"a"}}`, `{"append":{"key":"a","value":"x"}}`,
	} {
		var p Parser
		b := []byte(line)
		var err error
		n := testing.AllocsPerRun(100, func() {
			var o Op
			if o, err = p.Parse(b, 1000); err == nil && o.Kind != Get {
				p.Command(&o)
			}
		})
		if n > 0 || err != nil {
			t.Errorf("%s allocates %v times, %v", line, n, err)
		}
	}
}

// A buffer that one large value needed is not kept for later lines.
func TestLargeScratchIsDropped(t *testing.T) {
	var p Parser
	large := `{"put":{"key":"a","value":"` + strings.Repeat(`\n`, maxKeptScratch+1) + `"}}`
	for _, line := range []string{large, `{"get":{"key":"a"}}`} {
		if _, err := p.Parse([]byte(line), 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	if n := cap(p.scan.scratch); n > maxKeptScratch {
		t.Errorf("%d bytes are kept", n)
	}
}

func BenchmarkParse(b *testing.B) {
	for name, line := range map[string]string{
		"put":    `{"put":{"key":"bench/key-00000001","value":"` + strings.Repeat("v", 256) + `"}}`,
		"escape": `{"put":{"key":"bench/key-00000001","value":"` + strings.Repeat(`{\"a\":\"word\"}\n`, 16) + `"}}`,
		"base64": `{"put":{"key":"bench/key-00000001","value_base64":"` + strings.Repeat("AAAA", 64) + `"}}`,
		"incr":   `{"incr":{"key":"bench/key-00000001","delta":1}}`,
		"full":   `{"put": {"key": "bench/key-00000001", "value": "x", "if_revision": 123456, "return": "previous"}}`,
	} {
		b.Run(name, func(b *testing.B) {
			var p Parser
			text := []byte(line)
			b.ReportAllocs()
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				if _, err := p.Parse(text, 1000); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
