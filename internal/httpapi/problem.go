package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"strconv"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/opjson"
)

const problemType = "application/problem+json"

// statuses is the one table from error codes to HTTP statuses (H3).
var statuses = map[api.Code]int{
	api.BadRequest:         http.StatusBadRequest,
	api.FutureRevision:     http.StatusBadRequest,
	api.KeyNotFound:        http.StatusNotFound,
	api.MemberNotFound:     http.StatusNotFound,
	api.NotFound:           http.StatusNotFound,
	api.MethodNotAllowed:   http.StatusMethodNotAllowed,
	api.CrossOrigin:        http.StatusForbidden,
	api.Misdirected:        http.StatusMisdirectedRequest,
	api.MemberExists:       http.StatusConflict,
	api.MemberRemoved:      http.StatusConflict,
	api.UnsafeChange:       http.StatusConflict,
	api.RevisionCompacted:  http.StatusGone,
	api.PreconditionFailed: http.StatusPreconditionFailed,
	api.TooLarge:           http.StatusRequestEntityTooLarge,
	api.Overloaded:         http.StatusTooManyRequests,
	api.NoLeader:           http.StatusServiceUnavailable,
	api.Starting:           http.StatusServiceUnavailable,
	api.Stopping:           http.StatusServiceUnavailable,
	api.NoSpace:            http.StatusServiceUnavailable,
	api.ReadTimeout:        http.StatusServiceUnavailable,
	api.Timeout:            http.StatusGatewayTimeout,
	api.Internal:           http.StatusInternalServerError,
}

// statusOf returns the status of a code. A code that is not in the table is a bug,
// hence 500.
func statusOf(c api.Code) int {
	if s, ok := statuses[c]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// badRequest returns the error for input that cannot be understood.
func badRequest(format string, args ...any) *api.Error {
	return api.Errorf(api.BadRequest, format, args...)
}

// asProblem returns the error that is answered for err. An error that none of the cases
// knows is a bug in this package or below it. Its text stays in the log: it may have
// paths or addresses in it that are not the client's business.
func asProblem(err error) *api.Error {
	var (
		known     *api.Error
		document  *opjson.Error
		compacted *kvstore.CompactedError
		future    *kvstore.FutureRevisionError
	)
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &document):
		return documentProblem(document)
	case errors.As(err, &compacted):
		return compactedProblem(compacted)
	case errors.As(err, &future):
		return api.Errorf(api.FutureRevision, "the requested revision does not exist yet; the store is at revision %d", future.Revision)
	case errors.Is(err, kvstore.ErrKeyNotFound):
		return api.Errorf(api.KeyNotFound, "the key does not exist at this revision")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return api.Errorf(api.ReadTimeout, "the request timed out before this node could answer it")
	}
	return api.Errorf(api.Internal, "unexpected error; the node's log has the cause under this request id")
}

// documentProblem returns the error for a JSON document, or a line of a stream, that
// cannot be understood.
func documentProblem(e *opjson.Error) *api.Error {
	if errors.Is(e, opjson.ErrTooLarge) {
		return api.Errorf(api.TooLarge, "%v", e)
	}
	return badRequest("%v", e)
}

func compactedProblem(e *kvstore.CompactedError) *api.Error {
	p := api.Errorf(api.RevisionCompacted, "the history before revision %d has been compacted", e.CompactRevision)
	p.Fields = map[string]any{"compact_revision": e.CompactRevision}
	return p
}

// outcomeProblem returns the error of a command that was applied without effect, or
// nil for one that took effect.
func outcomeProblem(res *kvstore.Result) error {
	switch res.Outcome {
	case kvstore.OK:
		return nil
	case kvstore.PreconditionFailed:
		return failedCondition(res.KV.ModRevision)
	case kvstore.TooLarge:
		return outcomeError(api.TooLarge, res, "the key, value or range exceeds its limit")
	case kvstore.NoSpace:
		return outcomeError(api.NoSpace, res, "the store has reached its quota; delete keys or raise quota_bytes in the settings")
	case kvstore.NotANumber:
		p := outcomeError(api.PreconditionFailed, res, "the value is not a decimal 64-bit integer")
		p.Fields = map[string]any{"revision": res.KV.ModRevision}
		return p
	case kvstore.Overflow:
		p := outcomeError(api.PreconditionFailed, res, "the sum would overflow a 64-bit integer")
		p.Fields = map[string]any{"revision": res.KV.ModRevision}
		return p
	case kvstore.FutureRevision:
		return outcomeError(api.FutureRevision, res, "the requested revision does not exist yet")
	case kvstore.Invalid:
		return outcomeError(api.BadRequest, res, "the store rejected the command as invalid")
	}
	return api.Errorf(api.Internal, "unexpected outcome %d of a command", res.Outcome)
}

func outcomeError(code api.Code, res *kvstore.Result, otherwise string) *api.Error {
	if res.Detail != "" {
		return &api.Error{Code: code, Detail: res.Detail}
	}
	return &api.Error{Code: code, Detail: otherwise}
}

// failedCondition returns the 412 for a key that is at revision now, 0 if it does not
// exist.
func failedCondition(now uint64) *api.Error {
	p := api.Errorf(api.PreconditionFailed, "a condition of the request failed: the key is at revision %d", now)
	if now == 0 {
		p.Detail = "a condition of the request failed: the key does not exist"
	}
	p.Fields = map[string]any{"revision": now}
	return p
}

// WriteProblem answers with the problem document of p (RFC 9457). It is for
// handlers in front of a Server, so that a refusal looks the same whoever
// decides it.
func WriteProblem(w http.ResponseWriter, p *api.Error) {
	status := statusOf(p.Code)
	h := w.Header()
	h.Set("Content-Type", problemType)
	h["X-Content-Type-Options"] = nosniff
	setRetryAfter(h, status, p)
	w.WriteHeader(status)
	// A failed write means that the client is gone.
	_ = json.NewEncoder(w).Encode(problemDocument(p, status))
}

// problemDocument returns the members of the document, the error's own fields
// among them.
func problemDocument(p *api.Error, status int) map[string]any {
	doc := make(map[string]any, len(p.Fields)+5)
	maps.Copy(doc, p.Fields)
	doc["title"] = http.StatusText(status)
	doc["status"] = status
	doc["detail"] = p.Detail
	doc["code"] = p.Code
	return doc
}

// setRetryAfter tells a client when to repeat a request that may succeed later.
func setRetryAfter(h http.Header, status int, p *api.Error) {
	if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
		h.Set("Retry-After", retryAfter(p.RetryAfter))
	}
}

// writeProblem is WriteProblem with what only an exchange knows: its request
// id, its timing, and whether the answer is to be indented.
func (x *exchange) writeProblem(p *api.Error) {
	status := statusOf(p.Code)
	doc := problemDocument(p, status)
	if status == http.StatusInternalServerError {
		doc["request_id"] = x.requestID()
	}
	h := x.Header()
	clearPayloadHeaders(h)
	// The id is only of use to somebody who finds it in the log.
	if x.logged(status) || status == http.StatusInternalServerError {
		h.Set("X-Request-Id", x.requestID())
	}
	x.setTiming()
	setRetryAfter(h, status, p)
	if err := x.writeJSONAs(problemType, status, doc); err != nil {
		x.srv.log.Error("encoding a problem document failed", x.logFields(err)...)
		x.WriteHeader(http.StatusInternalServerError)
	}
}

// clearPayloadHeaders removes what a handler said about a payload that it then did not
// send.
func clearPayloadHeaders(h http.Header) {
	for _, name := range []string{"Content-Length", "Content-Disposition", "Content-Security-Policy", "Etag", "Location"} {
		delete(h, name)
	}
}

// retryAfter returns a duration in whole seconds, at least one.
func retryAfter(d time.Duration) string {
	return strconv.FormatInt(max(1, int64((d+time.Second-1)/time.Second)), 10)
}
