package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/raftnode"
)

// alarms are the conditions an operator must see.
type alarms struct {
	mu struct {
		sync.Mutex
		raised []string
	}
}

func (a *alarms) raise(text string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !slices.Contains(a.mu.raised, text) {
		a.mu.raised = append(a.mu.raised, text)
	}
}

func (a *alarms) list() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string{}, a.mu.raised...)
}

// Status describes this node, also while it starts or stops.
func (n *Node) Status(context.Context) (api.Status, error) {
	r := n.raft.Load()
	if r == nil {
		return api.Status{}, retryable(api.Starting, "this node looks for its place in the cluster")
	}
	at, hash := n.store.StateHash()
	pos, stats := r.Position(), n.store.Stats()
	logSize, snapSize := r.LogSizeBytes()
	st := api.Status{
		ID: n.id, Name: n.nameOf(r), ClusterID: n.ClusterID(),
		Role: n.role(r), Term: pos.Term, Leader: pos.Leader,
		Commit: pos.Commit, Applied: at.Index, StateHash: hex(hash),
		StateHashes: make(map[uint64]string),
		Revision:    n.store.Revision(), CompactRevision: n.store.CompactRevision(),
		Keys: stats.Keys, LogSizeBytes: logSize, StoreSizeBytes: stats.EngineBytes, SnapshotSizeBytes: snapSize,
		LogicalSizeBytes: stats.LogicalBytes, QuotaBytes: n.store.Settings().QuotaBytes,
		Engine: stats.EngineName, Version: n.cfg.Version.Version,
		Uptime: time.Since(n.started).Round(time.Second).String(),
		Alarms: n.alarms.list(),
	}
	for index, h := range n.store.Hashes() {
		st.StateHashes[index] = hex(h)
	}
	if q := st.QuotaBytes; q > 0 && st.LogicalSizeBytes >= q {
		st.Alarms = append(st.Alarms, "no_space: the quota is reached; deletes and compaction go on")
	}
	return st, nil
}

func hex(h uint64) string { return fmt.Sprintf("%016x", h) }

func (n *Node) nameOf(r *raftnode.Replica) string {
	if m, ok := r.Membership().Member(n.id); ok && m.Name != "" {
		return m.Name
	}
	return n.cfg.Name
}

func (n *Node) role(r *raftnode.Replica) string {
	pos := r.Position()
	if m, ok := r.Membership().Member(n.id); ok {
		return roleOf(m, pos, n.id)
	}
	return "learner" // not in the membership it knows yet
}

// IsLeader reports whether this node leads.
func (n *Node) IsLeader() bool {
	r := n.raft.Load()
	return r != nil && r.Position().Leader == n.id
}

// HasLeader reports whether this node knows of a leader.
func (n *Node) HasLeader() bool {
	r := n.raft.Load()
	return r != nil && r.Position().Leader != 0
}

// Responsive reports whether the loop that everything waits for still turns.
// A node that starts or has ended has none, and counts as responsive.
func (n *Node) Responsive() bool {
	r := n.raft.Load()
	return r == nil || n.draining.Load() || r.Responsive()
}

// statusTimeout bounds how long a silent member delays a cluster status.
const statusTimeout = 2 * time.Second

// ClusterStatus asks every member for its status.
func (n *Node) ClusterStatus(ctx context.Context) (api.ClusterStatus, error) {
	r, err := n.running()
	if err != nil {
		return api.ClusterStatus{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	members := r.Membership().Members
	out := api.ClusterStatus{
		ClusterID: n.ClusterID(),
		Leader:    r.Position().Leader,
		Members:   make([]api.MemberStatus, len(members)),
		Healthy:   r.Position().Leader != 0,
	}
	var asked sync.WaitGroup
	for i, m := range members {
		asked.Go(func() { out.Members[i] = n.askStatus(ctx, m) })
	}
	asked.Wait()
	for i, m := range out.Members {
		if m.Status == nil && !members[i].Learner || m.Status != nil && len(m.Status.Alarms) > 0 {
			out.Healthy = false
		}
	}
	out.HashesAgree, out.HashesCompared = compareStatuses(out.Members)
	if out.HashesAgree != nil && !*out.HashesAgree {
		out.Healthy = false
	}
	return out, nil
}

func (n *Node) askStatus(ctx context.Context, m raftnode.Member) api.MemberStatus {
	row := api.MemberStatus{ID: m.ID, Name: m.Name}
	var st api.Status
	var err error
	if m.ID == n.id {
		st, err = n.Status(ctx)
	} else {
		st, err = n.peers.status(ctx, m.PeerURLs)
	}
	if err != nil {
		row.Error = err.Error()
		return row
	}
	row.Status = &st
	return row
}

// compareStatuses holds the state hashes of common log indexes against each
// other: those kept under load, and the newest where nothing moves. agree is
// nil when there is nothing in common.
func compareStatuses(members []api.MemberStatus) (agree *bool, compared int) {
	first := make(map[uint64]string)
	equal := true
	for _, m := range members {
		if m.Status == nil {
			continue
		}
		own := map[uint64]string{m.Status.Applied: m.Status.StateHash}
		for index, h := range m.Status.StateHashes {
			own[index] = h
		}
		for index, h := range own {
			other, ok := first[index]
			if !ok {
				first[index] = h
				continue
			}
			compared++
			equal = equal && other == h
		}
	}
	if compared == 0 {
		return nil, 0
	}
	return &equal, compared
}

// Checks are the conditions of readiness.
func (n *Node) Checks(context.Context) []api.Check {
	checks := []api.Check{
		{Name: "started", Err: n.checkStarted()},
		{Name: "draining", Err: n.checkDraining()},
	}
	r := n.raft.Load()
	if r == nil {
		return checks
	}
	fresh := freshness{r.Freshness()}
	return append(checks,
		api.Check{Name: "leader", Err: fresh.checkLeader()},
		api.Check{Name: "caught-up", Err: fresh.checkCaughtUp()},
		api.Check{Name: "disk", Err: checkDisk(r)},
	)
}

func (n *Node) checkStarted() error {
	select {
	case <-n.ready:
		return nil
	default:
		return errors.New("still starting")
	}
}

func (n *Node) checkDraining() error {
	if n.leaving.Load() || n.draining.Load() {
		return errors.New("stopping")
	}
	return nil
}

func checkDisk(r *raftnode.Replica) error {
	if stalled := r.Stalled(); stalled > time.Second {
		return fmt.Errorf("a write to the log has been running for %v", stalled.Round(time.Second))
	}
	return nil
}
