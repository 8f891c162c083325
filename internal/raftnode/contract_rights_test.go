package raftnode

import (
	"fmt"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/rights"
)

// Clients with rights: an administrator who gives a guest a right and takes it away, and
// guests who use it. All other clients are root. Half of what the administrator does, and
// what some guests do, goes through the etcd face.

const (
	guest      = "guest"
	guestsRole = "guests"
)

// administrator changes what guests may do, once it has enabled rights at all.
func administrator(c *client) {
	s := c.w.s
	c.pause(span{0, 600 * milli})
	n := s.anyNode()
	if !n.up {
		return
	}
	tables := storeOf(n).store.Rights()
	if tables.Enabled() && s.chance(0.5) {
		c.administerEtcd(n)
		return
	}
	ch := &rights.Change{}
	if s.chance(0.5) {
		ch.Revision = tables.Revision()
	}
	switch {
	case tables.User(rights.Root) == nil:
		ch.PutUser = &rights.User{Name: rights.Root, Hash: []byte("hash"), Roles: []string{rights.Root}}
	case tables.Role(guestsRole) == nil || s.chance(0.4):
		ch.PutRole = &rights.Role{Name: guestsRole}
		if s.chance(0.6) {
			ch.PutRole.Permissions = []rights.Permission{{Access: rights.ReadWrite, Key: []byte("g/"), RangeEnd: []byte("g0")}}
		}
	case tables.User(guest) == nil || s.chance(0.4):
		ch.PutUser = &rights.User{Name: guest}
		if s.chance(0.7) {
			ch.PutUser.Roles = []string{guestsRole}
		}
	case !tables.Enabled():
		ch.Enable = true
	default:
		ch.DeleteUser = guest
	}
	r := c.do(s.anyNode(), &kvstore.Command{Op: kvstore.OpRights, Rights: ch})
	s.reachIf(rightsStale, r != nil && r.Outcome == kvstore.PreconditionFailed)
}

// administerEtcd gives a right, or takes one away, by etcd's service Auth.
func (c *client) administerEtcd(n *simNode) {
	var method string
	var req proto.Message
	switch c.w.s.rng.IntN(4) {
	case 0:
		method, req = "RoleGrantPermission", &pb.AuthRoleGrantPermissionRequest{Name: guestsRole, Perm: &authpb.Permission{PermType: authpb.READWRITE, Key: []byte("g/"), RangeEnd: []byte("g0")}}
	case 1:
		method, req = "RoleRevokePermission", &pb.AuthRoleRevokePermissionRequest{Role: guestsRole, Key: []byte("g/"), RangeEnd: []byte("g0")}
	case 2:
		method, req = "UserGrantRole", &pb.AuthUserGrantRoleRequest{User: guest, Role: guestsRole}
	default:
		method, req = "UserRevokeRole", &pb.AuthUserRevokeRoleRequest{Name: guest, Role: guestsRole}
	}
	_, answer, _ := c.etcd(n, rights.Root, "Auth/"+method, req)
	if answer != nil {
		c.w.stats.etcd++
	}
}

// visitor is a guest: what it may not do is refused at the door, by the rights as far as
// the member knows them, or when it is applied.
func visitor(c *client) {
	s := c.w.s
	n := s.anyNode()
	if !n.up {
		return
	}
	tables := storeOf(n).store.Rights()
	key := fmt.Appendf(nil, "g/%d", s.rng.IntN(4))
	if tables.Check(guest, rights.Need{Access: rights.ReadWrite, Range: rights.Single(key)}) != nil {
		return
	}
	cmd := kvstore.Command{Op: []kvstore.Op{kvstore.OpPut, kvstore.OpDelete, kvstore.OpIncr}[s.rng.IntN(3)], Key: key, Value: []byte("1"), Delta: 1}
	if s.chance(0.3) {
		cmd = kvstore.Command{Op: kvstore.OpTxn, Txn: &kvstore.Txn{Then: []kvstore.Command{cmd}}}
	}
	cmd.Origin = kvstore.Origin{Principal: guest, AuthRevision: tables.Revision()}
	c.do(n, &cmd)
}

// etcdVisitor is a guest at the etcd face, which refuses by itself what it should not answer.
func etcdVisitor(c *client) {
	s := c.w.s
	key := fmt.Appendf(nil, "g/%d", s.rng.IntN(4))
	put := &pb.PutRequest{Key: key, Value: []byte("1")}
	var call *etcdCall
	var answer proto.Message
	var err error
	switch s.rng.IntN(4) {
	case 0:
		call, answer, err = c.etcd(s.anyNode(), guest, "KV/Range", &pb.RangeRequest{Key: []byte("g/"), RangeEnd: []byte("g0"), Serializable: s.chance(0.5)})
		if answer != nil {
			call.checkReader()
		}
	case 1:
		call, answer, err = c.etcd(s.anyNode(), guest, "KV/DeleteRange", &pb.DeleteRangeRequest{Key: key})
	case 2:
		call, answer, err = c.etcd(s.anyNode(), guest, "KV/Txn", &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: put}}}})
	default:
		call, answer, err = c.etcd(s.anyNode(), guest, "KV/Put", put)
	}
	if answer != nil {
		c.w.stats.etcd++
	}
	s.reachIf(etcdRevokedInFlight, call.id != 0 && sameEtcdError(err, rpctypes.ErrGRPCPermissionDenied))
}

// guestRights is what a guest may do, as the log says: an account of its own beside the
// tables of the store.
type guestRights struct{ enabled, exists, inRole, permitted bool }

// guestSince is what a guest may do from an entry on.
type guestSince struct {
	index uint64
	may   bool
}

func (g *guestRights) may() bool { return !g.enabled || g.exists && g.inRole && g.permitted }

// note follows a change that took effect.
func (g *guestRights) note(c *rights.Change) {
	g.enabled = g.enabled || c.Enable
	if u := c.PutUser; u != nil && u.Name == guest {
		g.exists, g.inRole = true, len(u.Roles) > 0
	}
	if r := c.PutRole; r != nil && r.Name == guestsRole {
		g.permitted = len(r.Permissions) > 0
	}
	if c.DeleteUser == guest {
		g.exists = false
	}
}

// checkRights checks X8: in the order of the log, a guest's command runs if and only if
// the guest may do it.
func (t *truth) checkRights(c *kvstore.Command, r *kvstore.Result, index uint64) {
	if c.Op == kvstore.OpRights && r.Outcome == kvstore.OK {
		t.guest.note(c.Rights)
		t.guestAt = append(t.guestAt, guestSince{index, t.guest.may()})
	}
	refused := r.Outcome == kvstore.PermissionDenied
	if c.Origin.Principal == "" && refused != t.guest.enabled { // let in before there were rights
		t.w.s.violate("X8: entry %d has a command of nobody with outcome %d, and rights are enabled: %v", index, r.Outcome, t.guest.enabled)
	}
	if c.Origin.Principal != guest {
		return
	}
	t.w.s.reachIf(revokedInFlight, refused)
	if refused == t.guest.may() {
		t.w.s.violate("X8: entry %d has a command of the guest with outcome %d, and the guest had %+v", index, r.Outcome, t.guest)
	}
}
