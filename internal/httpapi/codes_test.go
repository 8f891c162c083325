package httpapi

import (
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/link"
	"github.com/kvd-io/kvd/internal/rights"
)

// errorCase is a request that is answered with a code, and the fields that its problem
// document has beside those of every one.
type errorCase struct {
	code   api.Code
	status int
	fields string
	ask    func(*fixture) *answer
}

// errorCases has at least one request for each code. What the store and this package
// decide comes about as for a client; what the replication layer and the membership
// decide is put into their answers here. In kvdtest, TestRefusalsLeaveNoTrace has them come
// about by faults of real nodes.
var errorCases = []errorCase{
	{api.BadRequest, 400, "path position", func(f *fixture) *answer { return f.do("POST", "/v1/txn", `{"then":[{"put":{"key":""}}]}`) }},
	{api.BadRequest, 400, "position", func(f *fixture) *answer { return f.do("POST", "/v1/txn", "{") }},
	{api.BadRequest, 400, "", func(f *fixture) *answer { return f.do("GET", "/v1/kv/k?revison=9", "") }},
	{api.FutureRevision, 400, "", func(f *fixture) *answer { return f.do("GET", "/v1/kv/k?revision=99", "") }},
	{api.FutureRevision, 400, "", func(f *fixture) *answer { return f.do("POST", "/v1/compact?revision=99", "") }},
	{api.Unauthenticated, 401, "", underRights(func(f *fixture) *answer {
		return f.past("GET", "/v1/kv/a", func(r *http.Request) *http.Request { return r })
	})},
	{api.PermissionDenied, 403, "", underRights(func(f *fixture) *answer {
		return f.past("GET", "/v1/kv/a", bearer(f.secret("poor", rights.Role{}, time.Time{})))
	})},
	{api.TLSRequired, 403, "", underRights(func(f *fixture) *answer {
		secret := bearer(f.rootSecret())
		return f.past("GET", "/v1/kv/a", func(r *http.Request) *http.Request {
			return secret(r.WithContext(link.With(r.Context(), link.Link{Exposed: true})))
		})
	})},
	{api.CrossOrigin, 403, "", func(f *fixture) *answer {
		return f.do("PUT", "/v1/kv/k", "x", "Origin: http://elsewhere.example", "Sec-Fetch-Site: cross-site")
	}},
	{api.Misdirected, 421, "", func(f *fixture) *answer { return f.raw("GET /v1/kv/k HTTP/1.1\r\nHost: rebound.example\r\n\r\n") }},
	{api.KeyNotFound, 404, "", func(f *fixture) *answer { return f.do("GET", "/v1/kv/absent", "") }},
	{api.KeyNotFound, 404, "", func(f *fixture) *answer {
		return f.do("POST", "/v1/txn", `{"then":[{"put":{"key":"absent","keep_value":true}}]}`)
	}},
	{api.LeaseNotFound, 404, "", func(f *fixture) *answer { return f.do("PUT", "/v1/kv/k?lease=77", "x") }},
	{api.LeaseNotFound, 404, "", func(f *fixture) *answer { return f.do("POST", "/v1/leases/77/keepalive", "") }},
	{api.LockNotFound, 404, "", func(f *fixture) *answer { return f.do("DELETE", "/v1/locks/free?lease=77", "") }},
	{api.LeaseExists, 409, "", func(f *fixture) *answer {
		f.do("POST", "/v1/leases", `{"ttl":60,"id":"9223372036854775807"}`).want(201)
		return f.do("POST", "/v1/leases", `{"ttl":"60s","id":"9223372036854775807"}`)
	}},
	{api.LockHeld, 409, "token", func(f *fixture) *answer {
		f.do("POST", "/v1/locks/taken?ttl=60s", "").want(200)
		return f.do("POST", "/v1/locks/taken?ttl=60s", "")
	}},
	{api.NotFound, 404, "", func(f *fixture) *answer { return f.do("GET", "/v1/nothing", "") }},
	{api.MethodNotAllowed, 405, "", func(f *fixture) *answer {
		return f.do("GET", "/v1/txn", "").wantHeader("Allow", "POST")
	}},
	{api.MemberNotFound, 404, "", refusedChange(api.MemberNotFound)},
	{api.MemberExists, 409, "", refusedChange(api.MemberExists)},
	{api.MemberRemoved, 409, "", refusedChange(api.MemberRemoved)},
	{api.UnsafeChange, 409, "", refusedChange(api.UnsafeChange)},
	{api.RevisionCompacted, 410, "compact_revision", func(f *fixture) *answer { return f.do("GET", "/v1/kv/k?revision=1", "") }},
	{api.RevisionCompacted, 410, "compact_revision", func(f *fixture) *answer {
		return f.do("POST", "/v1/txn", `{"then":[{"put":{"key":"a","value":""}},{"get":{"key":"k","revision":1}}]}`)
	}},
	{api.PreconditionFailed, 412, "revision", func(f *fixture) *answer { return f.do("PUT", "/v1/kv/k", "x", `If-Match: "9"`) }},
	{api.PreconditionFailed, 412, "revision", func(f *fixture) *answer { return f.do("POST", "/v1/kv/k?incr=1", "") }},
	{api.PreconditionFailed, 412, "etag", func(f *fixture) *answer { return f.do("PATCH", "/v1/settings", `{}`, `If-Match: "9"`) }},
	{api.TooLarge, 413, "", func(f *fixture) *answer { return f.do("PUT", "/v1/kv/k", strings.Repeat("v", 2000)) }},
	{api.TooLarge, 413, "", func(f *fixture) *answer { return f.do("PUT", "/v1/kv/"+strings.Repeat("k", 5000), "x") }},
	{api.IdempotencyMismatch, 422, "", func(f *fixture) *answer {
		f.do("PUT", "/v1/kv/once", "x", "Idempotency-Key: k").want(201)
		return f.do("PUT", "/v1/kv/once", "y", "Idempotency-Key: k")
	}},
	{api.Overloaded, 429, "", func(f *fixture) *answer {
		for size := int64(1 << 20); size >= budget.Small; {
			claim := f.server.opts.Memory.Claim()
			if !claim.Try(size) { // one part of the memory is full
				size /= 2
				continue
			}
			defer claim.Release()
		}
		return f.do("GET", "/v1/kv?prefix=", "", "Accept: "+ndjsonType)
	}},
	{api.NoSpace, 503, "", func(f *fixture) *answer {
		for i := range 600 {
			if a := f.do("PUT", "/v1/kv/"+strings.Repeat("k", 4000)+strconv.Itoa(i), strings.Repeat("v", 1000)); a.status != 201 {
				return a
			}
		}
		return nil
	}},
	{api.NoLeader, 503, "", failedWrite(api.NoLeader)},
	{api.ReadTimeout, 503, "", func(f *fixture) *answer {
		f.node.readErr = &api.Error{Code: api.ReadTimeout, Detail: "because"}
		defer func() { f.node.readErr = nil }()
		return f.do("GET", "/v1/kv/k", "")
	}},
	{api.Starting, 503, "", standby(api.Starting)},
	{api.Stopping, 503, "", standby(api.Stopping)},
	{api.AuditFailed, 503, "", failedWrite(api.AuditFailed)},
	{api.Timeout, 504, "", failedWrite(api.Timeout)},
	{api.Internal, 500, "request_id", func(f *fixture) *answer {
		f.node.doErr = errors.New("disk on fire")
		defer func() { f.node.doErr = nil }()
		return f.do("PUT", "/v1/kv/k", "x")
	}},
}

// underRights asks a server whose rights are enabled.
func underRights(ask func(*fixture) *answer) func(*fixture) *answer {
	return func(f *fixture) *answer {
		guarded := newFixture(f.t, withGate)
		guarded.enableRights()
		return ask(guarded)
	}
}

// past sends a request past the network.
func (f *fixture) past(method, target string, set func(*http.Request) *http.Request) *answer {
	return readAnswer(f.t, method+" "+target, f.ask(method, target, "", set).Result())
}

func failedWrite(code api.Code) func(*fixture) *answer {
	return func(f *fixture) *answer {
		f.node.doErr = &api.Error{Code: code, Detail: "because"}
		defer func() { f.node.doErr = nil }()
		return f.do("PUT", "/v1/kv/k", "x")
	}
}

func refusedChange(code api.Code) func(*fixture) *answer {
	return func(f *fixture) *answer {
		f.cluster.err = &api.Error{Code: code, Detail: "because"}
		defer func() { f.cluster.err = nil }()
		return f.do("DELETE", "/v1/members/4", "")
	}
}

func standby(code api.Code) func(*fixture) *answer {
	return func(f *fixture) *answer {
		w := httptest.NewRecorder()
		NewStandby(f.server.opts, &api.Error{Code: code, Detail: "because"}).ServeHTTP(w, httptest.NewRequest("GET", "/v1/kv/k", nil))
		return readAnswer(f.t, string(code), w.Result())
	}
}

// Every code of the contract is the answer to some request, with its status, its fields,
// and no others.
func TestEveryCodeIsProduced(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.Memory = budget.New(1 << 20) })
	for range 4 {
		f.put("k", "word")
	}
	f.do("PUT", "/v1/settings", `{"max_value_bytes":1000,"quota_bytes":1048576}`).want(200)
	f.do("POST", "/v1/compact?revision=3", "").want(200)
	produced := make(map[api.Code]bool)
	for _, c := range errorCases {
		produced[c.code] = true
		a := c.ask(f)
		if a == nil {
			t.Errorf("%s: no answer had the code", c.code)
			continue
		}
		a.problem(c.status, c.code)
		var doc map[string]any
		if err := json.Unmarshal([]byte(a.body), &doc); err != nil {
			t.Errorf("%s: %v", c.code, err)
		}
		want := []string{"code", "detail", "status", "title"}
		want = append(want, strings.Fields(c.fields)...)
		slices.Sort(want)
		if got := slices.Sorted(maps.Keys(doc)); !slices.Equal(got, want) {
			t.Errorf("%s: fields %v, want %v", c.code, got, want)
		}
		if retry := a.header.Get("Retry-After"); (retry != "") != (c.status == 429 || c.status == 503) {
			t.Errorf("%s: Retry-After %q", c.code, retry)
		}
		if challenge := a.header.Get("WWW-Authenticate"); (challenge != "") != (c.status == 401) {
			t.Errorf("%s: WWW-Authenticate %q", c.code, challenge)
		}
	}
	for code := range everyCode(t) {
		if !produced[code] {
			t.Errorf("no request is answered with %s", code)
		}
	}
}
