package raftlog

import (
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
)

func entryAt(index, term uint64, size int) *raftpb.Entry {
	data := fmt.Appendf(nil, "entry %d of term %d ", index, term)
	for len(data) < size {
		data = append(data, byte('a'+len(data)%26))
	}
	return &raftpb.Entry{Index: new(index), Term: new(term), Type: raftpb.EntryNormal.Enum(), Data: data}
}

func entriesAt(first, last, term uint64, size int) (ents []*raftpb.Entry) {
	for i := first; i <= last; i++ {
		ents = append(ents, entryAt(i, term, size))
	}
	return ents
}

func hardStateAt(term, vote, commit uint64) *raftpb.HardState {
	return &raftpb.HardState{Term: new(term), Vote: new(vote), Commit: new(commit)}
}

func snapshotAt(index, term uint64) *raftpb.Snapshot {
	return &raftpb.Snapshot{
		Data:     fmt.Appendf(nil, "snapshot at %d", index),
		Metadata: &raftpb.SnapshotMetadata{Index: new(index), Term: new(term), ConfState: &raftpb.ConfState{Voters: []uint64{1, 2, 3}}},
	}
}
