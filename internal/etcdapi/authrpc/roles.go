package authrpc

import (
	"bytes"
	"context"
	"errors"
	"slices"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/kvd-io/kvd/internal/rights"
)

// errNothingToDo ends an edit that is carried out already.
var errNothingToDo = errors.New("nothing to do")

// editUser edits a copy of a user that exists.
func (s *Service) editUser(ctx context.Context, name string, change func(*rights.Tables, *rights.User) error) error {
	return s.edit(ctx, func(t *rights.Tables) (*rights.Change, error) {
		u := t.User(name)
		if u == nil {
			return nil, rpctypes.ErrGRPCUserNotFound
		}
		after := *u
		if err := change(t, &after); err != nil {
			return nil, unless(err, errNothingToDo)
		}
		return &rights.Change{PutUser: &after}, nil
	})
}

// editRole edits a copy of a role that exists.
func (s *Service) editRole(ctx context.Context, name string, change func(*rights.Role) error) error {
	return s.edit(ctx, func(t *rights.Tables) (*rights.Change, error) {
		r := t.Role(name)
		if r == nil {
			return nil, rpctypes.ErrGRPCRoleNotFound
		}
		after := *r
		after.Permissions = slices.Clone(r.Permissions)
		if err := change(&after); err != nil {
			return nil, unless(err, errNothingToDo)
		}
		return &rights.Change{PutRole: &after}, nil
	})
}

// unless returns the error if it is not the given one.
func unless(err, not error) error {
	if errors.Is(err, not) {
		return nil
	}
	return err
}

// RoleAdd implements pb.AuthServer.
func (s *Service) RoleAdd(ctx context.Context, r *pb.AuthRoleAddRequest) (*pb.AuthRoleAddResponse, error) {
	if r.GetName() == "" {
		return nil, rpctypes.ErrGRPCRoleEmpty
	}
	err := s.edit(ctx, func(t *rights.Tables) (*rights.Change, error) {
		if t.Role(r.GetName()) != nil {
			return nil, rpctypes.ErrGRPCRoleAlreadyExist
		}
		return &rights.Change{PutRole: &rights.Role{Name: r.GetName()}}, nil
	})
	if err != nil {
		return nil, err
	}
	return &pb.AuthRoleAddResponse{Header: s.Header()}, nil
}

// kinds has the types of permissions.
var kinds = map[rights.Access]authpb.Permission_Type{
	rights.Read: authpb.Permission_READ, rights.Write: authpb.Permission_WRITE, rights.ReadWrite: authpb.Permission_READWRITE,
}

// accessOf returns what a type of permission allows; 0 if there is no such type.
func accessOf(kind authpb.Permission_Type) rights.Access {
	for access, k := range kinds {
		if k == kind {
			return access
		}
	}
	return 0
}

// everything is what etcd shows of the role root.
var everything = &authpb.Permission{PermType: authpb.Permission_READWRITE, RangeEnd: []byte{0}}

// RoleGet implements pb.AuthServer. It shows what the role allows to do with keys.
func (s *Service) RoleGet(ctx context.Context, r *pb.AuthRoleGetRequest) (*pb.AuthRoleGetResponse, error) {
	t, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	role := t.Role(r.GetRole())
	switch {
	case role == nil:
		return nil, rpctypes.ErrGRPCRoleNotFound
	case role.Name == rights.Root:
		return &pb.AuthRoleGetResponse{Header: s.Header(), Perm: []*authpb.Permission{everything}}, nil
	}
	out := &pb.AuthRoleGetResponse{Header: s.Header()}
	for _, p := range role.Permissions {
		if p.Space == rights.Keys {
			out.Perm = append(out.Perm, &authpb.Permission{PermType: kinds[p.Access], Key: p.Key, RangeEnd: p.RangeEnd})
		}
	}
	slices.SortStableFunc(out.GetPerm(), func(a, b *authpb.Permission) int { return bytes.Compare(a.GetKey(), b.GetKey()) })
	return out, nil
}

// RoleList implements pb.AuthServer.
func (s *Service) RoleList(ctx context.Context, _ *pb.AuthRoleListRequest) (*pb.AuthRoleListResponse, error) {
	t, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	return &pb.AuthRoleListResponse{Header: s.Header(), Roles: t.Roles()}, nil
}

// RoleDelete implements pb.AuthServer.
func (s *Service) RoleDelete(ctx context.Context, r *pb.AuthRoleDeleteRequest) (*pb.AuthRoleDeleteResponse, error) {
	err := s.edit(ctx, func(t *rights.Tables) (*rights.Change, error) {
		switch {
		case t.Enabled() && r.GetRole() == rights.Root:
			return nil, rpctypes.ErrGRPCInvalidAuthMgmt
		case t.Role(r.GetRole()) == nil:
			return nil, rpctypes.ErrGRPCRoleNotFound
		}
		return &rights.Change{DeleteRole: r.GetRole()}, nil
	})
	if err != nil {
		return nil, err
	}
	return &pb.AuthRoleDeleteResponse{Header: s.Header()}, nil
}

// RoleGrantPermission implements pb.AuthServer. A permission on the same range is
// replaced.
func (s *Service) RoleGrantPermission(ctx context.Context, r *pb.AuthRoleGrantPermissionRequest) (*pb.AuthRoleGrantPermissionResponse, error) {
	if r.GetPerm() == nil {
		return nil, rpctypes.ErrGRPCPermissionNotGiven
	}
	granted := rights.Permission{Access: accessOf(r.GetPerm().GetPermType()), Key: r.GetPerm().GetKey(), RangeEnd: r.GetPerm().GetRangeEnd()}
	if granted.Validate() != nil {
		return nil, rpctypes.ErrGRPCInvalidAuthMgmt
	}
	err := s.editRole(ctx, r.GetName(), func(role *rights.Role) error {
		i := slices.IndexFunc(role.Permissions, granted.Same)
		if i >= 0 {
			role.Permissions[i].Access = granted.Access
			return nil
		}
		role.Permissions = append(role.Permissions, granted)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &pb.AuthRoleGrantPermissionResponse{Header: s.Header()}, nil
}

// RoleRevokePermission implements pb.AuthServer.
func (s *Service) RoleRevokePermission(ctx context.Context, r *pb.AuthRoleRevokePermissionRequest) (*pb.AuthRoleRevokePermissionResponse, error) {
	revoked := rights.Permission{Key: r.GetKey(), RangeEnd: r.GetRangeEnd()}
	err := s.editRole(ctx, r.GetRole(), func(role *rights.Role) error {
		i := slices.IndexFunc(role.Permissions, revoked.Same)
		if i < 0 {
			return rpctypes.ErrGRPCPermissionNotGranted
		}
		role.Permissions = slices.Delete(role.Permissions, i, i+1)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &pb.AuthRoleRevokePermissionResponse{Header: s.Header()}, nil
}
