package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Errors to compare with errors.Is. An *Error with the details is in the chain, unless
// no node has answered.
var (
	// ErrNotFound covers the four below and unknown paths.
	ErrNotFound       = errors.New("kvd: not found")
	ErrKeyNotFound    = errors.New("kvd: key not found")
	ErrLeaseNotFound  = errors.New("kvd: lease not found; it may have ended")
	ErrLockNotFound   = errors.New("kvd: lock not found")
	ErrMemberNotFound = errors.New("kvd: member not found")

	// ErrBadRequest means that the request makes no sense; Error.Detail says why.
	ErrBadRequest         = errors.New("kvd: bad request")
	ErrFutureRevision     = errors.New("kvd: revision does not exist yet")
	ErrPreconditionFailed = errors.New("kvd: precondition failed")
	ErrCompacted          = errors.New("kvd: revision is compacted")
	ErrTooLarge           = errors.New("kvd: too large")
	ErrNoSpace            = errors.New("kvd: quota is exhausted")
	ErrLeaseExists        = errors.New("kvd: lease exists")
	ErrLockHeld           = errors.New("kvd: lock is held")
	ErrMemberExists       = errors.New("kvd: member exists")
	ErrMemberRemoved      = errors.New("kvd: member was removed")
	// ErrUnsafeChange means that a change of the membership would break the cluster.
	ErrUnsafeChange     = errors.New("kvd: unsafe change")
	ErrUnauthenticated  = errors.New("kvd: unauthenticated")
	ErrPermissionDenied = errors.New("kvd: permission denied")

	// ErrUnavailable means that no node could answer. Nothing has changed.
	ErrUnavailable = errors.New("kvd: unavailable")
	// ErrUnknownOutcome means that the change may or may not have taken effect.
	ErrUnknownOutcome = errors.New("kvd: outcome unknown")
	// ErrLost means that a session, and with it its locks, may have ended.
	ErrLost = errors.New("kvd: lease may have ended")
)

// sentinels has the errors to compare with for each code.
var sentinels = map[string][]error{
	"bad_request":          {ErrBadRequest},
	"future_revision":      {ErrFutureRevision, ErrBadRequest},
	"idempotency_mismatch": {ErrBadRequest},
	"method_not_allowed":   {ErrBadRequest},
	"key_not_found":        {ErrKeyNotFound, ErrNotFound},
	"lease_not_found":      {ErrLeaseNotFound, ErrNotFound},
	"lock_not_found":       {ErrLockNotFound, ErrNotFound},
	"member_not_found":     {ErrMemberNotFound, ErrNotFound},
	"not_found":            {ErrNotFound},
	"member_exists":        {ErrMemberExists},
	"member_removed":       {ErrMemberRemoved},
	"lease_exists":         {ErrLeaseExists},
	"lock_held":            {ErrLockHeld},
	"unsafe_change":        {ErrUnsafeChange},
	"precondition_failed":  {ErrPreconditionFailed},
	"revision_compacted":   {ErrCompacted},
	"too_large":            {ErrTooLarge},
	"no_space":             {ErrNoSpace},
	"unauthenticated":      {ErrUnauthenticated},
	"permission_denied":    {ErrPermissionDenied},
	"cross_origin":         {ErrPermissionDenied},
	"tls_required":         {ErrPermissionDenied},
	"misdirected":          {ErrPermissionDenied},
	"overloaded":           {ErrUnavailable},
	"no_leader":            {ErrUnavailable},
	"starting":             {ErrUnavailable},
	"stopping":             {ErrUnavailable},
	"audit_failed":         {ErrUnavailable},
	"read_timeout":         {ErrUnavailable},
	"timeout":              {ErrUnknownOutcome},
	"internal":             {ErrUnknownOutcome},
}

// Error is a refusal by a node: an RFC 9457 problem document.
type Error struct {
	Status int    `json:"status"` // of HTTP
	Code   string `json:"code"`   // a stable word, see the HTTP contract
	Title  string `json:"title"`
	Detail string `json:"detail"` // what was wrong with which input, and the remedy
	// Revision is the current revision of the key, if Code is precondition_failed.
	Revision uint64 `json:"revision"`
	// CompactRevision is the oldest revision that can be read, if Code is
	// revision_compacted.
	CompactRevision uint64 `json:"compact_revision"`
	// Token is the holder's, if Code is lock_held.
	Token uint64 `json:"token"`
	// RequestID identifies the request in the node's log, if the node logged it.
	RequestID string `json:"request_id"`
	// RetryAfter is how long the node asked to wait; 0 if it did not.
	RetryAfter time.Duration `json:"-"`
}

// Error returns the code and the detail.
func (e *Error) Error() string { return "kvd: " + e.Code + ": " + e.Detail }

// Is reports whether target is one of the errors for the code.
func (e *Error) Is(target error) bool {
	if known, ok := sentinels[e.Code]; ok {
		return slices.Contains(known, target)
	}
	return e.byStatus() == target
}

// byStatus is for codes of later versions, and for what stands between client and node.
func (e *Error) byStatus() error {
	switch e.Status {
	case http.StatusNotFound:
		if e.Foreign() { // it says nothing about the key
			return ErrBadRequest
		}
		return ErrNotFound
	case http.StatusUnauthorized:
		return ErrUnauthenticated
	case http.StatusForbidden:
		return ErrPermissionDenied
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return ErrUnavailable
	}
	if e.Status >= http.StatusInternalServerError {
		return ErrUnknownOutcome
	}
	return ErrBadRequest
}

// foreignCode begins the code of an answer that has none of kvd's.
const foreignCode = "http_"

// Foreign reports whether no node answered, but something in between, or another server
// at the endpoint.
func (e *Error) Foreign() bool { return strings.HasPrefix(e.Code, foreignCode) }

// temporary reports whether the request should be sent again, to this or to another
// node.
func (e *Error) temporary() bool {
	switch e.Status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return e.Code != "no_space" // space does not return by waiting
	}
	return e.Status == http.StatusInternalServerError
}

// specific returns the error in the type that carries its fields.
func (e *Error) specific() error {
	switch e.Code {
	case "precondition_failed":
		return &PreconditionFailedError{Revision: e.Revision, err: e}
	case "revision_compacted":
		return &CompactedError{CompactRevision: e.CompactRevision, err: e}
	case "permission_denied":
		return &PermissionDeniedError{Detail: e.Detail, err: e}
	}
	return e
}

// PreconditionFailedError is returned by a conditional change whose condition did
// not hold. errors.Is compares it with ErrPreconditionFailed.
type PreconditionFailedError struct {
	Revision uint64 // of the key now; 0 if it is absent
	err      *Error
}

// Error returns the node's message.
func (e *PreconditionFailedError) Error() string { return e.err.Error() }

// Unwrap returns the *Error.
func (e *PreconditionFailedError) Unwrap() error { return e.err }

// PermissionDeniedError is returned if the caller lacks a permission. It matches
// ErrPermissionDenied with errors.Is.
type PermissionDeniedError struct {
	Detail string // the permission that is missing, and for whom
	err    *Error
}

// Error returns the node's message.
func (e *PermissionDeniedError) Error() string { return e.err.Error() }

// Unwrap returns the *Error.
func (e *PermissionDeniedError) Unwrap() error { return e.err }

// CompactedError is returned for a revision that is compacted. errors.Is compares it
// with ErrCompacted.
type CompactedError struct {
	CompactRevision uint64 // the oldest revision that can be read
	err             *Error // nil if a running watch was overtaken
}

// Error names the oldest revision that can be read.
func (e *CompactedError) Error() string {
	return fmt.Sprintf("kvd: the revision is compacted; the oldest is %d", e.CompactRevision)
}

// Is reports whether target is ErrCompacted.
func (e *CompactedError) Is(target error) bool { return target == ErrCompacted }

// Unwrap returns the *Error, if a node refused the request.
func (e *CompactedError) Unwrap() error {
	if e.err == nil {
		return nil
	}
	return e.err
}

// maxProblemBytes bounds what is read of an error.
const maxProblemBytes = 64 << 10

// readError turns an answer with an error status into an *Error, and closes it.
func readError(resp *http.Response) error {
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxProblemBytes))
	e := &Error{}
	if json.Unmarshal(text, e) != nil || e.Code == "" {
		// Something in between answered, for example a proxy.
		e = &Error{Code: foreignCode + strconv.Itoa(resp.StatusCode), Title: resp.Status, Detail: strings.TrimSpace(string(text))}
	}
	e.Status = resp.StatusCode
	if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil {
		e.RetryAfter = time.Duration(seconds) * time.Second
	}
	return e
}

// mayHaveTakenEffect reports whether a change that was sent, and whose attempt ended
// with err, may have been carried out. A node that refuses says so.
func mayHaveTakenEffect(err error) bool {
	var refused *Error
	if errors.As(err, &refused) {
		return refused.Status == http.StatusGatewayTimeout || refused.Status == http.StatusInternalServerError || refused.Status == http.StatusBadGateway
	}
	// With TLS 1.3, the other side rejects a certificate after the request was written,
	// and before anybody has read it.
	var op *net.OpError
	return !errors.As(err, &op) || op.Op != "dial" && op.Op != "remote error"
}
