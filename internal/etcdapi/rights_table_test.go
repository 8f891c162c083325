package etcdapi_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/access"
	"github.com/kvd-io/kvd/internal/etcdapi"
	"github.com/kvd-io/kvd/internal/etcdapi/codec"
	"github.com/kvd-io/kvd/internal/etcdapi/etcdtest"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/rights"
)

// change has a change of the rights applied, as if the cluster itself asked for it.
func change(t testing.TB, n *etcdtest.Node, c *rights.Change) {
	t.Helper()
	res, err := n.Do(t.Context(), &kvstore.Command{Op: kvstore.OpRights, Rights: c, Origin: kvstore.Origin{Principal: rights.Root}}, nil)
	if err != nil || res.Outcome != kvstore.OK {
		t.Fatalf("%+v: %+v, %v", c, res, err)
	}
}

// tokenFor makes a token for a user.
func tokenFor(t testing.TB, n *etcdtest.Node, user string, expires time.Time) (id, secret string) {
	t.Helper()
	secret, sum := access.NewSecret()
	token := &rights.Token{ID: fmt.Sprintf("%s-%x", user, sum[:4]), User: user, Sum: sum, Created: time.Now().UnixMilli()}
	if !expires.IsZero() {
		token.Expires = expires.UnixMilli()
	}
	change(t, n, &rights.Change{PutToken: token})
	return token.ID, secret
}

// withToken returns the context of a call with a token, as a connection of gRPC gives it.
func withToken(ctx context.Context, token string) context.Context {
	return metadata.NewIncomingContext(ctx, metadata.Pairs(rpctypes.TokenFieldNameGRPC, token))
}

// withCertificate returns the context of a call over TLS with a client certificate.
func withCertificate(ctx context.Context, user string) context.Context {
	leaf := &x509.Certificate{Subject: pkix.Name{CommonName: user}}
	state := tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}, VerifiedChains: [][]*x509.Certificate{{leaf}}}
	return peer.NewContext(ctx, &peer.Peer{AuthInfo: credentials.TLSInfo{State: state}})
}

// credential is a kind of caller.
type credential struct {
	name string
	user string
	with func(context.Context) context.Context
	// wrong is the error for a request with these credentials; nil if the credentials are good.
	wrong error
	// known says that it is about somebody, and the rest what that user may do: partly
	// means only with keys from k/ to k/m.
	known, read, write, partly, root bool
	// token says that a token proves it, with which nobody changes a password.
	token      bool
	capability rights.Capability
}

// credentialKinds makes a caller of each kind.
func credentialKinds(t testing.TB, n *etcdtest.Node) []credential {
	t.Helper()
	all := func(a rights.Access) rights.Permission {
		return rights.Permission{Access: a, Key: []byte{0}, RangeEnd: []byte{0}}
	}
	user := func(name string, role rights.Role) credential {
		role.Name = name
		change(t, n, &rights.Change{PutRole: &role})
		change(t, n, &rights.Change{PutUser: &rights.User{Name: name, Roles: []string{name}}})
		_, secret := tokenFor(t, n, name, time.Time{})
		return credential{name: name, user: name, known: true, token: true, with: func(ctx context.Context) context.Context { return withToken(ctx, secret) }}
	}
	out := []credential{
		{name: "none", with: func(ctx context.Context) context.Context { return ctx }},
		{name: "wrong", wrong: rpctypes.ErrInvalidAuthToken, with: func(ctx context.Context) context.Context { return withToken(ctx, "kvdt_wrong") }},
		{name: "malformed", wrong: rpctypes.ErrInvalidAuthToken, with: func(ctx context.Context) context.Context {
			return metadata.NewIncomingContext(ctx, metadata.Pairs("authorization", "Negotiate x"))
		}},
	}
	read, write := user("read", rights.Role{Permissions: []rights.Permission{all(rights.Read)}}), user("write", rights.Role{Permissions: []rights.Permission{all(rights.Write)}})
	read.read, write.write = true, true
	both, partly := user("both", rights.Role{Permissions: []rights.Permission{all(rights.ReadWrite)}}), user("partly", rights.Role{Permissions: []rights.Permission{{Access: rights.ReadWrite, Key: []byte("k/"), RangeEnd: []byte("k/m")}}})
	both.read, both.write = true, true
	partly.read, partly.write, partly.partly = true, true, true
	out = append(out, read, write, both, partly)
	for _, c := range rights.Capabilities {
		with := user("may-"+string(c), rights.Role{Capabilities: []rights.Capability{c}})
		with.capability = c
		out = append(out, with)
	}
	_, expired := tokenFor(t, n, "both", time.Now().Add(-time.Second))
	id, revoked := tokenFor(t, n, "both", time.Time{})
	change(t, n, &rights.Change{DeleteToken: id})
	_, root := tokenFor(t, n, rights.Root, time.Time{})
	return append(out,
		credential{name: "expired", wrong: rpctypes.ErrInvalidAuthToken, with: func(ctx context.Context) context.Context { return withToken(ctx, expired) }},
		credential{name: "revoked", wrong: rpctypes.ErrInvalidAuthToken, with: func(ctx context.Context) context.Context { return withToken(ctx, revoked) }},
		credential{name: "stranger's certificate", wrong: rpctypes.ErrPermissionDenied, with: func(ctx context.Context) context.Context { return withCertificate(ctx, "stranger") }},
		credential{name: "certificate", user: "read", known: true, read: true, with: func(ctx context.Context) context.Context { return withCertificate(ctx, "read") }},
		credential{name: "header", user: rights.Root, known: true, root: true, with: func(ctx context.Context) context.Context {
			return metadata.NewIncomingContext(ctx, metadata.Pairs("authorization", "Bearer "+root))
		}},
		credential{name: "bare header", user: rights.Root, known: true, root: true, with: func(ctx context.Context) context.Context {
			return metadata.NewIncomingContext(ctx, metadata.Pairs("authorization", root))
		}},
		credential{name: "root", user: rights.Root, known: true, root: true, with: func(ctx context.Context) context.Context { return withToken(ctx, "Bearer "+root) }},
	)
}

// takes is what a call needs, in the words of docs/etcd.md.
type takes struct {
	open       bool // anybody, whatever the credentials
	unnamed    bool // nobody in particular, but wrong credentials are refused
	read       bool
	write      bool
	wide       bool // of keys that the partial user may not touch
	oneself    bool // to be who it is about
	proven     bool // by more than a token, unless that may change others, too
	root       bool
	capability rights.Capability
}

// verdict returns what a caller is told; nil if the call is let through.
func (n takes) verdict(c *credential) error {
	switch {
	case n.open:
		return nil
	case c.wrong != nil:
		return c.wrong
	case n.unnamed, c.root:
		return nil
	case !c.known, n.root, n.oneself && c.user == "", n.proven && c.token && c.capability != rights.Auth, n.capability != c.capability && n.capability != "", n.read && !c.read, n.write && !c.write, n.wide && c.partly:
		if c.user == "" { // clients log in, and try again
			return rpctypes.ErrUserEmpty
		}
		return rpctypes.ErrPermissionDenied
	}
	return nil
}

// row is a call of the table.
type row struct {
	method  string
	note    string
	takes   takes
	request func(s *scene) proto.Message
}

// scene is what a row finds: who calls, and a new lease to which the key k/a is bound.
type scene struct {
	*credential
	lease func() int64
	turn  int64 // a number that no other call has
}

func (s *scene) unique(what string) string { return fmt.Sprintf("%s-%d", what, s.turn) }

func fixed(m proto.Message) func(*scene) proto.Message {
	return func(*scene) proto.Message { return proto.Clone(m) }
}

// reading, writing and their like are what a row takes.
var (
	known    = takes{}
	oneself  = takes{oneself: true}
	reading  = takes{read: true}
	writing  = takes{write: true}
	readWide = takes{read: true, wide: true}
	wide     = takes{write: true, wide: true}
	changing = takes{read: true, write: true}
)

func capable(c rights.Capability) takes { return takes{capability: c} }

var (
	oneKey    = []byte("k/a")
	wideKey   = []byte("k/")
	wideEnd   = []byte("k0")
	foreign   = []byte("z")
	operate   = capable(rights.Operate)
	members   = capable(rights.Members)
	authorize = capable(rights.Auth)
)

func putting(key []byte) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key}}}
}

func getting(key []byte) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}
}

// table has every call in the forms that differ in what they take.
func table() []row {
	const kv, lease, auth, maintenance, cluster = "/etcdserverpb.KV/", "/etcdserverpb.Lease/", "/etcdserverpb.Auth/", "/etcdserverpb.Maintenance/", "/etcdserverpb.Cluster/"
	const lock, election, health = "/v3lockpb.Lock/", "/v3electionpb.Election/", "/grpc.health.v1.Health/"
	return []row{
		{kv + "Range", "", reading, fixed(&pb.RangeRequest{Key: oneKey})},
		{kv + "Range", "serializable", reading, fixed(&pb.RangeRequest{Key: oneKey, Serializable: true})},
		{kv + "Range", "all", readWide, fixed(&pb.RangeRequest{Key: wideKey, RangeEnd: wideEnd})},
		{kv + "Range", "count", readWide, fixed(&pb.RangeRequest{Key: wideKey, RangeEnd: []byte{0}, CountOnly: true})},
		{kv + "RangeStream", "", reading, fixed(&pb.RangeRequest{Key: oneKey})},
		{kv + "RangeStream", "all", readWide, fixed(&pb.RangeRequest{Key: wideKey, RangeEnd: wideEnd})},
		{kv + "Put", "", writing, fixed(&pb.PutRequest{Key: oneKey})},
		{kv + "Put", "foreign", wide, fixed(&pb.PutRequest{Key: foreign})},
		{kv + "Put", "prev_kv", changing, fixed(&pb.PutRequest{Key: oneKey, PrevKv: true})},
		{kv + "Put", "lease", writing, func(s *scene) proto.Message { return &pb.PutRequest{Key: []byte("k/b"), Lease: s.lease()} }},
		{kv + "DeleteRange", "", writing, fixed(&pb.DeleteRangeRequest{Key: []byte("k/d")})},
		{kv + "DeleteRange", "prev_kv", changing, fixed(&pb.DeleteRangeRequest{Key: []byte("k/d"), PrevKv: true})},
		{kv + "DeleteRange", "all", wide, fixed(&pb.DeleteRangeRequest{Key: []byte("k/x"), RangeEnd: wideEnd})},
		{kv + "Txn", "reads", reading, fixed(&pb.TxnRequest{Success: []*pb.RequestOp{getting(oneKey)}})},
		{kv + "Txn", "compares", changing, fixed(&pb.TxnRequest{Compare: []*pb.Compare{{Key: oneKey}}, Success: []*pb.RequestOp{putting(oneKey)}})},
		{kv + "Txn", "writes", writing, fixed(&pb.TxnRequest{Success: []*pb.RequestOp{putting(oneKey)}})},
		{kv + "Txn", "the branch not taken", wide, fixed(&pb.TxnRequest{Success: []*pb.RequestOp{putting(oneKey)}, Failure: []*pb.RequestOp{putting(foreign)}})},
		{kv + "Txn", "reads in the branch not taken", takes{read: true, wide: true}, fixed(&pb.TxnRequest{Success: []*pb.RequestOp{getting(oneKey)}, Failure: []*pb.RequestOp{getting(foreign)}})},
		{kv + "Txn", "nested", takes{read: true, write: true, wide: true}, fixed(&pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{
			Failure: []*pb.RequestOp{putting(oneKey), getting(foreign)},
		}}}}})},
		{kv + "Compact", "", operate, fixed(&pb.CompactionRequest{Revision: 1})},
		{"/etcdserverpb.Watch/Watch", "", reading, fixed(watching(oneKey, nil))},
		{"/etcdserverpb.Watch/Watch", "all", readWide, fixed(watching(wideKey, wideEnd))},
		{"/etcdserverpb.Watch/Watch", "prev_kv", reading, fixed(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: oneKey, PrevKv: true}}})},
		{lease + "LeaseGrant", "", known, fixed(&pb.LeaseGrantRequest{TTL: 600})},
		{lease + "LeaseRevoke", "", writing, func(s *scene) proto.Message { return &pb.LeaseRevokeRequest{ID: s.lease()} }},
		{lease + "LeaseKeepAlive", "", writing, func(s *scene) proto.Message { return &pb.LeaseKeepAliveRequest{ID: s.lease()} }},
		{lease + "LeaseTimeToLive", "", known, func(s *scene) proto.Message { return &pb.LeaseTimeToLiveRequest{ID: s.lease()} }},
		{lease + "LeaseTimeToLive", "keys", reading, func(s *scene) proto.Message { return &pb.LeaseTimeToLiveRequest{ID: s.lease(), Keys: true} }},
		{lease + "LeaseLeases", "", reading, fixed(&pb.LeaseLeasesRequest{})},
		{cluster + "MemberList", "", known, fixed(&pb.MemberListRequest{})},
		{cluster + "MemberAdd", "", members, fixed(&pb.MemberAddRequest{})},
		{cluster + "MemberRemove", "", members, fixed(&pb.MemberRemoveRequest{ID: 99})},
		{cluster + "MemberUpdate", "", members, fixed(&pb.MemberUpdateRequest{ID: 99, PeerURLs: []string{"http://127.0.0.1:1"}})},
		{cluster + "MemberPromote", "", members, fixed(&pb.MemberPromoteRequest{ID: 99})},
		{maintenance + "Status", "", known, fixed(&pb.StatusRequest{})},
		{maintenance + "Alarm", "", known, fixed(&pb.AlarmRequest{})},
		{maintenance + "Alarm", "disarm", operate, fixed(&pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE})},
		{maintenance + "Alarm", "arm", operate, fixed(&pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE})},
		{maintenance + "Defragment", "", operate, fixed(&pb.DefragmentRequest{})},
		{maintenance + "Hash", "", operate, fixed(&pb.HashRequest{})},
		{maintenance + "HashKV", "", operate, fixed(&pb.HashKVRequest{})},
		{maintenance + "Downgrade", "", operate, fixed(&pb.DowngradeRequest{Action: pb.DowngradeRequest_CANCEL})},
		{maintenance + "MoveLeader", "", members, fixed(&pb.MoveLeaderRequest{TargetID: 99})},
		{maintenance + "Snapshot", "", capable(rights.Backup), fixed(&pb.SnapshotRequest{})},
		{auth + "AuthStatus", "", takes{unnamed: true}, fixed(&pb.AuthStatusRequest{})},
		{auth + "Authenticate", "", takes{open: true}, fixed(&pb.AuthenticateRequest{Name: rights.Root, Password: "root-secret"})},
		{auth + "AuthEnable", "", takes{root: true}, fixed(&pb.AuthEnableRequest{})},
		{auth + "AuthDisable", "", takes{root: true}, fixed(&pb.AuthDisableRequest{})},
		{auth + "UserAdd", "", authorize, func(s *scene) proto.Message {
			return &pb.AuthUserAddRequest{Name: s.unique("user"), Options: &authpb.UserAddOptions{NoPassword: true}}
		}},
		{auth + "UserGet", "another", authorize, fixed(&pb.AuthUserGetRequest{Name: "other"})},
		{auth + "UserGet", "oneself", oneself, func(s *scene) proto.Message { return &pb.AuthUserGetRequest{Name: s.user} }},
		{auth + "UserList", "", authorize, fixed(&pb.AuthUserListRequest{})},
		{auth + "UserDelete", "", authorize, fixed(&pb.AuthUserDeleteRequest{Name: "nobody"})},
		{auth + "UserChangePassword", "another", authorize, fixed(&pb.AuthUserChangePasswordRequest{Name: "other", Password: "x"})},
		{auth + "UserChangePassword", "oneself", takes{oneself: true, proven: true}, func(s *scene) proto.Message {
			return &pb.AuthUserChangePasswordRequest{Name: s.user, Password: s.user + "-secret"}
		}},
		{auth + "UserChangePassword", "root", takes{root: true}, func(s *scene) proto.Message {
			return &pb.AuthUserChangePasswordRequest{Name: rights.Root, Password: "root-secret"}
		}},
		{auth + "UserGrantRole", "", authorize, fixed(&pb.AuthUserGrantRoleRequest{User: "nobody", Role: "nothing"})},
		{auth + "UserGrantRole", "more than one's own", takes{root: true}, fixed(&pb.AuthUserGrantRoleRequest{User: "other", Role: rights.Root})},
		{auth + "UserRevokeRole", "", authorize, fixed(&pb.AuthUserRevokeRoleRequest{Name: "nobody", Role: "nothing"})},
		{auth + "RoleAdd", "", authorize, func(s *scene) proto.Message { return &pb.AuthRoleAddRequest{Name: s.unique("role")} }},
		{auth + "RoleGet", "another's", authorize, fixed(&pb.AuthRoleGetRequest{Role: "nothing"})},
		{auth + "RoleGet", "one's own", oneself, func(s *scene) proto.Message { return &pb.AuthRoleGetRequest{Role: s.user} }},
		{auth + "RoleList", "", authorize, fixed(&pb.AuthRoleListRequest{})},
		{auth + "RoleDelete", "", authorize, fixed(&pb.AuthRoleDeleteRequest{Role: "nothing"})},
		{auth + "RoleGrantPermission", "", authorize, fixed(&pb.AuthRoleGrantPermissionRequest{Name: "nothing", Perm: &authpb.Permission{Key: oneKey}})},
		{auth + "RoleRevokePermission", "", authorize, fixed(&pb.AuthRoleRevokePermissionRequest{Role: "nothing", Key: oneKey})},
		{lock + "Lock", "", changing, func(s *scene) proto.Message {
			return &v3lockpb.LockRequest{Name: []byte(s.unique("k/lock")), Lease: s.lease()}
		}},
		{lock + "Unlock", "", writing, fixed(&v3lockpb.UnlockRequest{Key: []byte("k/lock/1")})},
		{election + "Campaign", "", changing, func(s *scene) proto.Message {
			return &v3electionpb.CampaignRequest{Name: []byte(s.unique("k/e")), Lease: s.lease()}
		}},
		{election + "Proclaim", "", changing, fixed(&v3electionpb.ProclaimRequest{Leader: &v3electionpb.LeaderKey{Name: []byte("k/e"), Key: []byte("k/e/1")}})},
		{election + "Leader", "", reading, fixed(&v3electionpb.LeaderRequest{Name: []byte("k/lead")})},
		{election + "Observe", "", reading, fixed(&v3electionpb.LeaderRequest{Name: []byte("k/lead")})},
		{election + "Resign", "", changing, fixed(&v3electionpb.ResignRequest{Leader: &v3electionpb.LeaderKey{Name: []byte("k/e"), Key: []byte("k/e/1")}})},
		{health + "Check", "", takes{open: true}, fixed(&healthpb.HealthCheckRequest{})},
		{health + "List", "", takes{open: true}, fixed(&healthpb.HealthListRequest{})},
		{health + "Watch", "", takes{open: true}, fixed(&healthpb.HealthCheckRequest{})},
	}
}

func watching(key, end []byte) *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: key, RangeEnd: end}}}
}

// once is a stream with one request. It ends with the first answer.
type once struct {
	ctx     context.Context
	end     context.CancelFunc
	request proto.Message
	sent    bool
	reason  string // of a watch that was canceled
}

func newOnce(ctx context.Context, request proto.Message) *once {
	o := &once{request: request}
	o.ctx, o.end = context.WithCancel(ctx)
	return o
}

func (o *once) Context() context.Context     { return o.ctx }
func (o *once) SetHeader(metadata.MD) error  { return nil }
func (o *once) SendHeader(metadata.MD) error { return nil }
func (o *once) SetTrailer(metadata.MD)       {}

func (o *once) RecvMsg(m any) error {
	if o.sent {
		<-o.ctx.Done()
		return io.EOF
	}
	o.sent = true
	proto.Merge(m.(proto.Message), o.request)
	return nil
}

func (o *once) SendMsg(m any) error {
	p, ok := m.(proto.Message)
	if !ok {
		var free func()
		var err error
		if p, free, err = codec.Decode(m.(codec.Message)); err != nil {
			return err
		}
		defer free()
	}
	if w, ok := p.(*pb.WatchResponse); ok {
		o.reason = w.GetCancelReason()
	}
	o.end()
	return nil
}

// streams are the methods that are called by Stream.
var streams = []string{"RangeStream", "/Watch", "LeaseKeepAlive", "Snapshot", "Observe"}

// call makes a call in this process, through everything that a call of a connection passes,
// and returns the error that is about rights, if it ended with one.
func call(ctx context.Context, n *etcdtest.Node, method string, request proto.Message) error {
	var err error
	if slices.ContainsFunc(streams, func(s string) bool { return strings.HasSuffix(method, s) }) {
		stream := newOnce(ctx, request)
		defer stream.end()
		if err = n.Calls.Stream(method, stream); stream.reason != "" {
			err = errors.New(stream.reason)
		}
	} else {
		_, err = n.Calls.Call(ctx, method, func(m any) error {
			proto.Merge(m.(proto.Message), request)
			return nil
		})
	}
	return aboutRights(err)
}

// aboutRights returns which refusal an error is; nil if it is about something else.
func aboutRights(err error) error {
	if status.Code(err) == codes.Internal {
		return err
	}
	for _, refusal := range []error{rpctypes.ErrUserEmpty, rpctypes.ErrInvalidAuthToken, rpctypes.ErrPermissionDenied, rpctypes.ErrAuthOldRevision, rpctypes.ErrAuthFailed} {
		if err != nil && strings.HasSuffix(err.Error(), refusal.Error()) {
			return refusal
		}
	}
	return nil
}

// TestEveryCallIsJudged goes through every method and every kind of credentials. A method
// that is registered and not in the table fails it.
func TestEveryCallIsJudged(t *testing.T) {
	for _, size := range []int{1, 3} {
		t.Run(fmt.Sprint(size), func(t *testing.T) { testEveryCall(t, etcdtest.Start(t, size, steady())) })
	}
}

func testEveryCall(t *testing.T, nodes []*etcdtest.Node) {
	n := nodes[0]
	for _, other := range nodes { // a follower, if there is one
		if !other.IsLeader() {
			n = other
		}
	}
	rows := table()
	for _, method := range n.Calls.Methods() {
		if !slices.ContainsFunc(rows, func(r row) bool { return r.method == method }) {
			t.Errorf("%s is registered, and nothing says what it takes", method)
		}
		if !etcdapi.Declared(method) {
			t.Errorf("%s does not declare what it takes", method)
		}
	}
	for _, method := range etcdapi.DeclaredMethods() {
		if !slices.Contains(n.Calls.Methods(), method) {
			t.Errorf("%s declares what it takes, and is not registered", method)
		}
	}
	ctx := t.Context()
	c := clientOf(t, n)
	addUser(ctx, t, c, "root")
	change(t, n, &rights.Change{PutUser: &rights.User{Name: "other"}})
	kinds := credentialKinds(t, n)
	put := &kvstore.Command{Op: kvstore.OpPut, Key: []byte("k/lead/1"), Origin: kvstore.Origin{Principal: rights.Root}}
	if _, err := n.Do(ctx, put, nil); err != nil {
		t.Fatal(err)
	}
	change(t, n, &rights.Change{Enable: true})
	for i := range kinds {
		testCalls(t, n, rows, &kinds[i])
	}
	// Requests without credentials may do what the role anonymous permits. A request
	// with wrong credentials is not one of them.
	change(t, n, &rights.Change{PutRole: &rights.Role{Name: rights.Anonymous, Permissions: []rights.Permission{{Access: rights.Read, Key: []byte{0}, RangeEnd: []byte{0}}}}})
	anonymous := kinds[0]
	anonymous.name, anonymous.known, anonymous.read = "anonymous", true, true
	testCalls(t, n, rows, &anonymous)
	testCalls(t, n, rows, &kinds[1])
}

var turns atomic.Int64

// bound makes a lease, and binds the key k/a to it.
func bound(t testing.TB, n *etcdtest.Node, turn int64) int64 {
	t.Helper()
	id, as := uint64(1<<40+turn), kvstore.Origin{Principal: rights.Root} // not one that the store chooses
	for _, cmd := range []*kvstore.Command{
		{Op: kvstore.OpLeaseGrant, Lease: id, TTLMillis: 600_000, Origin: as},
		{Op: kvstore.OpPut, Key: oneKey, Lease: id, Origin: as},
	} {
		if res, err := n.Do(t.Context(), cmd, nil); err != nil || res.Outcome != kvstore.OK {
			t.Fatalf("%+v, %v", res, err)
		}
	}
	return int64(id)
}

// testCalls makes all calls of the table as one caller.
func testCalls(t *testing.T, n *etcdtest.Node, rows []row, c *credential) {
	for _, r := range rows {
		s := &scene{credential: c, turn: turns.Add(1)}
		s.lease = func() int64 { return bound(t, n, s.turn) }
		want := r.takes.verdict(c)
		if got := call(c.with(t.Context()), n, r.method, r.request(s)); !errors.Is(got, want) || want == nil && got != nil {
			t.Errorf("%s calls %s (%s): %v, want %v", c.name, r.method, r.note, got, want)
		}
		if strings.HasSuffix(r.method, "AuthDisable") && want == nil {
			change(t, n, &rights.Change{Enable: true})
		}
	}
}
