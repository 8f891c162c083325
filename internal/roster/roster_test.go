package roster

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/limits"
	"github.com/kvd-io/kvd/internal/statemachine"
)

// script feeds a roster with entries.
type script struct {
	t     *testing.T
	r     *Roster
	index uint64
}

func newScript(t *testing.T, members int) *script {
	var initial []Member
	for id := uint64(1); id <= uint64(members); id++ {
		initial = append(initial, testMember(id))
	}
	return &script{t: t, r: New(testCluster, initial), index: initialIndex}
}

func (s *script) normal(data []byte) Verdict {
	s.t.Helper()
	s.index++
	out, err := s.r.Apply(&raftpb.Entry{Index: new(s.index), Term: new(uint64(1)), Data: data})
	if err != nil {
		s.t.Fatal(err)
	}
	s.reload()
	return out
}

func (s *script) start(member uint64, nonce, boot string) Verdict {
	s.t.Helper()
	return s.normal(EncodeStart(&Start{Member: member, Nonce: nonce, Boot: boot, Version: PayloadVersion}))
}

func (s *script) batch(o BatchID) Verdict {
	s.t.Helper()
	return s.normal(EncodeBatch(o, [][]byte{[]byte("x")}))
}

func confChangeEntry(t *testing.T, index uint64, cc *raftpb.ConfChangeV2) *raftpb.Entry {
	t.Helper()
	data, err := proto.Marshal(cc)
	if err != nil {
		t.Fatal(err)
	}
	return &raftpb.Entry{Index: new(index), Term: new(uint64(1)), Type: raftpb.EntryConfChangeV2.Enum(), Data: data}
}

func (s *script) change(o BatchID, c Change) Verdict {
	s.t.Helper()
	s.index++
	out, err := s.r.Apply(confChangeEntry(s.t, s.index, c.ConfChange(EncodeChange(o, &c))))
	if err != nil {
		s.t.Fatal(err)
	}
	s.reload()
	return out
}

// reload checks that the stored form brings back the same roster.
func (s *script) reload() {
	s.t.Helper()
	again, err := Load(s.r.Records())
	if err != nil {
		s.t.Fatal(err)
	}
	if !reflect.DeepEqual(again.Membership(), s.r.Membership()) || !reflect.DeepEqual(again.origins, s.r.origins) {
		s.t.Fatalf("records bring back\n%+v, want\n%+v", again.Membership(), s.r.Membership())
	}
}

func TestRosterGolden(t *testing.T) {
	r := New(0x0102030405060708, []Member{{ID: 7, Name: "g", PeerURLs: []string{"http://g:1"}, Nonce: "n", Version: 1}})
	r.origins[7] = &Origin{Boot: "boot", Incarnation: 300, LastBatch: 70000, LastChange: 2}
	r.removed[9] = true
	r.made, r.madeFrom = []Made{{Once{"key", "0f"}, 7}}, 3
	for i, rec := range r.Records() {
		name := []string{"record_cluster", "record_made", "record_member", "record_origin", "record_removed"}[i]
		golden(t, name, append(append([]byte{}, rec.Key...), rec.Value...))
	}
}

// TestRosterRunsABatchOnce is invariant I3.
func TestRosterRunsABatchOnce(t *testing.T) {
	s := newScript(t, 3)
	inc := uint64(2)
	if st := s.start(1, "dir", "boot1"); !st.Ran || st.Err != nil {
		t.Fatalf("start: %+v", st)
	}
	for _, c := range []struct {
		name string
		o    BatchID
		ran  bool
	}{
		{"first", BatchID{1, inc, 1}, true},
		{"copy", BatchID{1, inc, 1}, false},
		{"gap", BatchID{1, inc, 5}, true},
		{"earlier", BatchID{1, inc, 4}, false},
		{"older incarnation", BatchID{1, inc - 1, 9}, false},
		{"incarnation to come", BatchID{1, inc + 1, 9}, false},
		{"member without a start", BatchID{2, inc, 1}, false},
		{"unknown member", BatchID{99, inc, 1}, false},
	} {
		if st := s.batch(c.o); st.Ran != c.ran || (len(st.Commands) > 0) != c.ran || (len(st.Records) > 0) != c.ran {
			t.Errorf("%s: ran %v with %d commands, want %v", c.name, st.Ran, len(st.Commands), c.ran)
		}
	}
}

// TestRestartWithTheSameBootIsOneIncarnation: a start that was proposed twice
// does not end the incarnation that it began.
func TestRestartWithTheSameBootIsOneIncarnation(t *testing.T) {
	s := newScript(t, 3)
	s.start(1, "dir", "boot1")
	inc := s.index
	s.batch(BatchID{1, inc, 1})
	if st := s.start(1, "dir", "boot1"); st.Ran || st.Err != nil {
		t.Errorf("the copy began another incarnation: %+v", st)
	}
	if st := s.batch(BatchID{1, inc, 1}); st.Ran {
		t.Error("a batch ran twice around a copied start")
	}
	if st := s.batch(BatchID{1, inc, 2}); !st.Ran {
		t.Error("the incarnation ended")
	}
}

// TestLateStartOfThePreviousProcess: the late start takes the incarnation. The
// batches of the current process are skipped, not run twice, until it
// introduces itself again.
func TestLateStartOfThePreviousProcess(t *testing.T) {
	s := newScript(t, 3)
	s.start(1, "dir", "boot2")
	inc := s.index
	s.batch(BatchID{1, inc, 1})
	if st := s.start(1, "dir", "boot1"); !st.Ran {
		t.Error("the late start did not begin an incarnation")
	}
	if st := s.batch(BatchID{1, inc, 2}); st.Ran {
		t.Error("a batch of an ended incarnation ran")
	}
	s.start(1, "dir", "boot2")
	if st := s.batch(BatchID{1, inc, 2}); st.Ran {
		t.Error("a batch of an ended incarnation ran")
	}
	if st := s.batch(BatchID{1, s.index - 1, 1}); !st.Ran {
		t.Error("the new incarnation does not run")
	}
}

// TestStartRules: who may introduce itself. Another directory, such as an
// emptied disk, can never act as the member.
func TestStartRules(t *testing.T) {
	s := newScript(t, 3)
	s.start(1, "dir", "boot1")
	inc := s.index
	for _, c := range []struct {
		name string
		st   Verdict
		err  error
	}{
		{"other nonce", s.start(1, "other", "boot2"), ErrMemberExists},
		{"other nonce, admission", s.start(1, "other", ""), ErrMemberExists},
		{"unknown member", s.start(9, "dir", "boot"), ErrMemberNotFound},
		{"same nonce, admission", s.start(1, "dir", ""), nil},
	} {
		if !errors.Is(c.st.Err, c.err) || c.st.Ran {
			t.Errorf("%s: %v, ran %v", c.name, c.st.Err, c.st.Ran)
		}
	}
	if st := s.batch(BatchID{1, inc, 1}); !st.Ran {
		t.Error("refused starts and admissions ended the incarnation")
	}
	if m, _ := s.r.Membership().Member(1); m.Nonce != "dir" {
		t.Errorf("nonce %q", m.Nonce)
	}
	s.change(BatchID{1, inc, 1}, Change{Kind: RemoveMember, Member: Member{ID: 2}})
	if st := s.start(2, "dir2", "boot"); !errors.Is(st.Err, ErrMemberRemoved) {
		t.Errorf("start of a removed member: %v", st.Err)
	}
}

// TestChangeRules is the table of legal changes. Refused ones change nothing
// and never reach raft.
func TestChangeRules(t *testing.T) {
	url := []string{"http://new:1"}
	for _, c := range []struct {
		name   string
		before []Change
		change Change
		err    error
	}{
		{"add", nil, Change{Kind: AddMember, Member: Member{ID: 4, PeerURLs: url}}, nil},
		{"add an id in use", nil, Change{Kind: AddMember, Member: Member{ID: 2, PeerURLs: url}}, ErrMemberExists},
		{"add without URL", nil, Change{Kind: AddMember, Member: Member{ID: 4}}, ErrBadMember},
		{"add a URL in use", nil, Change{Kind: AddMember, Member: Member{ID: 4, PeerURLs: testMember(2).PeerURLs}}, ErrMemberExists},
		{"add id 0", nil, Change{Kind: AddMember, Member: Member{PeerURLs: url}}, ErrBadMember},
		{"add id 2^53", nil, Change{Kind: AddMember, Member: Member{ID: limits.MaxMemberID + 1, PeerURLs: url}}, ErrBadMember},
		{"add raft's LocalAppendThread", nil, Change{Kind: AddMember, Member: Member{ID: math.MaxUint64, PeerURLs: url}}, ErrBadMember},
		{"add the greatest id", nil, Change{Kind: AddMember, Member: Member{ID: limits.MaxMemberID, PeerURLs: url}}, nil},
		{"an id never comes back", []Change{{Kind: RemoveMember, Member: Member{ID: 3}}}, Change{Kind: AddMember, Member: Member{ID: 3, PeerURLs: url}}, ErrMemberRemoved},
		{"remove twice", []Change{{Kind: RemoveMember, Member: Member{ID: 3}}}, Change{Kind: RemoveMember, Member: Member{ID: 3}}, ErrMemberRemoved},
		{"remove unknown", nil, Change{Kind: RemoveMember, Member: Member{ID: 9}}, ErrMemberNotFound},
		{"the last voter stays", []Change{{Kind: RemoveMember, Member: Member{ID: 3}}, {Kind: RemoveMember, Member: Member{ID: 2}}}, Change{Kind: RemoveMember, Member: Member{ID: 1}}, ErrUnsafeChange},
		{"the last voter stays beside a learner", []Change{{Kind: RemoveMember, Member: Member{ID: 3}}, {Kind: RemoveMember, Member: Member{ID: 2}}, {Kind: AddMember, Member: Member{ID: 4, PeerURLs: url}}}, Change{Kind: RemoveMember, Member: Member{ID: 1}}, ErrUnsafeChange},
		{"a learner may go", []Change{{Kind: AddMember, Member: Member{ID: 4, PeerURLs: url}}}, Change{Kind: RemoveMember, Member: Member{ID: 4}}, nil},
		{"promote", []Change{{Kind: AddMember, Member: Member{ID: 4, PeerURLs: url}}}, Change{Kind: PromoteMember, Member: Member{ID: 4}}, nil},
		{"promote a voter", nil, Change{Kind: PromoteMember, Member: Member{ID: 2}}, ErrMemberExists},
		{"promote unknown", nil, Change{Kind: PromoteMember, Member: Member{ID: 9}}, ErrMemberNotFound},
		{"update", nil, Change{Kind: UpdateMember, Member: Member{ID: 2, PeerURLs: url}}, nil},
		{"update to a URL in use", nil, Change{Kind: UpdateMember, Member: Member{ID: 2, PeerURLs: testMember(1).PeerURLs}}, ErrMemberExists},
		{"replace", nil, Change{Kind: ReplaceMember, Replaces: 2, Member: Member{ID: 4, Name: testMember(2).Name, PeerURLs: testMember(2).PeerURLs}}, nil},
		{"replace a learner", []Change{{Kind: AddMember, Member: Member{ID: 4, Name: "n", PeerURLs: url}}}, Change{Kind: ReplaceMember, Replaces: 4, Member: Member{ID: 5, Name: "n", PeerURLs: url}}, nil},
		{"replace under another name", []Change{{Kind: AddMember, Member: Member{ID: 4, Name: "n", PeerURLs: url}}}, Change{Kind: ReplaceMember, Replaces: 4, Member: Member{ID: 5, Name: "o", PeerURLs: url}}, ErrBadMember},
		{"replace from another URL", nil, Change{Kind: ReplaceMember, Replaces: 2, Member: Member{ID: 4, Name: testMember(2).Name, PeerURLs: url}}, ErrBadMember},
		{"replace with a URL of a third", nil, Change{Kind: ReplaceMember, Replaces: 2, Member: Member{ID: 4, Name: testMember(2).Name, PeerURLs: append(testMember(1).PeerURLs, testMember(2).PeerURLs...)}}, ErrMemberExists},
		{"replace by an id in use", nil, Change{Kind: ReplaceMember, Replaces: 2, Member: Member{ID: 3, Name: testMember(2).Name, PeerURLs: testMember(2).PeerURLs}}, ErrMemberExists},
		{"replace by itself", nil, Change{Kind: ReplaceMember, Replaces: 2, Member: Member{ID: 2, Name: testMember(2).Name, PeerURLs: testMember(2).PeerURLs}}, ErrMemberExists},
		{"replace unknown", nil, Change{Kind: ReplaceMember, Replaces: 9, Member: Member{ID: 4, PeerURLs: url}}, ErrMemberNotFound},
		{"replace twice", []Change{{Kind: RemoveMember, Member: Member{ID: 3}}}, Change{Kind: ReplaceMember, Replaces: 3, Member: Member{ID: 4, PeerURLs: testMember(3).PeerURLs}}, ErrMemberNotFound},
		{"replace the last voter", []Change{{Kind: RemoveMember, Member: Member{ID: 3}}, {Kind: RemoveMember, Member: Member{ID: 2}}}, Change{Kind: ReplaceMember, Replaces: 1, Member: Member{ID: 4, Name: testMember(1).Name, PeerURLs: testMember(1).PeerURLs}}, ErrUnsafeChange},
		{"unknown kind", nil, Change{Kind: "explode", Member: Member{ID: 2}}, ErrBadMember},
	} {
		s := newScript(t, 3)
		s.start(1, "dir", "boot1")
		inc, seq := s.index, uint64(0)
		for _, b := range c.before {
			seq++
			if st := s.change(BatchID{1, inc, seq}, b); st.Err != nil || len(st.ConfChanges) == 0 {
				t.Fatalf("%s: before: %v", c.name, st.Err)
			}
		}
		before := s.r.Membership()
		st := s.change(BatchID{1, inc, seq + 1}, c.change)
		if !errors.Is(st.Err, c.err) || (st.Err == nil) != (c.err == nil) || (len(st.ConfChanges) > 0) != (c.err == nil) {
			t.Errorf("%s: %v, conf change %v, want %v", c.name, st.Err, len(st.ConfChanges) > 0, c.err)
		}
		if c.err != nil && !reflect.DeepEqual(before, s.r.Membership()) {
			t.Errorf("%s: refused, and changed the membership", c.name)
		}
		if again := s.change(BatchID{1, inc, seq + 1}, c.change); again.Ran || len(again.ConfChanges) > 0 {
			t.Errorf("%s: its copy ran", c.name)
		}
	}
}

// A replacement is one entry, in which raft sees the removal, and two changes of its
// configuration. The old id never returns, and the new one has no directory yet.
func TestReplacementIsOneStep(t *testing.T) {
	s := newScript(t, 3)
	s.start(1, "dir", "boot1")
	s.start(3, "lost", "boot3")
	old, _ := s.r.Membership().Member(3)
	v := s.change(BatchID{1, s.index - 1, 1}, Change{Kind: ReplaceMember, Replaces: 3, Member: Member{ID: 4, Name: old.Name, PeerURLs: old.PeerURLs, Nonce: "forged"}})
	var got []string
	for _, cc := range v.ConfChanges {
		for _, one := range cc.GetChanges() {
			got = append(got, fmt.Sprint(one.GetType(), one.GetNodeId()))
		}
	}
	if want := []string{"ConfChangeRemoveNode 3", "ConfChangeAddLearnerNode 4"}; v.Err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%v, %q, want %q", v.Err, got, want)
	}
	ms := s.r.Membership()
	if m, ok := ms.Member(4); !ok || !m.Learner || m.Nonce != "" || !ms.Removed[3] || s.r.Origin(3) != (Origin{}) {
		t.Errorf("%+v, removed %v", m, ms.Removed)
	}
	if st := s.start(3, "lost", "boot9"); !errors.Is(st.Err, ErrMemberRemoved) {
		t.Errorf("the old directory comes back: %v", st.Err)
	}
}

func TestAddedMembersAreLearnersWithoutNonce(t *testing.T) {
	s := newScript(t, 1)
	s.start(1, "dir", "boot1")
	s.change(BatchID{1, s.index, 1}, Change{Kind: AddMember, Member: Member{ID: 4, PeerURLs: []string{"http://n:1"}, Nonce: "forged"}})
	m, ok := s.r.Membership().Member(4)
	if !ok || !m.Learner || m.Nonce != "" || s.r.Membership().HighestID != 4 {
		t.Errorf("%+v", m)
	}
	if got := s.r.Membership().Voters(); !reflect.DeepEqual(got, []uint64{1}) {
		t.Errorf("voters %v", got)
	}
}

// A change is remembered for repeats of its request, in the records as well, and the
// number of those that are is bounded.
func TestMadeChanges(t *testing.T) {
	s := newScript(t, 3)
	s.start(1, "dir", "boot1")
	inc, records := s.index, map[string][]byte{}
	update := func(n int) Verdict {
		c := Change{Kind: UpdateMember, Member: Member{ID: 2, ClientURLs: []string{fmt.Sprintf("http://c:%d", n)}}, Once: Once{fmt.Sprintf("k%d", n), "f"}}
		v := s.change(BatchID{1, inc, s.index + 1}, c)
		for _, rec := range v.Records {
			if rec.Value == nil {
				delete(records, string(rec.Key))
			} else {
				records[string(rec.Key)] = rec.Value
			}
		}
		return v
	}
	for n := range maxMade + 3 {
		if v := update(n); v.Err != nil {
			t.Fatal(v.Err)
		}
	}
	loaded, err := Load(s.r.Records())
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]*Roster{"current": s.r, "loaded": loaded} {
		ms := r.Membership()
		_, oldest := ms.MadeBy("k2")
		made, kept := ms.MadeBy("k3")
		if oldest || !kept || made.Member != 2 || len(ms.Made) != maxMade {
			t.Errorf("%s: oldest %t, %+v %t, %d changes", name, oldest, made, kept, len(ms.Made))
		}
	}
	n := 0
	for key := range records {
		if key[0] == recordMade {
			n++
		}
	}
	if n != maxMade {
		t.Errorf("%d records are left, want %d", n, maxMade)
	}
	if v := update(5); !errors.Is(v.Err, ErrRepeated) || len(v.ConfChanges) > 0 {
		t.Errorf("a repeat: %v, conf change %t", v.Err, len(v.ConfChanges) > 0)
	}
}

// TestEntriesThatStopTheNode: an entry that cannot be understood is never skipped.
func TestEntriesThatStopTheNode(t *testing.T) {
	good := Change{Kind: RemoveMember, Member: Member{ID: 3}}
	other := Change{Kind: RemoveMember, Member: Member{ID: 2}}
	batch := EncodeBatch(BatchID{1, 2, 1}, nil)
	flipped := append([]byte{}, batch...)
	flipped[3] ^= 1
	s := newScript(t, 3)
	s.start(1, "dir", "boot1")
	for name, e := range map[string]*raftpb.Entry{
		"checksum":             {Index: new(uint64(9)), Data: flipped},
		"short":                {Index: new(uint64(9)), Data: []byte{1, 2}},
		"unknown kind":         {Index: new(uint64(9)), Data: sealPayload([]byte{PayloadVersion, 99})},
		"change in normal":     {Index: new(uint64(9)), Data: EncodeChange(BatchID{1, 2, 1}, &good)},
		"old conf change type": {Index: new(uint64(9)), Type: raftpb.EntryConfChange.Enum(), Data: batch},
		"batch in conf change": confChangeEntry(t, 9, good.ConfChange(batch)),
		"two halves disagree":  confChangeEntry(t, 9, other.ConfChange(EncodeChange(BatchID{1, 2, 1}, &good))),
	} {
		if _, err := s.r.Apply(e); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for name, e := range map[string]*raftpb.Entry{
		"empty":               {Index: new(uint64(9))},
		"emptied conf change": {Index: new(uint64(9)), Type: raftpb.EntryNormal.Enum()},
		"conf change of none": confChangeEntry(t, 9, &raftpb.ConfChangeV2{}),
	} {
		if st, err := s.r.Apply(e); err != nil || len(st.ConfChanges) > 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLoadRosterRefusesNonsense(t *testing.T) {
	for name, rec := range map[string]statemachine.Record{
		"no value":        {Key: []byte{recordCluster}},
		"version":         {Key: []byte{recordCluster}, Value: []byte{9, 0, 0, 0, 0, 0, 0, 0, 0}},
		"short key":       {Key: []byte{recordMember, 1}, Value: []byte{recordVersion}},
		"other member":    {Key: recordKey(recordMember, 2), Value: memberRecord(&Member{ID: 3}).Value},
		"unknown table":   {Key: recordKey('z', 2), Value: []byte{recordVersion}},
		"short origin":    {Key: recordKey(recordOrigin, 2), Value: []byte{recordVersion, 1}},
		"member not JSON": {Key: recordKey(recordMember, 2), Value: []byte{recordVersion, '{'}},
		"no key":          {Value: []byte{recordVersion}},
	} {
		if _, err := Load([]statemachine.Record{rec}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// A directory counts its starts. An older copy of it, or the second of two copies,
// begins a start that the cluster has seen already (I5).
func TestStartOfACopyIsRefused(t *testing.T) {
	s := newScript(t, 3)
	begin := func(starts uint64, boot string) Verdict {
		return s.normal(EncodeStart(&Start{Member: 1, Nonce: "dir", Boot: boot, Starts: starts, Version: PayloadVersion}))
	}
	for _, c := range []struct {
		name    string
		starts  uint64
		boot    string
		refused bool
	}{
		{"the first start", 1, "a", false},
		{"the same, proposed twice", 1, "a", false},
		{"the next one", 2, "b", false},
		{"another copy of the directory", 2, "c", true},
		{"an older copy", 1, "d", true},
		{"the predecessor, committed late", 1, "a", true},
		{"the same again", 2, "b", false},
		{"a later one", 7, "e", false},
	} {
		before := *s.r.origins[1].orEmpty()
		out := begin(c.starts, c.boot)
		if refused := errors.Is(out.Err, ErrStaleDirectory); refused != c.refused {
			t.Errorf("%s: %v", c.name, out.Err)
		}
		if c.refused && *s.r.origins[1] != before {
			t.Errorf("%s: it took over: %+v, was %+v", c.name, *s.r.origins[1], before)
		}
	}
}

func (o *Origin) orEmpty() *Origin {
	if o == nil {
		return new(Origin)
	}
	return o
}

// TestNamed: the members that a log names, whatever else is in it.
func TestNamed(t *testing.T) {
	add, update := Change{Kind: AddMember, Member: testMember(4)}, Change{Kind: UpdateMember, Member: Member{ID: 2, PeerURLs: []string{"http://new:1"}}}
	remove := Change{Kind: RemoveMember, Member: Member{ID: 3}}
	o := BatchID{1, 2, 1}
	got := Named([]*raftpb.Entry{
		{Index: new(uint64(7)), Data: EncodeChange(o, &add)}, // not a change: in an ordinary entry
		confChangeEntry(t, 8, add.ConfChange(EncodeChange(o, &add))),
		confChangeEntry(t, 9, remove.ConfChange(EncodeChange(o, &remove))),
		confChangeEntry(t, 10, add.ConfChange([]byte("damaged"))),
		confChangeEntry(t, 11, update.ConfChange(EncodeChange(o, &update))),
	})
	if len(got) != 2 || !reflect.DeepEqual(got[0], add.Member) || !reflect.DeepEqual(got[1], update.Member) {
		t.Errorf("named: %+v", got)
	}
}
