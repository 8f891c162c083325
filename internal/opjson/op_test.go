package opjson

import (
	"errors"
	"fmt"
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
		err: `invalid JSON at byte 40 (in list` + strings.Repeat("[0]", MaxDepth-1) + `): nested deeper than 32 levels`},

	{name: "not an object", line: `7`, err: `expected an object, found a number`},
	{name: "an operation that is not an object", line: `{"put":"a"}`, err: `put: expected an object, found a string`},
	{name: "no operation", line: `{}`, err: `no operation; expected one of get, put, delete, append, incr, list, txn, for example {"put":{"key":"a","value":"x"}}`},
	{name: "two operations", line: `{"get":{"key":"a"},"delete":{"key":"a"}}`, err: `delete: a second operation; only one is allowed`},
	{name: "an operation twice", line: `{"get":{"key":"a"},"get":{"key":"a"}}`, err: `get: duplicate field`},
	{name: "an operation twice, as null", line: `{"get":null,"get":{"key":"a"}}`, err: `get: duplicate field`},
	{name: "unknown operation", line: `{"watch":{"prefix":"a"}}`, err: `watch: unknown operation; expected one of get, put, delete, append, incr, list, txn`},
	{name: "unknown operation in another case", line: `{"Put":{"key":"a","value":"x"}}`, err: `Put: unknown operation; expected one of get, put, delete, append, incr, list, txn`},
	{name: "unknown operation with an odd name", line: `{"a.b[0]":{}}`, err: `"a.b[0]": unknown operation; expected one of get, put, delete, append, incr, list, txn`},
	{name: "unknown operation with a long name", line: `{"` + strings.Repeat("x", 100) + `":{}}`, err: `"` + strings.Repeat("x", 40) + `": unknown operation; expected one of get, put, delete, append, incr, list, txn`},
	{name: "unknown field", line: `{"get":{"key":"a","value":"x"}}`, err: `get.value: unknown field; get accepts key, key_base64, revision`},
	{name: "unknown field in another case", line: `{"put":{"KEY":"a","value":"x"}}`, err: `put.KEY: unknown field; put accepts key, key_base64, value, value_base64, if_revision, return, ttl, lease, keep_value, keep_lease`},
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
	{name: "ttl of nothing", line: `{"put":{"key":"a","value":"x","ttl":0}}`, err: `put.ttl: expected a duration above 0 (for example, "30s") or a number of seconds, found "0"`},
	{name: "ttl that is too long", line: `{"put":{"key":"a","value":"x","ttl":9000000001}}`, err: `put.ttl: expected at most 9000000000 seconds (285 years), found "9000000001"`},
	{name: "ttl that no duration can hold", line: `{"put":{"key":"a","value":"x","ttl":"1h9999999999999s"}}`, err: `put.ttl: expected at most 9000000000 seconds (285 years), found "1h9999999999999s"`},
	{name: "ttl of a unit that is none", line: `{"put":{"key":"a","value":"x","ttl":"9999999999999d"}}`, err: `put.ttl: expected a duration above 0 (for example, "30s") or a number of seconds, found "9999999999999d"`},
	{name: "ttl of a word", line: `{"put":{"key":"a","value":"x","ttl":"soon"}}`, err: `put.ttl: expected a duration above 0 (for example, "30s") or a number of seconds, found "soon"`},
	{name: "ttl of another type", line: `{"put":{"key":"a","value":"x","ttl":true}}`, err: `put.ttl: expected a duration (for example, "30s") or a number of seconds, found a boolean`},
	{name: "ttl and lease", line: `{"put":{"key":"a","value":"x","ttl":"30s","lease":7}}`, err: `put.lease: only one of ttl, lease is allowed`},
	{name: "lease 0", line: `{"put":{"key":"a","value":"x","lease":0}}`, err: `put.lease: expected an integer from 1 to 9223372036854775807, found 0`},
	{name: "a lease beyond 2^53", line: `{"put":{"key":"a","value":"x","lease":9007199254740992}}`, err: `put.lease: an id from 2^53 on must be a string: "9007199254740992"`},
	{name: "a lease beyond 2^63", line: `{"put":{"key":"a","value":"x","lease":"9223372036854775808"}}`,
		err: `put.lease: expected the id of a lease, a decimal number from 1 to 2^63-1, found "9223372036854775808"`},
	{name: "lease of delete", line: `{"delete":{"key":"a","lease":7}}`, err: `delete.lease: unknown field; delete accepts key, key_base64, prefix, prefix_base64, start, start_base64, end, end_base64, if_revision, return`},
	{name: "kept value with a value", line: `{"put":{"key":"a","value":"x","keep_value":true}}`, err: `put: a value and keep_value contradict each other`},
	{name: "kept lease with a lease", line: `{"put":{"key":"a","value":"x","keep_lease":true,"lease":1}}`, err: `put: ttl or lease and keep_lease contradict each other`},
	{name: "value that is not kept", line: `{"put":{"key":"a","keep_value":false}}`, err: `put: missing field "value" or "value_base64" (an empty value is "")`},
	{name: "empty idempotency key", line: `{"put":{"key":"a","value":"x"},"idempotency_key":""}`, err: `idempotency_key: an idempotency key has 1 to 128 visible ASCII characters`},
	{name: "idempotency key with a space", line: `{"put":{"key":"a","value":"x"},"idempotency_key":"a b"}`, err: `idempotency_key: an idempotency key has 1 to 128 visible ASCII characters`},
	{name: "two idempotency keys", line: `{"idempotency_key":null,"put":{"key":"a","value":"x"},"idempotency_key":"k"}`, err: `idempotency_key: duplicate field`},
	{name: "idempotency key of a read", line: `{"get":{"key":"a"},"idempotency_key":"k"}`, err: `idempotency_key: an operation that only reads takes no idempotency key`},
	{name: "idempotency key inside", line: `{"txn":{"then":[{"delete":{"key":"a"},"idempotency_key":"k"}]}}`, err: `txn.then[0].idempotency_key: unknown operation; expected one of get, put, delete, append, incr, list, txn`},
	{name: "delete of everything", line: `{"delete":{"prefix":""}}`,
		err: `delete: specify what to delete with a prefix that is not empty, or with start and end; "start":"\u0000" without end deletes everything`},
	{name: "delete of nothing in particular", line: `{"delete":{}}`, err: `delete: missing fields; delete needs key, prefix, or start and end`},
	{name: "delete of a key and a range", line: `{"delete":{"key":"a","end":"b"}}`, err: `delete.end: only one of key, prefix, or start and end is allowed`},
	{name: "conditional delete of a range", line: `{"delete":{"prefix":"a","if_revision":3}}`,
		err: `delete: if_revision applies to a single key; a range cannot be deleted conditionally`},
	{name: "end before start", line: `{"list":{"start":"b","end":"a"}}`, err: `list: the end of the range is before its start`},
	{name: "empty end", line: `{"list":{"start":"b","end":""}}`, err: `list: the end of the range is empty; omit "end" for a range up to the last key`},
	{name: "list of a key", line: `{"list":{"key":"a"}}`,
		err: `list.key: unknown field; list accepts prefix, prefix_base64, start, start_base64, end, end_base64, revision, limit, reverse, keys_only, count_only`},
	{name: "list of nothing", line: `{"list":{"limit":5}}`, err: `list: missing fields; list needs prefix, or start and end`},
	{name: "list of 0", line: `{"list":{"prefix":"a","limit":0}}`, err: `list.limit: expected an integer from 1 to 10000, found 0`},
	{name: "both forms of a prefix", line: `{"list":{"prefix":"a","prefix_base64":"YQ=="}}`, err: `list.prefix_base64: only one of prefix, prefix_base64 is allowed`},
	{name: "switch of another type", line: `{"list":{"prefix":"a","reverse":1}}`, err: `list.reverse: expected true or false, found a number`},

	{name: "list", line: `{"list":{"prefix":"a","limit":10,"reverse":true,"keys_only":true,"count_only":false,"revision":5}}`},
	{name: "delete of a range", line: `{"delete":{"start":"a","end_base64":"/w==","return":"previous"}}`},
	{name: "leases", line: `{"put":{"key":"a","value":"x","lease":"9223372036854775807"}}`},
	{name: "kept", line: `{"put":{"key":"a","keep_value":true,"ttl":1.5}}`},
	{name: "idempotency key", line: `{"idempotency_key":"~!","incr":{"key":"a","delta":1,"ttl":"1ms"}}`},
	{name: "empty transaction", line: `{"txn":{}}`},
	{name: "transaction", line: `{"txn":{"if":[{"key":"a","revision":5},{"key":"b","exists":false},{"key":"c","value":"x"},{"key":"d","version":{"gt":3}},` +
		`{"prefix":"e","lease":{"ne":"9223372036854775807"}},{"start":"f","end":"g","create_revision":{"lt":9}},{"key":"h","value_base64":{"eq":"AA=="}}],` +
		`"then":[{"put":{"key":"a","value":"1"}},{"get":{"key":"a"}},{"txn":{"then":[{"put":{"key":"b","value":""}}],"else":[{"delete":{"prefix":"b"}}]}}],` +
		`"else":[{"put":{"key":"a","value":"2"}},{"list":{"prefix":""}}],"idem":null}}`, err: `txn.idem: unknown field; a transaction accepts if, then, else`},
	{name: "two parts", line: `{"txn":{"then":[],"then":[]}}`, err: `txn.then: duplicate field`},
	{name: "a part that is no array", line: `{"txn":{"then":{}}}`, err: `txn.then: expected an array, found an object`},
	{name: "a mistake deep inside", line: `{"txn":{"then":[{"get":{"key":"a"}},{"txn":{"else":[{"put":{"key":7}}]}}]}}`, err: `txn.then[1].txn.else[0].put.key: expected a string, found a number`},
	{name: "comparison of nothing", line: `{"txn":{"if":[{"exists":true}]}}`, err: `txn.if[0]: missing fields; a comparison needs key, prefix, or start and end`},
	{name: "comparison with nothing", line: `{"txn":{"if":[{"key":"a"}]}}`,
		err: `txn.if[0]: missing field; a comparison needs one of revision, create_revision, version, value, value_base64, lease, exists`},
	{name: "two targets", line: `{"txn":{"if":[{"key":"a","value":"x","value_base64":"eA=="}]}}`,
		err: `txn.if[0].value_base64: only one of revision, create_revision, version, value, value_base64, lease, exists is allowed`},
	{name: "unknown relation", line: `{"txn":{"if":[{"key":"a","version":{"ge":1}}]}}`, err: `txn.if[0].version.ge: unknown relation; expected one of eq, ne, gt, lt`},
	{name: "no relation", line: `{"txn":{"if":[{"key":"a","version":{"gt":null}}]}}`, err: `txn.if[0].version: no relation; expected one of eq, ne, gt, lt`},
	{name: "two relations", line: `{"txn":{"if":[{"key":"a","version":{"gt":1,"lt":3}}]}}`, err: `txn.if[0].version.lt: a second relation; only one is allowed`},
	{name: "more than existing", line: `{"txn":{"if":[{"key":"a","exists":{"gt":true}}]}}`, err: `txn.if[0].exists.gt: "exists" can only be compared with eq and ne`},
	{name: "comparison with another type", line: `{"txn":{"if":[{"key":"a","version":"3"}]}}`, err: `txn.if[0].version: expected a number, found a string`},
	{name: "unknown field of a comparison", line: `{"txn":{"if":[{"key":"a","delta":3}]}}`,
		err: `txn.if[0].delta: unknown field; a comparison accepts key, key_base64, prefix, prefix_base64, start, start_base64, end, end_base64, ` +
			`value, value_base64, revision, lease, create_revision, version, exists`},
	{name: "a key twice", line: `{"txn":{"then":[{"put":{"key":"a","value":"1"}},{"incr":{"key":"a","delta":1}}]}}`,
		err: `txn.then[1].incr.key: writes a key that txn.then[0].put.key writes, too; a transaction may write each key only once`},
	{name: "a key twice, in base64", line: `{"txn":{"then":[{"delete":{"key_base64":"YQ=="}},{"put":{"key":"a","value":"1"}}]}}`,
		err: `txn.then[1].put.key: writes a key that txn.then[0].delete.key_base64 writes, too; a transaction may write each key only once`},
	{name: "a key twice, through a range", line: `{"txn":{"then":[{"delete":{"start":"a","end":"c"}},{"put":{"key":"b","value":"1"}}]}}`,
		err: `txn.then[1].put.key: writes a key that txn.then[0].delete.start writes, too; a transaction may write each key only once`},
	{name: "a key twice, through two ranges", line: `{"txn":{"then":[{"delete":{"start":"b"}},{"delete":{"prefix":"c"}}]}}`,
		err: `txn.then[1].delete.prefix: writes a key that txn.then[0].delete.start writes, too; a transaction may write each key only once`},
	{name: "a key twice, one level down", line: `{"txn":{"then":[{"put":{"key":"a","value":"1"}},{"txn":{"else":[{"delete":{"prefix":"a"}}]}}]}}`,
		err: `txn.then[1].txn.else[0].delete.prefix: writes a key that txn.then[0].put.key writes, too; a transaction may write each key only once`},
	{name: "a key twice, in two transactions", line: `{"txn":{"then":[{"txn":{"then":[{"put":{"key":"a","value":"1"}}]}},{"txn":{"else":[{"put":{"key":"a","value":"2"}}]}}]}}`,
		err: `txn.then[1].txn.else[0].put.key: writes a key that txn.then[0].txn.then[0].put.key writes, too; a transaction may write each key only once`},
	{name: "keys beside each other", line: `{"txn":{"then":[{"delete":{"start":"a","end":"b"}},{"put":{"key":"b","value":"1"}},{"delete":{"start":"b\u0000","end":"d"}},{"delete":{"prefix":"d"}}]}}`},
	{name: "a key in both branches", line: `{"txn":{"then":[{"txn":{"then":[{"put":{"key":"a","value":"1"}}],"else":[{"delete":{"prefix":""  ,"start":null,"end":null}}]}}]}}`,
		err: `txn.then[0].txn.else[0].delete: specify what to delete with a prefix that is not empty, or with start and end; "start":"\u0000" without end deletes everything`},
	{name: "too many operations", line: `{"txn":{"then":[` + strings.Repeat(`{"get":{"key":"a"}},`, 8) + `{"txn":{"then":[{"get":{"key":"a"}}]}}]}}`, kind: ErrTooLarge,
		err: `txn.then[8].txn.then[0]: the transaction has more than 9 operations over all levels (max_txn_ops in the settings)`},
	{name: "too many comparisons", line: `{"txn":{"if":[` + strings.Repeat(`{"key":"a","exists":true},`, 9) + `{"key":"a","exists":true}]}}`, kind: ErrTooLarge,
		err: `txn.if[9]: the transaction has more than 9 comparisons over all levels (max_txn_ops in the settings)`},
	{name: "the deepest transaction", line: nested(8)},
	{name: "too deep", line: nested(9), err: strings.Repeat("txn.then[0].", 8) + `txn: transactions can be nested at most 8 levels deep`},
}

// nested returns transactions inside each other.
func nested(depth int) string {
	return strings.Repeat(`{"txn":{"then":[`, depth) + strings.Repeat(`]}}`, depth)
}

// small are the limits of most tests.
var small = Limits{MaxValueBytes: 100, MaxTxnOps: 9, MaxTxnBytes: 5000}

func TestParse(t *testing.T) {
	var p Parser // shared by all lines, to show that none affects the next
	for _, c := range lines {
		_, err := p.Parse([]byte(c.line), small)
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

// A document is the transaction of a line, with paths that begin inside of it.
func TestParseTxn(t *testing.T) {
	var p Parser
	for text, want := range map[string]string{
		`{"then":[{"get":{"key":"a"}},{"get":{"key":"b"}},{},{"put":{"key":""}}]}`:                       `then[2]: no operation; expected one of get, put, delete, append, incr, list, txn, for example {"put":{"key":"a","value":"x"}}`,
		`{"then":[{"put":{"key":"a","value":"x","return":"previous"}},{"put":{"key":"a","value":"y"}}]}`: `then[1].put.key: writes a key that then[0].put.key writes, too; a transaction may write each key only once`,
		`{"txn":{}}`:             `txn: unknown field; a transaction accepts if, then, else`,
		`{"then":[]} x`:          `invalid JSON at byte 13: unexpected 'x', expected the end`,
		``:                       `invalid JSON at byte 1: unexpected end of input, expected an object`,
		`{"idempotency_key":""}`: `idempotency_key: unknown field; a transaction accepts if, then, else`,
	} {
		if _, err := p.ParseTxn([]byte(text), small); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
	c, err := p.ParseTxn([]byte(`{"if":[{"key":"a","exists":true}],"then":[{"get":{"key":"a"}}],"else":[{"put":{"key":"a","value":"1"}},{"delete":{"prefix":"b"}}]}`), small)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := describe(c), `txn(if["a" exists eq 1] then[get "a"] else[put "a" value="1" | delete-range "b".."c"])`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// A transaction is bounded in bytes, too.
func TestTransactionsAreBounded(t *testing.T) {
	l := Limits{MaxValueBytes: 1 << 20, MaxTxnOps: 512, MaxTxnBytes: 2 << 20}
	var p Parser
	for n, fits := range map[int]bool{3: true, 4: false} {
		var text strings.Builder
		for i := range n {
			fmt.Fprintf(&text, `,{"put":{"key":"%d","value":"%s"}}`, i, strings.Repeat("v", 600<<10))
		}
		_, err := p.ParseTxn([]byte(`{"then":[`+text.String()[1:]+`]}`), l)
		if fits != (err == nil) || !fits && !errors.Is(err, ErrTooLarge) {
			t.Errorf("%d values: %v", n, err)
		}
	}
}

// The fields have the values that were given.
func TestParsedFields(t *testing.T) {
	var p Parser
	for line, want := range map[string]string{
		`{"put":{"key":"a\n","value":"ä\"","if_revision":7}}`:               `put "a\n" value="ä\"" if=7`,
		`{"put":{"key_base64":"/w==","value_base64":"AAE="}}`:               `put "\xff" value="\x00\x01"`,
		`{"put":{"key_base64":"\/w=\u003d","value":"\u0000\\"}}`:            `put "\xff" value="\x00\\"`,
		`{"put":{"key":"a","keep_value":true,"ttl":90}}`:                    `put "a" value="" keep-value ttl=90000`,
		`{"put":{"key":"a","value":"","lease":"9223372036854775807"}}`:      `put "a" value="" lease=9223372036854775807`,
		`{"put":{"key":"a","value":"","keep_lease":true}}`:                  `put "a" value="" keep-lease`,
		`{"append":{"key":"a","value":"\u00e4","return":"previous"}}`:       `append "a" value="ä" previous`,
		`{"append":{"key":"a","value":"x","ttl":"1500us"}}`:                 `append "a" value="x" ttl=2`,
		`{"append":{"key":"a","value":"x","lease":7}}`:                      `append "a" value="x" lease=7`,
		`{"incr":{"key":"a","delta":1,"lease":"9223372036854775807"}}`:      `incr "a" delta=1 lease=9223372036854775807`,
		`{"incr":{"key":"a","delta":-12}}`:                                  `incr "a" delta=-12`,
		`{"get":{"key":"a","revision":9}}`:                                  `get "a" revision=9`,
		`{"delete":{"key":"a","if_revision":0}}`:                            `delete "a" if=0`,
		`{"delete":{"prefix":"a","return":"previous"}}`:                     `delete-range "a".."b" previous`,
		`{"delete":{"end":"b"}}`:                                            `delete-range "".."b"`,
		`{"list":{"prefix_base64":"//8="}}`:                                 `list "\xff\xff".. limit=1000`,
		`{"list":{"start":"a","limit":3,"reverse":true}}`:                   `list "a".. limit=3 reverse`,
		`{"list":{"prefix":"","count_only":true}}`:                          `list "".. count-only`,
		`{"put":{"key":"a","value":"x"},"idempotency_key":"k1"}`:            `put "a" value="x" once="k1"`,
		`{"txn":{"if":[{"prefix":"a","value":{"ne":"x"}}]}}`:                `txn(if["a".."b" value ne "x"] then[] else[])`,
		`{"txn":{"if":[{"start":"a","lease":{"lt":"12"}}]}}`:                `txn(if["a".. lease lt 12] then[] else[])`,
		`{"txn":{"if":[{"key":"a","create_revision":{"gt":5}}]}}`:           `txn(if["a" create gt 5] then[] else[])`,
		`{"txn":{"if":[{"revision":4,"key":"a"},{"version":5,"key":"b"}]}}`: `txn(if["a" mod eq 4 | "b" version eq 5] then[] else[])`,
	} {
		if got, err := p.Parse([]byte(line), small); err != nil || describe(got) != want {
			t.Errorf("%s: %v\ngot  %s\nwant %s", line, err, describe(got), want)
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
		n := testing.AllocsPerRun(100, func() { _, err = p.Parse(b, Limits{MaxValueBytes: 1000}) })
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
		if _, err := p.Parse([]byte(line), Limits{MaxValueBytes: 1 << 20}); err != nil {
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
		"txn":    `{"txn":{"if":[{"key":"bench/key-00000001","revision":123456}],"then":[{"put":{"key":"bench/key-00000001","value":"` + strings.Repeat("v", 256) + `"}}]}}`,
		"full":   `{"put": {"key": "bench/key-00000001", "value": "x", "if_revision": 123456, "return": "previous"}}`,
	} {
		b.Run(name, func(b *testing.B) {
			var p Parser
			text := []byte(line)
			b.ReportAllocs()
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				if _, err := p.Parse(text, Limits{MaxValueBytes: 1000, MaxTxnOps: 512, MaxTxnBytes: 1 << 20}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
