package node

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/datadir"
)

// mustRefuseStore demands that the doctor and a start refuse the directory with the
// same words, and that they name the remedy.
func mustRefuseStore(t *testing.T, cfg Config, remedy string) {
	t.Helper()
	report, err := Examine(cfg.DataDir)
	if err != nil || report.Refused == nil {
		t.Fatalf("the doctor says %s, %v", report.Verdict(), err)
	}
	err = start(t, cfg).awaitEnd(t)
	var refused *datadir.RefusedError
	if !errors.As(err, &refused) || refused.Reason != report.Refused.Reason || refused.File != report.Refused.File {
		t.Fatalf("a start says %v, the doctor %v", err, report.Refused)
	}
	if !strings.Contains(refused.Remedy, remedy) {
		t.Errorf("the remedy is %q, want %q", refused.Remedy, remedy)
	}
}

func breakStore(t *testing.T, dir string) {
	t.Helper()
	manifests, err := filepath.Glob(filepath.Join(dir, "store", "db-*", "MANIFEST-*"))
	if err != nil || len(manifests) == 0 {
		t.Fatalf("manifests %v, %v", manifests, err)
	}
	for _, m := range manifests {
		if err := os.Remove(m); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDamagedStoreIsRebuiltFromAnotherMember: the store of a member is damaged while
// it is down, and its log no longer reaches back to the beginning. The start is
// refused with the remedy, and the remedy works: also if the cluster has gone on in
// the meantime.
func TestDamagedStoreIsRebuiltFromAnotherMember(t *testing.T) {
	members := startCluster(t, 3, func(c *Config) { c.CheckpointBytes = 32 << 10 })
	value := strings.Repeat("v", 8<<10)
	victim := members[2]
	for range 12 {
		victim.put(t, "k", value)
	}
	eventually(t, "a checkpoint", func() bool {
		victim.put(t, "k", value)
		snaps, err := filepath.Glob(filepath.Join(victim.cfg.DataDir, "snap", "*.snap"))
		return err == nil && len(snaps) > 1
	})
	if err := victim.end(t); err != nil {
		t.Fatal(err)
	}
	if report, err := Examine(victim.cfg.DataDir); err != nil || report.Verdict() != "ok" {
		t.Fatalf("before the damage: %s, %v", report.Verdict(), err)
	}
	members[0].put(t, "later", "written while the member was down")
	for range 12 {
		members[0].put(t, "k", value)
	}
	breakStore(t, victim.cfg.DataDir)
	mustRefuseStore(t, victim.cfg, "--rebuild-store")

	cfg := victim.cfg
	cfg.RebuildStore = true
	again := start(t, cfg)
	again.awaitReady(t)
	if got := again.get(t, "later"); got != "written while the member was down" {
		t.Errorf("read %q", got)
	}
	if _, err := os.Stat(filepath.Join(cfg.DataDir, "store.damaged-1")); err != nil {
		t.Errorf("the damaged store was not kept: %v", err)
	}
	if err := again.end(t); err != nil {
		t.Fatal(err)
	}
	last := start(t, victim.cfg)
	last.awaitReady(t)
	last.put(t, "k", "after")
	if got := members[1].get(t, "k"); got != "after" {
		t.Errorf("read %q", got)
	}
}

// TestLostStoreIsRebuiltFromTheLog: the log of a lone member reaches back to its
// beginning. It needs nobody.
func TestLostStoreIsRebuiltFromTheLog(t *testing.T) {
	m := startCluster(t, 1, nil)[0]
	m.put(t, "a", "1")
	if err := m.end(t); err != nil {
		t.Fatal(err)
	}
	breakStore(t, m.cfg.DataDir)
	mustRefuseStore(t, m.cfg, "--rebuild-store")
	cfg := m.cfg
	cfg.RebuildStore = true
	again := start(t, cfg)
	again.awaitReady(t)
	if got := again.get(t, "a"); got != "1" {
		t.Errorf("read %q", got)
	}
}

// TestStoreOfAnotherClusterIsRefused: a store that was copied from another cluster is whole,
// and no further than the log.
func TestStoreOfAnotherClusterIsRefused(t *testing.T) {
	ours, theirs := startCluster(t, 1, nil)[0], startCluster(t, 1, nil)[0]
	for range 10 {
		ours.put(t, "k", "v")
	}
	for _, m := range []*testNode{ours, theirs} {
		if err := m.end(t); err != nil {
			t.Fatal(err)
		}
	}
	store := datadir.StorePath(ours.cfg.DataDir)
	if err := errors.Join(os.RemoveAll(store), os.CopyFS(store, os.DirFS(datadir.StorePath(theirs.cfg.DataDir)))); err != nil {
		t.Fatal(err)
	}
	mustRefuseStore(t, ours.cfg, "remove and re-add")
}

// TestDoctorMissesNoIdentity: a log without member.json belongs to nobody.
func TestDoctorMissesNoIdentity(t *testing.T) {
	m := startCluster(t, 1, nil)[0]
	if err := m.end(t); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(m.cfg.DataDir, "member.json")); err != nil {
		t.Fatal(err)
	}
	mustRefuseStore(t, m.cfg, "remove and re-add")
}

// TestAnotherEngineIsNotCalledDamage: the settings name another engine than the one
// that has the data.
func TestAnotherEngineIsNotCalledDamage(t *testing.T) {
	m := startCluster(t, 1, nil)[0]
	if err := m.end(t); err != nil {
		t.Fatal(err)
	}
	cfg := m.cfg
	cfg.Engine = "memory"
	if err := start(t, cfg).awaitEnd(t); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "start with --engine pebble") {
		t.Errorf("%v", err)
	}
}
