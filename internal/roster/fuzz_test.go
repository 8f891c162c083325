package roster

import (
	"bytes"
	"maps"
	"reflect"
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/statemachine"
)

// stored is what the state machine keeps of a roster.
type stored map[string]statemachine.Record

func (s stored) take(records []statemachine.Record) {
	for _, r := range records {
		if r.Value == nil {
			delete(s, string(r.Key))
		} else {
			s[string(r.Key)] = r
		}
	}
}

// load returns the roster that the records are.
func (s stored) load(t *testing.T) *Roster {
	var records []statemachine.Record
	for _, key := range slices.Sorted(maps.Keys(s)) {
		records = append(records, s[key])
	}
	r, err := Load(records)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// FuzzEntries applies arbitrary entries. Two replicas, of which one begins anew from its
// records before each entry, agree on everything; a batch or change runs once; and raft is
// told of no member that the roster does not have.
func FuzzEntries(f *testing.F) {
	id := BatchID{Member: 1, Incarnation: 9, Sequence: 4}
	body := func(payload []byte) []byte {
		_, b, err := openPayload(payload)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	f.Add(byte(kindBatch), body(EncodeBatch(id, [][]byte{[]byte("x")})), byte(0), uint64(0))
	f.Add(byte(kindStart), body(EncodeStart(&Start{Member: 2, Nonce: "n", Boot: "b", Starts: 1, Name: "\xff", PeerURLs: []string{}})), byte(0), uint64(0))
	for _, c := range []*Change{
		{Kind: AddMember, Member: testMember(4), Once: Once{"key", "f"}}, {Kind: RemoveMember, Member: Member{ID: 3}}, {Kind: ReplaceMember, Member: testMember(5), Replaces: 2},
		{Kind: UpdateMember, Member: Member{ID: 1, PeerURLs: []string{"http://x:1"}}}, {Kind: PromoteMember, Member: Member{ID: 2}},
	} {
		cc := c.ConfChange(nil).GetChanges()[0]
		f.Add(byte(kindChange), body(EncodeChange(id, c)), byte(cc.GetType()), cc.GetNodeId())
	}
	f.Fuzz(func(t *testing.T, kind byte, body []byte, ccType byte, node uint64) {
		live := New(testCluster, []Member{testMember(1), testMember(2), testMember(3)})
		live.origins[1] = &Origin{Boot: "boot", Incarnation: 9}
		kept := make(stored)
		kept.take(live.Records())
		e := &raftpb.Entry{Index: new(uint64(10)), Term: new(uint64(1)), Data: sealPayload(append([]byte{PayloadVersion, kind}, body...))}
		if payloadKind(kind) == kindChange {
			cc := &raftpb.ConfChangeV2{Context: e.Data, Changes: []*raftpb.ConfChangeSingle{{Type: raftpb.ConfChangeType(ccType % 4).Enum(), NodeId: new(node)}}}
			data, err := proto.Marshal(cc)
			if err != nil {
				t.Fatal(err)
			}
			e.Type, e.Data = raftpb.EntryConfChangeV2.Enum(), data
		}
		for n := range 2 {
			again := kept.load(t)
			v, err := live.Apply(e)
			v2, err2 := again.Apply(e)
			if (err == nil) != (err2 == nil) {
				t.Fatalf("%v, but %v after a restart", err, err2)
			}
			if err != nil {
				return // the replica stops
			}
			if kept.take(v.Records); !reflect.DeepEqual(v.Records, v2.Records) || v.Ran != v2.Ran || (v.Err == nil) != (v2.Err == nil) || len(v.ConfChanges) != len(v2.ConfChanges) {
				t.Fatalf("the verdict is\n%+v, and after a restart\n%+v", v, v2)
			}
			if n > 0 && v.Ran && v.Start == nil {
				t.Fatalf("it runs twice: %+v", v)
			}
			if got, want := kept.load(t).Records(), live.Records(); !reflect.DeepEqual(got, want) {
				t.Fatalf("the records are\n%s, the roster is\n%s", got, want)
			}
			checkConfChanges(t, live, v.ConfChanges)
		}
	})
}

// checkConfChanges checks what raft is told against the roster afterwards.
func checkConfChanges(t *testing.T, r *Roster, changes []*raftpb.ConfChangeV2) {
	last := make(map[uint64]raftpb.ConfChangeType)
	for _, cc := range changes {
		for _, c := range cc.GetChanges() {
			last[c.GetNodeId()] = c.GetType()
		}
	}
	for id, typ := range last {
		m, there := r.Membership().Member(id)
		switch typ {
		case raftpb.ConfChangeRemoveNode:
			if there || !r.removed[id] {
				t.Fatalf("raft removes member %d, and the roster has it", id)
			}
		case raftpb.ConfChangeAddNode, raftpb.ConfChangeAddLearnerNode:
			if !there || m.Learner != (typ == raftpb.ConfChangeAddLearnerNode) {
				t.Fatalf("raft has member %d by %v, and the roster has %+v", id, typ, m)
			}
		}
	}
}

// FuzzRecords: records that are loaded are those of the roster that they become, and a
// roster that others receive in a snapshot is the same one to them and to raft.
func FuzzRecords(f *testing.F) {
	r := New(testCluster, []Member{testMember(1), testMember(2)})
	r.origins[1] = &Origin{Boot: "boot", Incarnation: 300, LastBatch: 70000, LastChange: 2}
	r.removed[9] = true
	r.made, r.madeFrom = []Made{{Once{"key", "0f"}, 7}}, 3
	for _, rec := range r.Records() {
		f.Add(rec.Key, rec.Value, NewSnapshot(7, 1, r.Membership()).GetData())
	}
	f.Add(recordKey(recordMember, 1), []byte("\x01{\"id\":1,\"ID\":2}"), []byte(`{"version":1,"members":[{"id":1},{"id":1}]}`))
	f.Fuzz(func(t *testing.T, key, value, snapshot []byte) {
		if d, err := DecodeSnapshotData(snapshot); err == nil {
			checkSnapshot(t, d)
		}
		r, err := Load([]statemachine.Record{{Key: key, Value: value}})
		if err != nil {
			return
		}
		records := r.Records()
		again, err := Load(records)
		if err != nil || !reflect.DeepEqual(again.Records(), records) {
			t.Fatalf("%x=%q became\n%s, and that\n%v, %v", key, value, records, again, err)
		}
		if !slices.ContainsFunc(records, func(r statemachine.Record) bool { return bytes.Equal(r.Key, key) }) {
			t.Fatalf("%x=%q is lost", key, value)
		}
	})
}

// checkSnapshot writes what is in a snapshot once more.
func checkSnapshot(t *testing.T, d SnapshotData) {
	m := &Membership{ClusterID: d.ClusterID, Members: d.Members, Removed: make(map[uint64]bool)}
	for _, id := range d.Removed {
		m.Removed[id] = true
	}
	s := NewSnapshot(7, 1, m)
	again, err := DecodeSnapshotData(s.GetData())
	if err != nil || again.ClusterID != d.ClusterID || len(again.Members) != len(d.Members) || len(again.Removed) != len(m.Removed) || !m.Matches(s.GetMetadata().GetConfState()) {
		t.Fatalf("%+v became %+v, %v", d, again, err)
	}
	for i := range again.Members {
		if again.Members[i].ID != d.Members[i].ID || again.Members[i].Learner != d.Members[i].Learner || again.Members[i].Nonce != d.Members[i].Nonce {
			t.Fatalf("%+v became %+v", d.Members[i], again.Members[i])
		}
	}
}
