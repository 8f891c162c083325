package raftnode

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/roster"
)

// offline is a machine that keeps its state between openings, as files would.
type offline struct {
	*machine
	files **machineState // nil: an engine in memory
}

func (o *offline) Close() error {
	if o.files != nil {
		*o.files = o.cur.clone()
	}
	return nil
}

// opener opens the machine whose files are in *files.
func opener(t *testing.T, files **machineState) func(string) (OfflineMachine, error) {
	return func(string) (OfflineMachine, error) {
		m := newMachine(files == nil)
		m.observe, m.violation = func(*Entry, uint64) {}, t.Errorf
		if files != nil {
			m.reset((*files).clone())
			m.durable = m.cur.clone()
		}
		return &offline{m, files}, nil
	}
}

// leftAlone returns the directory of member 1 of three. Its store got as far
// as entry 2; its log knows that entry 3 is committed, and has entry 4.
func leftAlone(t *testing.T) (dir string, store *machineState) {
	t.Helper()
	segmentsOf(t, 64<<10)
	dir = filepath.Join(t.TempDir(), "data")
	d, err := datadir.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Claim(1, 7, 0, "one"); err != nil {
		t.Fatal(err)
	}
	id, _ := d.Identity()
	m := newMachine(false)
	cfg := openConfig(t, dir, m)
	cfg.Nonce = id.Nonce
	n, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	entries := []*raftpb.Entry{
		{Index: new(uint64(2)), Term: new(uint64(1)), Data: roster.EncodeStart(&roster.Start{Member: 1, Nonce: id.Nonce, Boot: "boot", Version: 1})},
		{Index: new(uint64(3)), Term: new(uint64(1)), Data: roster.EncodeBatch(roster.BatchID{Member: 1, Incarnation: 2, Sequence: 1}, [][]byte{command(103)})},
		{Index: new(uint64(4)), Term: new(uint64(2)), Data: roster.EncodeBatch(roster.BatchID{Member: 1, Incarnation: 2, Sequence: 2}, [][]byte{command(104)})},
	}
	mustSave(t, n.disk, hardStateAt(2, 1, 3), entries...)
	if _, err := n.applier.apply([]applyWork{{entries: entries[:1]}}); err != nil {
		t.Fatal(err)
	}
	n.transport.Stop()
	if err := errors.Join(n.disk.Close(), d.MarkStarted(), d.Close()); err != nil {
		t.Fatal(err)
	}
	return dir, m.cur
}

func mustOpenDirectory(t *testing.T, path string) *datadir.Dir {
	t.Helper()
	d, err := datadir.Open(path)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// prepared carries out the first phase of a recovery.
func prepared(t *testing.T, dir string, open func(string) (OfflineMachine, error)) *Recovery {
	t.Helper()
	d, _, err := datadir.OpenForRecovery(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	r, err := PrepareRecovery(zap.NewNop(), d, open)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestRecoverKeepsTheWholeLog: everything that the member had is there,
// including what it did not know to be committed, and it is alone in a new
// cluster.
func TestRecoverKeepsTheWholeLog(t *testing.T) {
	for _, memory := range []bool{false, true} {
		dir, store := leftAlone(t)
		files := &store
		if memory {
			files = nil
		}
		before := readTree(t, dir)
		r := prepared(t, dir, opener(t, files))
		if r.Index != 4 || r.Term != 2 || r.Commit != 3 || r.Member.ID != 1 || len(r.Lost) != 2 || r.OldCluster != 7 {
			t.Errorf("memory %v: the recovery is %+v", memory, r)
		}
		for name, b := range before {
			if got, err := os.ReadFile(filepath.Join(dir, name)); name != "lock" && (err != nil || !slices.Equal(got, b)) {
				t.Errorf("preparing changed %s (%v)", name, err)
			}
		}
		if err := r.Complete(); err != nil {
			t.Fatal(err)
		}
		if report, err := datadir.Examine(dir); err != nil || report.Refused != nil {
			t.Errorf("the doctor says %v, %v", report, err)
		}
		d := mustOpenDirectory(t, dir)
		id, _ := d.Identity()
		sm, _ := opener(t, files)(dir)
		m := sm.(*offline).machine
		cfg := openConfig(t, dir, m)
		cfg.ClusterID, cfg.Nonce, cfg.Initial = id.ClusterID, id.Nonce, nil
		n := mustOpenNode(t, cfg)
		ms := n.Membership()
		if id.ClusterID != r.NewCluster || id.ClusterID == 7 || id.Original != 7 || ms.ClusterID != r.NewCluster {
			t.Errorf("memory %v: cluster %x, identity %+v", memory, ms.ClusterID, id)
		}
		if !slices.Equal(ms.Voters(), []uint64{1}) || len(ms.Members) != 1 || !ms.Removed[2] || !ms.Removed[3] || ms.HighestID != 3 || ms.Members[0].Nonce != id.Nonce {
			t.Errorf("memory %v: membership %+v, nonce %s", memory, ms, id.Nonce)
		}
		if !slices.Equal(m.cur.IDs, []uint64{103, 104}) || m.cur.Index != 5 || m.cur.Term != 3 {
			t.Errorf("memory %v: the state is %+v", memory, m.cur)
		}
		old, err := datadir.Examine(r.Backup)
		if err != nil || old.Refused != nil || old.LastEntry != 4 || old.Identity.ClusterID != 7 {
			t.Errorf("the old files: %v, %v", old, err)
		}
	}
}

// TestRecoverTwice: the settings keep naming the first cluster.
func TestRecoverTwice(t *testing.T) {
	dir, store := leftAlone(t)
	for range 2 {
		if err := prepared(t, dir, opener(t, &store)).Complete(); err != nil {
			t.Fatal(err)
		}
	}
	if report := mustExamine(t, dir); report.Identity == nil || report.Identity.Original != 7 {
		t.Errorf("%s", report)
	}
}

// TestRecoverBeforeItIsComplete: until a recovery is complete the directory is
// the old one, and another recovery may begin.
func TestRecoverBeforeItIsComplete(t *testing.T) {
	dir, store := leftAlone(t)
	old := store.clone()
	prepared(t, dir, opener(t, &store))
	crashed := killed(t, dir)
	d := mustOpenDirectory(t, crashed)
	id, _ := d.Identity()
	if id.ClusterID != 7 {
		t.Errorf("the directory is of %+v", id)
	}
	cfg := openConfig(t, crashed, machineAt(old))
	cfg.Nonce = id.Nonce
	mustOpenNode(t, cfg)
	prepared(t, killed(t, dir), opener(t, &old))
}

func TestRecoverRefuses(t *testing.T) {
	dir, store := leftAlone(t)
	none := filepath.Join(t.TempDir(), "none")
	if _, _, err := datadir.OpenForRecovery(none); err == nil || exists(t, none) {
		t.Errorf("a directory that is not there: %v", err)
	}
	d := mustOpenDirectory(t, t.TempDir())
	if _, err := PrepareRecovery(zap.NewNop(), d, opener(t, &store)); err == nil || !strings.Contains(err.Error(), "no log") {
		t.Errorf("a fresh directory: %v", err)
	}
	held := mustOpenDirectory(t, dir)
	if _, _, err := datadir.OpenForRecovery(dir); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a directory in use: %v", err)
	}
	if err := held.MarkRemoved(); err != nil {
		t.Fatal(err)
	}
	if _, err := PrepareRecovery(zap.NewNop(), held, opener(t, &store)); err == nil || !strings.Contains(err.Error(), "removed") {
		t.Errorf("a removed member: %v", err)
	}
	damaged, store := leftAlone(t)
	damageLog(t, damaged)
	held = mustOpenDirectory(t, damaged)
	before := readTree(t, damaged)
	var refused *datadir.RefusedError
	if _, err := PrepareRecovery(zap.NewNop(), held, opener(t, &store)); !errors.As(err, &refused) {
		t.Errorf("a damaged log: %v", err)
	}
	sameTree(t, before, readTree(t, damaged))
}

// damageLog changes a byte of an entry in the middle.
func damageLog(t *testing.T, dir string) {
	t.Helper()
	path := filepath.Join(dir, "wal", mustExamine(t, dir).Segments[0])
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(b, roster.EncodeBatch(roster.BatchID{Member: 1, Incarnation: 2, Sequence: 1}, [][]byte{command(103)}))
	if at < 0 {
		t.Fatal("the entry is not there")
	}
	b[at] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func exists(t *testing.T, path string) bool {
	t.Helper()
	_, err := os.Lstat(path)
	return err == nil
}
