package reply

import (
	"context"
	"errors"
	"net/http"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/opjson"
)

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

// Status returns the status of a code. A code that is not in the table is a bug,
// hence 500.
func Status(c api.Code) int {
	if s, ok := statuses[c]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// Problem returns the error that is answered for err. An error that none of the cases
// knows is a bug in this package or below it. Its text stays in the log: it may have
// paths or addresses in it that are not the client's business.
func Problem(err error) *api.Error {
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
	return api.Errorf(api.BadRequest, "%v", e)
}

func compactedProblem(e *kvstore.CompactedError) *api.Error {
	p := api.Errorf(api.RevisionCompacted, "the history before revision %d has been compacted", e.CompactRevision)
	p.Fields = map[string]any{"compact_revision": e.CompactRevision}
	return p
}

// OutcomeProblem returns the error of a command that was applied without effect, or
// nil for one that took effect.
func OutcomeProblem(res *kvstore.Result) error {
	switch res.Outcome {
	case kvstore.OK:
		return nil
	case kvstore.PreconditionFailed:
		return FailedCondition(res.KV.ModRevision)
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

// FailedCondition returns the 412 for a key that is at revision now, 0 if it does not
// exist.
func FailedCondition(now uint64) *api.Error {
	p := api.Errorf(api.PreconditionFailed, "a condition of the request failed: the key is at revision %d", now)
	if now == 0 {
		p.Detail = "a condition of the request failed: the key does not exist"
	}
	p.Fields = map[string]any{"revision": now}
	return p
}
