package raftnode

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/roster"
)

func openConfig(t *testing.T, dir string, m *machine) Config {
	m.observe = func(*Entry, uint64) {}
	m.violation = t.Errorf
	return Config{ID: 1, ClusterID: 7, Dir: dir, Nonce: "n", StateMachine: m, VerifyBody: verifyMachineBody, Initial: []roster.Member{simMember(1), simMember(2), simMember(3)}}
}

// openNode opens a replica that never runs. It leaves what a kill would leave.
func openNode(t *testing.T, cfg Config) (*Replica, error) {
	t.Helper()
	if cfg.Dir == "" {
		t.Fatal("no directory")
	}
	n, err := Open(cfg)
	if err == nil {
		t.Cleanup(func() {
			n.transport.Stop()
			_ = n.disk.Close()
		})
	}
	return n, err
}

func mustOpenNode(t *testing.T, cfg Config) *Replica {
	t.Helper()
	n, err := openNode(t, cfg)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return n
}

// refusedOpen demands that opening is refused.
func refusedOpen(t *testing.T, cfg Config, reason string) {
	t.Helper()
	before := mustExamine(t, cfg.Dir)
	_, err := openNode(t, cfg)
	var refused *datadir.RefusedError
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), reason) {
		t.Fatalf("Open: %v, want a refusal about %q", err, reason)
	}
	after := mustExamine(t, cfg.Dir)
	if after.LastEntry != before.LastEntry || after.Term != before.Term || after.Vote != before.Vote || after.Commit != before.Commit {
		t.Errorf("the log went from\n%s\nto\n%s", before, after)
	}
}

// mustExamine judges the log of a directory, which must be whole.
func mustExamine(t *testing.T, dir string) datadir.Report {
	t.Helper()
	report, err := datadir.Examine(dir)
	if err != nil || report.Verdict() != "ok" {
		t.Fatalf("the doctor says %s, %v", report.Verdict(), err)
	}
	return report
}

// beganWell checks that a replica has the initial membership, once.
func beganWell(t *testing.T, n *Replica, m *machine) {
	t.Helper()
	hs, cs, err := n.log.InitialState()
	if err != nil || hs.GetTerm() != initialTerm || hs.GetCommit() != InitialIndex || !slices.Equal(cs.GetVoters(), []uint64{1, 2, 3}) {
		t.Errorf("begins with %v, %v, %v", hs, cs, err)
	}
	if m.cur.Index != InitialIndex || len(m.cur.Records) == 0 {
		t.Errorf("the state is at entry %d with %d records", m.cur.Index, len(m.cur.Records))
	}
}

// bootstrapCrashes returns the directories that a crash after each step of a
// bootstrap leaves.
func bootstrapCrashes(t *testing.T) map[string]string {
	t.Helper()
	dir := t.TempDir()
	cfg := openConfig(t, dir, newMachine(false))
	crashes := map[string]string{"nothing": killed(t, dir)}
	d, _, err := datadir.OpenLog(zap.NewNop(), dir, datadir.Owner{MemberID: cfg.ID, ClusterID: cfg.ClusterID})
	if err != nil {
		t.Fatal(err)
	}
	crashes["watermark"] = killed(t, dir)
	crashes["log"] = killed(t, dir)
	if err := os.Remove(filepath.Join(crashes["log"], "watermark")); err != nil {
		t.Fatal(err)
	}
	s := roster.NewSnapshot(InitialIndex, initialTerm, roster.New(cfg.ClusterID, cfg.Initial).Membership())
	if err := errors.Join(d.Snapshotter().SaveSnap(s), d.Close()); err != nil {
		t.Fatal(err)
	}
	crashes[".snap file"] = killed(t, dir)

	w, err := wal.Open(zap.NewNop(), filepath.Join(dir, "wal"), new(walpb.Snapshot))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := w.ReadAll(); err != nil {
		t.Fatal(err)
	}
	m := s.GetMetadata()
	if err := w.SaveSnapshot(&walpb.Snapshot{Index: new(m.GetIndex()), Term: new(m.GetTerm()), ConfState: m.GetConfState()}); err != nil {
		t.Fatal(err)
	}
	crashes["WAL record"] = killed(t, dir)
	if err := errors.Join(w.Save(hardStateAt(initialTerm, 0, InitialIndex), nil), w.Close()); err != nil {
		t.Fatal(err)
	}
	crashes["hard state"] = killed(t, dir)
	return crashes
}

// A bootstrap is repeated or complete: every start after a crash has the same
// initial membership, and so has the one after that.
func TestOpenBootstrapCrashAtEachStep(t *testing.T) {
	segmentsOf(t, 64<<10)
	for step, dir := range bootstrapCrashes(t) {
		t.Run(step, func(t *testing.T) {
			var first map[string][]byte
			for range 3 {
				m := newMachine(false)
				n := mustOpenNode(t, openConfig(t, dir, m))
				beganWell(t, n, m)
				if first == nil {
					first = maps.Clone(m.cur.Records)
				}
				if !maps.EqualFunc(first, m.cur.Records, bytes.Equal) {
					t.Error("the initial membership is another")
				}
				dir = killed(t, dir)
			}
		})
	}
}

// Once the state has the initial membership it continues from there.
func TestOpenAfterTheStateBegan(t *testing.T) {
	segmentsOf(t, 64<<10)
	dir, m := t.TempDir(), newMachine(false)
	mustOpenNode(t, openConfig(t, dir, m))
	if err := m.Flush(); err != nil {
		t.Fatal(err)
	}
	m.crash()
	n := mustOpenNode(t, openConfig(t, killed(t, dir), m))
	beganWell(t, n, m)
}

// A member that came late was told to join, and knows a later term or has even
// voted. Its flags still name the initial members. Beginning at the first term
// with them would mean voting a second time.
func TestOpenBootstrapKeepsTermAndVote(t *testing.T) {
	segmentsOf(t, 64<<10)
	dir := t.TempDir()
	cfg := openConfig(t, dir, newMachine(false))
	cfg.Initial = nil
	n := mustOpenNode(t, cfg)
	mustSave(t, n.disk, hardStateAt(5, 2, 0))
	dir = killed(t, dir)
	for range 3 {
		n, err := openNode(t, openConfig(t, dir, newMachine(false)))
		if err == nil {
			if hs, _, _ := n.log.InitialState(); hs.GetTerm() != 5 || hs.GetVote() != 2 {
				t.Fatalf("begins with %v, it was in term 5 and voted for 2", hs)
			}
		}
		dir = killed(t, dir)
		if r := mustExamine(t, dir); r.Term != 5 || r.Vote != 2 {
			t.Fatalf("the log is of\n%s", r)
		}
	}
	if n, err := openNode(t, openConfig(t, dir, newMachine(false))); err != nil {
		t.Errorf("it does not start again: %v, %v", n, err)
	}
}

// grownLog returns the directory of a member after 20 entries, with a
// checkpoint at 10, and the state at both places.
func grownLog(t *testing.T) (dir string, atCheckpoint, atEnd *machineState) {
	t.Helper()
	segmentsOf(t, 64<<10)
	dir = t.TempDir()
	m := newMachine(false)
	n := mustOpenNode(t, openConfig(t, dir, m))
	for i := uint64(2); i <= 20; i++ {
		e := entryAt(i, 1, 0)
		e.Data = nil
		mustSave(t, n.disk, hardStateAt(1, 1, i), e)
		if _, err := n.applier.apply([]applyWork{{entries: []*raftpb.Entry{e}}}); err != nil {
			t.Fatal(err)
		}
		if i == 10 {
			atCheckpoint = m.cur.clone()
			v, _ := m.View()
			s, err := describe(v)
			if err == nil {
				err = n.disk.SaveSnapshot(s)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := n.disk.UpdateWatermark(time.Now()); err != nil {
		t.Fatal(err)
	}
	return killed(t, dir), atCheckpoint, m.cur.clone()
}

func machineAt(s *machineState) *machine {
	m := newMachine(false)
	m.reset(s.clone())
	return m
}

// The state may be anywhere from the checkpoint to the end of the log; raft
// then begins with a commit index that covers it.
func TestOpenStateInsideTheLog(t *testing.T) {
	dir, atCheckpoint, atEnd := grownLog(t)
	for _, s := range []*machineState{atCheckpoint, atEnd} {
		n := mustOpenNode(t, openConfig(t, killed(t, dir), machineAt(s)))
		hs, _, _ := n.log.InitialState()
		first, _ := n.log.FirstIndex()
		if n.applier.index != s.Index || hs.GetCommit() < s.Index || first != 11 {
			t.Errorf("state at %d: applied %d, commit %d, first entry %d", s.Index, n.applier.index, hs.GetCommit(), first)
		}
	}
}

func TestOpenStateAheadOfTheLog(t *testing.T) {
	dir, _, atEnd := grownLog(t)
	ahead := atEnd.clone()
	ahead.Index++
	refusedOpen(t, openConfig(t, dir, machineAt(ahead)), "the store contains entry 21, but the log ends at 20")
}

func TestOpenStateBehindTheLogWithoutABody(t *testing.T) {
	dir, atCheckpoint, _ := grownLog(t)
	behind := atCheckpoint.clone()
	behind.Index--
	for name, m := range map[string]*machine{"behind": machineAt(behind), "empty": newMachine(false)} {
		t.Run(name, func(t *testing.T) {
			refusedOpen(t, openConfig(t, killed(t, dir), m), "the log begins after entry 10")
		})
	}
}

func TestOpenStateBehindTheLogWithABody(t *testing.T) {
	dir, atCheckpoint, _ := grownLog(t)
	v := &machineView{s: atCheckpoint}
	if _, err := datadir.WriteBody(filepath.Join(dir, "snap", "000000000000000a.snap.db"), v); err != nil {
		t.Fatal(err)
	}
	m := newMachine(true)
	n := mustOpenNode(t, openConfig(t, killed(t, dir), m))
	if m.cur.Hash != atCheckpoint.Hash || n.applier.index != 10 || len(n.Membership().Members) != 3 {
		t.Errorf("restored at entry %d, members %v", n.applier.index, n.Membership().Members)
	}

	// A body from another place in the log does not belong to the
	// snapshot.
	other := atCheckpoint.clone()
	other.Index++
	if _, err := datadir.WriteBody(filepath.Join(dir, "snap", "000000000000000a.snap.db"), &machineView{s: other}); err != nil {
		t.Fatal(err)
	}
	if _, err := openNode(t, openConfig(t, dir, newMachine(true))); err == nil || !strings.Contains(err.Error(), "index 11") {
		t.Errorf("a body of another index: %v", err)
	}
}

// TestOpenRebuiltTwice: an engine in memory starts again after its state came from another
// member, although the body that it had started from before is damaged. The log goes on.
func TestOpenRebuiltTwice(t *testing.T) {
	dir, atCheckpoint, atEnd := grownLog(t)
	inside := machineAt(atCheckpoint)
	inside.observe = func(*Entry, uint64) {}
	inside.run(&Entry{Index: 11, Term: atEnd.Term})
	for name, sent := range map[string]*machineState{"of the checkpoint": atCheckpoint, "inside the log": inside.cur} {
		t.Run(name, func(t *testing.T) {
			dir := killed(t, dir)
			if err := os.WriteFile(filepath.Join(dir, "snap", "000000000000000a.snap.db"), []byte("rotten"), 0o600); err != nil {
				t.Fatal(err)
			}
			cfg := openConfig(t, dir, newMachine(true))
			cfg.FetchBody = func(_ []roster.Member, _ uint64, path string) error {
				_, err := datadir.WriteBody(path, &machineView{s: sent})
				return err
			}
			last := func(n *Replica) uint64 {
				index, err := n.log.LastIndex()
				if err != nil {
					t.Fatal(err)
				}
				return index
			}
			if n := mustOpenNode(t, cfg); n.applier.index != sent.Index || last(n) != atEnd.Index {
				t.Errorf("rebuilt at entry %d, and the log ends at %d", n.applier.index, last(n))
			}
			m := newMachine(true)
			n := mustOpenNode(t, openConfig(t, killed(t, dir), m))
			if m.cur.Hash != sent.Hash || n.applier.index != sent.Index || last(n) != atEnd.Index {
				t.Errorf("started at entry %d, and the log ends at %d", n.applier.index, last(n))
			}
		})
	}
}

func TestOpenLogOfAnotherMember(t *testing.T) {
	dir, _, atEnd := grownLog(t)
	for name, change := range map[string]func(*Config){
		"member":  func(c *Config) { c.ID = 2 },
		"cluster": func(c *Config) { c.ClusterID = 8 },
	} {
		cfg := openConfig(t, dir, machineAt(atEnd))
		change(&cfg)
		if _, err := openNode(t, cfg); err == nil || !strings.Contains(err.Error(), "belongs to member 1 of cluster 0000000000000007") {
			t.Errorf("of another %s: %v", name, err)
		}
	}
	mustOpenNode(t, openConfig(t, dir, machineAt(atEnd))) // and is let go of
}

func TestOpenIDOutOfRange(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	cfg := openConfig(t, dir, newMachine(false))
	cfg.ID = 1 << 53
	if _, err := openNode(t, cfg); !errors.Is(err, roster.ErrBadMember) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something was made: %v", err)
	}
}

func TestRaisedCommit(t *testing.T) {
	hs := hardStateAt(3, 2, 10)
	if got := raisedCommit(hs, 10); got != hs {
		t.Errorf("%v", got)
	}
	if got := raisedCommit(hs, 15); got.GetCommit() != 15 || got.GetTerm() != 3 || got.GetVote() != 2 || hs.GetCommit() != 10 {
		t.Errorf("%v", got)
	}
}
