package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/kvd-io/kvd/client"
)

// The exit codes. 3 is taken: other commands of kvd exit with it when they refuse
// to touch data.
const (
	exitOK        = 0
	exitFailed    = 1
	exitUsage     = 2
	exitNotFound  = 4
	exitCondition = 5
	exitUnknown   = 6
	exitDown      = 7
	exitDenied    = 8
)

// exitCodes describes the codes for the help and the documents.
var exitCodes = []struct {
	code int
	text string
}{
	{exitOK, "success"},
	{exitFailed, "failed; nothing was changed unless the message says so"},
	{exitUsage, "the command line or a variable is wrong"},
	{exitNotFound, "the key, lease, lock, member, user, role, or token does not exist"},
	{exitCondition, "a condition did not hold, or the lock is held; nothing was changed"},
	{exitUnknown, "the outcome is unknown: the change may or may not have taken effect"},
	{exitDown, "no node could answer in time; nothing was changed"},
	{exitDenied, "you are not known, or may not do that; nothing was changed"},
}

// exitCodesHelp is the part of a help that lists the codes.
func exitCodesHelp() string {
	var b strings.Builder
	b.WriteString("Exit codes:")
	for _, c := range exitCodes {
		fmt.Fprintf(&b, "\n  %d  %s", c.code, c.text)
	}
	return b.String()
}

// failure is an error that was put into words for the user. The code is what the
// process exits with.
type failure struct {
	code int
	text string
	err  error
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.err }

// failf describes an outcome that did not come from the client.
func failf(code int, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &failure{code, err.Error(), err}
}

// ExitStatus is the status of a command that ran on the user's behalf, which
// becomes kvd's own. It has been reported already, by that command.
type ExitStatus int

// Error names the status.
func (s ExitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// ExitCode returns the code that a command exits with after the error.
func ExitCode(err error) int {
	var status ExitStatus
	var said *failure
	var usage UsageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &status):
		return int(status)
	case errors.As(err, &said):
		return said.code
	case errors.As(err, &usage):
		return exitUsage
	}
	// Of the commands here, run has classified every error. The others know only success
	// and failure: a health check that cannot connect has failed.
	return exitFailed
}

// classify maps errors of the client. It is the only place that does. An unknown
// outcome comes first: its chain also has the error that made it so.
func classify(err error) int {
	switch {
	case errors.Is(err, client.ErrUnknownOutcome):
		return exitUnknown
	case errors.Is(err, client.ErrNotFound):
		return exitNotFound
	case errors.Is(err, client.ErrPreconditionFailed), errors.Is(err, client.ErrLockHeld):
		return exitCondition
	case errors.Is(err, client.ErrUnauthenticated), errors.Is(err, client.ErrPermissionDenied):
		return exitDenied
	case distrust(err) != "":
		return exitFailed // waiting does not help
	case errors.Is(err, client.ErrUnavailable), isUnreachable(err):
		return exitDown
	}
	return exitFailed
}

// isUnreachable reports whether the last attempt got no answer, or none in time.
func isUnreachable(err error) bool {
	var refused *client.Error
	var transport *url.Error
	if errors.As(err, &refused) {
		return false
	}
	return errors.As(err, &transport) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, client.ErrUnavailable)
}

// distrust describes why one side does not accept the certificate of the other, or
// returns "".
func distrust(err error) string {
	var cert *tls.CertificateVerificationError
	var op *net.OpError
	switch {
	case errors.As(err, &cert):
		return fmt.Sprintf("the certificate of the node is not trusted: %v; name the authority that signed it with --cacert", cert.Err)
	case errors.As(err, &op) && op.Op == "remote error":
		return fmt.Sprintf("the node refuses the connection: %v; present a client certificate with --cert and --key", op.Err)
	}
	return ""
}

// explain puts an error of the client into words that name the remedy.
func explain(err error) error {
	var said *failure
	var usage UsageError
	var status ExitStatus
	if err == nil || errors.As(err, &said) || errors.As(err, &usage) || errors.As(err, &status) {
		return err
	}
	code := classify(err)
	return &failure{code, wording(err, code), err}
}

// wording returns the message for an error with this exit code.
func wording(err error, code int) string {
	var refused *client.Error
	var compacted *client.CompactedError
	text := err.Error()
	switch {
	case errors.As(err, &refused) && refused.Foreign():
		text = fmt.Sprintf("the endpoint answers %q: %.200s; check that --endpoints or KVD_ENDPOINTS has the client URLs of nodes", refused.Title, refused.Detail)
	case refused != nil && refused.Detail != "":
		text = refused.Detail
	case errors.As(err, &compacted):
		text = fmt.Sprintf("the history before revision %d has been compacted", compacted.CompactRevision)
	case distrust(err) != "":
		text = distrust(err)
	case isUnreachable(err):
		text = unreachable(err)
	}
	text = strings.TrimPrefix(strings.TrimPrefix(text, "kvd client: "), "kvd: ")
	switch {
	case code == exitUnknown && isUnreachable(err) || code == exitUnknown && refused != nil:
		return "the outcome is unknown (" + text + "); read the key to see whether the change took effect, or allow more time with --timeout"
	case errors.Is(err, client.ErrCompacted):
		return text + "; choose a later revision, or keep history longer (kvd settings retention_millis=…)"
	case errors.Is(err, client.ErrTooLarge):
		return text + "; \"kvd settings\" shows the limits of the cluster"
	case errors.Is(err, client.ErrUnauthenticated):
		return text + " (kvd login, --user, or --token)"
	case errors.Is(err, client.ErrNoSpace):
		return text + "; delete keys, compact, or raise the quota (kvd settings quota_bytes=…)"
	}
	return text
}

// unreachable describes why no node was reached. The errors of the transport
// repeat the request; what matters is whom it was for and what went wrong.
func unreachable(err error) string {
	var transport *url.Error
	if !errors.As(err, &transport) {
		return "no node answered in time; check --endpoints, or allow more time with --timeout"
	}
	where, reason := "the node", transport.Err.Error()
	u, parseErr := url.Parse(transport.URL)
	if parseErr == nil {
		where = u.Scheme + "://" + u.Host
	}
	var dial *net.OpError
	switch {
	case errors.Is(err, http.ErrSchemeMismatch) && parseErr == nil:
		return fmt.Sprintf("%s does not speak TLS; write http://%s", where, u.Host)
	case errors.As(err, &dial) && dial.Op == "dial" && dial.Addr != nil && dial.Addr.Network() == "unix":
		where = "unix://" + dial.Addr.String()
		reason = cause(dial)
	case errors.As(err, &dial) && dial.Op == "dial":
		reason = cause(dial)
	case errors.Is(transport.Err, context.DeadlineExceeded):
		reason = "no answer in time"
	}
	return fmt.Sprintf("cannot reach %s: %s; check that a node runs there, or name others with --endpoints or KVD_ENDPOINTS", where, reason)
}

// cause returns the error of the system below that of the network.
func cause(dial *net.OpError) string {
	var call *os.SyscallError
	if errors.As(dial.Err, &call) {
		return call.Err.Error()
	}
	return dial.Err.Error()
}
