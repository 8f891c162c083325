package etcdapi

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/kvd-io/kvd/internal/api"
)

// maintenanceService is etcdserverpb.Maintenance.
type maintenanceService struct {
	pb.UnsafeMaintenanceServer
	*Server
}

// Status implements pb.MaintenanceServer. It describes the member that was asked, also
// without a quorum.
func (s *maintenanceService) Status(ctx context.Context, _ *pb.StatusRequest) (*pb.StatusResponse, error) {
	st, err := s.opts.Inspector.Status(ctx)
	if err != nil {
		return nil, err
	}
	out := &pb.StatusResponse{
		Header: s.headers.Now(), Version: Version, StorageVersion: StorageVersion,
		DbSize: st.StoreSizeBytes, DbSizeInUse: max(st.LogicalSizeBytes, 1), // JSON leaves 0 out
		DbSizeQuota: st.QuotaBytes,
		Leader:      st.Leader, RaftTerm: st.Term, RaftIndex: st.Commit, RaftAppliedIndex: st.Applied,
		IsLearner: st.Role == "learner", DowngradeInfo: new(pb.DowngradeInfo),
	}
	if st.Leader == 0 {
		out.Errors = append(out.Errors, "etcdserver: no leader")
	}
	for _, a := range alarmsOf(&st) {
		out.Errors = append(out.Errors, a.String())
	}
	return out, nil
}

// alarmTypes has the alarms of a member that are alarms of etcd. The others are warnings,
// and would make clients of etcd take the member out of service.
var alarmTypes = map[string]pb.AlarmType{
	api.AlarmNoSpace:  pb.AlarmType_NOSPACE,
	api.AlarmDiverged: pb.AlarmType_CORRUPT,
}

// alarmsOf returns the alarms of a member that etcd knows, each once.
func alarmsOf(st *api.Status) (out []*pb.AlarmMember) {
	seen := make(map[pb.AlarmType]bool)
	for _, text := range st.Alarms {
		kind, known := alarmTypes[api.AlarmName(text)]
		if known && !seen[kind] {
			seen[kind] = true
			out = append(out, &pb.AlarmMember{MemberID: st.ID, Alarm: kind})
		}
	}
	return out
}

// Alarm implements pb.MaintenanceServer. Alarms follow from the state: that of space ends
// once there is space, and that of divergence with the replica that diverged. So clearing
// one answers which were up, and clears nothing, and raising one is answered alike.
func (s *maintenanceService) Alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	out := &pb.AlarmResponse{Header: s.headers.Now()}
	cluster, err := s.opts.Inspector.ClusterStatus(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range cluster.Members {
		if m.Status == nil || r.GetMemberID() != 0 && r.GetAction() != pb.AlarmRequest_GET && r.GetMemberID() != m.ID {
			continue
		}
		for _, a := range alarmsOf(m.Status) {
			if r.GetAlarm() == pb.AlarmType_NONE || r.GetAlarm() == a.GetAlarm() {
				out.Alarms = append(out.Alarms, a)
			}
		}
	}
	return out, nil
}

// Defragment implements pb.MaintenanceServer. The engine gives space back by itself.
func (s *maintenanceService) Defragment(context.Context, *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	return new(pb.DefragmentResponse), nil
}

// Hash implements pb.MaintenanceServer.
func (s *maintenanceService) Hash(ctx context.Context, _ *pb.HashRequest) (*pb.HashResponse, error) {
	h, err := s.store().PairsHash(ctx, 0)
	if err != nil {
		return nil, err
	}
	return &pb.HashResponse{Header: s.headers.At(h.Revision), Hash: fold(h.Hash)}, nil
}

// HashKV implements pb.MaintenanceServer. It is the hash of the pairs that are live at the
// revision: members that have applied it agree, however far each has removed history.
func (s *maintenanceService) HashKV(ctx context.Context, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	h, err := s.store().PairsHash(ctx, positive(r.GetRevision()))
	if err != nil {
		return nil, err
	}
	return &pb.HashKVResponse{
		Header: s.headers.Now(), Hash: fold(h.Hash), CompactRevision: int64(h.CompactRevision), HashRevision: int64(h.Revision),
	}, nil
}

// fold makes 32 bits of a hash of 64. That of an empty store would be 0, which JSON leaves
// out, and a client would look for it in vain.
func fold(h uint64) uint32 { return uint32(h>>32) ^ uint32(h) ^ hashOfNothing }

const hashOfNothing = 0x9e3779b9

// MoveLeader implements pb.MaintenanceServer.
func (s *maintenanceService) MoveLeader(ctx context.Context, r *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	if !s.opts.Leadership.IsLeader() {
		return nil, rpctypes.ErrGRPCNotLeader
	}
	all, err := s.opts.Members.Roster()
	if err != nil {
		return nil, err
	}
	known := false
	for i := range all {
		known = known || all[i].ID == r.GetTargetID() && !all[i].Learner
	}
	if !known {
		return nil, rpctypes.ErrGRPCBadLeaderTransferee
	}
	err = s.opts.Leadership.TransferLeader(ctx, r.GetTargetID())
	if codeOf(err) == api.UnsafeChange {
		err = rpctypes.ErrGRPCTimeout
	}
	return new(pb.MoveLeaderResponse), err
}

// Downgrade implements pb.MaintenanceServer: there is nothing to downgrade to.
func (s *maintenanceService) Downgrade(_ context.Context, r *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	if r.GetAction() != pb.DowngradeRequest_CANCEL {
		return nil, rpctypes.ErrGRPCInvalidDowngradeTargetVersion
	}
	return &pb.DowngradeResponse{Header: s.headers.Now(), Version: "3.7"}, nil
}
