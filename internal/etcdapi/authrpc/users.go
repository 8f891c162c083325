package authrpc

import (
	"context"
	"encoding/base64"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kvd-io/kvd/internal/rights"
)

func has(u *rights.User, role string) bool { return slices.Contains(u.Roles, role) }

var errHash = status.Errorf(codes.InvalidArgument, "etcdserver: hashedPassword is not the base64 form of a bcrypt hash with a cost of at most %d; give the password instead", rights.MaxHashCost)

// hashOf returns the hash of a password, or the one that the client has made. An empty
// password is none.
func (s *Service) hashOf(ctx context.Context, password, hashed string) ([]byte, error) {
	switch {
	case password != "":
		return s.Passwords.Hash(ctx, password)
	case hashed == "":
		return nil, nil
	}
	hash, err := base64.StdEncoding.DecodeString(hashed)
	if err != nil {
		return nil, errHash
	}
	if cost, err := bcrypt.Cost(hash); err != nil || cost > rights.MaxHashCost {
		return nil, errHash
	}
	return hash, nil
}

// UserAdd implements pb.AuthServer. The password is hashed before the edit: hashing takes
// long, and the others would wait.
func (s *Service) UserAdd(ctx context.Context, r *pb.AuthUserAddRequest) (*pb.AuthUserAddResponse, error) {
	if r.GetName() == "" {
		return nil, rpctypes.ErrGRPCUserEmpty
	}
	u := &rights.User{Name: r.GetName()}
	if !r.GetOptions().GetNoPassword() {
		var err error
		if u.Hash, err = s.hashOf(ctx, r.GetPassword(), r.GetHashedPassword()); err != nil {
			return nil, err
		}
	}
	err := s.edit(ctx, func(t *rights.Tables) (*rights.Change, error) {
		if t.User(u.Name) != nil {
			return nil, rpctypes.ErrGRPCUserAlreadyExist
		}
		return &rights.Change{PutUser: u}, nil
	})
	if err != nil {
		return nil, err
	}
	return &pb.AuthUserAddResponse{Header: s.Header()}, nil
}

// UserGet implements pb.AuthServer.
func (s *Service) UserGet(ctx context.Context, r *pb.AuthUserGetRequest) (*pb.AuthUserGetResponse, error) {
	t, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	u := t.User(r.GetName())
	if u == nil {
		return nil, rpctypes.ErrGRPCUserNotFound
	}
	return &pb.AuthUserGetResponse{Header: s.Header(), Roles: u.Roles}, nil
}

// UserList implements pb.AuthServer.
func (s *Service) UserList(ctx context.Context, _ *pb.AuthUserListRequest) (*pb.AuthUserListResponse, error) {
	t, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	return &pb.AuthUserListResponse{Header: s.Header(), Users: t.Users()}, nil
}

// UserDelete implements pb.AuthServer.
func (s *Service) UserDelete(ctx context.Context, r *pb.AuthUserDeleteRequest) (*pb.AuthUserDeleteResponse, error) {
	err := s.edit(ctx, func(t *rights.Tables) (*rights.Change, error) {
		switch {
		case t.Enabled() && r.GetName() == rights.Root:
			return nil, rpctypes.ErrGRPCInvalidAuthMgmt
		case t.User(r.GetName()) == nil:
			return nil, rpctypes.ErrGRPCUserNotFound
		}
		return &rights.Change{DeleteUser: r.GetName()}, nil
	})
	if err != nil {
		return nil, err
	}
	return &pb.AuthUserDeleteResponse{Header: s.Header()}, nil
}

// UserChangePassword implements pb.AuthServer. Without a password nobody can log in as the
// user anymore, as in etcd.
func (s *Service) UserChangePassword(ctx context.Context, r *pb.AuthUserChangePasswordRequest) (*pb.AuthUserChangePasswordResponse, error) {
	hash, err := s.hashOf(ctx, r.GetPassword(), r.GetHashedPassword())
	if err != nil {
		return nil, err
	}
	err = s.edit(ctx, func(t *rights.Tables) (*rights.Change, error) {
		if t.User(r.GetName()) == nil {
			return nil, rpctypes.ErrGRPCUserNotFound
		}
		return &rights.Change{SetPassword: &rights.Password{User: r.GetName(), Hash: hash}}, nil
	})
	if err != nil {
		return nil, err
	}
	return &pb.AuthUserChangePasswordResponse{Header: s.Header()}, nil
}

// UserGrantRole implements pb.AuthServer. A role that the user has already is no edit.
func (s *Service) UserGrantRole(ctx context.Context, r *pb.AuthUserGrantRoleRequest) (*pb.AuthUserGrantRoleResponse, error) {
	err := s.editUser(ctx, r.GetUser(), func(t *rights.Tables, u *rights.User) error {
		switch {
		case r.GetRole() != rights.Root && t.Role(r.GetRole()) == nil:
			return rpctypes.ErrGRPCRoleNotFound
		case has(u, r.GetRole()):
			return errNothingToDo
		}
		u.Roles = append(slices.Clone(u.Roles), r.GetRole())
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &pb.AuthUserGrantRoleResponse{Header: s.Header()}, nil
}

// UserRevokeRole implements pb.AuthServer.
func (s *Service) UserRevokeRole(ctx context.Context, r *pb.AuthUserRevokeRoleRequest) (*pb.AuthUserRevokeRoleResponse, error) {
	err := s.editUser(ctx, r.GetName(), func(t *rights.Tables, u *rights.User) error {
		switch {
		case t.Enabled() && r.GetName() == rights.Root && r.GetRole() == rights.Root:
			return rpctypes.ErrGRPCInvalidAuthMgmt
		case !has(u, r.GetRole()):
			return rpctypes.ErrGRPCRoleNotGranted
		}
		u.Roles = slices.DeleteFunc(slices.Clone(u.Roles), func(name string) bool { return name == r.GetRole() })
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &pb.AuthUserRevokeRoleResponse{Header: s.Header()}, nil
}
