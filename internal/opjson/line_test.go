package opjson

import (
	"errors"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
)

// Each line with what becomes of it: a code and a part of its explanation, or
// none where it is taken; stops says that the batch ends with it.
var lineTable = []struct {
	name, line string
	code       api.Code
	says       string
	stops      bool
}{
	{name: "put", line: `{"put":{"key":"a","value":"x"}}`},
	{name: "put of an empty value", line: `{"put":{"key":"a","value":""}}`},
	{name: "put in base64", line: `{"put":{"key_base64":"/w==","value_base64":"AAE="}}`},
	{name: "put with blanks", line: " {\t\"put\" : { \"value\" : \"x\" , \"key\" : \"a\" } } \r"},
	{name: "put with escapes", line: `{"put":{"key":"a\"\\\/\b\f\n\r\t","value":"\u00e4\ud83d\ude00"}}`},
	{name: "put under a condition", line: `{"put":{"key":"a","value":"x","if_revision":0,"return":"previous"}}`},
	{name: "get", line: `{"get":{"key":"a"}}`},
	{name: "get of the past", line: `{"get":{"key":"a","revision":7}}`},
	{name: "delete", line: `{"delete":{"key":"a","if_revision":3}}`},
	{name: "append", line: `{"append":{"key":"a","value":"x"}}`},
	{name: "incr", line: `{"incr":{"key":"a","delta":-9223372036854775808}}`},
	{name: "a name in another case", line: `{"Put":{"KEY":"a","value":"x"}}`},

	{name: "no JSON", line: `put a x`, code: api.BadRequest, says: "at byte 1", stops: true},
	{name: "cut off", line: `{"put":{"key":"a","value":"x"}`, code: api.BadRequest, says: "no valid JSON", stops: true},
	{name: "two documents", line: `{"get":{"key":"a"}}{"get":{"key":"b"}}`, code: api.BadRequest, says: "at byte 20", stops: true},
	{name: "a control character", line: "{\"get\":{\"key\":\"a\x01\"}}", code: api.BadRequest, stops: true},
	{name: "no UTF-8", line: "{\"get\":{\"key\":\"\xff\"}}", code: api.BadRequest, says: "key_base64", stops: true},
	{name: "a number with a leading zero", line: `{"incr":{"key":"a","delta":01}}`, code: api.BadRequest, stops: true},

	{name: "no object", line: `7`, code: api.BadRequest},
	{name: "no operation", line: `{}`, code: api.BadRequest, says: "0 operations"},
	{name: "two operations", line: `{"get":{"key":"a"},"delete":{"key":"a"}}`, code: api.BadRequest, says: "2 operations"},
	{name: "unknown operation", line: `{"list":{"prefix":"a"}}`, code: api.BadRequest, says: "list"},
	{name: "unknown field", line: `{"get":{"key":"a","value":"x"}}`, code: api.BadRequest, says: "value"},
	{name: "a field twice", line: `{"get":{"key":"a","key":"b"}}`, code: api.BadRequest, says: "twice"},
	{name: "half a surrogate pair", line: `{"get":{"key":"\ud800x"}}`, code: api.BadRequest, says: "surrogate"},
	{name: "a surrogate pair the wrong way round", line: `{"get":{"key":"\ude00\ud83d"}}`, code: api.BadRequest, says: "surrogate"},
	{name: "no key", line: `{"put":{"value":"x"}}`, code: api.BadRequest, says: `"key"`},
	{name: "empty key", line: `{"put":{"key":"","value":"x"}}`, code: api.BadRequest, says: "empty"},
	{name: "long key", line: `{"get":{"key":"` + strings.Repeat("k", kvstore.MaxKeyBytes+1) + `"}}`, code: api.TooLarge},
	{name: "no value", line: `{"put":{"key":"a"}}`, code: api.BadRequest, says: `"value"`},
	{name: "both forms", line: `{"put":{"key":"a","value":"x","value_base64":"eA=="}}`, code: api.BadRequest, says: "both"},
	{name: "bad base64", line: `{"put":{"key":"a","value_base64":"eA"}}`, code: api.BadRequest, says: "base64"},
	{name: "large value", line: `{"put":{"key":"a","value":"` + strings.Repeat("v", 101) + `"}}`, code: api.TooLarge, says: "limit is 100"},
	{name: "incr of nothing", line: `{"incr":{"key":"a"}}`, code: api.BadRequest, says: "delta"},
	{name: "incr of a fraction", line: `{"incr":{"key":"a","delta":1.5}}`, code: api.BadRequest},
	{name: "revision 0", line: `{"get":{"key":"a","revision":0}}`, code: api.BadRequest, says: "revision"},
	{name: "a revision beyond 2^53", line: `{"delete":{"key":"a","if_revision":9007199254740992}}`, code: api.BadRequest, says: "if_revision"},
	{name: "return of something else", line: `{"delete":{"key":"a","return":"all"}}`, code: api.BadRequest, says: "previous"},
	{name: "ttl", line: `{"put":{"key":"a","value":"x","ttl":"30s"}}`, code: api.BadRequest, says: "does not offer"},
	{name: "lease", line: `{"incr":{"key":"a","delta":1,"lease":7}}`, code: api.BadRequest, says: "does not offer"},
	{name: "idempotency key", line: `{"put":{"key":"a","value":"x"},"idempotency_key":"k"}`, code: api.BadRequest, says: "does not offer"},
}

func TestBatchLines(t *testing.T) {
	for _, c := range lineTable {
		t.Run(c.name, func(t *testing.T) {
			var p Parser
			_, err := p.Parse([]byte(c.line), 100)
			if stops := errors.Is(err, ErrNotJSON); stops != c.stops {
				t.Errorf("ends the batch: %v, want %v", stops, c.stops)
			}
			if c.code == "" {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			var e *api.Error
			if !errors.As(err, &e) || e.Code != c.code || !strings.Contains(e.Detail, c.says) {
				t.Errorf("%v, want %s with %q", err, c.code, c.says)
			}
		})
	}
}

// The fields arrive as they were given, by either way of parsing.
func TestBatchLineFields(t *testing.T) {
	for line, want := range map[string]Op{
		`{"put":{"key":"a\n","value":"ä\"","if_revision":7}}`:         {Op: kvstore.OpPut, Key: []byte("a\n"), Value: []byte("ä\""), IfRevision: 7, Conditional: true, hasOperand: true},
		`{"put":{"key_base64":"/w==","value_base64":"AAE="}}`:         {Op: kvstore.OpPut, Key: []byte{0xff}, Value: []byte{0, 1}, hasOperand: true},
		`{"append":{"key":"a","value":"\u00e4","return":"previous"}}`: {Op: kvstore.OpAppend, Key: []byte("a"), Value: []byte("ä"), hasOperand: true, Previous: true},
		`{"incr":{"key":"a","delta":-12}}`:                            {Op: kvstore.OpIncr, Key: []byte("a"), Delta: -12, hasOperand: true},
		`{"get":{"key":"a","revision":9}}`:                            {Key: []byte("a"), Revision: 9},
		`{"delete":{"key":"a"}}`:                                      {Op: kvstore.OpDelete, Key: []byte("a")},
	} {
		var p Parser
		got, err := p.Parse([]byte(line), 100)
		if want.hasKey = true; err != nil || !sameOp(got, want) {
			t.Errorf("%s: %+v %v, want %+v", line, got, err, want)
		}
	}
}

func sameOp(a, b Op) bool {
	if string(a.Key) != string(b.Key) || string(a.Value) != string(b.Value) {
		return false
	}
	return a.Op == b.Op && a.Delta == b.Delta && a.Revision == b.Revision && a.IfRevision == b.IfRevision &&
		a.Conditional == b.Conditional && a.Previous == b.Previous && a.hasKey == b.hasKey && a.hasOperand == b.hasOperand
}

// The shapes that bulk loads send take the fast way; otherwise it would be of
// no use, and nobody would notice.
func TestCommonLinesAreParsedFast(t *testing.T) {
	for _, line := range []string{
		`{"put":{"key":"a","value":"x"}}`, `{"put": {"key": "a", "value": "a \"quoted\" word\n"}}`, `{"put":{"key":"ä","value_base64":"AAE="}}`,
		`{"delete":{"key":"a","if_revision":12}}`, `{"incr":{"key":"a","delta":-5}}`, `{"get":{"key":"a"}}`, `{"append":{"key":"a","value":"x"}}`,
	} {
		var p Parser
		if _, ok := p.plain([]byte(line)); !ok {
			t.Errorf("%s goes to the slow decoder", line)
		}
	}
	var p Parser
	line := []byte(`{"put":{"key":"a key","value":"` + strings.Repeat("v", 256) + `"}}`)
	if n := testing.AllocsPerRun(100, func() { _, _ = p.Parse(line, 1000) }); n > 0 {
		t.Errorf("a line allocates %v times", n)
	}
}

// FuzzBatchLine: what the fast parser takes, the strict one takes as the same
// operation; neither panics.
func FuzzBatchLine(f *testing.F) {
	for _, c := range lineTable {
		f.Add(c.line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		var p Parser
		strict, err := strictLine([]byte(line))
		fast, ok := p.plain([]byte(line))
		if ok && (err != nil || !sameOp(fast, strict)) {
			t.Fatalf("%q: fast %+v, strict %+v, %v", line, fast, strict, err)
		}
	})
}

func BenchmarkBatchLine(b *testing.B) {
	var p Parser
	line := []byte(`{"put":{"key":"bench/key-00000001","value":"` + strings.Repeat("v", 256) + `"}}`)
	b.ReportAllocs()
	b.SetBytes(int64(len(line)))
	for b.Loop() {
		if _, err := p.Parse(line, 1000); err != nil {
			b.Fatal(err)
		}
	}
}
