package answer

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kvd-io/kvd/internal/access"
	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/watch"
)

// byCode has what the refusals of the node become. A refusal that is not here is told
// with its own text (ownWords).
var byCode = map[api.Code]error{
	api.NoLeader:         rpctypes.ErrGRPCNoLeader,
	api.Starting:         rpctypes.ErrGRPCNoLeader,
	api.Stopping:         rpctypes.ErrGRPCStopped,
	api.Timeout:          rpctypes.ErrGRPCTimeout,
	api.ReadTimeout:      rpctypes.ErrGRPCTimeout,
	api.Overloaded:       rpctypes.ErrGRPCRequestTooManyRequests,
	api.TooLarge:         rpctypes.ErrGRPCRequestTooLarge,
	api.NoSpace:          rpctypes.ErrGRPCNoSpace,
	api.LeaseNotFound:    rpctypes.ErrGRPCLeaseNotFound,
	api.LeaseExists:      rpctypes.ErrGRPCLeaseExist,
	api.MemberNotFound:   rpctypes.ErrGRPCMemberNotFound,
	api.MemberRemoved:    rpctypes.ErrGRPCMemberNotFound,
	api.MemberExists:     rpctypes.ErrGRPCMemberExist,
	api.UnsafeChange:     rpctypes.ErrGRPCUnhealthy,
	api.PermissionDenied: rpctypes.ErrGRPCPermissionDenied,
	api.Unauthenticated:  rpctypes.ErrGRPCInvalidAuthToken,
}

// byReason has what the refusals of package access become, in the order in which they are
// looked for. Clients of etcd log in for some of them, and try again.
var byReason = []struct{ reason, known error }{
	{access.ErrNoCredentials, rpctypes.ErrGRPCUserEmpty},
	{access.ErrBadToken, rpctypes.ErrGRPCInvalidAuthToken},
	{access.ErrBadCredentials, rpctypes.ErrGRPCInvalidAuthToken},
	{access.ErrBadPassword, rpctypes.ErrGRPCAuthFailed},
	{access.ErrBadCertificate, rpctypes.ErrGRPCPermissionDenied},
	{access.ErrDisabled, rpctypes.ErrGRPCAuthNotEnabled},
}

// ownWords has the codes of refusals that etcd has no text for.
var ownWords = map[api.Code]codes.Code{
	api.BadRequest:          codes.InvalidArgument,
	api.AuditFailed:         codes.Unavailable,
	api.TLSRequired:         codes.PermissionDenied,
	api.NotFound:            codes.NotFound,
	api.KeyNotFound:         codes.NotFound,
	api.PreconditionFailed:  codes.FailedPrecondition,
	api.IdempotencyMismatch: codes.FailedPrecondition,
}

// Error returns what a client of etcd gets for an error of the node, the store, or a
// handler. An error that is one of gRPC already stays as it is.
func Error(err error) error {
	if err == nil {
		return nil
	}
	var refusal *api.Error
	var compacted *kvstore.CompactedError
	var future *kvstore.FutureRevisionError
	var full *budget.FullError
	switch {
	case errors.As(err, &refusal):
		for _, r := range byReason {
			if errors.Is(err, r.reason) {
				return r.known
			}
		}
		return ofRefusal(refusal)
	case errors.As(err, &compacted):
		return rpctypes.ErrGRPCCompacted
	case errors.As(err, &future):
		return rpctypes.ErrGRPCFutureRev
	case errors.As(err, &full), errors.Is(err, budget.ErrNoPlace), errors.Is(err, watch.ErrTooMany):
		return rpctypes.ErrGRPCRequestTooManyRequests
	case errors.Is(err, watch.ErrClosed):
		return rpctypes.ErrGRPCStopped
	case errors.Is(err, context.Canceled):
		return rpctypes.ErrGRPCCanceled
	case errors.Is(err, context.DeadlineExceeded):
		return rpctypes.ErrGRPCDeadlineExceeded
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Internal, err.Error())
}

func ofRefusal(e *api.Error) error {
	if known := byCode[e.Code]; known != nil {
		return known
	}
	if code, ok := ownWords[e.Code]; ok {
		return status.Error(code, "etcdserver: "+e.Detail)
	}
	return status.Error(codes.Internal, e.Error())
}

// byOutcome has what the outcomes of commands become.
var byOutcome = map[kvstore.Outcome]error{
	kvstore.TooLarge:         rpctypes.ErrGRPCRequestTooLarge,
	kvstore.NoSpace:          rpctypes.ErrGRPCNoSpace,
	kvstore.FutureRevision:   rpctypes.ErrGRPCFutureRev,
	kvstore.Compacted:        rpctypes.ErrGRPCCompacted,
	kvstore.KeyNotFound:      rpctypes.ErrGRPCKeyNotFound,
	kvstore.LeaseNotFound:    rpctypes.ErrGRPCLeaseNotFound,
	kvstore.LeaseExists:      rpctypes.ErrGRPCLeaseExist,
	kvstore.DuplicateKey:     rpctypes.ErrGRPCDuplicateKey,
	kvstore.PermissionDenied: rpctypes.ErrGRPCPermissionDenied,
	kvstore.Busy:             rpctypes.ErrGRPCRequestTooManyRequests,
}

// Outcome returns what a client gets for a command that changed nothing, and nil for one
// that was carried out.
func Outcome(r *kvstore.Result) error {
	if r.Outcome == kvstore.OK {
		return nil
	}
	if known := byOutcome[r.Outcome]; known != nil {
		return known
	}
	if r.Outcome == kvstore.Invalid {
		return status.Error(codes.InvalidArgument, "etcdserver: "+r.Detail)
	}
	return status.Errorf(codes.Internal, "etcdserver: outcome %d: %s", r.Outcome, r.Detail)
}
