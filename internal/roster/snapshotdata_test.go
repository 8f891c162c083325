package roster

import (
	"bytes"
	"strings"
	"testing"
)

func TestSnapshotDataVersions(t *testing.T) {
	s := NewSnapshot(7, 2, New(testCluster, []Member{testMember(1), testMember(2)}).Membership())
	data, err := DecodeSnapshotData(s.GetData())
	if err != nil || data.ClusterID != testCluster || len(data.Members) != 2 || len(s.GetMetadata().GetConfState().GetVoters()) != 2 {
		t.Errorf("%+v, %v", data, err)
	}
	newer := bytes.Replace(s.GetData(), []byte(`"version":1`), []byte(`"version":2`), 1)
	if _, err := DecodeSnapshotData(newer); err == nil || !strings.Contains(err.Error(), "upgrade") {
		t.Errorf("a newer version: %v", err)
	}
	if _, err := DecodeSnapshotData([]byte("{")); err == nil {
		t.Error("half an object")
	}
}
