package httpapi

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/kvd-io/kvd/internal/api"
)

// A repeat of a request gets the answer of the first one and changes nothing, whatever
// has happened in between.
func TestRepeatsTakeEffectOnce(t *testing.T) {
	f := newFixture(t)
	f.put("there", "x")
	f.do("PUT", "/v1/kv/word", "x").want(201)
	for i, c := range []struct {
		method, target, body, header string
		status                       int
	}{
		{"PUT", "/v1/kv/a", "1", "", 201},
		{"PUT", "/v1/kv/there?return=previous", "y", "", 200},
		{"PUT", "/short", "1", "", 204},
		{"POST", "/v1/kv/a?append", "2", "", 200},
		{"POST", "/v1/kv/n?incr=5", "", "", 201},
		{"POST", "/v1/kv/word?incr=5", "", "", 412},
		{"PUT", "/v1/kv/a", "3", `If-Match: "999"`, 412},
		{"POST", "/v1/txn", `{"if":[{"key":"a","value":"12"}],"then":[{"incr":{"key":"m","delta":1}},{"get":{"key":"a"}},{"list":{"prefix":""}}],"else":[{"delete":{"key":"a"}}]}`, "", 200},
		{"POST", "/v1/txn", `{"then":[{"put":{"key":"c","value":"z"}},{"incr":{"key":"word","delta":1}}]}`, "", 412},
		{"POST", "/v1/txn", `{"then":[{"get":{"key":"a"}}]}`, "", 200},
		{"DELETE", "/v1/kv/a?return=previous", "", "", 200},
		{"DELETE", "/v1/kv?prefix=a", "", "", 200},
		{"PATCH", "/v1/settings", `{"max_value_bytes":1000}`, "", 200},
		{"PUT", "/v1/settings", `{"max_value_bytes":2000}`, `If-Match: "1"`, 412},
		{"POST", "/v1/compact?revision=3", "", "", 200},
	} {
		headers := []string{fmt.Sprintf("Idempotency-Key: key-%d", i)}
		if c.header != "" {
			headers = append(headers, c.header)
		}
		first := f.do(c.method, c.target, c.body, headers...).want(c.status).wantHeader("Idempotency-Replayed", "")
		f.put("a", fmt.Sprint("between-", i)) // the repeat must not be judged by this
		before, settings := f.node.Revision(), f.node.Settings()
		repeat := f.do(c.method, c.target, c.body, headers...).wantBody(first.status, first.body).wantHeader("Idempotency-Replayed", "true")
		for _, name := range []string{"Etag", "Kvd-Revision", "Content-Type"} {
			repeat.wantHeader(name, first.header.Get(name))
		}
		if f.node.Revision() != before || f.node.Settings() != settings {
			t.Errorf("%s %s took effect again", c.method, c.target)
		}
		f.do("DELETE", "/v1/kv/a", "").want(200)
		if i < 4 {
			f.do("PUT", "/v1/kv/a", []string{"1", "1", "1", "12"}[i]).want(201)
		}
	}
}

// Only a repeat counts as one: what differs in anything but patience and looks is
// another request.
func TestAnotherRequestUnderTheSameKey(t *testing.T) {
	f := newFixture(t)
	key := "Idempotency-Key: one"
	f.do("PUT", "/v1/kv/a?if_revision=0", "1", key).want(201)
	for name, c := range map[string]struct{ method, target, body, header string }{
		"body":      {"PUT", "/v1/kv/a?if_revision=0", "2", ""},
		"no body":   {"PUT", "/v1/kv/a?if_revision=0", "", ""},
		"method":    {"POST", "/v1/kv/a?append&if_revision=0", "1", ""},
		"key":       {"PUT", "/v1/kv/b?if_revision=0", "1", ""},
		"route":     {"PUT", "/a?if_revision=0", "1", ""},
		"parameter": {"PUT", "/v1/kv/a?if_revision=2", "1", ""},
		"condition": {"PUT", "/v1/kv/a?if_revision=0", "1", "If-None-Match: *"},
		"document":  {"POST", "/v1/txn", `{}`, ""},
	} {
		headers := []string{key}
		if c.header != "" {
			headers = append(headers, c.header)
		}
		if a := f.do(c.method, c.target, c.body, headers...); a.status != 422 {
			t.Errorf("another %s: status %d", name, a.status)
		} else {
			a.problem(422, api.IdempotencyMismatch).wantHeader("Idempotency-Replayed", "")
		}
	}
	for _, target := range []string{"/v1/kv/a?if_revision=0&timeout=3s", "/v1/kv/a?pretty&if_revision=0", "/v1/kv/%61?if_revision=0&timing"} {
		f.do("PUT", target, "1", key).want(201).wantHeader("Idempotency-Replayed", "true")
	}
	if rev := f.node.Revision(); rev != 2 {
		t.Errorf("the store is at revision %d, want 2", rev)
	}
}

func TestReleasedKeysAreForgotten(t *testing.T) {
	f := newFixture(t)
	incr := func(headers ...string) *answer { return f.do("POST", "/v1/kv/n?incr=1", "", headers...) }
	incr("Idempotency-Key: one").want(201, `"value":"1"`)
	incr("Idempotency-Key: two").want(200, `"value":"2"`)
	incr("Idempotency-Release: one, two,,unknown").want(200, `"value":"3"`)
	incr("Idempotency-Key: one", "Idempotency-Release: two").want(200, `"value":"4"`)
	incr("Idempotency-Key: one").want(200, `"value":"4"`).wantHeader("Idempotency-Replayed", "true")
	for _, header := range []string{
		"Idempotency-Key: ", "Idempotency-Key: " + strings.Repeat("k", 129), "Idempotency-Key: a b", "Idempotency-Key: é",
		"Idempotency-Release: a b", "Idempotency-Release: " + strings.Repeat("k,", 257),
	} {
		incr(header).problem(400, api.BadRequest, "Idempotency-")
	}
	incr("Idempotency-Key: a", "Idempotency-Key: b").problem(400, api.BadRequest, "more than once")
	incr("Idempotency-Key: "+strings.Repeat("~", 128)).want(200, `"value":"5"`)
}

// Requests with one key that are in flight together take effect once, and all of them
// get the answer.
func TestRepeatsInFlight(t *testing.T) {
	f := newFixture(t)
	arrived := make(chan struct{}, 10)
	proceed := make(chan struct{})
	f.node.onDo = func(context.Context) { arrived <- struct{}{}; <-proceed }
	var all sync.WaitGroup
	for range cap(arrived) {
		all.Go(func() {
			f.do("POST", "/v1/kv/n?incr=1", "", "Idempotency-Key: k").want(201, `"value":"1"`)
		})
	}
	for range cap(arrived) {
		<-arrived
	}
	close(proceed)
	all.Wait()
}

// A line of a stream can have a key of its own, which is one of all requests.
func TestRepeatedLines(t *testing.T) {
	f := newFixture(t)
	line := `{"incr":{"key":"n","delta":1},"idempotency_key":"k"}`
	txn := `{"txn":{"then":[{"incr":{"key":"m","delta":1}}]},"idempotency_key":"t"}`
	wantAnswers(t, f.batchOf(`{"get":{"key":"n"}}`, line, line, txn, `{"get":{"key":"n"}}`, txn),
		`404 "revision":1`, `201 "value":"1","revision":2`, `201 "replayed":true,"value":"1","revision":2`, `200 "revision":3`, `200 "value":"1"|"revision":3`,
		`200 "replayed":true,"succeeded":true,"revision":3,"results":[{"key":"m","value":"1"`)
	// Reads beside repeats see the present, not the time of the first request.
	f.do("POST", "/v1/kv/n?incr=5", "").want(200)
	wantAnswers(t, f.batchOf(`{"get":{"key":"n"}}`, line, `{"get":{"key":"n"}}`, `{"incr":{"key":"n","delta":1}}`, txn, `{"get":{"key":"n"}}`),
		`200 "value":"6"|"revision":4`, `201 "replayed":true,"value":"1","revision":2`, `200 "value":"6"|"revision":4`, `200 "value":"7"`, `200 "replayed":true`, `200 "value":"7"`)
	wantAnswers(t, f.batchOf(`{"get":{"key":"n"}}`, line, `{"get":{"key":"n"}}`), `200 "value":"7"`, `201 "replayed":true`, `200 "value":"7"`)
	wantAnswers(t, f.batchOf(`{"incr":{"key":"n","delta":2},"idempotency_key":"k"}`), `422 idempotency_mismatch`)
	f.do("POST", "/v1/kv/n?incr=1", "", "Idempotency-Key: k").problem(422, api.IdempotencyMismatch)
	f.do("DELETE", "/v1/kv/n", "", "Idempotency-Release: k").want(200)
	wantAnswers(t, f.batchOf(line), `201 "value":"1"`)
	// What was refused when it was applied is repeated, too.
	refused := `{"incr":{"key":"n","delta":1,"if_revision":99},"idempotency_key":"r"}`
	refusedTxn := `{"txn":{"then":[{"put":{"key":"n","value":"x","lease":99}}]},"idempotency_key":"s"}`
	wantAnswers(t, f.batchOf(refused, refused, refusedTxn, refusedTxn),
		`412 precondition_failed`, `412 precondition_failed|"replayed":true`, `404 lease_not_found`, `404 lease_not_found|"replayed":true`)
}
