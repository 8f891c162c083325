package access

import (
	"errors"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/rights"
)

// The reasons for a refusal. Refusals of this package match one of them with errors.Is, and
// have an *api.Error for errors.As.
var (
	ErrNoCredentials   = errors.New("no credentials")
	ErrBadCredentials  = errors.New("malformed credentials")
	ErrBadToken        = errors.New("token is unknown, expired, or revoked")
	ErrBadCertificate  = errors.New("certificate names nobody")
	ErrBadPassword     = errors.New("user or password is wrong")
	ErrTooManyAttempts = errors.New("too many attempts")
	ErrDisabled        = errors.New("rights are disabled")
	ErrDenied          = errors.New("permission denied")
	ErrStarting        = errors.New("rights are not known yet")
	ErrExposed         = errors.New("credentials in the clear")
)

// refusal is an error with a reason.
type refusal struct {
	problem *api.Error
	reason  error
	need    rights.Need // the missing right, if known
	known   bool
}

// Error returns the text of the *api.Error.
func (r *refusal) Error() string { return r.problem.Error() }

// Unwrap lets errors.As find the *api.Error, and errors.Is the reason.
func (r *refusal) Unwrap() []error { return []error{r.problem, r.reason} }

func refuse(reason error, code api.Code, format string, args ...any) error {
	return &refusal{problem: api.Errorf(code, format, args...), reason: reason}
}

// NeedOf returns the right that the caller lacked, if err is a refusal that names it.
func NeedOf(err error) (rights.Need, bool) {
	var r *refusal
	if !errors.As(err, &r) {
		return rights.Need{}, false
	}
	return r.need, r.known
}

func unauthenticated(reason error, format string, args ...any) error {
	return refuse(reason, api.Unauthenticated, format, args...)
}

func pause(wait time.Duration, format string, args ...any) error {
	p := api.Errorf(api.Overloaded, format, args...)
	p.RetryAfter = wait
	return &refusal{problem: p, reason: ErrTooManyAttempts}
}
