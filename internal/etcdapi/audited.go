package etcdapi

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kvd-io/kvd/internal/access"
	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/audit"
)

// begin finds out who calls, and judges what can be judged without the service. What the
// audit log says about the call begins here; the caller ends it.
func (c *call) begin(ctx context.Context, s *Server, method string, req any) (context.Context, *audit.Request, error) {
	var rec *audit.Request
	if s.opts.Audit != nil { // putting the address together is not free
		rec = s.opts.Audit.Begin(audit.Subject{Face: audit.FaceEtcd, Operation: shortName(method), Client: remoteOf(ctx)})
	}
	ctx = audit.NewContext(ctx, rec)
	ctx, err := s.admit(ctx, c, req)
	who := access.FromContext(ctx)
	rec.By(who)
	if c.administrative {
		by := api.Requester{RequestID: rec.ID(), Client: remoteOf(ctx)}
		if who != nil {
			by.Principal = who.User
		}
		ctx = api.WithRequester(ctx, by)
		if err == nil {
			err = rec.Intend(ctx, targetOf(req))
		}
	}
	return ctx, rec, err
}

// recorded records how a call has ended that began with begin.
func (c *call) recorded(rec *audit.Request, req any, err error) {
	if rec == nil {
		return
	}
	rec.End(audit.Ending{Err: err, Outcome: wordOf(err), Refused: isRefusal(err), Administrative: c.administrative, Target: targetOf(req)})
}

// administrative reports whether calls of a method are in the audit log even if they change
// nothing.
func administrative(method string) bool {
	return strings.HasPrefix(method, "/etcdserverpb.Cluster/") || strings.HasPrefix(method, "/etcdserverpb.Auth/") ||
		strings.HasPrefix(method, "/etcdserverpb.Maintenance/") && method != "/etcdserverpb.Maintenance/Status"
}

// wordOf returns the word for a call that failed.
func wordOf(err error) string {
	if err == nil {
		return ""
	}
	return strings.ToLower(status.Code(err).String())
}

// isRefusal reports whether an error is about who calls. etcd has codes of other meanings
// for some of them.
func isRefusal(err error) bool {
	switch code := status.Code(err); code {
	case codes.Unauthenticated, codes.PermissionDenied:
		return true
	case codes.InvalidArgument:
		for _, known := range []error{rpctypes.ErrGRPCUserEmpty, rpctypes.ErrGRPCAuthFailed, rpctypes.ErrGRPCAuthOldRevision} {
			if status.Convert(err).Message() == status.Convert(known).Message() {
				return true
			}
		}
	}
	return false
}

// targetOf names the member, the user, or the role that a request is about.
func targetOf(req any) string {
	var parts []string
	if r, ok := req.(interface{ GetID() uint64 }); ok && r.GetID() != 0 {
		parts = append(parts, fmt.Sprintf("member %x", r.GetID()))
	}
	if r, ok := req.(interface{ GetName() string }); ok {
		parts = append(parts, strconv.Quote(r.GetName()))
	}
	if r, ok := req.(interface{ GetUser() string }); ok {
		parts = append(parts, strconv.Quote(r.GetUser()))
	}
	if r, ok := req.(interface{ GetRole() string }); ok {
		parts = append(parts, strconv.Quote(r.GetRole()))
	}
	return strings.Join(parts, " ")
}
