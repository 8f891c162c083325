package node

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/datadir"
)

// filledMembers runs members with tables on disk, and the key "k".
func filledMembers(t *testing.T, n int, scrub time.Duration) []*testNode {
	t.Helper()
	ms := startCluster(t, n, func(c *Config) { c.CheckpointBytes, c.ScrubInterval = 32<<10, scrub })
	for _, m := range ms {
		fillTables(t, m)
	}
	ms[0].put(t, "k", "v")
	return ms
}

// fillTables writes until the member has a table on disk. The values cannot be compressed,
// so that most of a table are values.
func fillTables(t *testing.T, m *testNode) {
	t.Helper()
	n := 0
	eventually(t, "a table", func() bool {
		n++
		value := make([]byte, 8<<10)
		_, _ = rand.Read(value) // never fails
		m.put(t, fmt.Sprint("fill", n), string(value))
		return len(tablesOf(t, m.cfg.DataDir)) > 0
	})
}

func tablesOf(t *testing.T, dir string) []string {
	t.Helper()
	tables, err := filepath.Glob(filepath.Join(datadir.StorePath(dir), "db-*", "*.sst"))
	if err != nil {
		t.Fatal(err)
	}
	return tables
}

// rot changes a few bytes in the middle of the largest table, which has the values: what
// the node itself reads all the time is elsewhere. Before, it waits until the member could
// be mended, or could not. A compaction may remove the table before anybody has met the
// damage: then, another table rots.
func rot(t *testing.T, m *testNode) {
	t.Helper()
	eventually(t, "a look at the others", func() bool { _, known := m.member.Load().health.Known(); return known })
	tables := tablesOf(t, m.cfg.DataDir)
	if len(tables) == 0 {
		t.Fatal("no table can rot")
	}
	db := filepath.Dir(tables[0])
	rotten := rotLargest(t, db)
	stop, stopped := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(stop); <-stopped })
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
			if _, err := os.Stat(db); err != nil {
				return // this store has been replaced
			}
			if _, err := os.Stat(rotten); rotten == "" || err != nil {
				rotten = rotLargest(t, db)
			}
		}
	}()
}

// rotLargest returns the name of the table that it damaged, or "" if there was none.
func rotLargest(t *testing.T, db string) string {
	tables, _ := filepath.Glob(filepath.Join(db, "*.sst"))
	var largest string
	var size int64
	for _, table := range tables {
		if info, err := os.Stat(table); err == nil && info.Size() > size {
			largest, size = table, info.Size()
		}
	}
	f, err := os.OpenFile(largest, os.O_RDWR, 0)
	if err != nil {
		return "" // a compaction has just removed it
	}
	defer f.Close()
	b := make([]byte, 16)
	if _, err := f.ReadAt(b, size/3); err != nil {
		t.Error(err)
		return ""
	}
	for i := range b {
		b[i] ^= 0x5a
	}
	if _, err := f.WriteAt(b, size/3); err != nil {
		t.Error(err)
	}
	return largest
}

// awaitMendable waits until nothing stands in the way of a rebuild.
func awaitMendable(t *testing.T, m *testNode) {
	t.Helper()
	eventually(t, "the store could be rebuilt", func() bool {
		o, known := m.member.Load().health.Known()
		return known && o.Rebuild == nil && o.Quorum == nil
	})
}

// awaitRebuild waits until the member has ended so that its process starts it again.
func awaitRebuild(t *testing.T, m *testNode) {
	t.Helper()
	var refused *datadir.RefusedError
	if err := m.awaitEnd(t); !errors.Is(err, ErrRebuild) || errors.As(err, &refused) {
		t.Fatalf("the member ended with %v", err)
	}
}

// TestRottenBlockIsMendedFromOthers: the scrub finds what nobody has read, and the
// member rebuilds its store with the help of the others: without an operator, but only
// twice.
func TestRottenBlockIsMendedFromOthers(t *testing.T) {
	ms := filledMembers(t, 3, time.Second)
	cfg, m := ms[2].cfg, ms[2]
	for round := range 2 {
		awaitMendable(t, m)
		rot(t, m)
		awaitRebuild(t, m)
		m = start(t, cfg)
		m.awaitReady(t)
		if got := m.get(t, "k"); got != "v" {
			t.Fatalf("read %q", got)
		}
		if n := datadir.DamagedStores(cfg.DataDir); n != round+1 {
			t.Fatalf("%d damaged stores were kept after %d rebuilds", n, round+1)
		}
		f, err := m.Figures(testContext(t))
		if err != nil || f.DamagedStores != round+1 {
			t.Errorf("the figures say %d, %v", f.DamagedStores, err)
		}
		fillTables(t, m)
	}
	rot(t, m)
	wantDamageAlarm(t, m, "rebuilt 2 times already")
	m.put(t, "later", "w") // it goes on serving
	if err := m.end(t); errors.Is(err, ErrRebuild) {
		t.Errorf("rebuilt a third time: %v", err)
	}
}

// wantDamageAlarm waits for the alarm, and demands that it is the only one.
func wantDamageAlarm(t *testing.T, m *testNode, text string) {
	t.Helper()
	eventually(t, "the alarm", func() bool {
		st, err := m.Status(testContext(t))
		return err == nil && len(st.Alarms) == 1 && api.AlarmName(st.Alarms[0]) == api.AlarmStoreDamaged && strings.Contains(st.Alarms[0], text)
	})
}

// TestOnlyReplicaIsNotRebuilt: a lone member says that its store is damaged, and keeps
// what it has.
func TestOnlyReplicaIsNotRebuilt(t *testing.T) {
	m := filledMembers(t, 1, time.Second)[0]
	rot(t, m)
	wantDamageAlarm(t, m, "no other member has the data")
	m.put(t, "k", "w")
	if err := m.end(t); errors.Is(err, ErrRebuild) || datadir.DamagedStores(m.cfg.DataDir) != 0 {
		t.Errorf("ended with %v", err)
	}
}

// TestDamagedMemberWaitsForTheQuorum: while another member is down, the damaged one is
// needed. Its store is rebuilt once the other is back.
func TestDamagedMemberWaitsForTheQuorum(t *testing.T) {
	ms := filledMembers(t, 3, time.Second)
	if err := ms[1].end(t); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the loss of the other", func() bool { return ms[2].member.Load().rebuildObstacle().Quorum != nil })
	rot(t, ms[2])
	wantDamageAlarm(t, ms[2], "lose its quorum")
	ms[0].put(t, "k", "w")
	back := start(t, ms[1].cfg)
	back.awaitReady(t)
	awaitRebuild(t, ms[2])
	m := start(t, ms[2].cfg)
	m.awaitReady(t)
	if got := m.get(t, "k"); got != "w" {
		t.Errorf("read %q", got)
	}
}

// TestRottenBlockMetByARequestIsRepaired: a block that a read meets first ends the node at
// once, and the store is rebuilt, too, if another member is reachable. Otherwise, the
// node ends with a refusal.
func TestRottenBlockMetByARequestIsRepaired(t *testing.T) {
	for _, alone := range []bool{false, true} {
		ms := filledMembers(t, 3, 0)
		awaitMendable(t, ms[2])
		if alone {
			for _, m := range ms[:2] {
				if err := m.end(t); err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, "the loss of the others", func() bool {
				o, known := ms[2].member.Load().health.Known()
				return known && o.Rebuild != nil
			})
		}
		rot(t, ms[2])
		eventually(t, "a read that meets the damage", func() bool {
			v, err := ms[2].Store().View()
			if err != nil {
				return true
			}
			_, err = v.ScanHash()
			_ = v.Close()
			return err != nil
		})
		if !alone {
			awaitRebuild(t, ms[2])
			m := start(t, ms[2].cfg)
			m.awaitReady(t)
			if got := m.get(t, "k"); got != "v" {
				t.Errorf("read %q", got)
			}
			continue
		}
		var refused *datadir.RefusedError
		if err := ms[2].awaitEnd(t); errors.Is(err, ErrRebuild) || !errors.As(err, &refused) || refused.Remedy != datadir.RebuildStore {
			t.Errorf("alone, it ended with %v", err)
		}
	}
}
