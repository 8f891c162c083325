package etcdapi_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/api/v3/version"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/etcdapi"
	"github.com/kvd-io/kvd/internal/etcdapi/etcdtest"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/padded"
)

// membersOf returns a membership, for example "1 kvd1 http://…, 2? http://…".
func membersOf(members []*pb.Member) string {
	var out []string
	for _, m := range members {
		learner := ""
		if m.IsLearner {
			learner = "?"
		}
		out = append(out, strings.Join(append([]string{fmt.Sprint(m.ID, learner), m.Name}, append(m.PeerURLs, m.ClientURLs...)...), " "))
	}
	return strings.Join(out, ", ")
}

// Each member is known by the URLs at which it serves clients of etcd.
func TestMemberList(t *testing.T) {
	nodes := etcdtest.Start(t, 3, nil)
	c := clientOf(t, nodes[0])
	r := must[*clientv3.MemberListResponse](t)(c.MemberList(t.Context()))
	if len(r.Members) != 3 || r.Header.Revision != 0 || r.Header.ClusterId == 0 || r.Header.MemberId != 1 || r.Header.RaftTerm == 0 {
		t.Fatalf("%v", r)
	}
	for i, m := range r.Members {
		if m.ID != uint64(i+1) || m.Name != fmt.Sprint("kvd", i+1) || !slices.Equal(m.ClientURLs, []string{nodes[i].Etcd}) || m.IsLearner {
			t.Errorf("%v", m)
		}
	}
	if err := c.Sync(t.Context()); err != nil || len(c.Endpoints()) != 3 {
		t.Errorf("after a sync the client has %v, %v", c.Endpoints(), err)
	}
}

func TestMemberChanges(t *testing.T) {
	_, c := alone(t, nil)
	ctx := t.Context()
	const peer = "http://127.0.0.1:1"
	_, last := c.MemberRemove(ctx, 1)
	refused(t, "the only member", last, rpctypes.ErrGRPCMemberNotEnoughStarted)
	_, err := pb.NewClusterClient(c.ActiveConnection()).MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{"no URL"}})
	refused(t, "a bad URL", err, rpctypes.ErrGRPCMemberBadURLs)
	added := must[*clientv3.MemberAddResponse](t)(c.MemberAddAsLearner(ctx, []string{peer}))
	if m := added.Member; m.ID != 2 || m.Name != "" || !m.IsLearner || len(added.Members) != 2 || added.Header.Revision != 0 {
		t.Errorf("%v", added)
	}
	_, err = c.MemberAdd(ctx, []string{peer})
	refused(t, "a URL that is taken", err, rpctypes.ErrGRPCPeerURLExist)
	_, err = c.MemberPromote(ctx, 2)
	refused(t, "a learner that did not start", err, rpctypes.ErrGRPCLearnerNotReady)
	_, err = c.MemberPromote(ctx, 1)
	refused(t, "a voter", err, rpctypes.ErrGRPCMemberNotLearner)
	_, err = c.MemberRemove(ctx, 1)
	refused(t, "the last voter", err, rpctypes.ErrGRPCMemberNotEnoughStarted)
	updated := must[*clientv3.MemberUpdateResponse](t)(c.MemberUpdate(ctx, 2, []string{"http://127.0.0.1:2"}))
	if got := membersOf(updated.Members[1:]); got != "2?  http://127.0.0.1:2" {
		t.Errorf("%s", got)
	}
	if r := must[*clientv3.MemberRemoveResponse](t)(c.MemberRemove(ctx, 2)); len(r.Members) != 1 {
		t.Errorf("%v", r)
	}
	for what, id := range map[string]uint64{"a member that was removed": 2, "an unknown member": 9, "an id of etcd's": 1 << 60, "no id": 0} {
		_, err = c.MemberRemove(ctx, id)
		refused(t, what, err, rpctypes.ErrGRPCMemberNotFound)
		_, err = c.MemberPromote(ctx, id)
		refused(t, what, err, rpctypes.ErrGRPCMemberNotFound)
	}
}

// TestMaxLearners: members that stay learners count, whoever added them. Voters to be do not.
func TestMaxLearners(t *testing.T) {
	nodes, c := alone(t, &etcdtest.Config{Options: func(o *etcdapi.Options) { o.MaxLearners = 2 }})
	ctx := t.Context()
	url := func(n int) []string { return []string{fmt.Sprint("http://127.0.0.1:", n)} }
	must[*clientv3.MemberAddResponse](t)(c.MemberAdd(ctx, url(1)))
	if _, err := nodes.AddMember(ctx, api.NewMember{PeerURLs: url(2), Learner: true}); err != nil {
		t.Fatal(err)
	}
	second := must[*clientv3.MemberAddResponse](t)(c.MemberAddAsLearner(ctx, url(3)))
	_, err := c.MemberAddAsLearner(ctx, url(4))
	refused(t, "a learner too many", err, rpctypes.ErrGRPCTooManyLearners)
	_, err = c.MemberAddAsLearner(ctx, url(3))
	refused(t, "a URL that is taken", err, rpctypes.ErrGRPCPeerURLExist)
	must[*clientv3.MemberAddResponse](t)(c.MemberAdd(ctx, url(5)))
	if _, err := nodes.AddMember(ctx, api.NewMember{PeerURLs: url(6), Learner: true}); err != nil {
		t.Errorf("kvd's own API has no limit: %v", err)
	}
	must[*clientv3.MemberRemoveResponse](t)(c.MemberRemove(ctx, second.Member.ID))
	_, err = c.MemberAddAsLearner(ctx, url(7))
	refused(t, "a learner too many", err, rpctypes.ErrGRPCTooManyLearners)
}

// What kvd says about its version is that of the module whose clients it serves.
func TestVersion(t *testing.T) {
	if etcdapi.Version != version.Version {
		t.Errorf("kvd says it is etcd %s, but the module is %s", etcdapi.Version, version.Version)
	}
	if !strings.HasPrefix(etcdapi.Version, strings.TrimSuffix(etcdapi.ClusterVersion, "0")) || etcdapi.StorageVersion != etcdapi.ClusterVersion {
		t.Errorf("%s, %s, %s", etcdapi.Version, etcdapi.ClusterVersion, etcdapi.StorageVersion)
	}
}

func TestMaintenance(t *testing.T) {
	nodes := etcdtest.Start(t, 3, nil)
	c := clientOf(t, nodes...)
	ctx := t.Context()
	fill(t, c, 10)
	for i, n := range nodes {
		st := must[*clientv3.StatusResponse](t)(c.Status(ctx, n.Etcd))
		if st.Version != "3.7.3" || st.StorageVersion != "3.7.0" || st.Header.MemberId != uint64(i+1) || st.Leader == 0 || st.IsLearner ||
			st.RaftTerm == 0 || st.RaftIndex == 0 || st.RaftAppliedIndex == 0 || st.DbSize == 0 || len(st.Errors) > 0 || st.DowngradeInfo == nil {
			t.Errorf("%v", st)
		}
	}
	leader := must[*clientv3.StatusResponse](t)(c.Status(ctx, nodes[0].Etcd)).Leader
	other := leader%3 + 1
	_, err := clientOf(t, nodes[other-1]).MoveLeader(ctx, other)
	refused(t, "a member that does not lead", err, rpctypes.ErrGRPCNotLeader)
	_, err = clientOf(t, nodes[leader-1]).MoveLeader(ctx, 9)
	refused(t, "a leader that does not exist", err, rpctypes.ErrGRPCBadLeaderTransferee)
	must[*clientv3.MoveLeaderResponse](t)(clientOf(t, nodes[leader-1]).MoveLeader(ctx, other))
	waitFor(t, "the new leader", func() bool {
		return must[*clientv3.StatusResponse](t)(c.Status(ctx, nodes[0].Etcd)).Leader == other
	})
	raw := pb.NewMaintenanceClient(c.ActiveConnection())
	must[*pb.DefragmentResponse](t)(raw.Defragment(ctx, new(pb.DefragmentRequest)))
	if r := must[*pb.AlarmResponse](t)(raw.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_NOSPACE})); len(r.Alarms) != 0 {
		t.Errorf("%v", r)
	}
	if r := must[*pb.DowngradeResponse](t)(raw.Downgrade(ctx, &pb.DowngradeRequest{Action: pb.DowngradeRequest_CANCEL})); r.Version != "3.7" {
		t.Errorf("%v", r)
	}
	_, err = raw.Downgrade(ctx, &pb.DowngradeRequest{Action: pb.DowngradeRequest_ENABLE, Version: "3.6"})
	refused(t, "a downgrade", err, rpctypes.ErrGRPCInvalidDowngradeTargetVersion)
}

// Members have the same hash at a revision, and a compaction does not change it.
func TestHashKV(t *testing.T) {
	nodes := etcdtest.Start(t, 3, nil)
	c := clientOf(t, nodes...)
	ctx := t.Context()
	fill(t, c, 10)
	must[*clientv3.DeleteResponse](t)(c.Delete(ctx, "k0003"))
	hash := func(n *etcdtest.Node, rev int64) *clientv3.HashKVResponse {
		waitFor(t, "revision 5", func() bool { return n.Store().Revision() == 5 })
		return must[*clientv3.HashKVResponse](t)(c.HashKV(ctx, n.Etcd, rev))
	}
	first := []*clientv3.HashKVResponse{hash(nodes[0], 0), hash(nodes[0], 3)}
	if first[0].Hash == first[1].Hash || first[0].HashRevision != 5 || first[1].HashRevision != 3 || first[0].Header.Revision != 5 {
		t.Errorf("%v", first)
	}
	for _, n := range nodes {
		if now, then := hash(n, 5), hash(n, 3); now.Hash != first[0].Hash || then.Hash != first[1].Hash || now.CompactRevision != first[0].CompactRevision {
			t.Errorf("%v %v, want those of %v", now, then, first)
		}
	}
	must[*clientv3.CompactResponse](t)(c.Compact(ctx, 3))
	waitFor(t, "the compaction", func() bool { return nodes[0].Store().CompactRevision() == 3 })
	if h := hash(nodes[0], 3); h.Hash != first[1].Hash {
		t.Errorf("after the compaction: %v", h)
	}
	_, err := c.HashKV(ctx, nodes[0].Etcd, 2)
	refused(t, "a compacted revision", err, rpctypes.ErrGRPCCompacted)
	_, err = c.HashKV(ctx, nodes[0].Etcd, 99)
	refused(t, "a future revision", err, rpctypes.ErrGRPCFutureRev)
}

// Without users everybody may everything, and a client with a password goes on without.
func TestAuthIsOff(t *testing.T) {
	n, c := alone(t, nil)
	ctx := t.Context()
	if r := must[*clientv3.AuthStatusResponse](t)(c.AuthStatus(ctx)); r.Enabled || r.AuthRevision != 1 {
		t.Errorf("%v", r)
	}
	_, err := c.AuthEnable(ctx)
	refused(t, "no root", err, rpctypes.ErrGRPCRootUserNotExist)
	must[*clientv3.AuthDisableResponse](t)(c.AuthDisable(ctx))
	must[*clientv3.AuthUserListResponse](t)(c.UserList(ctx))
	must[*clientv3.AuthRoleListResponse](t)(c.RoleList(ctx))
	_, err = c.UserGet(ctx, "nobody")
	refused(t, "no user", err, rpctypes.ErrGRPCUserNotFound)
	_, err = c.RoleGet(ctx, "none")
	refused(t, "no role", err, rpctypes.ErrGRPCRoleNotFound)
	named, err := clientv3.New(clientv3.Config{Endpoints: []string{n.Etcd}, Username: "a", Password: "b"})
	if err != nil {
		t.Fatal(err)
	}
	defer named.Close()
	must[*clientv3.PutResponse](t)(named.Put(ctx, "a", "1"))
}

func TestHealth(t *testing.T) {
	n, c := alone(t, nil)
	h := healthpb.NewHealthClient(c.ActiveConnection())
	if r := must[*healthpb.HealthCheckResponse](t)(h.Check(t.Context(), new(healthpb.HealthCheckRequest))); r.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("%v", r)
	}
	if _, err := h.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "x"}); status.Code(err) != codes.NotFound {
		t.Errorf("an unknown service: %v", err)
	}
	stream := must[healthpb.Health_WatchClient](t)(h.Watch(context.Background(), new(healthpb.HealthCheckRequest)))
	want := []healthpb.HealthCheckResponse_ServingStatus{healthpb.HealthCheckResponse_SERVING, healthpb.HealthCheckResponse_NOT_SERVING}
	for i, w := range want {
		if i == 1 {
			n.Stop()
		}
		if r := must[*healthpb.HealthCheckResponse](t)(stream.Recv()); r.Status != w {
			t.Errorf("%v, want %v", r, w)
		}
	}
	_, err := stream.Recv()
	refused(t, "the end of the stream", err, rpctypes.ErrGRPCStopped)
}

// A snapshot that the client library saves is a backup of everything, with the sum that
// etcdctl checks.
func TestSnapshot(t *testing.T) {
	_, c := alone(t, nil)
	fill(t, c, 100)
	r := must[*clientv3.SnapshotResponse](t)(c.SnapshotWithVersion(t.Context()))
	file := must[[]byte](t)(io.ReadAll(r.Snapshot))
	if r.Version != "3.7.0" || len(file)%512 != sha256.Size {
		t.Errorf("version %s, %d bytes", r.Version, len(file))
	}
	if sum := sha256.Sum256(file[:len(file)-sha256.Size]); !bytes.Equal(sum[:], file[len(file)-sha256.Size:]) {
		t.Error("the sum is wrong")
	}
	body := must[*io.SectionReader](t)(padded.Body(bytes.NewReader(file), int64(len(file))))
	if info := must[kvstore.BodyInfo](t)(kvstore.VerifyBody(body)); info.Keys != 102 || info.Revision != 4 {
		t.Errorf("%+v", info)
	}
}
