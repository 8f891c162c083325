package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// Errors to compare with errors.Is. An *Error with the details is in the chain.
var (
	ErrNotFound           = errors.New("kvd: not found") // key, lease, lock, or member
	ErrPreconditionFailed = errors.New("kvd: precondition failed")
	ErrCompacted          = errors.New("kvd: revision is compacted")
	ErrTooLarge           = errors.New("kvd: too large")
	ErrNoSpace            = errors.New("kvd: quota is exhausted")
	ErrLockHeld           = errors.New("kvd: lock is held")
	ErrUnauthenticated    = errors.New("kvd: unauthenticated")
	ErrPermissionDenied   = errors.New("kvd: permission denied")
	// ErrUnavailable means that no node could answer. Nothing has changed.
	ErrUnavailable = errors.New("kvd: unavailable")
	// ErrUnknownOutcome means that the change may or may not have taken effect.
	ErrUnknownOutcome = errors.New("kvd: outcome unknown")
)

// sentinels has the error to compare with for each code.
var sentinels = map[string]error{
	"key_not_found":       ErrNotFound,
	"lease_not_found":     ErrNotFound,
	"lock_not_found":      ErrNotFound,
	"member_not_found":    ErrNotFound,
	"not_found":           ErrNotFound,
	"precondition_failed": ErrPreconditionFailed,
	"revision_compacted":  ErrCompacted,
	"too_large":           ErrTooLarge,
	"no_space":            ErrNoSpace,
	"lock_held":           ErrLockHeld,
	"unauthenticated":     ErrUnauthenticated,
	"permission_denied":   ErrPermissionDenied,
	"overloaded":          ErrUnavailable,
	"no_leader":           ErrUnavailable,
	"starting":            ErrUnavailable,
	"stopping":            ErrUnavailable,
	"read_timeout":        ErrUnavailable,
	"timeout":             ErrUnknownOutcome,
	"internal":            ErrUnknownOutcome,
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
	// RequestID identifies the request in the node's log, if the node logged it.
	RequestID string `json:"request_id"`
	// RetryAfter is how long the node asked to wait; 0 if it did not.
	RetryAfter time.Duration `json:"-"`
}

// Error returns the code and the detail.
func (e *Error) Error() string { return "kvd: " + e.Code + ": " + e.Detail }

// Is reports whether target is the sentinel of the error's code.
func (e *Error) Is(target error) bool { return sentinels[e.Code] == target }

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
		e = &Error{Code: "http_" + strconv.Itoa(resp.StatusCode), Title: resp.Status, Detail: string(text)}
	}
	e.Status = resp.StatusCode
	if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil {
		e.RetryAfter = time.Duration(seconds) * time.Second
	}
	return e
}

// mayHaveTakenEffect reports whether a change whose attempt ended with err may have
// been carried out. A node that refuses says so; a connection that was never made
// carried nothing.
func mayHaveTakenEffect(err error) bool {
	var refused *Error
	if errors.As(err, &refused) {
		return refused.Status == http.StatusGatewayTimeout || refused.Status == http.StatusInternalServerError || refused.Status == http.StatusBadGateway
	}
	var op *net.OpError
	return !errors.As(err, &op) || op.Op != "dial"
}
