package etcdapi_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"go.uber.org/zap"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/etcdapi"
	"github.com/kvd-io/kvd/internal/etcdapi/etcdtest"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/rights"
)

// as returns a client with a password.
func as(t testing.TB, user string, nodes ...*etcdtest.Node) *clientv3.Client {
	t.Helper()
	var urls []string
	for _, n := range nodes {
		urls = append(urls, n.Etcd)
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: urls, DialTimeout: 10 * time.Second, Username: user, Password: user + "-secret", Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// steady is for tests that would fail if a busy machine made a leader lose its office.
func steady() *etcdtest.Config { return &etcdtest.Config{Tick: 100 * time.Millisecond} }

// grant is a permission of a test.
type grant struct {
	key, end string
	kind     clientv3.PermissionType
}

const (
	r  = clientv3.PermissionType(clientv3.PermRead)
	w  = clientv3.PermissionType(clientv3.PermWrite)
	rw = clientv3.PermissionType(clientv3.PermReadWrite)
)

// addUser adds a user with a role of the same name.
func addUser(ctx context.Context, t testing.TB, c *clientv3.Client, user string, grants ...grant) {
	t.Helper()
	must[*clientv3.AuthRoleAddResponse](t)(c.RoleAdd(ctx, user))
	for _, g := range grants {
		must[*clientv3.AuthRoleGrantPermissionResponse](t)(c.RoleGrantPermission(ctx, user, g.key, g.end, g.kind))
	}
	must[*clientv3.AuthUserAddResponse](t)(c.UserAdd(ctx, user, user+"-secret"))
	must[*clientv3.AuthUserGrantRoleResponse](t)(c.UserGrantRole(ctx, user, user))
}

// enable enables rights.
func enable(ctx context.Context, t testing.TB, c *clientv3.Client) {
	t.Helper()
	addUser(ctx, t, c, "root")
	must[*clientv3.AuthEnableResponse](t)(c.AuthEnable(ctx))
}

func wantErr(t testing.TB, got, want error) {
	t.Helper()
	if !errors.Is(rpctypes.Error(got), want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestClientsLogIn: clientv3 fetches its tokens by itself, and each caller may do what its
// roles permit.
func TestClientsLogIn(t *testing.T) {
	n, c := alone(t, nil)
	ctx := t.Context()
	addUser(ctx, t, c, "ann", grant{"a/", "a0", rw}, grant{"b", "", r})
	enable(ctx, t, c)
	_, err := c.Get(ctx, "a/1")
	wantErr(t, err, rpctypes.ErrUserEmpty)
	ann, root := as(t, "ann", n), as(t, "root", n)
	must[*clientv3.PutResponse](t)(root.Put(ctx, "b", "1"))
	must[*clientv3.PutResponse](t)(ann.Put(ctx, "a/1", "1"))
	must[*clientv3.GetResponse](t)(ann.Get(ctx, "a/", clientv3.WithPrefix()))
	must[*clientv3.GetResponse](t)(ann.Get(ctx, "b"))
	_, err = ann.Put(ctx, "b", "2")
	wantErr(t, err, rpctypes.ErrPermissionDenied)
	_, err = ann.UserList(ctx)
	wantErr(t, err, rpctypes.ErrPermissionDenied)
	if _, err := ann.UserGet(ctx, "ann"); err != nil {
		t.Error(err)
	}
	must[*clientv3.AuthDisableResponse](t)(root.AuthDisable(ctx))
	must[*clientv3.PutResponse](t)(ann.Put(ctx, "b", "2"))
	must[*clientv3.PutResponse](t)(c.Put(ctx, "b", "3"))
}

// TestEdits goes through the calls about users and roles with the errors and the counting
// of etcd.
func TestEdits(t *testing.T) {
	_, c := alone(t, nil)
	ctx := t.Context()
	revision := func() uint64 { return must[*clientv3.AuthStatusResponse](t)(c.AuthStatus(ctx)).AuthRevision }
	edits := uint64(1)
	for _, step := range []struct {
		what string
		do   func() error
		want error
		same bool // it works, and changes nothing
	}{
		{"a user without a name", func() error { _, err := c.UserAdd(ctx, "", "x"); return err }, rpctypes.ErrUserEmpty, false},
		{"a user", func() error { _, err := c.UserAdd(ctx, "ann", "x"); return err }, nil, false},
		{"the user again", func() error { _, err := c.UserAdd(ctx, "ann", "y"); return err }, rpctypes.ErrUserAlreadyExist, false},
		{"a role without a name", func() error { _, err := c.RoleAdd(ctx, ""); return err }, rpctypes.ErrRoleEmpty, false},
		{"a role", func() error { _, err := c.RoleAdd(ctx, "team"); return err }, nil, false},
		{"the role again", func() error { _, err := c.RoleAdd(ctx, "team"); return err }, rpctypes.ErrRoleAlreadyExist, false},
		{"a role for nobody", func() error { _, err := c.UserGrantRole(ctx, "bob", "team"); return err }, rpctypes.ErrUserNotFound, false},
		{"no role", func() error { _, err := c.UserGrantRole(ctx, "ann", "none"); return err }, rpctypes.ErrRoleNotFound, false},
		{"a role for a user", func() error { _, err := c.UserGrantRole(ctx, "ann", "team"); return err }, nil, false},
		{"the role once more", func() error { _, err := c.UserGrantRole(ctx, "ann", "team"); return err }, nil, true},
		{"a permission for no role", func() error { _, err := c.RoleGrantPermission(ctx, "none", "a", "", rw); return err }, rpctypes.ErrRoleNotFound, false},
		{"a permission on nothing", func() error { _, err := c.RoleGrantPermission(ctx, "team", "", "", rw); return err }, rpctypes.ErrInvalidAuthMgmt, false},
		{"a range that ends before it begins", func() error { _, err := c.RoleGrantPermission(ctx, "team", "b", "a", rw); return err }, rpctypes.ErrInvalidAuthMgmt, false},
		{"a permission of no kind", func() error { _, err := c.RoleGrantPermission(ctx, "team", "a", "", 7); return err }, rpctypes.ErrInvalidAuthMgmt, false},
		{"a permission", func() error { _, err := c.RoleGrantPermission(ctx, "team", "b", "c", r); return err }, nil, false},
		{"another one", func() error { _, err := c.RoleGrantPermission(ctx, "team", "a", "", rw); return err }, nil, false},
		{"the first with another kind", func() error { _, err := c.RoleGrantPermission(ctx, "team", "b", "c", w); return err }, nil, false},
		{"to revoke what was not granted", func() error { _, err := c.RoleRevokePermission(ctx, "team", "b", "d"); return err }, rpctypes.ErrPermissionNotGranted, false},
		{"to revoke from no role", func() error { _, err := c.RoleRevokePermission(ctx, "none", "b", "c"); return err }, rpctypes.ErrRoleNotFound, false},
		{"to revoke a role that was not granted", func() error { _, err := c.UserRevokeRole(ctx, "ann", "root"); return err }, rpctypes.ErrRoleNotGranted, false},
		{"to revoke a role from nobody", func() error { _, err := c.UserRevokeRole(ctx, "bob", "team"); return err }, rpctypes.ErrUserNotFound, false},
		{"a new password", func() error { _, err := c.UserChangePassword(ctx, "ann", "y"); return err }, nil, false},
		{"a password of nobody", func() error { _, err := c.UserChangePassword(ctx, "bob", "y"); return err }, rpctypes.ErrUserNotFound, false},
		{"to delete nobody", func() error { _, err := c.UserDelete(ctx, "bob"); return err }, rpctypes.ErrUserNotFound, false},
		{"to delete no role", func() error { _, err := c.RoleDelete(ctx, "none"); return err }, rpctypes.ErrRoleNotFound, false},
		{"to see nobody", func() error { _, err := c.UserGet(ctx, "bob"); return err }, rpctypes.ErrUserNotFound, false},
		{"to see the role root, which nobody has added", func() error { _, err := c.RoleGet(ctx, "root"); return err }, rpctypes.ErrRoleNotFound, false},
		{"to log in while nobody has to", func() error { _, err := c.Authenticate(ctx, "ann", "y"); return err }, rpctypes.ErrAuthNotEnabled, false},
		{"to enable without root", func() error { _, err := c.AuthEnable(ctx); return err }, rpctypes.ErrRootUserNotExist, false},
		{"the user root", func() error { _, err := c.UserAdd(ctx, "root", "root-secret"); return err }, nil, false},
		{"to enable without its role", func() error { _, err := c.AuthEnable(ctx); return err }, rpctypes.ErrRootRoleNotExist, false},
		{"its role", func() error { _, err := c.UserGrantRole(ctx, "root", "root"); return err }, nil, false},
		{"to disable what is off", func() error { _, err := c.AuthDisable(ctx); return err }, nil, true},
	} {
		wantErr(t, step.do(), step.want)
		if step.want == nil && !step.same {
			edits++
		}
		if got := revision(); got != edits {
			t.Fatalf("after %s: revision %d, want %d", step.what, got, edits)
		}
	}
	role := must[*clientv3.AuthRoleGetResponse](t)(c.RoleGet(ctx, "team"))
	if len(role.Perm) != 2 || string(role.Perm[0].Key) != "a" || string(role.Perm[1].Key) != "b" || role.Perm[1].PermType != authpb.Permission_WRITE {
		t.Errorf("the role: %v", role.Perm)
	}
	must[*clientv3.AuthEnableResponse](t)(c.AuthEnable(ctx))
	_, err := c.AuthEnable(ctx)
	wantErr(t, err, rpctypes.ErrUserEmpty)
	for name, password := range map[string]string{"ann": "x", "bob": "", "root": ""} {
		_, err = c.Authenticate(ctx, name, password)
		wantErr(t, err, rpctypes.ErrAuthFailed)
	}
	must[*clientv3.AuthenticateResponse](t)(c.Authenticate(ctx, "ann", "y"))
	if got := revision(); got != edits {
		t.Errorf("enabling and logins raised the revision to %d, want %d", got, edits)
	}
}

// TestProbesNeedNobody: a node with rights is as healthy as one without.
func TestProbesNeedNobody(t *testing.T) {
	n, c := alone(t, nil)
	enable(t.Context(), t, c)
	for _, serializable := range []bool{false, true} {
		if err := n.Calls.Probes().Read(t.Context(), serializable); err != nil {
			t.Errorf("serializable %v: %v", serializable, err)
		}
	}
}

// TestRootStays: what would leave nobody who may do everything is refused as in etcd.
func TestRootStays(t *testing.T) {
	n, c := alone(t, nil)
	ctx := t.Context()
	enable(ctx, t, c)
	root := as(t, "root", n)
	for _, do := range []func() error{
		func() error { _, err := root.UserDelete(ctx, "root"); return err },
		func() error { _, err := root.UserRevokeRole(ctx, "root", "root"); return err },
		func() error { _, err := root.RoleDelete(ctx, "root"); return err },
	} {
		wantErr(t, do(), rpctypes.ErrInvalidAuthMgmt)
	}
	if r := must[*clientv3.AuthRoleGetResponse](t)(root.RoleGet(ctx, "root")); len(r.Perm) != 1 || r.Perm[0].PermType != authpb.Permission_READWRITE || string(r.Perm[0].RangeEnd) != "\x00" {
		t.Errorf("the role root: %v", r.Perm)
	}
	must[*clientv3.AuthDisableResponse](t)(root.AuthDisable(ctx))
	must[*clientv3.AuthUserDeleteResponse](t)(c.UserDelete(ctx, "root"))
}

// TestUsersWithoutPassword: nobody can log in as them, and a hash that a client has made is
// as good as a password.
func TestUsersWithoutPassword(t *testing.T) {
	n, c := alone(t, nil)
	ctx := t.Context()
	must[*clientv3.AuthUserAddResponse](t)(c.UserAddWithOptions(ctx, "robot", "", &clientv3.UserAddOptions{NoPassword: true}))
	hash := must[[]byte](t)(bcrypt.GenerateFromPassword([]byte("hash-secret"), bcrypt.MinCost))
	auth := pb.NewAuthClient(c.ActiveConnection())
	must[*pb.AuthUserAddResponse](t)(auth.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "hash", HashedPassword: base64.StdEncoding.EncodeToString(hash)}))
	costly := strings.Replace(string(hash), "$04$", "$15$", 1)
	for _, bad := range []string{"not base64", base64.StdEncoding.EncodeToString([]byte("not bcrypt")), base64.StdEncoding.EncodeToString([]byte(costly))} {
		if _, err := auth.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "bad", HashedPassword: bad}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%q: %v", bad, err)
		}
	}
	enable(ctx, t, c)
	_, err := c.Authenticate(ctx, "robot", "")
	wantErr(t, err, rpctypes.ErrAuthFailed)
	must[*clientv3.AuthenticateResponse](t)(c.Authenticate(ctx, "hash", "hash-secret"))
	root := as(t, "root", n)
	must[*clientv3.AuthUserChangePasswordResponse](t)(root.UserChangePassword(ctx, "hash", ""))
	_, err = c.Authenticate(ctx, "hash", "hash-secret")
	wantErr(t, err, rpctypes.ErrAuthFailed)
	_, err = c.Authenticate(ctx, "hash", "")
	wantErr(t, err, rpctypes.ErrAuthFailed)
}

// TestEditsKeepWhatEtcdDoesNotKnow holds U2: capabilities, permissions on locks, and the
// tokens of a user are as before.
func TestEditsKeepWhatEtcdDoesNotKnow(t *testing.T) {
	n, c := alone(t, nil)
	ctx := t.Context()
	lock := rights.Permission{Access: rights.Write, Space: rights.Locks, Key: []byte("a")}
	change(t, n, &rights.Change{PutRole: &rights.Role{Name: "team", Permissions: []rights.Permission{lock}, Capabilities: []rights.Capability{rights.Backup, rights.Operate}}})
	change(t, n, &rights.Change{PutUser: &rights.User{Name: "ann", Hash: []byte("hash"), Roles: []string{"team"}}})
	id, _ := tokenFor(t, n, "ann", time.Time{})
	must[*clientv3.AuthRoleAddResponse](t)(c.RoleAdd(ctx, "more"))
	must[*clientv3.AuthUserGrantRoleResponse](t)(c.UserGrantRole(ctx, "ann", "more"))
	must[*clientv3.AuthRoleGrantPermissionResponse](t)(c.RoleGrantPermission(ctx, "team", "a", "", rw))
	if r := must[*clientv3.AuthRoleGetResponse](t)(c.RoleGet(ctx, "team")); len(r.Perm) != 1 {
		t.Errorf("what etcd knows: %v", r.Perm)
	}
	must[*clientv3.AuthRoleRevokePermissionResponse](t)(c.RoleRevokePermission(ctx, "team", "a", ""))
	must[*clientv3.AuthUserRevokeRoleResponse](t)(c.UserRevokeRole(ctx, "ann", "more"))
	tables := n.Store().Rights()
	role, ann := tables.Role("team"), tables.User("ann")
	if len(role.Permissions) != 1 || !role.Permissions[0].Same(lock) || role.Permissions[0].Access != lock.Access || len(role.Capabilities) != 2 {
		t.Errorf("the role is %+v", role)
	}
	if string(ann.Hash) != "hash" || !slices.Equal(ann.Roles, []string{"team"}) || tables.Token(id) == nil {
		t.Errorf("the user is %+v, the token %v", ann, tables.Token(id))
	}
	_, err := c.RoleRevokePermission(ctx, "team", "a", "") // that on the lock is another one
	wantErr(t, err, rpctypes.ErrPermissionNotGranted)
}

// TestConcurrentEditsAreKept holds U1: clients of three nodes edit one role and add users,
// and nothing of it is lost.
func TestConcurrentEditsAreKept(t *testing.T) {
	nodes := etcdtest.Start(t, 3, steady())
	ctx := t.Context()
	must[*clientv3.AuthRoleAddResponse](t)(clientOf(t, nodes[0]).RoleAdd(ctx, "team"))
	const each = 8
	var work sync.WaitGroup
	for i, n := range nodes {
		c := clientOf(t, n)
		for j := range each {
			work.Go(func() {
				key := fmt.Sprint(i, "-", j)
				if _, err := c.RoleGrantPermission(ctx, "team", key, "", rw); err != nil {
					t.Error(err)
				}
				if _, err := c.UserAdd(ctx, key, "secret"); err != nil {
					t.Error(err)
				}
				if _, err := c.UserGrantRole(ctx, key, "team"); err != nil {
					t.Error(err)
				}
			})
		}
	}
	work.Wait()
	for _, n := range nodes {
		c := clientOf(t, n)
		role := must[*clientv3.AuthRoleGetResponse](t)(c.RoleGet(ctx, "team"))
		users := must[*clientv3.AuthUserListResponse](t)(c.UserList(ctx))
		st := must[*clientv3.AuthStatusResponse](t)(c.AuthStatus(ctx))
		if len(role.Perm) != 3*each || len(users.Users) != 3*each || st.AuthRevision != 2+3*3*each {
			t.Errorf("%d permissions, %d users, revision %d", len(role.Perm), len(users.Users), st.AuthRevision)
		}
		for _, name := range users.Users {
			if got := must[*clientv3.AuthUserGetResponse](t)(c.UserGet(ctx, name)); !slices.Equal(got.Roles, []string{"team"}) {
				t.Errorf("%s has the roles %v", name, got.Roles)
			}
		}
	}
}

// group has commands applied in order with nothing in between, as the cluster itself.
func group(t testing.TB, n *etcdtest.Node, commands ...*kvstore.Command) []*kvstore.Result {
	t.Helper()
	results, err := tryGroup(t.Context(), n, commands...)
	if err != nil {
		t.Fatal(err)
	}
	return results
}

// tryGroup is group for any goroutine.
func tryGroup(ctx context.Context, n *etcdtest.Node, commands ...*kvstore.Command) ([]*kvstore.Result, error) {
	var encoded [][]byte
	for _, cmd := range commands {
		cmd.Origin = kvstore.Origin{Principal: rights.Root}
		encoded = append(encoded, n.Encode(nil, cmd))
	}
	results, err := n.DoGroup(ctx, encoded, nil)
	if err != nil {
		return nil, err
	}
	for _, res := range results {
		if res.Outcome != kvstore.OK {
			return nil, fmt.Errorf("outcome %d: %s", res.Outcome, res.Detail)
		}
	}
	return results, nil
}

func putKey(key string) *kvstore.Command {
	return &kvstore.Command{Op: kvstore.OpPut, Key: []byte(key)}
}

// TestWatchLosesItsRight: of two watches on a stream, the one whose right is taken is
// canceled before it gets what was written directly after that, and the other one goes on.
func TestWatchLosesItsRight(t *testing.T) {
	n, c := alone(t, nil)
	ctx := t.Context()
	addUser(ctx, t, c, "ann", grant{"a/", "a0", r}, grant{"b", "", r})
	enable(ctx, t, c)
	ann := as(t, "ann", n)
	lost, kept := ann.Watch(ctx, "a/", clientv3.WithPrefix()), ann.Watch(ctx, "b", clientv3.WithCreatedNotify())
	denied := ann.Watch(ctx, "c")
	if r := <-denied; !r.Canceled || !errors.Is(rpctypes.Error(r.Err()), rpctypes.ErrPermissionDenied) && !strings.HasSuffix(r.Err().Error(), rpctypes.ErrPermissionDenied.Error()) {
		t.Errorf("a watch of what one may not read: %+v, %v", r, r.Err())
	}
	<-kept
	group(t, n, putKey("a/1"))
	if r := <-lost; len(r.Events) != 1 || string(r.Events[0].Kv.Key) != "a/1" {
		t.Fatalf("before: %+v, %v", r, r.Err())
	}
	role := *n.Store().Rights().Role("ann")
	role.Permissions = slices.DeleteFunc(slices.Clone(role.Permissions), func(p rights.Permission) bool { return string(p.Key) == "a/" })
	group(t, n, &kvstore.Command{Op: kvstore.OpRights, Rights: &rights.Change{PutRole: &role}}, putKey("a/2"), putKey("b"))
	for r := range lost {
		if len(r.Events) > 0 || !r.Canceled || !strings.HasSuffix(r.Err().Error(), rpctypes.ErrPermissionDenied.Error()) {
			t.Fatalf("after: %+v, %v", r, r.Err())
		}
	}
	if r := <-kept; len(r.Events) != 1 || string(r.Events[0].Kv.Key) != "b" {
		t.Errorf("the other watch: %+v, %v", r, r.Err())
	}
	root := as(t, "root", n)
	must[*clientv3.AuthUserDeleteResponse](t)(root.UserDelete(ctx, "ann"))
	for r := range kept {
		if !r.Canceled {
			t.Fatalf("a watch of a user who is gone: %+v", r)
		}
	}
}

// TestRecipesLoseTheirRight: a wait for a lock, and for the words of a leader, ends with the
// right to it, before anything is told that was written after that.
func TestRecipesLoseTheirRight(t *testing.T) {
	n, c := alone(t, nil)
	ctx := t.Context()
	addUser(ctx, t, c, "ann", grant{"lock/", "lock0", rw}, grant{"e/", "e0", r})
	enable(ctx, t, c)
	group(t, n, putKey("lock/held"), putKey("e/1"))
	_, secret := tokenFor(t, n, "ann", time.Time{})
	ann := withToken(ctx, secret)
	var work sync.WaitGroup
	seen := make(chan string, 10)
	stream := &tape{once: newOnce(ann, &v3electionpb.LeaderRequest{Name: []byte("e")}), seen: seen}
	for _, do := range []func() error{
		func() error {
			_, err := n.Calls.Call(ann, "/v3lockpb.Lock/Lock", func(m any) error {
				m.(*v3lockpb.LockRequest).Name = []byte("lock")
				return nil
			})
			return err
		},
		func() error { return n.Calls.Stream("/v3electionpb.Election/Observe", stream) },
	} {
		work.Go(func() {
			if err := do(); !errors.Is(aboutRights(err), rpctypes.ErrPermissionDenied) {
				t.Errorf("it ended with %v", err)
			}
		})
	}
	if got := <-seen; got != "e/1" {
		t.Errorf("observed %q", got)
	}
	// The lock is asked for once its key is there.
	root := as(t, "root", n)
	for len(must[*clientv3.GetResponse](t)(root.Get(ctx, "lock/", clientv3.WithPrefix())).Kvs) < 2 {
	}
	role := *n.Store().Rights().Role("ann")
	role.Permissions = nil
	group(t, n, &kvstore.Command{Op: kvstore.OpRights, Rights: &rights.Change{PutRole: &role}}, putKey("e/1"))
	work.Wait()
	close(seen)
	for key := range seen {
		t.Errorf("%q was told after the right was gone", key)
	}
}

// tape is a stream that notes what a leader says.
type tape struct {
	*once
	seen chan<- string
}

func (s *tape) SendMsg(m any) error {
	s.seen <- string(m.(*v3electionpb.LeaderResponse).GetKv().GetKey())
	return nil
}

// judged counts the commands that were refused when they were applied.
type judged struct {
	etcdapi.Replicator
	refused *atomic.Int64
}

func (j judged) Do(ctx context.Context, cmd *kvstore.Command, note etcdapi.NoteStage) (kvstore.Result, error) {
	res, err := j.Replicator.Do(ctx, cmd, note)
	if res.Outcome == kvstore.PermissionDenied {
		j.refused.Add(1)
	}
	return res, err
}

// TestQueuedWritesOfARevokedUser: the leader of three nodes stops, and while the others elect
// one, writes of a user queue on both of them, and the revocation among them. None of those
// writes takes effect after the revocation, which is followed directly by a write that marks
// its place. On each node some writes have passed the door and are refused in their place
// in the log.
func TestQueuedWritesOfARevokedUser(t *testing.T) {
	var refused [4]atomic.Int64 // by member
	cfg := steady()
	cfg.Options = func(o *etcdapi.Options) { o.Replicator = judged{o.Replicator, &refused[o.Member.ID()%4]} }
	nodes := etcdtest.Start(t, 3, cfg)
	ctx := t.Context()
	c := clientOf(t, nodes[0])
	addUser(ctx, t, c, "ann", grant{"a/", "a0", rw})
	enable(ctx, t, c)
	_, secret := tokenFor(t, nodes[0], "ann", time.Time{})
	role := *nodes[0].Store().Rights().Role("ann")
	without := role
	without.Permissions = nil
	const most = 20 // rounds: in almost every one, writes queue behind the revocation
	for round := 0; ; round++ {
		for _, n := range nodes { // the doors must let the writes through
			if err := n.Barrier(ctx, nil); err != nil {
				t.Fatal(err)
			}
		}
		leader := slices.IndexFunc(nodes, func(n *etcdtest.Node) bool { return n.IsLeader() })
		if leader < 0 {
			continue
		}
		rest := slices.Delete(slices.Clone(nodes), leader, leader+1)
		nodes[leader].Stop()
		var mark uint64
		var lost error
		var work sync.WaitGroup
		for i, n := range rest {
			for j := range 40 {
				if i == 0 && j == 20 {
					work.Go(func() {
						var res []*kvstore.Result
						res, lost = tryGroup(ctx, n, &kvstore.Command{Op: kvstore.OpRights, Rights: &rights.Change{PutRole: &without}}, putKey(fmt.Sprint("mark/", round)))
						if lost == nil {
							mark = res[1].Revision
						}
					})
				}
				key := fmt.Appendf(nil, "a/%d/%d/%d", round, i, j)
				work.Go(func() {
					_, _ = n.Calls.Call(withToken(ctx, secret), "/etcdserverpb.KV/Put", func(m any) error {
						m.(*pb.PutRequest).Key = key
						return nil
					})
				})
			}
		}
		work.Wait()
		nodes[leader].Restart()
		if lost != nil { // nobody knows where it is in the log, if anywhere
			mark = math.MaxUint64
			for i := range refused {
				refused[i].Store(0)
			}
			t.Logf("round %d: the revocation has no answer: %v", round, lost)
		}
		got := must[*clientv3.GetResponse](t)(as(t, "root", rest[0]).Get(ctx, fmt.Sprintf("a/%d/", round), clientv3.WithPrefix()))
		for _, kv := range got.Kvs {
			if uint64(kv.ModRevision) > mark {
				t.Errorf("%s was written at revision %d, after the revocation before %d", kv.Key, kv.ModRevision, mark)
			}
		}
		done := 0
		for _, n := range nodes {
			if refused[n.ID()].Load() > 0 {
				done++
			}
		}
		if t.Failed() || done == len(nodes) {
			return
		}
		if round == most {
			t.Fatalf("after %d rounds no write was refused where it was applied on %d nodes", most, len(nodes)-done)
		}
		change(t, rest[0], &rights.Change{PutRole: &role})
	}
}

// laggard is a replicator that learns something with the next barrier.
type laggard struct {
	etcdapi.Replicator
	late func()
}

func (l *laggard) Barrier(ctx context.Context, note etcdapi.NoteStage) error {
	if late := l.late; late != nil {
		l.late = nil
		late()
	}
	return l.Replicator.Barrier(ctx, note)
}

// TestReadBehindARevocation: a node that learns only while a read waits to be linearizable
// that its caller's token was revoked, or that rights were enabled, answers by the rights
// that came with the data.
func TestReadBehindARevocation(t *testing.T) {
	l := new(laggard)
	n, c := alone(t, &etcdtest.Config{Options: func(o *etcdapi.Options) { l.Replicator, o.Replicator = o.Replicator, l }})
	addUser(t.Context(), t, c, "root")
	change(t, n, &rights.Change{PutRole: &rights.Role{Name: rights.Anonymous}})
	for method, request := range map[string]proto.Message{
		"KV/Range":              &pb.RangeRequest{Key: []byte("a")},
		"KV/Txn":                &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("a")}}}}},
		"Lease/LeaseTimeToLive": &pb.LeaseTimeToLiveRequest{ID: bound(t, n, turns.Add(1)), Keys: true},
		"Cluster/MemberList":    &pb.MemberListRequest{Linearizable: true},
		"Auth/UserGet":          &pb.AuthUserGetRequest{Name: "root"},
		"Auth/UserList":         new(pb.AuthUserListRequest),
		"Auth/RoleGet":          &pb.AuthRoleGetRequest{Role: "root"},
		"Auth/RoleList":         new(pb.AuthRoleListRequest),
	} {
		call := func(ctx context.Context) error {
			_, err := n.Calls.Call(ctx, "/etcdserverpb."+method, func(m any) error {
				proto.Merge(m.(proto.Message), request)
				return nil
			})
			return err
		}
		if method != "Cluster/MemberList" { // which is for everybody with a role
			l.late = func() { change(t, n, &rights.Change{Enable: true}) }
			refused(t, method+" behind rights", call(t.Context()), rpctypes.ErrGRPCUserEmpty)
			change(t, n, &rights.Change{Disable: true})
		}
		change(t, n, &rights.Change{Enable: true})
		id, secret := tokenFor(t, n, "root", time.Time{})
		l.late = func() { change(t, n, &rights.Change{DeleteToken: id}) }
		refused(t, method+" behind a revocation", call(withToken(t.Context(), secret)), rpctypes.ErrGRPCInvalidAuthToken)
		change(t, n, &rights.Change{Disable: true})
	}
}
