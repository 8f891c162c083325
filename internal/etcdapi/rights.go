package etcdapi

import (
	"context"
	"crypto/tls"
	"errors"
	"strings"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/kvd-io/kvd/internal/access"
	"github.com/kvd-io/kvd/internal/audit"
	"github.com/kvd-io/kvd/internal/etcdapi/answer"
	"github.com/kvd-io/kvd/internal/etcdapi/authrpc"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/rights"
)

// This file defines who may call what. A call is checked up to three times: by the table
// below, before the service is called; by the service, once it knows the keys of the call
// (judge.allow, Server.propose); and, if it goes through the log, by the store.

// requirement checks a call by its method and its request, which is nil for a stream. A nil
// requirement means that the call needs the role root.
type requirement func(ctx context.Context, j *judge, req any) error

// required has what each method needs. Methods that are missing here need the role root.
var required = map[string]requirement{
	"/etcdserverpb.KV/Range":       byKeys,
	"/etcdserverpb.KV/RangeStream": byKeys,
	"/etcdserverpb.KV/Put":         byKeys,
	"/etcdserverpb.KV/DeleteRange": byKeys,
	"/etcdserverpb.KV/Txn":         byKeys,
	"/etcdserverpb.KV/Compact":     having(rights.Operate),

	"/etcdserverpb.Watch/Watch": byKeys,

	"/etcdserverpb.Lease/LeaseGrant":      byKeys,
	"/etcdserverpb.Lease/LeaseRevoke":     byKeys,
	"/etcdserverpb.Lease/LeaseKeepAlive":  byKeys,
	"/etcdserverpb.Lease/LeaseTimeToLive": byKeys,
	"/etcdserverpb.Lease/LeaseLeases":     byKeys,

	"/etcdserverpb.Cluster/MemberList":    somebody,
	"/etcdserverpb.Cluster/MemberAdd":     having(rights.Members),
	"/etcdserverpb.Cluster/MemberRemove":  having(rights.Members),
	"/etcdserverpb.Cluster/MemberUpdate":  having(rights.Members),
	"/etcdserverpb.Cluster/MemberPromote": having(rights.Members),

	"/etcdserverpb.Maintenance/Status":     somebody,
	"/etcdserverpb.Maintenance/Alarm":      alarming,
	"/etcdserverpb.Maintenance/Defragment": having(rights.Operate),
	"/etcdserverpb.Maintenance/Hash":       having(rights.Operate),
	"/etcdserverpb.Maintenance/HashKV":     having(rights.Operate),
	"/etcdserverpb.Maintenance/Downgrade":  having(rights.Operate),
	"/etcdserverpb.Maintenance/MoveLeader": having(rights.Members),
	"/etcdserverpb.Maintenance/Snapshot":   having(rights.Backup),

	"/etcdserverpb.Auth/AuthStatus":           unlessWrong,
	"/etcdserverpb.Auth/Authenticate":         anybody, // with a token that has expired
	"/etcdserverpb.Auth/AuthEnable":           byRoot,
	"/etcdserverpb.Auth/AuthDisable":          byRoot,
	"/etcdserverpb.Auth/UserAdd":              having(rights.Auth),
	"/etcdserverpb.Auth/UserGet":              oneself,
	"/etcdserverpb.Auth/UserList":             having(rights.Auth),
	"/etcdserverpb.Auth/UserDelete":           having(rights.Auth),
	"/etcdserverpb.Auth/UserChangePassword":   oneself,
	"/etcdserverpb.Auth/UserGrantRole":        having(rights.Auth),
	"/etcdserverpb.Auth/UserRevokeRole":       having(rights.Auth),
	"/etcdserverpb.Auth/RoleAdd":              having(rights.Auth),
	"/etcdserverpb.Auth/RoleGet":              oneself,
	"/etcdserverpb.Auth/RoleList":             having(rights.Auth),
	"/etcdserverpb.Auth/RoleDelete":           having(rights.Auth),
	"/etcdserverpb.Auth/RoleGrantPermission":  having(rights.Auth),
	"/etcdserverpb.Auth/RoleRevokePermission": having(rights.Auth),

	// Whatever these do, they do by the services above, as the same caller.
	"/v3lockpb.Lock/Lock":             byKeys,
	"/v3lockpb.Lock/Unlock":           byKeys,
	"/v3electionpb.Election/Campaign": byKeys,
	"/v3electionpb.Election/Proclaim": byKeys,
	"/v3electionpb.Election/Leader":   byKeys,
	"/v3electionpb.Election/Observe":  byKeys,
	"/v3electionpb.Election/Resign":   byKeys,

	"/grpc.health.v1.Health/Check": anybody,
	"/grpc.health.v1.Health/List":  anybody,
	"/grpc.health.v1.Health/Watch": anybody,
}

// anybody admits every caller, whatever its credentials.
func anybody(ctx context.Context, j *judge, _ any) error {
	j.caller(ctx).settled.Store(true)
	return nil
}

// byKeys leaves the check to the service.
func byKeys(context.Context, *judge, any) error { return nil }

// unlessWrong admits every caller whose credentials are not invalid.
func unlessWrong(ctx context.Context, j *judge, _ any) error {
	who := j.caller(ctx)
	who.settled.Store(true)
	return who.wrong
}

// somebody admits every authenticated user, and with a role anonymous every caller.
func somebody(ctx context.Context, j *judge, _ any) error { return j.allow(ctx) }

func having(c rights.Capability) requirement {
	return func(ctx context.Context, j *judge, _ any) error { return j.allow(ctx, rights.Need{Capability: c}) }
}

// byRoot admits users with the role root.
func byRoot(ctx context.Context, j *judge, _ any) error {
	if err := j.allow(ctx); err != nil {
		return err
	}
	return answer.Error(j.gate.CheckRoot(&j.caller(ctx).Caller))
}

// alarming admits every user to a list of alarms, and demands a capability for the rest.
func alarming(ctx context.Context, j *judge, req any) error {
	if r, ok := req.(*pb.AlarmRequest); ok && r.GetAction() == pb.AlarmRequest_GET {
		return j.allow(ctx)
	}
	return j.allow(ctx, rights.Need{Capability: rights.Operate})
}

// oneself admits users who ask about themselves or one of their roles.
func oneself(ctx context.Context, j *judge, req any) error {
	if err := j.allow(ctx); err != nil {
		return err
	}
	if me := j.gate.Tables().User(j.caller(ctx).User); me != nil {
		switch r := req.(type) {
		case *pb.AuthUserGetRequest:
			if r.GetName() == me.Name {
				return nil
			}
		case *pb.AuthUserChangePasswordRequest:
			if r.GetName() == me.Name {
				return nil
			}
		case *pb.AuthRoleGetRequest:
			for _, name := range me.Roles {
				if r.GetRole() == name {
					return nil
				}
			}
		}
	}
	return j.allow(ctx, rights.Need{Capability: rights.Auth})
}

// judge authenticates callers and checks their rights.
type judge struct{ gate *access.Gate }

// caller is who makes a call.
type caller struct {
	access.Caller
	// wrong is why the credentials are invalid. As in etcd, it is returned only after the
	// request was validated, because clients depend on the order of errors.
	wrong error
	// settled is set once rights were checked. It is a safety net: a service that forgets
	// to check cannot answer (unsettled).
	settled atomic.Bool
}

type callerKey struct{}

// caller returns who makes a call. A stream that began while rights were disabled has not
// been authenticated yet.
func (j *judge) caller(ctx context.Context) *caller {
	if c, ok := ctx.Value(callerKey{}).(*caller); ok {
		return c
	}
	return j.identify(ctx)
}

func (j *judge) identify(ctx context.Context) *caller {
	who, err := j.gate.Identify(ctx, credentialsOf(ctx))
	return &caller{Caller: who, wrong: j.refused(ctx, err)}
}

// errUnsettled replaces the answer of a service that has checked no rights, which is a bug.
var errUnsettled = status.Error(codes.Internal, "etcdserver: the call was not judged; this is a bug of kvd")

// unsettled reports whether a call is about to be answered without a check of rights.
func unsettled(ctx context.Context) bool {
	c, ok := ctx.Value(callerKey{}).(*caller)
	return ok && !c.settled.Load()
}

// refused returns the etcd error for a refusal, and keeps the refusal for the audit log.
func (j *judge) refused(ctx context.Context, err error) error {
	audit.FromContext(ctx).Note(err)
	return answer.Error(err)
}

// admit authenticates the caller, and checks what can be checked without the service.
func (j *judge) admit(ctx context.Context, c *call, req any) (context.Context, error) {
	if !j.gate.Enabled() {
		return ctx, nil
	}
	who := j.identify(ctx)
	ctx = access.NewContext(context.WithValue(ctx, callerKey{}, who), &who.Caller)
	if c.required == nil {
		return ctx, byRoot(ctx, j, req)
	}
	return ctx, c.required(ctx, j, req)
}

// credentialsOf returns the credentials of a call. The gateway passes on the header
// Authorization, but no certificate.
func credentialsOf(ctx context.Context) *access.Credentials {
	at := linkOf(ctx)
	cr := &access.Credentials{SameUser: at.SameUser(), Exposed: at.Exposed}
	if p, ok := peer.FromContext(ctx); ok {
		if p.Addr != nil {
			cr.Address = p.Addr.String()
		}
		cr.TLS = stateOf(p.AuthInfo)
	}
	md, _ := metadata.FromIncomingContext(ctx)
	if token := md.Get(rpctypes.TokenFieldNameGRPC); len(token) > 0 {
		cr.Token = token[0]
	} else if header := md.Get(rpctypes.TokenFieldNameSwagger); len(header) > 0 {
		if cr.Authorization = header[0]; !strings.Contains(header[0], " ") { // the token alone, as etcd wants it
			cr.Authorization, cr.Token = "", header[0]
		}
	}
	return cr
}

// stateOf returns the TLS state of a client's connection.
func stateOf(of credentials.AuthInfo) *tls.ConnectionState {
	switch a := of.(type) {
	case tlsAuth:
		return &a.State
	case credentials.TLSInfo:
		return &a.State
	}
	return nil
}

// allow returns nil if the caller has all needed rights, and otherwise the etcd error. Reads
// call it again before they answer: the data may be newer than the rights at the first check.
func (j *judge) allow(ctx context.Context, needs ...rights.Need) error {
	if !j.gate.Enabled() {
		return nil
	}
	who := j.caller(ctx)
	who.settled.Store(true)
	if who.wrong != nil {
		return who.wrong
	}
	if err := j.gate.Check(&who.Caller, rights.Need{}); err != nil {
		return j.refused(ctx, err)
	}
	return j.refused(ctx, j.gate.Check(&who.Caller, needs...))
}

// Somebody returns nil if an HTTP request that is not a call of etcd's API comes from an
// authenticated user or there is a role anonymous. Its error is meant for HTTP clients.
func (j *judge) Somebody(ctx context.Context) error {
	err := j.allow(ctx)
	if errors.Is(err, rpctypes.ErrGRPCUserEmpty) {
		err = status.Error(codes.Unauthenticated, status.Convert(err).Message())
	}
	return err
}

// allowLease checks access to everything that is bound to a lease.
func (j *judge) allowLease(ctx context.Context, id uint64, to rights.Access) error {
	if err := j.allow(ctx); err != nil || !j.gate.Enabled() {
		return err
	}
	return j.refused(ctx, j.gate.CheckLease(&j.caller(ctx).Caller, id, to))
}

// allowCommand checks the rights that a command needs.
func (j *judge) allowCommand(ctx context.Context, cmd *kvstore.Command) error {
	if err := j.allow(ctx); err != nil || !j.gate.Enabled() {
		return err
	}
	return j.refused(ctx, j.gate.CheckCommand(&j.caller(ctx).Caller, cmd))
}

// Allow implements the interfaces of watchrpc and recipes.
func (j *judge) Allow(ctx context.Context, needs ...rights.Need) error {
	err := j.allow(ctx, needs...)
	if err != nil { // the stream continues, so its end does not record the refusal
		audit.FromContext(ctx).RefusedAsNoted()
	}
	return err
}

// Changed returns a channel that is closed with the next change of the rights.
func (j *judge) Changed() <-chan struct{} { return j.gate.Changed() }

// propose checks a command and proposes it.
func (s *Server) propose(ctx context.Context, cmd *kvstore.Command) (kvstore.Result, error) {
	if err := s.allowCommand(ctx, cmd); err != nil {
		return kvstore.Result{}, err
	}
	if s.opts.Gate.Enabled() {
		cmd.Origin = s.opts.Gate.Origin(&s.caller(ctx).Caller)
	}
	res, err := s.opts.Replicator.Do(ctx, cmd, nil)
	if err == nil && res.Outcome == kvstore.PermissionDenied && cmd.Origin.Principal == "" {
		err = rpctypes.ErrGRPCUserEmpty // rights were enabled meanwhile; clients log in, and try again
	}
	return res, err
}

// reading is the right to read the range of a request.
func (s *span) reading() rights.Need {
	return rights.Need{Access: rights.Read, Range: rights.Range{Start: s.start, End: s.end, One: s.single}}
}

// newAuth returns the service Auth.
func (s *Server) newAuth() *authrpc.Service {
	return authrpc.New(authrpc.Options{
		Tables:    s.gate.Tables,
		Barrier:   func(ctx context.Context) error { return s.opts.Replicator.Barrier(ctx, nil) },
		Propose:   s.propose,
		Passwords: passwords{s},
		Header:    s.headers.Now,
	})
}

// passwords uses the gate, and returns etcd's errors.
type passwords struct{ *Server }

// Hash implements authrpc.Passwords.
func (p passwords) Hash(ctx context.Context, password string) ([]byte, error) {
	hash, err := p.opts.Gate.Hash(ctx, password)
	return hash, answer.Error(err)
}

// Login implements authrpc.Passwords.
func (p passwords) Login(ctx context.Context, user, password string) (string, error) {
	token, _, err := p.opts.Gate.Login(ctx, user, password, credentialsOf(ctx).Address)
	return token, answer.Error(err)
}
