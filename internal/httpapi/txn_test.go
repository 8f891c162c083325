package httpapi

import (
	"fmt"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/api"
)

// txn sends a transaction.
func (f *fixture) txn(document string, headers ...string) *answer {
	f.t.Helper()
	return f.do("POST", "/v1/txn", document, headers...)
}

// Each result has the fields that the same operation has on its own route.
func TestTxn(t *testing.T) {
	f := newFixture(t)
	f.put("a", "x") // revision 2
	f.put("n", "5") // revision 3
	f.put("d/1", "1")
	f.put("d/2", "2") // revision 5
	f.txn(`{"if":[{"key":"a","revision":2},{"key":"b","exists":false},{"prefix":"d/","version":1}],
		"then":[{"put":{"key":"b","value":"y","return":"previous"}},{"get":{"key":"b"}},{"get":{"key":"c"}},
			{"append":{"key":"a","value":"!"}},{"incr":{"key":"n","delta":-7}},{"list":{"prefix":"d/","limit":1}},
			{"delete":{"prefix":"d/","return":"previous"}},{"list":{"prefix":"d/","count_only":true}},
			{"txn":{"if":[{"key":"b","exists":true}],"then":[{"put":{"key":"never","value":""}}],"else":[{"get":{"key":"a"}}]}}],
		"else":[{"put":{"key":"never","value":""}}]}`).
		wantHeader("Kvd-Revision", "6").
		wantBody(200, `{"succeeded":true,"revision":6,"results":[`+
			`{"key":"b","revision":6,"create_revision":6,"mod_revision":6,"version":1,"previous":null},`+
			`{"key":"b","value":"y","create_revision":6,"mod_revision":6,"version":1,"lease":0},`+
			`{"key":"c","exists":false},`+
			`{"key":"a","revision":6,"create_revision":2,"mod_revision":6,"version":2},`+
			`{"key":"n","value":"-2","revision":6,"create_revision":3,"mod_revision":6,"version":2},`+
			`{"revision":6,"kvs":[{"key":"d/1","value":"1","create_revision":4,"mod_revision":4,"version":1,"lease":0}],"count":1,"more":true},`+
			`{"deleted":2,"revision":6,"previous":[{"key":"d/1","value":"1","create_revision":4,"mod_revision":4,"version":1,"lease":0},`+
			`{"key":"d/2","value":"2","create_revision":5,"mod_revision":5,"version":1,"lease":0}]},`+
			`{"revision":6,"count":0},`+
			`{"succeeded":false,"revision":6,"results":[{"key":"a","value":"x!","create_revision":2,"mod_revision":6,"version":2,"lease":0}]}]}`+"\n")
	f.txn(`{"if":[{"key":"a","value":{"ne":"x!"}}],"then":[],"else":[{"delete":{"key":"a"}}]}`).
		wantBody(200, `{"succeeded":false,"revision":7,"results":[{"key":"a","deleted":1,"revision":7}]}`+"\n")
	f.txn(`{}`).wantBody(200, `{"succeeded":true,"revision":7,"results":[]}`+"\n")
}

// A transaction that only reads is not in the log, and is as fresh as it asks to be.
func TestTxnThatReads(t *testing.T) {
	f := newFixture(t)
	f.put("a", "x")
	entries := f.node.index
	read := `{"if":[{"key":"a","exists":true}],"then":[{"get":{"key":"a"}},{"list":{"prefix":"","keys_only":true}}],"else":[{"get":{"key":"b"}}]}`
	f.txn(read).want(200, `"succeeded":true,"revision":2`, `"value":"x"`)
	f.do("POST", "/v1/txn?consistency=stale&max_staleness=3s", read).want(200, `"value":"x"`)
	if got := fmt.Sprint(f.node.barriers); got != `[{false 0s} {true 3s}]` {
		t.Errorf("the reads asked for %s", got)
	}
	if f.node.index != entries {
		t.Errorf("%d entries were added to the log", f.node.index-entries)
	}
	f.txn(`{"then":[{"get":{"key":"a"}},{"get":{"key":"a","revision":9}}]}`).problem(400, api.FutureRevision, "then[1].get")
	f.node.readErr = &api.Error{Code: api.NoLeader, Detail: "because"}
	f.txn(read).problem(503, api.NoLeader)
	f.do("POST", "/v1/txn?consistency=stale", `{"then":[{"put":{"key":"a","value":"y"}}]}`).problem(400, api.BadRequest, "consistency")
}

// A transaction that cannot be carried out leaves no trace, and the answer says which
// operation is at fault.
func TestTxnThatFails(t *testing.T) {
	f := newFixture(t)
	f.put("word", "x")                   // revision 2
	f.put("most", "9223372036854775807") // revision 3
	f.do("PUT", "/v1/settings", `{"max_value_bytes":10}`).want(200)
	for step, want := range map[string]struct {
		status int
		code   api.Code
		parts  string
	}{
		`{"put":{"key":"a","value":"y","if_revision":9}}`:                                        {412, api.PreconditionFailed, `"revision":0`},
		`{"incr":{"key":"word","delta":1}}`:                                                      {412, api.PreconditionFailed, `"revision":2`},
		`{"incr":{"key":"most","delta":1}}`:                                                      {412, api.PreconditionFailed, `"revision":3`},
		`{"append":{"key":"most","value":"1"}}`:                                                  {413, api.TooLarge, `max_value_bytes`},
		`{"put":{"key":"a","keep_value":true}}`:                                                  {404, api.KeyNotFound, ``},
		`{"txn":{"then":[{"get":{"key":"a"}},{"put":{"key":"a","value":"y","if_revision":9}}]}}`: {412, api.PreconditionFailed, `then[1].txn.then[1].put`},
	} {
		f.txn(`{"then":[{"put":{"key":"first","value":"1"}},`+step+`]}`).problem(want.status, want.code, "then[1].", want.parts)
		line := f.batchOf(`{"txn":{"then":[{"put":{"key":"first","value":"1"}},` + step + `]}}`)
		wantAnswers(t, line, fmt.Sprintf("%d then[1].|%s", want.status, want.parts))
	}
	f.do("GET", "/v1/kv/first", "").problem(404, api.KeyNotFound)
	if rev := f.node.Revision(); rev != 3 {
		t.Errorf("the store is at revision %d, want 3", rev)
	}
}

// A compacted revision is a 410 with the oldest one that can be read.
func TestTxnOfACompactedRevision(t *testing.T) {
	f := newFixture(t)
	for range 5 {
		f.put("a", "x")
	}
	f.do("POST", "/v1/compact?revision=4", "").want(200)
	for _, also := range []string{"", `,{"put":{"key":"b","value":"y"}}`} {
		f.txn(`{"then":[{"get":{"key":"a","revision":2}}`+also+`]}`).problem(410, api.RevisionCompacted, "then[0].get", `"compact_revision":4`)
	}
}

// What is wrong with a document is said with its place, before anything is proposed.
func TestTxnDocumentsAreRefused(t *testing.T) {
	f := newFixture(t)
	entries := f.node.index
	for document, part := range map[string]string{
		``:             "invalid JSON at byte 1",
		`{"then":[{}}`: "invalid JSON at byte 12 (in then[0])",
		`{"then":[{"get":{"key":"a"}},{"put":{"key":"","value":"x"}}]}`:        `then[1].put.key: the key is empty`,
		`{"then":[{"put":{"key":"a","value":"x"}},{"delete":{"prefix":"a"}}]}`: "then[1].delete.prefix: writes a key that then[0].put.key writes, too",
		`{"if":[{"key":"a","versoin":1}],"then":[]}`:                           "if[0].versoin: unknown field; a comparison accepts key",
		`{"then":[{"put":{"key":"a","value":"x"},"idempotency_key":"k"}]}`:     "then[0].idempotency_key: unknown operation",
	} {
		f.txn(document).problem(400, api.BadRequest, strings.ReplaceAll(part, `"`, `\"`))
	}
	many := strings.Repeat(`{"get":{"key":"a"}},`, 512) + `{"get":{"key":"a"}}`
	f.txn(`{"then":[`+many+`]}`).problem(413, api.TooLarge, "then[512]", "max_txn_ops")
	f.do("PUT", "/v1/settings", `{"max_txn_ops":513,"max_txn_bytes":3000}`).want(200, `"max_txn_ops":513`)
	f.txn(`{"then":[` + many + `]}`).want(200)
	f.txn(`{"then":[{"put":{"key":"a","value":"`+strings.Repeat("v", 3000)+`"}}]}`).problem(413, api.TooLarge, "then[0]", "max_txn_bytes")
	f.txn(`{}`, `If-Match: "3"`).problem(400, api.BadRequest, "conditions")
	f.do("POST", "/v1/batch", "", "If-None-Match: *").problem(400, api.BadRequest, "conditions")
	f.do("GET", "/v1/txn", "").problem(405, api.MethodNotAllowed)
	f.do("POST", "/v1/txn?revision=3", "{}").problem(400, api.BadRequest)
	if f.node.index != entries+1 { // the settings
		t.Errorf("%d entries were added to the log", f.node.index-entries)
	}
}

// A transaction is a line of a stream, with its place among the others.
func TestBatchOfTransactions(t *testing.T) {
	f := newFixture(t)
	f.put("a", "x") // revision 2
	wantAnswers(t, f.batchOf(
		`{"get":{"key":"a"}}`,
		`{"txn":{"if":[{"key":"a","value":"x"}],"then":[{"put":{"key":"a","value":"y"}},{"get":{"key":"b"}},{"list":{"prefix":"a"}}]}}`,
		`{"get":{"key":"a"}}`,
		`{"txn":{"if":[{"key":"a","value":"x"}],"then":[{"put":{"key":"a","value":"y"}}],"else":[{"get":{"key":"a"}}]}}`,
		`{"txn":{"then":[{"incr":{"key":"a","delta":1}}]}}`,
		`{"put":{"key":"b","value":"1"}}`,
		`{"txn":{"then":[{"txn":{"then":[{"delete":{"key":"b"}}]}}]}}`,
		`{"get":{"key":"b"}}`,
	),
		`200 "value":"x"|"revision":2`,
		`200 "succeeded":true,"revision":3,"results":[{"key":"a","revision":3|{"key":"b","exists":false}|"count":1}]}`,
		`200 "value":"y"|"revision":3`,
		`200 "succeeded":false,"revision":3,"results":[{"key":"a","value":"y"`,
		`412 "detail":"then[0].incr|"revision":3`,
		`201 "revision":4`,
		`200 "results":[{"succeeded":true,"revision":5,"results":[{"key":"b","deleted":1,"revision":5}]}]}`,
		`404 "revision":5`,
	)
	// The answer to a transaction does not depend on the lines after it.
	wantAnswers(t, f.batchOf(
		`{"txn":{"then":[{"put":{"key_base64":"YWFh","value":"x"}},{"list":{"prefix":"aa","count_only":true}}]}}`,
		`{"txn":{"then":[{"delete":{"key_base64":"YmJi"}},{"list":{"prefix":"aa"}}]}}`,
	), `200 "results":[{"key":"aaa",|{"revision":6,"count":1}`, `200 {"key":"bbb","deleted":0|"kvs":[{"key":"aaa"`)
	// The first write of a group tells what the gets before it see.
	wantAnswers(t, f.batchOf(`{"get":{"key":"a"}}`, `{"txn":{"then":[{"txn":{"then":[{"put":{"key":"z","value":"y"}}]}}]}}`), `200 "revision":6`, `200 "revision":7,"results":[{"succeeded":true,"revision":7,"results":[{"key":"z","revision":7`)
}
