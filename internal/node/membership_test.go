package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/raftnode"
	"github.com/kvd-io/kvd/internal/roster"
)

// TestEveryMemberLogsMembershipChanges: and who asked for them, wherever that was.
func TestEveryMemberLogsMembershipChanges(t *testing.T) {
	logs := make(map[uint64]*observer.ObservedLogs)
	ms := startCluster(t, 3, func(c *Config) {
		core, seen := observer.New(zap.InfoLevel)
		c.Logger, logs[c.ID] = zap.New(core), seen
	})
	ctx := api.WithRequester(testContext(t), api.Requester{RequestID: "0123", Client: "10.0.0.1:5"})
	added, err := ms[0].AddMember(ctx, api.NewMember{PeerURLs: []string{freeURL(t)}, Learner: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := ms[1].RemoveMember(ctx, added.ID); err != nil {
		t.Fatal(err)
	}
	for id, seen := range logs {
		for _, message := range []string{"member added as a learner", "member removed"} {
			eventually(t, message, func() bool { return seen.FilterMessage(message).Len() > 0 })
			line := seen.FilterMessage(message).All()[0].ContextMap()
			if line["member"] != added.ID || line["request_id"] != "0123" || line["client"] != "10.0.0.1:5" {
				t.Errorf("member %d logs %q with %v", id, message, line)
			}
		}
	}
	l, err := ms[0].Leader()
	if err != nil {
		t.Fatal(err)
	}
	to := l.ID%3 + 1
	if err := ms[to-1].TransferLeader(ctx, to); err != nil {
		t.Fatal(err)
	}
	if got := logs[l.ID].FilterMessage("leadership handed over").All(); len(got) != 1 || got[0].ContextMap()["client"] != "10.0.0.1:5" {
		t.Errorf("the leader logs %v", got)
	}
}

// TestUnreachableMemberIsNotCalledLeaderless: the leader is in office; only the
// connection to a member that stopped is refused.
func TestUnreachableMemberIsNotCalledLeaderless(t *testing.T) {
	c := newPeerCaller(peering{}.security())
	_, err := c.status(testContext(t), []string{freeURL(t)})
	if err == nil || !strings.Contains(err.Error(), "cannot connect") || strings.Contains(err.Error(), "leader") {
		t.Errorf("%v", err)
	}
	if !errors.Is(err, raftnode.ErrNoLeader) {
		t.Error("a change that nobody took is not repeated")
	}
	if err := writeError(err); code(err) != api.NoLeader || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("to a client: %v", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := writeError(&failedCall{raftnode.ErrUnknown, gone.Err()}); code(err) != api.Timeout || !strings.Contains(err.Error(), "context canceled") {
		t.Errorf("to a client: %v", err)
	}
}

func TestJoinCommandHasTheFlagsOfTheCluster(t *testing.T) {
	for _, c := range []struct {
		url, added string
		tls, clear bool
	}{
		{"http://127.0.0.1:1", "http://127.0.0.1:2", false, false},
		{"http://10.0.0.1:1", "http://10.0.0.2:1", false, true},
		{"http://127.0.0.1:1", "http://10.0.0.2:1", false, true},
		{"https://10.0.0.1:1", "https://10.0.0.2:1", true, false},
	} {
		ms := &roster.Membership{Members: []roster.Member{{ID: 1, PeerURLs: []string{c.url}}}}
		line := joinCommand(ms, roster.Member{ID: 2, PeerURLs: []string{c.added}})
		if strings.Contains(line, "--peer-cert-file") != c.tls || strings.Contains(line, "--insecure-peers") != c.clear {
			t.Errorf("%s joining %s: %s", c.added, c.url, line)
		}
	}
}

// The member keeps the name that it was added with, and the name stays one word.
func TestJoinCommandHasTheName(t *testing.T) {
	ms := &roster.Membership{Members: []roster.Member{{ID: 1, PeerURLs: []string{"http://127.0.0.1:1"}}}}
	for name, want := range map[string]string{"n4": " --name n4", "a b": " --name 'a b'", "it's": ` --name 'it'\''s'`, "": "http://127.0.0.1:1"} {
		line := joinCommand(ms, roster.Member{ID: 2, Name: name, PeerURLs: []string{"http://127.0.0.1:2"}})
		if !strings.HasSuffix(line, want) || strings.Contains(line, "--name") != (name != "") {
			t.Errorf("%q: %s", name, line)
		}
	}
}

// TestPeerPortTellsClientsWhereToGo instead of a bare 404.
func TestPeerPortTellsClientsWhereToGo(t *testing.T) {
	ms := startCluster(t, 1, func(c *Config) { c.AdvertiseClient = []string{"http://127.0.0.1:12380"} })
	for _, path := range []string{"/", "/v1/kv/a", "/kvd/unknown"} {
		req, err := http.NewRequestWithContext(testContext(t), http.MethodGet, ms[0].cfg.ListenPeer+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusNotFound || !strings.Contains(string(body), "peer port") || !strings.Contains(string(body), "http://127.0.0.1:12380") {
			t.Errorf("%s: %d %q, %v", path, resp.StatusCode, body, err)
		}
	}
}

// A member is added once, however often, wherever and how concurrently its request is
// repeated; the same key with another request is refused.
func TestRepeatedMembershipChange(t *testing.T) {
	ms := startCluster(t, 3, nil)
	url := freeURL(t)
	add := func(n *Node, fingerprint byte) (uint64, bool, error) {
		once := &api.Once{Key: "add", Fingerprint: [16]byte{fingerprint}}
		added, err := n.AddMember(api.WithOnce(testContext(t), once), api.NewMember{PeerURLs: []string{url}, Learner: true})
		if err == nil && (!slices.Equal(added.PeerURLs, []string{url}) || !added.Learner || !strings.Contains(added.Command, url)) {
			t.Errorf("the answer does not tell what was added: %+v", added)
		}
		return added.ID, once.Replayed, err
	}
	type outcome struct {
		id       uint64
		replayed bool
		err      error
	}
	outcomes := make(chan outcome)
	for i := range 6 {
		go func() {
			id, replayed, err := add(ms[i%3].Node, 1)
			outcomes <- outcome{id, replayed, err}
		}()
	}
	first := 0
	for range 6 {
		o := <-outcomes
		if o.err != nil || o.id != 4 {
			t.Errorf("%+v", o)
		}
		if !o.replayed {
			first++
		}
	}
	if first != 1 {
		t.Errorf("%d of the requests made the change", first)
	}
	if _, _, err := add(ms[0].Node, 2); errorCode(err) != api.IdempotencyMismatch {
		t.Errorf("another request under the key: %v", err)
	}
	rename := func(n *Node) (api.Member, bool, error) {
		once := &api.Once{Key: "update", Fingerprint: [16]byte{3}}
		updated, err := n.UpdateMember(api.WithOnce(testContext(t), once), 4, []string{url}, []string{"http://127.0.0.1:1"})
		return updated, once.Replayed, err
	}
	if m, replayed, err := rename(ms[0].Node); m.ID != 4 || replayed || err != nil {
		t.Fatalf("update: %+v %t %v", m, replayed, err)
	}
	if err := ms[1].RemoveMember(testContext(t), 4); err != nil {
		t.Fatal(err)
	}
	// What was done is not denied, even if the member is gone.
	if m, replayed, err := rename(ms[2].Node); m.ID != 4 || !slices.Equal(m.PeerURLs, []string{url}) || !replayed || err != nil {
		t.Errorf("update after the removal: %+v %t %v", m, replayed, err)
	}
	if id, replayed, err := add(ms[2].Node, 1); id != 4 || !replayed || err != nil {
		t.Errorf("after the removal: %d %t %v", id, replayed, err)
	}
}

func errorCode(err error) api.Code {
	var e *api.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// A change that is sent to three members at once is made once, and each gives its answer:
// who has waited for what is applied knows the members as of that.
func TestRepeatedChangeElsewhere(t *testing.T) {
	members := startCluster(t, 3, nil)
	for n := range 60 {
		var ids [3]uint64
		var asked sync.WaitGroup
		for i, at := range members {
			asked.Go(func() {
				ctx := api.WithOnce(testContext(t), &api.Once{Key: fmt.Sprint("key", n), Fingerprint: [16]byte{1}})
				added, err := at.AddMember(ctx, api.NewMember{PeerURLs: []string{fmt.Sprintf("http://127.0.0.1:%d", 1+n)}, Learner: true})
				if err != nil {
					t.Errorf("round %d, member %d: %v", n, i+1, err)
				}
				ids[i] = added.ID
			})
		}
		asked.Wait()
		if t.Failed() || ids[0] != ids[1] || ids[0] != ids[2] {
			t.Fatalf("round %d: one change added the members %v", n, ids)
		}
		if err := members[0].RemoveMember(testContext(t), ids[0]); err != nil {
			t.Fatal(err)
		}
	}
}
