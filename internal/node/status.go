package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/catchup"
	"github.com/kvd-io/kvd/internal/raftnode"
	"github.com/kvd-io/kvd/internal/roster"
)

// alarms are the conditions that an operator must see.
type alarms struct {
	mu struct {
		sync.Mutex // held while an alarm is raised, and by requests that ask
		raised     []string
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

func (m *member) status() api.Status {
	at, hash := m.store.StateHash()
	pos, stats, fresh := m.replica.Position(), m.store.Stats(), m.freshness()
	logSize, snapSize := m.replica.LogSizeBytes()
	st := api.Status{
		ID: m.id, Name: m.name(), ClusterID: m.cluster,
		Role: m.role(pos), Term: pos.Term, Leader: pos.Leader,
		Commit: pos.Commit, Applied: at.Index, StateHash: hex(hash),
		Lag: fresh.Lag(), Staleness: fresh.describe(),
		StateHashes: make(map[uint64]string),
		Revision:    m.store.Revision(), CompactRevision: m.store.CompactRevision(),
		Keys: stats.Keys, LogSizeBytes: logSize, StoreSizeBytes: stats.EngineBytes, SnapshotSizeBytes: snapSize,
		LogicalSizeBytes: stats.LogicalBytes, QuotaBytes: m.store.Settings().QuotaBytes,
		Engine: stats.EngineName, Version: m.cfg.Version.Version,
		Uptime: time.Since(m.life.started).Round(time.Second).String(),
		Alarms: m.activeAlarms(),
	}
	for index, h := range m.store.Hashes() {
		st.StateHashes[index] = hex(h)
	}
	st.KeptLog = keptLog(m.replica.Kept())
	return st
}

// keptLog describes what a replica keeps for members that get a snapshot; nil if
// there is none.
func keptLog(k *catchup.KeptLog) *api.KeptLog {
	if k.Entries == 0 && !k.Building && len(k.Deliveries) == 0 && k.IntakeLimit == 0 {
		return nil
	}
	out := &api.KeptLog{Entries: k.Entries, Bytes: k.Bytes, Building: k.Building, IntakeLimitBytes: k.IntakeLimit, Deliveries: []api.SnapshotDelivery{}}
	for _, d := range k.Deliveries {
		out.Deliveries = append(out.Deliveries, api.SnapshotDelivery{
			To: d.To, State: d.State, Index: d.Index, BodyBytes: d.BodyBytes, BehindBytes: d.BehindBytes,
			Since: d.Since.Round(time.Millisecond).String(), Failures: d.Failures, Reason: d.Reason,
		})
	}
	return out
}

// activeAlarms returns the alarms of this member, each as its name, a colon, and
// what is wrong and what to do.
func (m *member) activeAlarms() []string {
	alarms := m.alarms.list()
	alarms = append(alarms, m.replica.RefusedStarts()...)
	alarms = append(alarms, m.health.Alarms()...)
	if alarm := m.replica.Kept().Alarm(); alarm != "" {
		alarms = append(alarms, alarm)
	}
	switch sp := m.store.Space(); {
	case sp.Refused:
		alarms = append(alarms, fmt.Sprintf("%s: puts are refused: %d bytes of the quota of %d are used; delete keys, or raise quota_bytes with PUT /v1/settings", api.AlarmNoSpace, sp.UsedBytes, sp.QuotaBytes))
	case sp.Low:
		alarms = append(alarms, fmt.Sprintf("%s: %d bytes of the quota of %d are used; puts are refused once it is reached: delete keys, or raise quota_bytes with PUT /v1/settings", api.SpaceLow, sp.UsedBytes, sp.QuotaBytes))
	}
	return alarms
}

// unhealthy reports whether an alarm means more than a warning.
func unhealthy(alarms []string) bool {
	return slices.ContainsFunc(alarms, func(a string) bool { return api.AlarmName(a) != api.SpaceLow })
}

func hex(h uint64) string { return fmt.Sprintf("%016x", h) }

// name is the member's name in the cluster, or in its settings until the
// cluster knows it.
func (m *member) name() string {
	if self, ok := m.replica.Membership().Member(m.id); ok && self.Name != "" {
		return self.Name
	}
	return m.cfg.Name
}

func (m *member) role(pos raftnode.Position) string {
	if self, ok := m.replica.Membership().Member(m.id); ok {
		return roleOf(self, pos, m.id)
	}
	return "learner" // the membership that it knows does not contain it yet
}

// statusTimeout bounds how long a silent member delays a cluster status.
const statusTimeout = 2 * time.Second

func (m *member) clusterStatus(ctx context.Context) api.ClusterStatus {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	members := m.replica.Membership().Members
	leader := m.replica.Position().Leader
	out := api.ClusterStatus{
		ClusterID: m.cluster,
		Leader:    leader,
		Members:   make([]api.MemberStatus, len(members)),
		Healthy:   leader != 0,
	}
	var asked sync.WaitGroup
	for i, other := range members {
		asked.Go(func() { out.Members[i] = m.askStatus(ctx, other) })
	}
	asked.Wait()
	for i, row := range out.Members {
		// A learner that is down costs nobody anything.
		if row.Status == nil && !members[i].Learner || row.Status != nil && unhealthy(row.Status.Alarms) {
			out.Healthy = false
		}
	}
	out.HashesAgree, out.HashesCompared = compareStatuses(out.Members)
	if out.HashesAgree != nil && !*out.HashesAgree {
		out.Healthy = false
	}
	return out
}

func (m *member) askStatus(ctx context.Context, other roster.Member) api.MemberStatus {
	row := api.MemberStatus{ID: other.ID, Name: other.Name}
	var st api.Status
	var err error
	if other.ID == m.id {
		st = m.status()
	} else {
		st, err = m.calls.status(ctx, other.PeerURLs)
	}
	if err != nil {
		row.Error = err.Error()
		return row
	}
	row.Status = &st
	return row
}

// compareStatuses compares the state hashes of log indexes that members have
// in common: those kept under load, and the newest if nothing moves. agree is
// nil if there are none.
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

// checks yields the readiness checks of a member.
func (m *member) checks(yield func(string, error) bool) {
	fresh := m.freshness()
	_ = yield("leader", fresh.checkLeader()) && yield("caught-up", fresh.checkCaughtUp()) && yield("disk", m.checkDisk())
}

func (l *lifecycle) checkStarted() error {
	select {
	case <-l.ready:
		return nil
	default:
		return errors.New("still starting")
	}
}

func (l *lifecycle) checkDraining() error {
	if l.leaving.Load() || l.closing.Load() {
		return errors.New("stopping")
	}
	return nil
}

func (m *member) checkDisk() error {
	if stalled := m.replica.Stalled(); stalled > time.Second {
		return fmt.Errorf("a write to the log has been running for %v", stalled.Round(time.Second))
	}
	return nil
}
