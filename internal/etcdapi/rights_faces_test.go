package etcdapi_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/etcdapi/etcdtest"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/rights"
)

// dice makes the requests of TestFacesAgree. Names are short and over few letters, so that
// ranges and permissions meet.
type dice struct {
	*rand.Rand
	lease uint64
	bound string // the key that is bound to the lease
}

func (d dice) name() string {
	const letters = "abc"
	out := string(letters[d.IntN(len(letters))])
	if d.IntN(2) == 0 {
		out += string(letters[d.IntN(len(letters))])
	}
	return out
}

// span is a range: one name if end is empty, and open if it is "\x00".
type span struct{ start, end string }

func (d dice) span() span {
	switch d.IntN(4) {
	case 0:
		return span{start: d.name()}
	case 1:
		return span{d.name(), "\x00"}
	}
	a, b := d.name(), d.name()
	if a == b {
		b += "a"
	}
	return span{min(a, b), max(a, b)}
}

// role makes a role of what the faces have in common.
func (d dice) role() rights.Role {
	role := rights.Role{Name: "dice"}
	for range d.IntN(6) {
		s := d.span()
		p := rights.Permission{Access: rights.Access(1 + d.IntN(3)), Key: []byte(s.start), RangeEnd: []byte(s.end)}
		known := false
		for _, other := range role.Permissions {
			known = known || other.Same(p)
		}
		if !known {
			role.Permissions = append(role.Permissions, p)
		}
	}
	for _, c := range rights.Capabilities {
		if d.IntN(4) == 0 {
			role.Capabilities = append(role.Capabilities, c)
		}
	}
	return role
}

// may says by the definition whether a role covers a range, without package rights: it goes
// from the start of the range to its end, each time as far as a permission leads.
func may(role *rights.Role, access rights.Access, s span) bool {
	end := s.end
	if end == "" {
		end = s.start + "\x00"
	}
	for at := s.start; at != "\x00" && (end == "\x00" || at < end); {
		next := at
		for _, p := range role.Permissions {
			upTo := string(p.RangeEnd)
			if upTo == "" {
				upTo = string(p.Key) + "\x00"
			}
			if p.Access&access == access && string(p.Key) <= at && (upTo == "\x00" || upTo > next && next != "\x00") {
				next = upTo
			}
		}
		if next == at {
			return false
		}
		at = next
	}
	return true
}

// need is what a request takes, by the definition.
type need struct {
	access rights.Access
	span   span
}

// request is one that both faces have.
type request struct {
	needs      []need
	capability rights.Capability
	method     string // of HTTP
	path       string
	body       string
	call       string // of etcd's API
	message    proto.Message
}

func (q *request) String() string { return fmt.Sprintf("%s %s %s", q.method, q.path, q.body) }

// allowed says what the definition says.
func (q *request) allowed(role *rights.Role) bool {
	if q.capability != "" {
		for _, c := range role.Capabilities {
			if c == q.capability {
				return true
			}
		}
		return false
	}
	for _, n := range q.needs {
		for _, a := range []rights.Access{rights.Read, rights.Write} {
			if n.access&a != 0 && !may(role, a, n.span) {
				return false
			}
		}
	}
	return true
}

func escaped(q url.Values) string { return "/v1/kv?" + q.Encode() }

// ranged returns the path of a range, and its end in etcd's form.
func ranged(s span) (path string, end []byte) {
	q := url.Values{"start": {s.start}}
	if s.end != "\x00" {
		q.Set("end", s.end)
	}
	return escaped(q), []byte(s.end)
}

// request draws a request.
func (d dice) request() *request {
	key, other, third := d.name(), d.name(), d.name()
	one := func(a rights.Access, k string) need { return need{a, span{start: k}} }
	s := d.span()
	for s.end == "" {
		s = d.span()
	}
	path, end := ranged(s)
	lease := fmt.Sprint("/v1/leases/", d.lease)
	switch d.IntN(16) {
	case 0:
		return &request{[]need{one(rights.Read, key)}, "", "GET", "/v1/kv/" + key, "", "/etcdserverpb.KV/Range", &pb.RangeRequest{Key: []byte(key)}}
	case 1:
		return &request{[]need{one(rights.Write, key)}, "", "PUT", "/v1/kv/" + key, "v", "/etcdserverpb.KV/Put", &pb.PutRequest{Key: []byte(key), Value: []byte("v")}}
	case 2:
		return &request{[]need{one(rights.ReadWrite, key)}, "", "PUT", "/v1/kv/" + key + "?return=previous", "v", "/etcdserverpb.KV/Put", &pb.PutRequest{Key: []byte(key), Value: []byte("v"), PrevKv: true}}
	case 3:
		return &request{[]need{one(rights.Write, key)}, "", "DELETE", "/v1/kv/" + key, "", "/etcdserverpb.KV/DeleteRange", &pb.DeleteRangeRequest{Key: []byte(key)}}
	case 4:
		return &request{[]need{one(rights.ReadWrite, key)}, "", "DELETE", "/v1/kv/" + key + "?return=previous", "", "/etcdserverpb.KV/DeleteRange", &pb.DeleteRangeRequest{Key: []byte(key), PrevKv: true}}
	case 5, 6:
		return &request{[]need{{rights.Read, s}}, "", "GET", path, "", "/etcdserverpb.KV/Range", &pb.RangeRequest{Key: []byte(s.start), RangeEnd: end}}
	case 7:
		return &request{[]need{{rights.Read, s}}, "", "GET", path + "&count_only=true", "", "/etcdserverpb.KV/RangeStream", &pb.RangeRequest{Key: []byte(s.start), RangeEnd: end}}
	case 8, 9:
		return &request{[]need{{rights.Write, s}}, "", "DELETE", path, "", "/etcdserverpb.KV/DeleteRange", &pb.DeleteRangeRequest{Key: []byte(s.start), RangeEnd: end}}
	case 10:
		return &request{
			[]need{one(rights.Read, key), one(rights.Write, other), one(rights.Read, third)}, "", "POST", "/v1/txn",
			fmt.Sprintf(`{"if":[{"key":%q,"exists":true}],"then":[{"put":{"key":%q,"value":""}}],"else":[{"get":{"key":%q}}]}`, key, other, third), "/etcdserverpb.KV/Txn",
			&pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte(key)}}, Success: []*pb.RequestOp{putting([]byte(other))}, Failure: []*pb.RequestOp{getting([]byte(third))}},
		}
	case 11:
		return &request{
			[]need{one(rights.Read, key), one(rights.Read, other)}, "", "POST", "/v1/txn",
			fmt.Sprintf(`{"then":[{"get":{"key":%q}},{"get":{"key":%q}}]}`, key, other), "/etcdserverpb.KV/Txn",
			&pb.TxnRequest{Success: []*pb.RequestOp{getting([]byte(key)), getting([]byte(other))}},
		}
	case 12:
		return &request{[]need{one(rights.Write, key), one(rights.Write, d.bound)}, "", "PUT", fmt.Sprintf("/v1/kv/%s?lease=%d", key, d.lease), "v", "/etcdserverpb.KV/Put", &pb.PutRequest{Key: []byte(key), Lease: int64(d.lease)}}
	case 13:
		return &request{[]need{one(rights.Write, d.bound)}, "", "POST", lease + "/keepalive", "", "/etcdserverpb.Lease/LeaseKeepAlive", &pb.LeaseKeepAliveRequest{ID: int64(d.lease)}}
	case 14:
		return &request{[]need{one(rights.Read, d.bound)}, "", "GET", lease + "?keys=true", "", "/etcdserverpb.Lease/LeaseTimeToLive", &pb.LeaseTimeToLiveRequest{ID: int64(d.lease), Keys: true}}
	}
	return []*request{
		{nil, rights.Operate, "POST", "/v1/compact?revision=1", "", "/etcdserverpb.KV/Compact", &pb.CompactionRequest{Revision: 1}},
		{nil, rights.Backup, "GET", "/v1/snapshot", "", "/etcdserverpb.Maintenance/Snapshot", &pb.SnapshotRequest{}},
		{nil, rights.Members, "DELETE", "/v1/members/99", "", "/etcdserverpb.Cluster/MemberRemove", &pb.MemberRemoveRequest{ID: 99}},
		{nil, rights.Auth, "GET", "/v1/users", "", "/etcdserverpb.Auth/UserList", &pb.AuthUserListRequest{}},
		{nil, "", "GET", "/v1/members", "", "/etcdserverpb.Cluster/MemberList", &pb.MemberListRequest{}},
		{nil, "", "GET", "/v1/status", "", "/etcdserverpb.Maintenance/Status", &pb.StatusRequest{}},
	}[d.IntN(6)]
}

// overHTTP sends the request over HTTP and reports whether it was let through.
func (q *request) overHTTP(ctx context.Context, t testing.TB, n *etcdtest.Node, secret string) bool {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, q.method, n.HTTP+q.path, bytes.NewBufferString(q.body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+secret)
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(answer.Body)
	_ = answer.Body.Close()
	switch answer.StatusCode {
	case http.StatusForbidden:
		return false
	case http.StatusOK, http.StatusCreated, http.StatusNoContent, http.StatusNotFound:
		return true
	}
	t.Fatalf("%s: %d %s", q, answer.StatusCode, text)
	return false
}

// TestFacesAgree draws roles, and requests of a user who has them, and asks both faces of
// one node, and a third judge, which is the definition.
func TestFacesAgree(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	n, c := alone(t, nil)
	ctx := t.Context()
	addUser(ctx, t, c, "root")
	change(t, n, &rights.Change{PutRole: &rights.Role{Name: "dice"}})
	change(t, n, &rights.Change{PutUser: &rights.User{Name: "dice", Roles: []string{"dice"}}})
	_, secret := tokenFor(t, n, "dice", time.Time{})
	change(t, n, &rights.Change{Enable: true})
	d := dice{Rand: rand.New(rand.NewPCG(seed, 1))}
	const roles, requests = 200, 20
	var through, refused int
	for i := range roles {
		role := d.role()
		change(t, n, &rights.Change{PutRole: &role})
		for j := range requests {
			// The bound key is none that a request touches, but it may be read and written.
			d.lease, d.bound = uint64(1<<40+i), "b"
			if j == 0 {
				group(t, n, &kvstore.Command{Op: kvstore.OpLeaseGrant, Lease: d.lease, TTLMillis: 600_000})
			}
			group(t, n, &kvstore.Command{Op: kvstore.OpDeleteRange, Key: []byte("a")}, &kvstore.Command{Op: kvstore.OpPut, Key: []byte(d.bound), Lease: d.lease})
			q := d.request()
			want := q.allowed(&role)
			if got := q.overHTTP(ctx, t, n, secret); got != want {
				t.Errorf("%+v: %s over HTTP: %v, want %v", role, q, got, want)
			}
			group(t, n, &kvstore.Command{Op: kvstore.OpDeleteRange, Key: []byte("a")}, &kvstore.Command{Op: kvstore.OpPut, Key: []byte(d.bound), Lease: d.lease})
			if err := call(withToken(ctx, secret), n, q.call, q.message); (err == nil) != want {
				t.Errorf("%+v: %s in etcd's API, %s: %v, want %v", role, q, q.call, err, want)
			}
			if want {
				through++
			} else {
				refused++
			}
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d requests were let through, %d refused", through, refused)
	if through < roles*requests/10 || refused < roles*requests/10 {
		t.Error("almost all requests have one outcome: the test compares nothing")
	}
}
