package authrpc

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/kvd-io/kvd/internal/etcdapi/answer"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/rights"
)

// Passwords hashes and checks passwords, a few at a time. Its errors are returned to clients.
type Passwords interface {
	// Hash returns the bcrypt hash of a password.
	Hash(ctx context.Context, password string) ([]byte, error)
	// Login returns a token for the user with the password.
	Login(ctx context.Context, user, password string) (token string, err error)
}

// Options configure a Service. All fields are required.
type Options struct {
	// Tables returns the users and roles as this node has them.
	Tables func() *rights.Tables
	// Barrier waits until this node has what was committed before.
	Barrier func(context.Context) error
	// Propose judges and carries out a command, as the user of the context.
	Propose   func(context.Context, *kvstore.Command) (kvstore.Result, error)
	Passwords Passwords
	// Header returns the header of an answer.
	Header func() *pb.ResponseHeader
}

// Service is etcdserverpb.Auth. It is safe for concurrent use.
type Service struct {
	pb.UnsafeAuthServer // a method that a later version adds must not compile unnoticed
	Options
	turn chan struct{} // has a token while nobody edits
}

// New returns a Service.
func New(o Options) *Service {
	s := &Service{Options: o, turn: make(chan struct{}, 1)}
	s.turn <- struct{}{}
	return s
}

// read returns the tables as they are now.
func (s *Service) read(ctx context.Context) (*rights.Tables, error) {
	if err := s.Barrier(ctx); err != nil {
		return nil, err
	}
	return s.Tables(), nil
}

// edit proposes the change that the function returns for the tables, and starts over while
// other changes come first. A nil change means that there is nothing to do.
func (s *Service) edit(ctx context.Context, change func(*rights.Tables) (*rights.Change, error)) error {
	select {
	case <-s.turn:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { s.turn <- struct{}{} }()
	tables, err := s.read(ctx)
	for err == nil {
		var c *rights.Change
		if c, err = change(tables); err != nil || c == nil {
			return err
		}
		c.Revision = tables.Revision()
		var res kvstore.Result
		if res, err = s.Propose(ctx, &kvstore.Command{Op: kvstore.OpRights, Rights: c}); err != nil {
			return err
		}
		if res.Outcome != kvstore.PreconditionFailed {
			return answer.Outcome(&res)
		}
		tables = s.Tables() // the refusal was applied here, and so was what came before
	}
	return err
}

// AuthEnable implements pb.AuthServer.
func (s *Service) AuthEnable(ctx context.Context, _ *pb.AuthEnableRequest) (*pb.AuthEnableResponse, error) {
	err := s.edit(ctx, func(t *rights.Tables) (*rights.Change, error) {
		switch root := t.User(rights.Root); {
		case t.Enabled():
			return nil, nil
		case root == nil:
			return nil, rpctypes.ErrGRPCRootUserNotExist
		case !has(root, rights.Root):
			return nil, rpctypes.ErrGRPCRootRoleNotExist
		}
		return &rights.Change{Enable: true}, nil
	})
	if err != nil {
		return nil, err
	}
	return &pb.AuthEnableResponse{Header: s.Header()}, nil
}

// AuthDisable implements pb.AuthServer.
func (s *Service) AuthDisable(ctx context.Context, _ *pb.AuthDisableRequest) (*pb.AuthDisableResponse, error) {
	err := s.edit(ctx, func(t *rights.Tables) (*rights.Change, error) {
		if !t.Enabled() {
			return nil, nil
		}
		return &rights.Change{Disable: true}, nil
	})
	if err != nil {
		return nil, err
	}
	return &pb.AuthDisableResponse{Header: s.Header()}, nil
}

// AuthStatus implements pb.AuthServer.
func (s *Service) AuthStatus(ctx context.Context, _ *pb.AuthStatusRequest) (*pb.AuthStatusResponse, error) {
	t, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	return &pb.AuthStatusResponse{Header: s.Header(), Enabled: t.Enabled(), AuthRevision: t.Edits()}, nil
}

// Authenticate implements pb.AuthServer. It reads after a barrier, so that a client can log
// in here right after another node has acknowledged the user.
func (s *Service) Authenticate(ctx context.Context, r *pb.AuthenticateRequest) (*pb.AuthenticateResponse, error) {
	t, err := s.read(ctx)
	switch {
	case err != nil:
		return nil, err
	case !t.Enabled():
		return nil, rpctypes.ErrGRPCAuthNotEnabled
	}
	token, err := s.Passwords.Login(ctx, r.GetName(), r.GetPassword())
	if err != nil {
		return nil, err
	}
	return &pb.AuthenticateResponse{Header: s.Header(), Token: token}, nil
}
