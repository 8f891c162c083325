package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/founding"
	"github.com/kvd-io/kvd/internal/repeat"
)

// joinList returns the configurations of n nodes that start with nothing but the same list
// of URLs to join, like the pods of a StatefulSet.
func joinList(t *testing.T, n int) (all []Config) {
	t.Helper()
	var urls []string
	for range n {
		urls = append(urls, freeURL(t))
	}
	for i := range n {
		all = append(all, Config{
			Name: fmt.Sprintf("pod-%d", i), DataDir: t.TempDir(), Engine: "memory", ListenPeer: urls[i], JoinURLs: urls,
			TickInterval: 20 * time.Millisecond, ReplaceAfter: 500 * time.Millisecond,
		})
	}
	return all
}

// named returns the member with the name, or the zero one.
func (m *testNode) named(t *testing.T, name string) api.Member {
	t.Helper()
	members, err := m.Members(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, mb := range members {
		if mb.Name == name {
			return mb
		}
	}
	return api.Member{}
}

// lose empties the directory of a node that has ended.
func lose(t *testing.T, cfg Config) Config {
	t.Helper()
	if err := os.RemoveAll(cfg.DataDir); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// In whatever order they start, one cluster is founded, after the last of them is there,
// and everybody is a voter under the id of its position. Restarted, each is itself.
func TestJoinListFoundsInAnyOrder(t *testing.T) {
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}} {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			configs := joinList(t, 3)
			nodes := make([]*testNode, 3)
			for _, i := range order {
				for _, earlier := range nodes {
					if earlier != nil && earlier.hasPlace() {
						t.Fatal("a cluster was founded without all of the list")
					}
				}
				nodes[i] = start(t, configs[i])
			}
			for i, m := range nodes {
				m.awaitReady(t)
				m.put(t, "k", m.cfg.Name)
				if got := m.named(t, m.cfg.Name); got.ID != uint64(i+1) || got.Learner || m.ClusterID() != nodes[0].ClusterID() {
					t.Errorf("%s is %+v of cluster %s", m.cfg.Name, got, m.ClusterID())
				}
			}
			if err := nodes[1].end(t); err != nil {
				t.Fatal(err)
			}
			back := start(t, configs[1])
			back.awaitReady(t)
			if got := back.named(t, "pod-1"); got.ID != 2 || back.get(t, "k") != "pod-2" {
				t.Errorf("restarted: %+v", got)
			}
		})
	}
}

// hasPlace reports whether the node belongs to a cluster.
func (m *testNode) hasPlace() bool { return m.member.Load() != nil }

// A majority of the list is not enough: the third may have the cluster.
func TestJoinListNeedsAllToFound(t *testing.T) {
	configs := joinList(t, 3)
	core, logs := observer.New(zap.InfoLevel)
	configs[0].Logger = zap.New(core)
	first, second := start(t, configs[0]), start(t, configs[1])
	// Each has seen the other fresh, and so would have founded one.
	eventually(t, "the first has heard the second", func() bool {
		return slices.ContainsFunc(logs.All(), func(e observer.LoggedEntry) bool {
			return strings.Contains(e.Message, "no cluster yet") && fmt.Sprint(e.ContextMap()["fresh"]) == "[2]"
		})
	})
	if first.hasPlace() || second.hasPlace() {
		t.Fatal("two of three have founded a cluster")
	}
	third := start(t, configs[2])
	for _, m := range []*testNode{first, second, third} {
		m.awaitReady(t)
	}
}

// Two of three lose their disks while the third, which has the only copy left, is down.
// They must wait for it, and must not begin an empty cluster in its place.
func TestJoinListNeverFoundsASecondCluster(t *testing.T) {
	configs := joinList(t, 3)
	var nodes []*testNode
	for _, cfg := range configs {
		cfg.Engine = "pebble"
		nodes = append(nodes, start(t, cfg))
	}
	for _, m := range nodes {
		m.awaitReady(t)
	}
	nodes[0].put(t, "k", "precious")
	cluster := nodes[0].ClusterID()
	for _, m := range nodes {
		if err := m.end(t); err != nil {
			t.Fatal(err)
		}
	}
	core, logs := observer.New(zap.InfoLevel)
	wiped := lose(t, nodes[0].cfg)
	wiped.Logger = zap.New(core)
	a, b := start(t, wiped), start(t, lose(t, nodes[1].cfg))
	eventually(t, "the wiped nodes have met", func() bool {
		return slices.ContainsFunc(logs.All(), func(e observer.LoggedEntry) bool { return fmt.Sprint(e.ContextMap()["fresh"]) == "[2]" })
	})
	c := start(t, nodes[2].cfg)
	eventually(t, "the wiped nodes find the third", func() bool {
		return slices.ContainsFunc(logs.All(), func(e observer.LoggedEntry) bool { return strings.Contains(e.Message, "waiting to join the cluster") })
	})
	if a.hasPlace() || b.hasPlace() || c.ClusterID() != cluster {
		t.Fatalf("a second cluster (%t, %t); the third is in %s, which was %s", a.hasPlace(), b.hasPlace(), c.ClusterID(), cluster)
	}
	if err := c.Barrier(shortContext(t), nil); err == nil {
		t.Error("one of three answers without the others")
	}
}

// A voter outside of the list is one that the list would not ask before it founds. The nodes
// of the list say so, and what to do, which a restart with the longer list is.
func TestOutgrownJoinListIsWarned(t *testing.T) {
	const warning = "voters are missing from --join"
	configs := joinList(t, 3)
	list := configs[0].JoinURLs
	core, logs := observer.New(zap.WarnLevel)
	var nodes []*testNode
	for i, cfg := range configs {
		if cfg.Engine = "pebble"; i == 0 {
			cfg.Logger = zap.New(core)
		}
		nodes = append(nodes, start(t, cfg))
	}
	for _, m := range nodes {
		m.awaitReady(t)
	}
	url := freeURL(t)
	fourth := start(t, Config{Name: "pod-3", DataDir: t.TempDir(), Engine: "pebble", ListenPeer: url, JoinURLs: list, TickInterval: 20 * time.Millisecond})
	fourth.awaitReady(t)
	eventually(t, "a warning", func() bool { return logs.FilterMessage(warning).Len() > 0 })
	longer := strings.Join(append(slices.Clone(list), url), ",")
	if remedy := fmt.Sprint(logs.FilterMessage(warning).All()[0].ContextMap()["remedy"]); !strings.Contains(remedy, "--join "+longer) {
		t.Errorf("the remedy is %s", remedy)
	}
	cluster := nodes[0].ClusterID()
	for _, m := range nodes {
		if err := m.end(t); err != nil {
			t.Fatal(err)
		}
		core, logs := observer.New(zap.WarnLevel)
		cfg := m.cfg
		cfg.JoinURLs, cfg.Initial, cfg.Logger = append(slices.Clone(list), url), nil, zap.New(core)
		again := start(t, cfg)
		again.awaitReady(t)
		if again.ClusterID() != cluster || logs.FilterMessage(warning).Len() > 0 {
			t.Errorf("with the longer list: cluster %s, which was %s; %v", again.ClusterID(), cluster, logs.All())
		}
		var pace repeat.Pace
		warnOfUnlisted(again.member.Load(), &pace, time.Now())
		if logs.FilterMessage(warning).Len() > 0 {
			t.Errorf("it is warned with the longer list: %v", logs.All())
		}
	}
}

// A cluster that has outgrown its list loses all disks of the list. The nodes outside, which
// nobody in the list knows of, call its nodes: while they do, the list founds nothing beside
// them. Once they are gone for good, it may.
func TestOutgrownListFoundsNothingBesideTheRest(t *testing.T) {
	const warning = "members of a cluster call this node"
	configs := joinList(t, 3)
	for range 2 {
		configs = append(configs, Config{Name: fmt.Sprint("pod-", len(configs)), DataDir: t.TempDir(), ListenPeer: freeURL(t), JoinURLs: configs[0].JoinURLs, TickInterval: 20 * time.Millisecond})
	}
	var nodes []*testNode
	for _, cfg := range configs {
		cfg.Engine = "pebble"
		nodes = append(nodes, start(t, cfg))
		if len(nodes) > 2 { // the first three need each other
			nodes[len(nodes)-1].awaitReady(t)
		}
	}
	nodes[4].put(t, "k", "precious")
	for _, m := range nodes[:3] {
		if err := m.end(t); err != nil {
			t.Fatal(err)
		}
	}
	core, logs := observer.New(zap.WarnLevel)
	var wiped []*testNode
	for _, m := range nodes[:3] {
		cfg := lose(t, m.cfg)
		// Long enough for a machine that does other work, too: the others call ten times a second.
		cfg.Logger, cfg.TickInterval = zap.New(core).With(zap.String("node", cfg.Name)), 60*time.Millisecond
		wiped = append(wiped, start(t, cfg))
	}
	eventually(t, "all of the list have heard the others", func() bool {
		heard := make(map[any]bool)
		for _, e := range logs.All() {
			if strings.Contains(e.Message, warning) {
				heard[e.ContextMap()["node"]] = true
			}
		}
		return len(heard) == 3
	})
	for _, m := range wiped {
		if m.hasPlace() {
			t.Fatalf("%s is in a second cluster, %s", m.cfg.Name, m.ClusterID())
		}
		promise, err := m.acceptor.Load().Handle(founding.Request{Rendezvous: m.identity.Load().Rendezvous, Step: founding.Prepare, Ballot: datadir.Ballot{Round: 1 << 40, Member: 1}})
		if err != nil || promise.Granted {
			t.Errorf("%s supports a founding: %+v, %v", m.cfg.Name, promise, err)
		}
	}
	for _, m := range nodes[3:] {
		if err := m.end(t); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range wiped {
		m.awaitReady(t)
	}
}

// A list waits for all of its nodes: it founds nothing while a cluster calls one of them, even
// if the others, which are a majority, hear nothing.
func TestListFoundsNothingWhileOneNodeIsCalled(t *testing.T) {
	var nodes []*testNode
	for _, cfg := range joinList(t, 3) {
		nodes = append(nodes, start(t, cfg))
	}
	called, stop := context.WithCancel(t.Context())
	var calls sync.WaitGroup
	calls.Go(func() {
		for called.Err() == nil {
			if a := nodes[2].acceptor.Load(); a != nil {
				a.Heard("00000000000000aa")
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
	defer calls.Wait()
	defer stop()
	for _, m := range nodes[:2] {
		eventually(t, m.cfg.Name+" has listened", func() bool {
			a := m.acceptor.Load()
			if a == nil {
				return false
			}
			fresh, _ := a.Fresh()
			return fresh
		})
	}
	time.Sleep(20 * askPause) // in which they would found one
	for _, m := range nodes {
		if m.hasPlace() {
			t.Errorf("%s is in cluster %s", m.cfg.Name, m.ClusterID())
		}
	}
	stop()
	for _, m := range nodes {
		m.awaitReady(t)
	}
}

func shortContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// A node whose disk is lost comes back under the same name and URL: it gets a new id, its
// old one is removed, and it becomes a voter again. That works a second time, and for one
// that joined later.
func TestLostDiskIsReplaced(t *testing.T) {
	configs := joinList(t, 3)
	var nodes []*testNode
	for _, cfg := range configs {
		nodes = append(nodes, start(t, cfg))
	}
	for _, m := range nodes {
		m.awaitReady(t)
	}
	late := configs[0]
	late.Name, late.DataDir, late.ListenPeer, late.AdvertisePeer = "pod-3", t.TempDir(), freeURL(t), nil
	nodes = append(nodes, start(t, late))
	nodes[3].awaitReady(t)
	nodes[0].put(t, "k", "v")
	highest := uint64(4)
	for _, i := range []int{2, 2, 3, 0} {
		name := nodes[i].cfg.Name
		via := nodes[(i+1)%2]
		before := via.named(t, name)
		if err := nodes[i].end(t); err != nil {
			t.Fatal(err)
		}
		nodes[i] = start(t, lose(t, nodes[i].cfg))
		nodes[i].awaitReady(t)
		highest++
		after := via.named(t, name)
		if after.ID != highest || !slices.Equal(after.PeerURLs, before.PeerURLs) {
			t.Fatalf("%s was %+v and is %+v", name, before, after)
		}
		if _, err := via.AddMember(testContext(t), api.NewMember{ID: before.ID, PeerURLs: []string{freeURL(t)}}); code(err) != api.MemberRemoved {
			t.Errorf("the id %d can be used again: %v", before.ID, err)
		}
		eventually(t, name+" votes again", func() bool { return !via.named(t, name).Learner })
		if got := nodes[i].get(t, "k"); got != "v" {
			t.Errorf("it reads %q", got)
		}
	}
}

// The old directory turns up again after its member was replaced: it has promises that
// nobody counts on anymore, and ends.
func TestReplacedDirectoryIsRemoved(t *testing.T) {
	configs := joinList(t, 3)
	var nodes []*testNode
	for _, cfg := range configs {
		cfg.Engine = "pebble"
		nodes = append(nodes, start(t, cfg))
	}
	for _, m := range nodes {
		m.awaitReady(t)
	}
	old := nodes[2].cfg
	if err := nodes[2].end(t); err != nil {
		t.Fatal(err)
	}
	fresh := old
	fresh.DataDir = t.TempDir()
	replaced := start(t, fresh)
	replaced.awaitReady(t)
	if err := replaced.end(t); err != nil {
		t.Fatal(err)
	}
	if err := start(t, old).awaitEnd(t); !errors.Is(err, ErrRemoved) {
		t.Errorf("the replaced directory ended with %v", err)
	}
}

// A node without a name of its own takes the one that its member was added with, and keeps
// it: a name that an operator chose is what other commands are given.
func TestMemberTakesTheNameItWasAddedWith(t *testing.T) {
	first := startCluster(t, 2, nil)[0]
	url := freeURL(t)
	added, err := first.AddMember(testContext(t), api.NewMember{Name: "n5", PeerURLs: []string{url}})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{DataDir: t.TempDir(), Engine: "pebble", ListenPeer: url, JoinURLs: []string{first.cfg.ListenPeer}, TickInterval: 20 * time.Millisecond}
	check := func(m *testNode) {
		m.awaitReady(t)
		if got := first.named(t, "n5"); got.ID != added.ID {
			t.Errorf("member %d lost its name; n5 is %+v", added.ID, got)
		}
	}
	m := start(t, cfg)
	check(m)
	if err := m.end(t); err != nil {
		t.Fatal(err)
	}
	check(start(t, cfg))
}

// Only the same name at the same URL is the same machine. Without a name, or under
// another one, an empty directory is refused as before.
func TestLostDiskUnderAnotherNameIsRefused(t *testing.T) {
	configs := joinList(t, 3)
	var nodes []*testNode
	for _, cfg := range configs {
		nodes = append(nodes, start(t, cfg))
	}
	for _, m := range nodes {
		m.awaitReady(t)
	}
	if err := nodes[2].end(t); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "pod-9"} {
		cfg := lose(t, nodes[2].cfg)
		cfg.Name = name
		if err := start(t, cfg).awaitEnd(t); !errors.Is(err, ErrRefused) {
			t.Errorf("name %q: %v", name, err)
		}
	}
	if got := nodes[0].named(t, "pod-2"); got.ID != 3 {
		t.Errorf("the member is now %+v", got)
	}
}

// A leader with that setting removes a member that stays away. Back with an empty
// directory it is a new member; back with its own it learns that it was removed.
func TestDeadMemberIsRemovedAutomatically(t *testing.T) {
	ms := startCluster(t, 3, func(c *Config) { c.RemoveDeadAfter = 600 * time.Millisecond })
	ms[0].put(t, "k", "v")
	if err := ms[2].end(t); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the removal", func() bool {
		members, err := ms[0].Members(testContext(t))
		return err == nil && len(members) == 2
	})
	// The two that are left cannot spare another one.
	if err := ms[1].end(t); err != nil {
		t.Fatal(err)
	}
	if err := start(t, ms[2].cfg).awaitEnd(t); !errors.Is(err, ErrRemoved) {
		t.Errorf("the removed member ended with %v", err)
	}
	back := start(t, ms[1].cfg)
	back.awaitReady(t)
	if got := back.get(t, "k"); got != "v" {
		t.Errorf("it reads %q", got)
	}
}

// A directory that promised something as a founder is no member yet. When a cluster
// exists in the end, it gets an id there like any other, and not its place in the list.
func TestFoundersPromiseIsNoMembership(t *testing.T) {
	configs := joinList(t, 3)
	dir, err := datadir.Open(configs[1].DataDir)
	if err != nil {
		t.Fatal(err)
	}
	promise := datadir.Founding{Promised: datadir.Ballot{Round: 1, Member: 1}}
	if err := errors.Join(dir.KeepFounding(2, 1, "pod-1", promise), dir.Close()); err != nil {
		t.Fatal(err)
	}
	others := startCluster(t, 2, nil) // its member 2 is somebody else
	for _, list := range [][]string{{others[0].cfg.ListenPeer}, {others[0].cfg.ListenPeer, configs[1].ListenPeer}} {
		cfg := configs[1]
		cfg.JoinURLs = list
		m := start(t, cfg)
		m.awaitReady(t)
		if got := others[0].named(t, "pod-1"); got.ID != 3 {
			t.Errorf("joined by %v as %+v", list, got)
		}
		if err := m.end(t); err != nil {
			t.Fatal(err)
		}
	}
}
