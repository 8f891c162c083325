package roster

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
)

// SnapshotData is the Data of a raft snapshot: the membership at its index. A
// member that receives the snapshot knows from it who its peers are.
type SnapshotData struct {
	Version   int      `json:"version"`
	ClusterID uint64   `json:"cluster_id"`
	Members   []Member `json:"members"`
	Removed   []uint64 `json:"removed,omitempty"`
}

const snapshotDataVersion = 1

// NewSnapshot returns raft's small description of the state at an index. It does
// not contain the state, which travels as a body beside it.
func NewSnapshot(index, term uint64, m *Membership) *raftpb.Snapshot {
	data := SnapshotData{Version: snapshotDataVersion, ClusterID: m.ClusterID, Members: m.Members}
	data.Removed = slices.Sorted(maps.Keys(m.Removed)) // the same bytes on every member
	b, err := json.Marshal(data)
	if err != nil {
		panic(fmt.Sprintf("roster: encode membership: %v", err)) // plain data always encodes
	}
	return &raftpb.Snapshot{
		Data:     b,
		Metadata: &raftpb.SnapshotMetadata{Index: new(index), Term: new(term), ConfState: m.ConfState()},
	}
}

// DecodeSnapshotData reads the Data of a snapshot that NewSnapshot returned on some
// member.
func DecodeSnapshotData(b []byte) (SnapshotData, error) {
	var d SnapshotData
	if err := json.Unmarshal(b, &d); err != nil {
		return d, fmt.Errorf("decode snapshot data: %w", err)
	}
	if d.Version != snapshotDataVersion {
		return d, fmt.Errorf("snapshot data has version %d, but this binary supports version %d: upgrade kvd", d.Version, snapshotDataVersion)
	}
	return d, nil
}
