package node

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/zap/zaptest/observer"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/rights"
)

// firstRights are rights of a new cluster.
func firstRights() (rights.Change, error) {
	return rights.Change{
		PutUser:   &rights.User{Name: rights.Root, Hash: []byte("hash"), Roles: []string{rights.Root}},
		RotateKey: []byte("key"), Enable: true,
	}, nil
}

// tryPut puts a key for nobody.
func (m *testNode) tryPut(t *testing.T) (kvstore.Outcome, error) {
	t.Helper()
	r, err := m.Do(testContext(t), &kvstore.Command{Op: kvstore.OpPut, Key: []byte("k")}, nil)
	return r.Outcome, err
}

func about(logs *observer.ObservedLogs, text string) int {
	return logs.Filter(func(e observer.LoggedEntry) bool { return strings.Contains(e.Message, text) }).Len()
}

// TestFirstRights: a new cluster has its rights before it serves anybody, and later starts
// leave them alone, even if they cannot be made anymore.
func TestFirstRights(t *testing.T) {
	n, logs := observed(t, Config{Settings: kvstore.DefaultSettings(), FirstRights: firstRights})
	if o, err := n.tryPut(t); err != nil || o != kvstore.PermissionDenied {
		t.Errorf("nobody's put: outcome %d, %v", o, err)
	}
	if about(logs, "no effect") > 0 || about(logs, "rights are enabled since") != 1 {
		t.Errorf("%v", logs.All())
	}
	before := n.Store().Rights().Revision()
	if err := n.end(t); err != nil {
		t.Fatal(err)
	}
	cfg := n.cfg
	cfg.FirstRights = func() (rights.Change, error) { return rights.Change{}, errors.New("the file is gone") }
	n, logs = observed(t, cfg)
	if now := n.Store().Rights(); !now.Enabled() || now.Revision() != before || about(logs, "has rights of its own") != 1 {
		t.Errorf("after a restart: %t at %d; %v", now.Enabled(), now.Revision(), logs.All())
	}
}

// TestFirstRightsOfAnExistingCluster: one that has never had rights gets them before this
// member serves it again. Who has disabled them has decided, and is not overruled.
func TestFirstRightsOfAnExistingCluster(t *testing.T) {
	n, _ := observed(t, Config{Settings: kvstore.DefaultSettings()})
	if o, err := n.tryPut(t); err != nil || o != kvstore.OK {
		t.Errorf("nobody's put: outcome %d, %v", o, err)
	}
	if err := n.end(t); err != nil {
		t.Fatal(err)
	}
	cfg := n.cfg
	cfg.FirstRights = firstRights
	n, logs := observed(t, cfg)
	if o, err := n.tryPut(t); err != nil || o != kvstore.PermissionDenied || about(logs, "enabled only now") != 1 {
		t.Errorf("nobody's put: outcome %d, %v; %v", o, err, logs.All())
	}
	disable := &kvstore.Command{Op: kvstore.OpRights, Rights: &rights.Change{Disable: true}, Origin: kvstore.Origin{Principal: rights.Root}}
	if r, err := n.Do(testContext(t), disable, nil); err != nil || r.Outcome != kvstore.OK {
		t.Fatalf("%+v, %v", r, err)
	}
	if err := n.end(t); err != nil {
		t.Fatal(err)
	}
	n, logs = observed(t, cfg)
	if o, err := n.tryPut(t); err != nil || o != kvstore.OK || about(logs, "kvd auth enable") != 1 {
		t.Errorf("nobody's put after rights were disabled: outcome %d, %v; %v", o, err, logs.All())
	}
}

// TestFirstRightsOfOneMember: a member that was told to have rights does not serve a
// cluster whose leader was not: it gives the cluster its rights first, and if it cannot, it
// ends.
func TestFirstRightsOfOneMember(t *testing.T) {
	for name, change := range map[string]func() (rights.Change, error){
		"it can":    firstRights,
		"it cannot": func() (rights.Change, error) { return rights.Change{}, errors.New("the file is gone") },
	} {
		t.Run(name, func(t *testing.T) {
			var initial []Peer
			for i := range 3 {
				initial = append(initial, Peer{ID: uint64(i + 1), URL: freeURL(t)})
			}
			member := func(i int, first func() (rights.Change, error)) *testNode {
				return start(t, Config{
					ID: uint64(i + 1), DataDir: t.TempDir(), Engine: "memory", ListenPeer: initial[i].URL, Initial: initial,
					Settings: kvstore.DefaultSettings(), FirstRights: first,
				})
			}
			others := []*testNode{member(0, nil), member(1, nil)}
			for _, m := range others { // so one of them leads
				m.awaitReady(t)
				if o, err := m.tryPut(t); err != nil || o != kvstore.OK {
					t.Fatalf("member %d: outcome %d, %v", m.cfg.ID, o, err)
				}
			}
			told := member(2, change)
			if name == "it cannot" {
				if err := told.awaitEnd(t); err == nil || !strings.Contains(err.Error(), "the file is gone") {
					t.Errorf("it ends with %v", err)
				}
				select {
				case <-told.Ready():
					t.Error("it serves")
				default:
				}
				return
			}
			told.awaitReady(t)
			for _, m := range append(others, told) {
				eventually(t, "rights count here", func() bool {
					o, err := m.tryPut(t)
					if m == told && (err != nil || o != kvstore.PermissionDenied) {
						t.Errorf("it serves nobody's put: outcome %d, %v", o, err)
					}
					return err == nil && o == kvstore.PermissionDenied
				})
			}
		})
	}
}

// TestFirstRightsThatCannotBe: a node that was told to begin with rights does not begin
// without them.
func TestFirstRightsThatCannotBe(t *testing.T) {
	for want, change := range map[string]func() (rights.Change, error){
		"the file is gone": func() (rights.Change, error) { return rights.Change{}, errors.New("the file is gone") },
		"rights need":      func() (rights.Change, error) { return rights.Change{Enable: true}, nil },
	} {
		url := freeURL(t)
		n := start(t, Config{
			ID: 1, DataDir: t.TempDir(), Engine: "memory", ListenPeer: url, Initial: []Peer{{ID: 1, URL: url}},
			Settings: kvstore.DefaultSettings(), FirstRights: change,
		})
		if err := n.awaitEnd(t); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", want, err)
		}
		select {
		case <-n.Ready():
			t.Errorf("%q: the node serves", want)
		default:
		}
	}
}

// TestFirstRightsBeforeAnybodyIsServed: while the leader of a new cluster is about to
// propose the rights, no member serves, although all of them could.
func TestFirstRightsBeforeAnybodyIsServed(t *testing.T) {
	released := make(chan struct{})
	release := sync.OnceFunc(func() { close(released) })
	var asked atomic.Int64
	var members []*testNode
	var initial []Peer
	for i := range 3 {
		initial = append(initial, Peer{ID: uint64(i + 1), URL: freeURL(t)})
	}
	for i := range 3 {
		members = append(members, start(t, Config{
			ID: uint64(i + 1), DataDir: t.TempDir(), Engine: "memory", ListenPeer: initial[i].URL, Initial: initial,
			Settings: kvstore.DefaultSettings(), FirstRights: func() (rights.Change, error) {
				asked.Add(1)
				<-released
				return firstRights()
			},
		}))
	}
	t.Cleanup(release) // before the members are waited for
	eventually(t, "the leader makes the rights", func() bool { return asked.Load() > 0 })
	for _, m := range members {
		eventually(t, "the member is in its place", func() bool { return m.member.Load() != nil })
		r := m.member.Load().replica
		select {
		case <-r.Ready():
		case <-testContext(t).Done():
			t.Fatal("the replica is not ready")
		}
	}
	for range 5 { // a member that would serve does so by now
		for _, m := range members {
			if err := m.member.Load().replica.Barrier(testContext(t)); err != nil {
				t.Fatal(err)
			}
			if _, err := m.tryPut(t); code(err) != api.Starting {
				t.Fatalf("member %d serves before the cluster has its rights: %v", m.cfg.ID, err)
			}
		}
	}
	release()
	for _, m := range members {
		m.awaitReady(t)
		if o, err := m.tryPut(t); err != nil || o != kvstore.PermissionDenied {
			t.Errorf("member %d: nobody's put: outcome %d, %v", m.cfg.ID, o, err)
		}
	}
}
