package gateway

import "strings"

// call is what a path calls.
type call struct {
	method string // the full name
	kind   kind
}

type kind uint8

const (
	unary    kind = iota
	answers       // one request, a stream of answers
	dialogue      // a stream of requests and a stream of answers
)

// services has the paths below /v3/ and the methods that they stand for.
var services = []struct{ prefix, service, methods string }{
	{"kv", "etcdserverpb.KV", "range=Range put=Put deleterange=DeleteRange txn=Txn compaction=Compact"},
	{"lease", "etcdserverpb.Lease", "grant=LeaseGrant revoke=LeaseRevoke timetolive=LeaseTimeToLive leases=LeaseLeases"},
	{"kv/lease", "etcdserverpb.Lease", "revoke=LeaseRevoke timetolive=LeaseTimeToLive leases=LeaseLeases"},
	{"cluster/member", "etcdserverpb.Cluster", "add=MemberAdd remove=MemberRemove update=MemberUpdate list=MemberList promote=MemberPromote"},
	{"maintenance", "etcdserverpb.Maintenance", "alarm=Alarm status=Status defragment=Defragment hash=Hash hashkv=HashKV transfer-leadership=MoveLeader downgrade=Downgrade"},
	{"auth", "etcdserverpb.Auth", "enable=AuthEnable disable=AuthDisable status=AuthStatus authenticate=Authenticate"},
	{"auth/user", "etcdserverpb.Auth", "add=UserAdd get=UserGet list=UserList delete=UserDelete changepw=UserChangePassword grant=UserGrantRole revoke=UserRevokeRole"},
	{"auth/role", "etcdserverpb.Auth", "add=RoleAdd get=RoleGet list=RoleList delete=RoleDelete grant=RoleGrantPermission revoke=RoleRevokePermission"},
	{"lock", "v3lockpb.Lock", "lock=Lock unlock=Unlock"},
	{"election", "v3electionpb.Election", "campaign=Campaign proclaim=Proclaim leader=Leader resign=Resign"},
}

// calls has the calls by path.
var calls = func() map[string]call {
	out := map[string]call{
		"/v3/watch":                {"/etcdserverpb.Watch/Watch", dialogue},
		"/v3/lease/keepalive":      {"/etcdserverpb.Lease/LeaseKeepAlive", dialogue},
		"/v3/maintenance/snapshot": {"/etcdserverpb.Maintenance/Snapshot", answers},
		"/v3/election/observe":     {"/v3electionpb.Election/Observe", answers},
	}
	for _, s := range services {
		for pair := range strings.FieldsSeq(s.methods) {
			name, method, _ := strings.Cut(pair, "=")
			out["/v3/"+s.prefix+"/"+name] = call{"/" + s.service + "/" + method, unary}
		}
	}
	return out
}()
