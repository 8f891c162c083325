package reply

import (
	"context"
	"errors"
	"net/http"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/opjson"
)

// statuses is the one table from error codes to HTTP statuses (H3).
var statuses = map[api.Code]int{
	api.BadRequest:          http.StatusBadRequest,
	api.FutureRevision:      http.StatusBadRequest,
	api.KeyNotFound:         http.StatusNotFound,
	api.MemberNotFound:      http.StatusNotFound,
	api.LeaseNotFound:       http.StatusNotFound,
	api.LockNotFound:        http.StatusNotFound,
	api.NotFound:            http.StatusNotFound,
	api.MethodNotAllowed:    http.StatusMethodNotAllowed,
	api.Unauthenticated:     http.StatusUnauthorized,
	api.PermissionDenied:    http.StatusForbidden,
	api.CrossOrigin:         http.StatusForbidden,
	api.TLSRequired:         http.StatusForbidden,
	api.Misdirected:         http.StatusMisdirectedRequest,
	api.MemberExists:        http.StatusConflict,
	api.MemberRemoved:       http.StatusConflict,
	api.LeaseExists:         http.StatusConflict,
	api.LockHeld:            http.StatusConflict,
	api.UnsafeChange:        http.StatusConflict,
	api.RevisionCompacted:   http.StatusGone,
	api.PreconditionFailed:  http.StatusPreconditionFailed,
	api.TooLarge:            http.StatusRequestEntityTooLarge,
	api.IdempotencyMismatch: http.StatusUnprocessableEntity,
	api.Overloaded:          http.StatusTooManyRequests,
	api.NoLeader:            http.StatusServiceUnavailable,
	api.Starting:            http.StatusServiceUnavailable,
	api.Stopping:            http.StatusServiceUnavailable,
	api.NoSpace:             http.StatusServiceUnavailable,
	api.AuditFailed:         http.StatusServiceUnavailable,
	api.ReadTimeout:         http.StatusServiceUnavailable,
	api.Timeout:             http.StatusGatewayTimeout,
	api.Internal:            http.StatusInternalServerError,
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
		full      *budget.FullError
	)
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &document):
		return documentProblem(document)
	case errors.As(err, &compacted):
		return compactedProblem(compacted)
	case errors.As(err, &full):
		return fullMemory(full)
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
	code := api.BadRequest
	if errors.Is(e, opjson.ErrTooLarge) {
		code = api.TooLarge
	}
	p := api.Errorf(code, "%v", e)
	p.Fields = map[string]any{"position": e.Offset + 1}
	if e.Path != "" {
		p.Fields["path"] = e.Path
	}
	return p
}

// fullMemory is the answer for a claim that found no room.
func fullMemory(e *budget.FullError) *api.Error {
	return api.Errorf(api.Overloaded, "requests hold all of the memory that --request-memory allows (%d bytes), most likely for clients that read or send slowly; nothing was done; try again later", e.Limit)
}

func compactedProblem(e *kvstore.CompactedError) *api.Error {
	p := api.Errorf(api.RevisionCompacted, "the history before revision %d has been compacted", e.CompactRevision)
	p.Fields = map[string]any{"compact_revision": e.CompactRevision}
	return p
}

// outcomes has the code of each outcome without effect, and what to say about it if the
// store did not say anything. Ignored is not among them: only kvd's own commands end so.
var outcomes = map[kvstore.Outcome]struct {
	code      api.Code
	otherwise string
}{
	kvstore.PreconditionFailed:  {api.PreconditionFailed, "a condition of the request failed"},
	kvstore.TooLarge:            {api.TooLarge, "the key, value, or range exceeds its limit"},
	kvstore.NoSpace:             {api.NoSpace, "the store has reached its quota; delete keys or raise quota_bytes in the settings"},
	kvstore.NotANumber:          {api.PreconditionFailed, "the value is not a decimal 64-bit integer"},
	kvstore.Overflow:            {api.PreconditionFailed, "the sum would overflow a 64-bit integer"},
	kvstore.FutureRevision:      {api.FutureRevision, "the requested revision does not exist yet"},
	kvstore.Invalid:             {api.BadRequest, "the store rejected the command as invalid"},
	kvstore.Compacted:           {api.RevisionCompacted, "the requested revision has been compacted"},
	kvstore.KeyNotFound:         {api.KeyNotFound, "the key does not exist"},
	kvstore.LeaseNotFound:       {api.LeaseNotFound, "the lease does not exist; it may have ended"},
	kvstore.LeaseExists:         {api.LeaseExists, "a lease with this id already exists"},
	kvstore.LockHeld:            {api.LockHeld, "another lease holds the lock"},
	kvstore.LockNotFound:        {api.LockNotFound, "the lease neither holds the lock nor waits for it"},
	kvstore.IdempotencyMismatch: {api.IdempotencyMismatch, "the idempotency key belongs to another request; a new request needs a new key"},
	kvstore.DuplicateKey:        {api.BadRequest, "the transaction writes a key twice"},
	kvstore.PermissionDenied:    {api.PermissionDenied, "permission denied"},
	kvstore.Busy:                {api.Overloaded, "a replicated table is full; try again later"},
}

// OutcomeProblem returns the error of a command that was applied without effect, or nil
// for one that took effect.
func OutcomeProblem(res *kvstore.Result) error {
	if res.Outcome == kvstore.OK {
		return nil
	}
	o, ok := outcomes[res.Outcome]
	if !ok {
		return api.Errorf(api.Internal, "unexpected outcome %d of a command", res.Outcome)
	}
	p := &api.Error{Code: o.code, Detail: res.Detail}
	if p.Detail == "" {
		p.Detail = o.otherwise
	}
	switch res.Outcome {
	case kvstore.PreconditionFailed:
		return FailedCondition(res.KV.ModRevision)
	case kvstore.NotANumber, kvstore.Overflow:
		p.Fields = map[string]any{"revision": res.KV.ModRevision}
	case kvstore.Compacted:
		p.Fields = map[string]any{"compact_revision": res.CompactRevision}
	}
	return p
}

// TxnProblem is OutcomeProblem for a transaction. The detail begins with the path of the
// operation that failed, as the store has it.
func TxnProblem(res *kvstore.Result) error {
	p := OutcomeProblem(res)
	if res.Outcome == kvstore.PreconditionFailed && res.Detail != "" {
		failed := FailedCondition(res.KV.ModRevision)
		failed.Detail = res.Detail
		return failed
	}
	return p
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
