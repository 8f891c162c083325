package node

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/freeport"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/repeat"
)

// testNode is one node of a test's cluster, in this process, on loopback.
type testNode struct {
	*Node
	cfg  Config
	stop context.CancelFunc
	done chan error
}

func freeURL(t *testing.T) string {
	t.Helper()
	address, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	return "http://" + address
}

// startCluster runs n members until the test ends.
func startCluster(t *testing.T, n int, adjust func(*Config)) []*testNode {
	var initial []Peer
	for i := range n {
		initial = append(initial, Peer{ID: uint64(i + 1), URL: freeURL(t)})
	}
	var members []*testNode
	for i := range n {
		cfg := Config{
			ID: uint64(i + 1), DataDir: t.TempDir(), Engine: "pebble", ListenPeer: initial[i].URL,
			Initial: initial, TickInterval: 20 * time.Millisecond,
		}
		if adjust != nil {
			adjust(&cfg)
		}
		members = append(members, start(t, cfg))
	}
	for _, m := range members {
		m.awaitReady(t)
	}
	return members
}

func start(t *testing.T, cfg Config) *testNode {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	return startWith(t, cfg)
}

// startWith is start with the logger of the configuration.
func startWith(t *testing.T, cfg Config) *testNode {
	t.Helper()
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m := &testNode{Node: n, cfg: cfg, stop: cancel, done: make(chan error, 1)}
	ended := make(chan struct{})
	go func() {
		m.done <- n.Run(ctx)
		close(ended)
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return m
}

func (m *testNode) awaitReady(t *testing.T) {
	t.Helper()
	select {
	case <-m.Ready():
	case err := <-m.done:
		t.Fatalf("member %d ended: %v", m.cfg.ID, err)
	case <-testContext(t).Done():
		t.Fatalf("member %d is not ready", m.cfg.ID)
	}
}

// end stops the node and returns how Run ended.
func (m *testNode) end(t *testing.T) error {
	t.Helper()
	m.stop()
	return m.awaitEnd(t)
}

func (m *testNode) awaitEnd(t *testing.T) error {
	t.Helper()
	select {
	case err := <-m.done:
		return err
	case <-testContext(t).Done():
		t.Fatal("the member does not end")
		return nil
	}
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for ctx := testContext(t); !cond(); {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Fatalf("not seen: %s", what)
		}
	}
}

func (m *testNode) put(t *testing.T, key, value string) {
	t.Helper()
	eventually(t, "put "+key, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		r, err := m.Do(ctx, &kvstore.Command{Op: kvstore.OpPut, Key: []byte(key), Value: []byte(value)}, nil)
		return err == nil && r.Outcome == kvstore.OK
	})
}

func (m *testNode) get(t *testing.T, key string) string {
	t.Helper()
	eventually(t, "read", func() bool { return m.Barrier(testContext(t), nil) == nil })
	kv, _, err := m.Store().Get([]byte(key), 0)
	if err != nil {
		t.Fatalf("get %s: %v", key, err)
	}
	return string(kv.Value)
}

func code(err error) api.Code {
	var e *api.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

func TestAnyMemberServesWritesAndReads(t *testing.T) {
	for _, engine := range []string{"pebble", "memory"} {
		t.Run(engine, func(t *testing.T) {
			ms := startCluster(t, 3, func(c *Config) { c.Engine = engine })
			for i, m := range ms {
				m.put(t, "k", string(rune('a'+i)))
				for _, other := range ms {
					if got := other.get(t, "k"); got != string(rune('a'+i)) {
						t.Fatalf("member %d reads %q after %q was acknowledged", other.cfg.ID, got, string(rune('a'+i)))
					}
				}
			}
			cs, err := ms[0].ClusterStatus(testContext(t))
			if err != nil || !cs.Healthy {
				t.Fatalf("status %+v, %v", cs, err)
			}
		})
	}
}

// A member whose directory was wiped must not vote or acknowledge again, since
// it has forgotten what it promised.
func TestWipedMemberIsRefused(t *testing.T) {
	ms := startCluster(t, 3, nil)
	ms[0].put(t, "k", "v")
	if err := ms[2].end(t); err != nil {
		t.Fatal(err)
	}
	cfg := ms[2].cfg
	cfg.DataDir = t.TempDir()
	err := start(t, cfg).awaitEnd(t)
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "add it again under a new id") {
		t.Fatalf("a wiped member ended with %v", err)
	}
	// With its own directory it is welcome.
	back := start(t, ms[2].cfg)
	back.awaitReady(t)
	if got := back.get(t, "k"); got != "v" {
		t.Fatalf("read %q", got)
	}
}

// A node of the initial list that starts late, when the cluster already works,
// is not taken for a wiped one.
func TestLateFirstStart(t *testing.T) {
	var late Config
	urls := []Peer{{ID: 1, URL: freeURL(t)}, {ID: 2, URL: freeURL(t)}, {ID: 3, URL: freeURL(t)}}
	var ms []*testNode
	for i := range 3 {
		cfg := Config{ID: uint64(i + 1), DataDir: t.TempDir(), Engine: "memory", ListenPeer: urls[i].URL, Initial: urls, TickInterval: 20 * time.Millisecond}
		if i == 2 {
			late = cfg
			continue
		}
		ms = append(ms, start(t, cfg))
	}
	ms[0].awaitReady(t)
	ms[0].put(t, "k", "v")
	m := start(t, late)
	m.awaitReady(t)
	if got := m.get(t, "k"); got != "v" {
		t.Fatalf("read %q", got)
	}
}

func TestMemberRemovedWhileDownLearnsIt(t *testing.T) {
	ms := startCluster(t, 3, nil)
	if err := ms[2].end(t); err != nil {
		t.Fatal(err)
	}
	eventually(t, "removal", func() bool { return ms[0].RemoveMember(testContext(t), 3) == nil })
	if err := ms[0].RemoveMember(testContext(t), 3); code(err) != api.MemberNotFound {
		t.Errorf("removing it again: %v", err)
	}
	if _, err := ms[0].AddMember(testContext(t), api.NewMember{ID: 3, PeerURLs: []string{freeURL(t)}}); code(err) != api.MemberRemoved {
		t.Errorf("adding a removed id: %v", err)
	}
	if err := start(t, ms[2].cfg).awaitEnd(t); !errors.Is(err, ErrRemoved) {
		t.Fatalf("the removed member ended with %v", err)
	}
	var refused *datadir.RefusedError
	if err := start(t, ms[2].cfg).awaitEnd(t); !errors.As(err, &refused) {
		t.Fatalf("started again, the removed member ended with %v", err)
	}
}

// A member joins by URL: it asks for an id, is added as a learner, catches up
// from a snapshot, and is promoted.
func TestJoinByURL(t *testing.T) {
	ms := startCluster(t, 1, nil)
	ms[0].put(t, "k", "v")
	u := freeURL(t)
	j := start(t, Config{DataDir: t.TempDir(), Engine: "pebble", ListenPeer: u, JoinURLs: ms[0].peerURL(), TickInterval: 20 * time.Millisecond})
	j.awaitReady(t)
	eventually(t, "promotion", func() bool {
		members, err := ms[0].Members(testContext(t))
		return err == nil && len(members) == 2 && !members[1].Learner
	})
	if got := j.get(t, "k"); got != "v" {
		t.Fatalf("read %q", got)
	}
	// Its directory remembers who it is.
	if err := j.end(t); err != nil {
		t.Fatal(err)
	}
	start(t, j.cfg).awaitReady(t)
}

// A member that slept while all the others were replaced still finds its way,
// although it does not know the new leader.
func TestMemberDownDuringChangeFindsItsWayBack(t *testing.T) {
	ms := startCluster(t, 3, nil)
	sleeper := ms[2]
	if err := sleeper.end(t); err != nil {
		t.Fatal(err)
	}
	u := freeURL(t)
	newcomer := start(t, Config{DataDir: t.TempDir(), Engine: "pebble", ListenPeer: u, JoinURLs: []string{ms[0].cfg.ListenPeer}, TickInterval: 20 * time.Millisecond})
	newcomer.awaitReady(t)
	eventually(t, "promotion", func() bool {
		members, err := ms[0].Members(testContext(t))
		return err == nil && len(members) == 4 && !members[3].Learner
	})
	eventually(t, "hand-over to the newcomer", func() bool {
		if l, err := ms[0].Leader(); err == nil && l.ID == 4 {
			return true
		}
		return ms[0].TransferLeader(testContext(t), 4) == nil
	})
	back := start(t, sleeper.cfg)
	back.awaitReady(t)
	newcomer.put(t, "k", "v")
	if got := back.get(t, "k"); got != "v" {
		t.Fatalf("read %q", got)
	}
}

func TestUnsafeChangesAreRefused(t *testing.T) {
	ms := startCluster(t, 1, nil)
	if err := ms[0].RemoveMember(testContext(t), 1); code(err) != api.UnsafeChange {
		t.Errorf("removing the last voter: %v", err)
	}
	if _, err := ms[0].AddMember(testContext(t), api.NewMember{PeerURLs: ms[0].peerURL()}); code(err) != api.MemberExists {
		t.Errorf("adding a URL in use: %v", err)
	}
	if _, err := ms[0].AddMember(testContext(t), api.NewMember{ID: 1 << 53, PeerURLs: []string{freeURL(t)}}); code(err) != api.BadRequest {
		t.Errorf("adding an id beyond 2^53-1: %v", err)
	}
	if _, err := ms[0].PromoteMember(testContext(t), 9); code(err) != api.MemberNotFound {
		t.Errorf("promoting nobody: %v", err)
	}
}

// TestHealthyMemberStaysRightAfterADeath: a member that stopped a moment ago was
// heard recently, and must not count for the quorum that a removal leaves.
func TestHealthyMemberStaysRightAfterADeath(t *testing.T) {
	ms := startCluster(t, 3, nil)
	ms[0].put(t, "k", "v")
	var leader *testNode
	var others []*testNode
	for _, m := range ms {
		if l, err := ms[0].Leader(); err == nil && l.ID == m.cfg.ID {
			leader = m
		} else {
			others = append(others, m)
		}
	}
	if leader == nil || len(others) != 2 {
		t.Fatal("no leader")
	}
	if err := others[0].end(t); err != nil {
		t.Fatal(err)
	}
	if err := leader.RemoveMember(testContext(t), others[1].cfg.ID); code(err) != api.UnsafeChange {
		t.Fatalf("the removal of a healthy member: %v", err)
	}
	if err := leader.TransferLeader(testContext(t), others[0].cfg.ID); code(err) != api.UnsafeChange {
		t.Fatalf("handing over to a member that stopped: %v", err)
	}
	leader.put(t, "k", "w")
	if err := leader.RemoveMember(testContext(t), others[0].cfg.ID); err != nil {
		t.Fatalf("the removal of the member that stopped: %v", err)
	}
}

func TestRequestsWithoutLeaderEndInTime(t *testing.T) {
	ms := startCluster(t, 2, nil)
	ms[0].put(t, "k", "v")
	if err := ms[1].end(t); err != nil {
		t.Fatal(err)
	}
	eventually(t, "loss of the leader", func() bool { _, err := ms[0].Leader(); return err != nil })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := ms[0].Do(ctx, &kvstore.Command{Op: kvstore.OpPut, Key: []byte("k"), Value: []byte("w")}, nil)
	if code(err) != api.NoLeader {
		t.Errorf("a write without leader: %v", err)
	}
	if err := ms[0].Barrier(ctx, nil); code(err) != api.NoLeader {
		t.Errorf("a read without leader: %v", err)
	}
	if err := ms[0].CheckStaleness(0); err != nil {
		t.Errorf("a stale read without leader: %v", err)
	}
	var backup bytes.Buffer
	if err := ms[0].Snapshot(ctx, &backup); err != nil {
		t.Errorf("a backup of this node's own state without leader: %v", err)
	}
	if _, err := kvstore.VerifyBody(&backup); err != nil {
		t.Errorf("the backup: %v", err)
	}
	eventually(t, "staleness", func() bool {
		return code(ms[0].CheckStaleness(time.Millisecond)) == api.NoLeader
	})
}

func TestSnapshotOfANodeVerifies(t *testing.T) {
	ms := startCluster(t, 1, nil)
	ms[0].put(t, "k", "v")
	var body bytes.Buffer
	if err := ms[0].Snapshot(testContext(t), &body); err != nil {
		t.Fatal(err)
	}
	info, err := kvstore.VerifyBody(&body)
	if err != nil || info.Keys != 1 {
		t.Fatalf("%+v, %v", info, err)
	}
}

func TestSettingsThatContradictTheDirectory(t *testing.T) {
	ms := startCluster(t, 1, nil)
	if err := ms[0].end(t); err != nil {
		t.Fatal(err)
	}
	other := ms[0].cfg
	other.Token = "another"
	if err := start(t, other).awaitEnd(t); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "--cluster-token") {
		t.Errorf("another cluster's settings: %v", err)
	}
	other = ms[0].cfg
	other.ID = 2
	other.Initial = []Peer{{ID: 2, URL: other.ListenPeer}}
	if err := start(t, other).awaitEnd(t); !errors.Is(err, ErrConfig) {
		t.Errorf("another id: %v", err)
	}
}

func TestNewReportsAllProblems(t *testing.T) {
	_, err := New(Config{Engine: "lmdb", Initial: []Peer{{ID: 1, URL: "ftp://x"}}})
	for _, want := range []string{"data directory", "lmdb", "id 0", "ftp"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not name %q: %v", want, err)
		}
	}
}

func TestRendezvousIDDependsOnTokenAndMembers(t *testing.T) {
	a := []Peer{{ID: 1, URL: "http://a:1"}, {ID: 2, URL: "http://b:1"}}
	b := []Peer{a[1], a[0]}
	if RendezvousID("", a) != RendezvousID("", b) {
		t.Error("the order of the members matters")
	}
	if RendezvousID("", a) == RendezvousID("t", a) || RendezvousID("", a) == RendezvousID("", a[:1]) {
		t.Error("different clusters have one id")
	}
}

// Only a member that says so is fresh. One that has a cluster, even one in which
// nothing is known to be committed, prevents a second founding; one that has only
// just started knows nothing about itself yet.
func TestJudge(t *testing.T) {
	j := &joiner{cfg: &Config{}, self: identity{Rendezvous: 7}, lg: zap.NewNop(), strangers: make(map[string]*repeat.Pace)}
	in := func(id, rendezvous, cluster uint64, fresh, committed bool) initialAnswer {
		return initialAnswer{id: id, info: info{MemberID: id, Rendezvous: rendezvous, ClusterID: cluster, Fresh: fresh, Committed: committed}}
	}
	elsewhere := in(2, 7, 0, true, false)
	elsewhere.info.MemberID = 3
	restored := in(2, 7, 0, true, false)
	restored.info.Seed = "s"
	begun := in(3, 7, 52, false, false)
	begun.info.Charter = &datadir.Charter{ClusterID: 52, Seed: "s"}
	for _, c := range []struct {
		name     string
		seed     string // of this member
		answers  []initialAnswer
		existing uint64
		fresh    int
	}{
		{"nobody answers", "", nil, 0, 0},
		{"a fresh one", "", []initialAnswer{in(2, 7, 0, true, false)}, 0, 1},
		{"one that has just started", "", []initialAnswer{in(2, 7, 0, false, false)}, 0, 0},
		{"one with a cluster", "", []initialAnswer{in(2, 7, 50, false, false)}, 50, 0},
		{"a cluster at work", "", []initialAnswer{in(2, 7, 50, false, false), in(3, 7, 51, false, true)}, 51, 0},
		{"other settings", "", []initialAnswer{in(2, 8, 51, false, true), in(3, 8, 0, true, false)}, 0, 0},
		{"another member at this URL", "", []initialAnswer{elsewhere}, 0, 0},
		{"empty beside a restored one", "", []initialAnswer{restored, in(3, 7, 0, true, false)}, 0, 0},
		{"restored beside an empty one", "s", []initialAnswer{restored, in(3, 7, 0, true, false)}, 0, 1},
		{"restored from another file", "other", []initialAnswer{restored}, 0, 0},
		{"empty beside a restored cluster", "", []initialAnswer{begun}, 52, 0},
		{"restored beside the old cluster", "s", []initialAnswer{in(2, 7, 51, false, true), begun}, 52, 0},
		{"restored beside the old cluster alone", "s", []initialAnswer{in(2, 7, 51, false, true)}, 0, 0},
	} {
		j.seed = c.seed
		existing, fresh := j.judge(c.answers)
		var cluster uint64
		if existing != nil {
			cluster = existing.info.ClusterID
		}
		if cluster != c.existing || len(fresh) != c.fresh {
			t.Errorf("%s: cluster %d, fresh %v", c.name, cluster, fresh)
		}
	}
}

func TestCompareStatuses(t *testing.T) {
	st := func(applied uint64, hash string, more map[uint64]string) api.MemberStatus {
		return api.MemberStatus{Status: &api.Status{Applied: applied, StateHash: hash, StateHashes: more}}
	}
	if agree, n := compareStatuses([]api.MemberStatus{st(5, "a", nil), st(6, "b", nil)}); agree != nil || n != 0 {
		t.Error("nothing in common was compared")
	}
	if agree, n := compareStatuses([]api.MemberStatus{st(5, "a", nil), st(5, "a", nil)}); agree == nil || !*agree || n != 1 {
		t.Error("equal replicas do not agree")
	}
	diverged := []api.MemberStatus{st(2000, "a", map[uint64]string{1024: "x"}), st(2001, "b", map[uint64]string{1024: "y"})}
	if agree, _ := compareStatuses(diverged); agree == nil || *agree {
		t.Error("a divergence was not seen")
	}
}

// The error of a second process must name the directory.
func TestSecondProcessIsToldWhichDirectory(t *testing.T) {
	ms := startCluster(t, 1, nil)
	second := ms[0].cfg
	second.ListenPeer = freeURL(t)
	second.Initial = []Peer{{ID: 1, URL: second.ListenPeer}}
	err := start(t, second).awaitEnd(t)
	if err == nil || !strings.Contains(err.Error(), second.DataDir) || !strings.Contains(err.Error(), "pid") {
		t.Fatalf("a second process on the directory: %v", err)
	}
	if _, err := os.Stat(second.DataDir); err != nil {
		t.Fatal(err)
	}
}

// peerURL is where other members reach this one.
func (m *testNode) peerURL() []string { return []string{m.cfg.ListenPeer} }

// Members 2 and 3 lose their disks and start with their old settings while 1 is
// down. They found a new cluster. When 1 comes back with its data, the two
// clusters must not mix, and each keeps what it has.
func TestTwoLostDisksFoundAnotherCluster(t *testing.T) {
	ms := startCluster(t, 3, nil)
	ms[0].put(t, "old", "v")
	for _, m := range ms {
		if err := m.end(t); err != nil {
			t.Fatal(err)
		}
	}
	pair := []*testNode{nil, nil}
	for i := range pair {
		cfg := ms[i+1].cfg
		cfg.DataDir = t.TempDir()
		pair[i] = start(t, cfg)
	}
	pair[0].awaitReady(t)
	pair[0].put(t, "new", "v")

	back := start(t, ms[0].cfg)
	eventually(t, "refusals on both sides", func() bool {
		m := back.member.Load()
		return m != nil && m.replica.Refusals()["cluster"] > 3 && pair[0].member.Load().replica.Refusals()["cluster"] > 3
	})
	if back.ClusterID() != ms[0].ClusterID() || pair[0].ClusterID() == back.ClusterID() || pair[0].ClusterID() != pair[1].ClusterID() {
		t.Errorf("clusters %s, and %s with %s, were %s", back.ClusterID(), pair[0].ClusterID(), pair[1].ClusterID(), ms[0].ClusterID())
	}
	select {
	case <-back.Ready():
		t.Error("the member of the old cluster serves, without a quorum of it")
	default:
	}
	if got := pair[1].get(t, "new"); got != "v" {
		t.Errorf("the new cluster reads %q", got)
	}
	if _, _, err := pair[1].Store().Get([]byte("old"), 0); !errors.Is(err, kvstore.ErrKeyNotFound) {
		t.Errorf("the new cluster has a key of the old one: %v", err)
	}
	kv, _, err := back.Store().Get([]byte("old"), 0)
	if err != nil || string(kv.Value) != "v" {
		t.Errorf("the old member has %q, %v", kv.Value, err)
	}
}

// TestReadinessChecksAreDocumented: the names that probes exclude or ask for are those
// of the manual, and "ok" behind each of them means well.
func TestReadinessChecksAreDocumented(t *testing.T) {
	ms := startCluster(t, 1, nil)
	manual, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for name, err := range ms[0].Checks(t.Context()) {
		names = append(names, name)
		if err != nil || !strings.Contains(string(manual), "\n| `"+name+"` |") {
			t.Errorf("%s: %v, or not in the manual", name, err)
		}
	}
	if want := []string{"started", "not-draining", "leader", "caught-up", "disk"}; !slices.Equal(names, want) {
		t.Errorf("the checks are %v, want %v", names, want)
	}
}
