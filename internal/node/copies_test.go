package node

import (
	"errors"
	"os"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/datadir"
)

// copyOf returns a copy of a member's data directory, as it is now. With the
// engine in memory, everything in it is written in order, so a copy that is taken
// while the member runs is like one that is taken after a crash.
func copyOf(t *testing.T, m *testNode) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(m.cfg.DataDir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// acknowledged writes until the member has acknowledged it.
func acknowledged(t *testing.T, by *testNode, on *testNode, key string) {
	t.Helper()
	on.put(t, key, "v")
	index := on.member.Load().replica.Applied()
	eventually(t, "the entry on the other member", func() bool { return by.member.Load().replica.Applied() >= index })
}

// mustRefuseStart starts a node that the cluster must refuse, with the remedy.
func mustRefuseStart(t *testing.T, cfg Config, want string) {
	t.Helper()
	err := start(t, cfg).awaitEnd(t)
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "remove and re-add") || !strings.Contains(err.Error(), cfg.DataDir) {
		t.Fatalf("the copy ended with %v", err)
	}
	// Each start counts, so that later ones would look like those of the member.
	for range 3 {
		var refused *datadir.RefusedError
		if err := start(t, cfg).awaitEnd(t); !errors.As(err, &refused) || !strings.Contains(err.Error(), "older copy") {
			t.Fatalf("another start ended with %v", err)
		}
	}
	report, err := Examine(cfg.DataDir)
	if err != nil || report.Refused == nil {
		t.Errorf("the doctor says %s, %v", report.Verdict(), err)
	}
}

func memoryEngine(c *Config) { c.Engine = "memory" }

// A directory is replaced by a copy from before its last start. The cluster knows
// how often the directory was started, no matter who leads, and says in its status that
// a start was refused.
func TestDirectoryFromBeforeTheLastStartIsRefused(t *testing.T) {
	ms := startCluster(t, 3, memoryEngine)
	old := copyOf(t, ms[2])
	if err := ms[2].end(t); err != nil {
		t.Fatal(err)
	}
	again := start(t, ms[2].cfg)
	again.awaitReady(t)
	acknowledged(t, again, ms[0], "k")
	if err := again.end(t); err != nil {
		t.Fatal(err)
	}
	for _, m := range ms[:2] { // nobody who leads remembers what member 3 acknowledged
		if l, err := m.Leader(); err == nil && l.ID == m.cfg.ID {
			eventually(t, "another leader", func() bool { return m.TransferLeader(testContext(t), 3-m.cfg.ID) == nil })
			break
		}
	}
	cfg := ms[2].cfg
	cfg.DataDir = old
	mustRefuseStart(t, cfg, "older copy")
	status, err := ms[0].Status(testContext(t))
	if err != nil || !strings.Contains(strings.Join(status.Alarms, "\n"), "act as member 3") {
		t.Errorf("alarms %q, %v", status.Alarms, err)
	}
}

// A directory is replaced by a copy that was taken since its last start. The
// leader has seen the member acknowledge more than the copy has.
func TestDirectoryFromBeforeAnAcknowledgmentIsRefused(t *testing.T) {
	ms := startCluster(t, 3, memoryEngine)
	ms[0].put(t, "before", "v")
	follower, leader := ms[2], ms[0]
	eventually(t, "a leader", func() bool {
		l, err := ms[0].Leader()
		if err != nil {
			return false
		}
		leader, follower = ms[l.ID-1], ms[l.ID%3]
		return true
	})
	old := copyOf(t, follower)
	for _, key := range []string{"a", "b", "c"} {
		acknowledged(t, follower, leader, key)
	}
	if err := follower.end(t); err != nil {
		t.Fatal(err)
	}
	cfg := follower.cfg
	cfg.DataDir = old
	mustRefuseStart(t, cfg, "the log here ends at entry")

	// Where nothing else is left, the copy can be made a cluster of its own.
	for _, m := range []*testNode{ms[0], ms[1], ms[2]} {
		if m != follower {
			if err := m.end(t); err != nil {
				t.Fatal(err)
			}
		}
	}
	r, _, err := PrepareRecovery(zap.NewNop(), old)
	if err != nil {
		t.Fatal(err)
	}
	if !r.Stale {
		t.Error("the recovery does not know that the cluster refused the directory")
	}
	if err := errors.Join(r.Complete(), r.Close()); err != nil {
		t.Fatal(err)
	}
	if got := start(t, cfg).get(t, "before"); got != "v" {
		t.Errorf("read %q", got)
	}
}

// A second process runs on a copy of a running member's directory. It ends, and
// says why; the member and the cluster go on.
func TestCloneOfARunningMemberIsRefused(t *testing.T) {
	ms := startCluster(t, 3, memoryEngine)
	ms[0].put(t, "k", "v")
	clone := ms[2].cfg
	clone.DataDir, clone.ListenPeer = copyOf(t, ms[2]), freeURL(t)
	clone.AdvertisePeer = ms[2].peerURL()
	second := start(t, clone)
	eventually(t, "the refusal of the clone", func() bool {
		select {
		case err := <-second.done:
			t.Fatalf("the clone ended with %v", err)
		default:
		}
		return ms[0].member.Load().replica.Refusals()["clone"] > 0
	})
	err := second.awaitEnd(t)
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "copy of this data directory") {
		t.Fatalf("the clone ended with %v", err)
	}
	for _, m := range ms {
		m.put(t, "k", "w")
	}
	select {
	case err := <-ms[2].done:
		t.Fatalf("the member itself ended with %v", err)
	default:
	}
	if why := ms[0].member.Load().replica.RefusedStarts(); len(why) != 0 {
		t.Errorf("the clone reached the log: %v", why)
	}
}
