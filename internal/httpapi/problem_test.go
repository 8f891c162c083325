package httpapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi/reply"
)

// everyCode returns the codes that package api declares, with their statuses.
func everyCode(t *testing.T) map[api.Code]int {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../api/api.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	codes := make(map[api.Code]int)
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if id, ok := spec.Type.(*ast.Ident); !ok || id.Name != "Code" {
			return true
		}
		code, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		codes[api.Code(code)] = reply.Status(api.Code(code))
		return true
	})
	if len(codes) < 20 {
		t.Fatalf("only %d codes were found", len(codes))
	}
	return codes
}

// Every code that package api declares has a status, and is in openapi.yaml.
func TestEveryCodeHasAStatus(t *testing.T) {
	for code, status := range everyCode(t) {
		if status == http.StatusInternalServerError && code != api.Internal {
			t.Errorf("the code %s has no status", code)
		}
		if !strings.Contains(string(openAPI), string(code)) {
			t.Errorf("the code %s is not in openapi.yaml", code)
		}
	}
}

// Each code that the node returns for a write or a read is answered with its status.
func TestEveryCodeIsAnswered(t *testing.T) {
	f := newFixture(t)
	f.put("k", "v")
	for code, status := range everyCode(t) {
		err := &api.Error{Code: code, Detail: "because", RetryAfter: 1500 * time.Millisecond, Fields: map[string]any{"extra": 7}}
		f.node.doErr, f.node.readErr = err, fmt.Errorf("wrapped: %w", err)
		for _, a := range []*answer{f.do("PUT", "/k", "v"), f.do("PUT", "/v1/kv/k", "v"), f.do("GET", "/k", ""), f.do("GET", "/v1/kv?prefix=k", "")} {
			a.problem(status, code, "because", `"extra":7`)
			retry := a.header.Get("Retry-After")
			if wantRetry := status == 429 || status == 503; wantRetry != (retry == "2") || (!wantRetry && retry != "") {
				t.Errorf("%s %s: Retry-After %q", a.what, code, retry)
			}
			if hasID := strings.Contains(a.body, "request_id"); hasID != (status == 500) {
				t.Errorf("%s %s: request_id there: %v", a.what, code, hasID)
			}
		}
		f.do("HEAD", "/k", "").wantBody(status, "")
	}
}

// A 500 has a request id, under which the log has the cause.
func TestInternalErrorsAreLogged(t *testing.T) {
	f := newFixture(t)
	f.node.doErr = errors.New("disk on fire")
	var doc struct {
		RequestID string `json:"request_id"`
	}
	f.do("PUT", "/secret-key", "secret-value").problem(500, api.Internal).decode(&doc)
	entries := f.logs.All()
	if len(entries) != 1 || entries[0].ContextMap()["request_id"] != doc.RequestID || doc.RequestID == "" {
		t.Fatalf("request %q, log %+v", doc.RequestID, entries)
	}
	if line := fmt.Sprint(entries[0].Message, entries[0].ContextMap()); strings.Contains(line, "secret") || !strings.Contains(line, "disk on fire") {
		t.Errorf("the log has %s", line)
	}
}

func TestRetryAfterIsWholeSeconds(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "1", time.Millisecond: "1", time.Second: "1", 1001 * time.Millisecond: "2", time.Minute: "60"} {
		if got := retryAfter(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

// A handler in front of a Server refuses requests just as the Server does.
func TestWriteProblemIsTheServersOwn(t *testing.T) {
	for code, status := range everyCode(t) {
		if status == http.StatusInternalServerError {
			continue // the Server adds the request's id
		}
		refusal := &api.Error{Code: code, Detail: "because", RetryAfter: 1500 * time.Millisecond, Fields: map[string]any{"extra": 7}}
		front, own := httptest.NewRecorder(), httptest.NewRecorder()
		WriteProblem(front, refusal)
		NewStandby(Options{}, refusal).ServeHTTP(own, httptest.NewRequest("GET", "/k", nil))
		own.Header().Del("Content-Length") // net/http adds it to a short answer
		if front.Code != own.Code || front.Body.String() != own.Body.String() || !maps.EqualFunc(front.Header(), own.Header(), slices.Equal) {
			t.Errorf("%s: %d %s %v, want %d %s %v", code, front.Code, front.Body, front.Header(), own.Code, own.Body, own.Header())
		}
	}
}

// What net/http refuses is described in a document of the same form.
func TestMalformed(t *testing.T) {
	for status, want := range map[int][]string{
		400: {`"code":"bad_request"`, `"title":"Bad Request"`, `%25`, `missing`},
		431: {`"code":"too_large"`, `"status":431`, `65536`},
		501: {`"code":"bad_request"`, `"status":501`},
	} {
		kind, doc := Malformed(status, "400 Bad Request: missing \xff\"")
		if kind != problemType || !json.Valid(doc) {
			t.Errorf("%s: %s", kind, doc)
		}
		for _, part := range want {
			if !strings.Contains(string(doc), part) {
				t.Errorf("%s lacks %s", doc, part)
			}
		}
	}
}
