package raftnode

import (
	"bytes"
	"strings"
	"testing"
)

func TestSnapshotDataVersions(t *testing.T) {
	s := newSnapshot(7, 2, newRoster(simCluster, []Member{simMember(1), simMember(2)}).membership())
	data, err := decodeSnapshotData(s.GetData())
	if err != nil || data.ClusterID != simCluster || len(data.Members) != 2 || len(s.GetMetadata().GetConfState().GetVoters()) != 2 {
		t.Errorf("%+v, %v", data, err)
	}
	newer := bytes.Replace(s.GetData(), []byte(`"version":1`), []byte(`"version":2`), 1)
	if _, err := decodeSnapshotData(newer); err == nil || !strings.Contains(err.Error(), "upgrade") {
		t.Errorf("a newer version: %v", err)
	}
	if _, err := decodeSnapshotData([]byte("{")); err == nil {
		t.Error("half an object")
	}
}
