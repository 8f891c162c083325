package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/raftnode"
	"github.com/kvd-io/kvd/internal/repeat"
)

const (
	// dutyPace is how often a leader looks after the history. It is also the
	// resolution of the history's age.
	dutyPace = 10 * time.Second
	// comparePace is how often a leader compares the replicas.
	comparePace = 15 * time.Second
	// dutyTimeout bounds one proposal of a duty.
	dutyTimeout = 5 * time.Second
)

// leaderDuties lets replicated time pass and compacts the history. Both commands
// carry this leader's term: if another leader is elected before they commit, they
// do nothing (N6).
func (m *member) leaderDuties(ctx context.Context) {
	var ticked uint64 // revision at the last tick
	var tenure tenure
	for pause(ctx, dutyPace) == nil {
		pos := m.replica.Position()
		if pos.Leader != m.id || m.life.leaving.Load() {
			continue
		}
		elapsed := tenure.step(pos.Term, time.Now())
		if rev := m.store.Revision(); rev != ticked || m.store.Aging() {
			m.tick(ctx, pos.Term, elapsed)
			ticked = rev
		}
		if target := m.store.CompactionTarget(); target > m.store.CompactRevision() {
			m.propose(ctx, &kvstore.Command{Op: kvstore.OpCompact, Term: pos.Term, Revision: target})
		}
	}
}

// tick lets replicated time pass. One tick forgets a bounded number of the things that
// have become too old, so further ones follow while there are more.
func (m *member) tick(ctx context.Context, term uint64, elapsed time.Duration) {
	for more := true; more; elapsed = 0 {
		r := m.propose(ctx, &kvstore.Command{Op: kvstore.OpTick, Term: term, ElapsedMillis: elapsed.Milliseconds()})
		more = r != nil && r.More
	}
}

// tenure measures the time during which this member leads, in steps.
type tenure struct {
	term uint64
	last time.Time // of the last step, with its monotonic reading
}

// step returns the time since the last step in the term, or 0 for the first one:
// what passed before it, another leader may have counted. A step counts once, even
// if its tick is lost: replicated time may fall behind, but never runs ahead.
func (t *tenure) step(term uint64, now time.Time) time.Duration {
	elapsed := now.Sub(t.last)
	if t.term != term {
		elapsed = 0
	}
	t.term, t.last = term, now
	return elapsed
}

// alarmPace is how often a node looks for alarms that started or ended.
const alarmPace = time.Second

// watchAlarms logs each alarm when it starts and when it ends. Each member raises
// its own, so each logs them.
func (m *member) watchAlarms(ctx context.Context) {
	active := make(map[string]bool)
	var misplaced, leaderless, unlisted repeat.Pace
	led := time.Now()
	for pause(ctx, alarmPace) == nil {
		m.health.Note(m.rebuildObstacle())
		active = m.logAlarms(active, m.activeAlarms())
		m.warnOfOtherURLs(&misplaced, time.Now())
		warnOfUnlisted(m, &unlisted, time.Now())
		if m.freshness().checkLeader() == nil {
			led = time.Now()
		}
		m.warnOfNoLeader(&leaderless, time.Since(led), time.Now())
	}
}

// warnOfOtherURLs warns, at growing intervals, if the cluster looks for this member
// at other URLs than those that it was started with. It may follow its leader all
// the same, over the connections that it opens itself, but nobody can reach it: it
// gets no snapshot, and a second member in that state may cost the quorum.
func (m *member) warnOfOtherURLs(pace *repeat.Pace, now time.Time) {
	self, ok := m.replica.Membership().Member(m.id)
	if !ok || len(self.PeerURLs) == 0 || sharesURL(self.PeerURLs, append([]string{m.cfg.ListenPeer}, m.cfg.AdvertisePeer...)) {
		return
	}
	here, there := strings.Join(m.cfg.AdvertisePeer, ","), strings.Join(self.PeerURLs, ",")
	if !pace.Due(now, here+" "+there) {
		return
	}
	m.lg.Warn("the cluster's URLs for this member differ from those it was started with",
		zap.Uint64("member", m.id), zap.Strings("membership", self.PeerURLs), zap.Strings("started_with", m.cfg.AdvertisePeer),
		zap.String("remedy", fmt.Sprintf("tell the cluster, through any member: curl -X PUT http://HOST:PORT/v1/members/%d -d '{\"peer_urls\":[\"%s\"]}'; or start this member at the URL that the cluster knows, with --listen-peer (or --advertise-peer) %s",
			m.id, strings.Join(m.cfg.AdvertisePeer, `","`), there)))
}

// leaderPatience is how long a member may have no leader before it warns: several
// elections.
const leaderPatience = 10 * time.Second

// warnOfNoLeader warns, at growing intervals, of a cluster that cannot elect a leader,
// and names the members that cannot be reached from here, and where they were sought.
// Nothing else would say it: a single connection that fails means little.
func (m *member) warnOfNoLeader(pace *repeat.Pace, since time.Duration, now time.Time) {
	if since < leaderPatience {
		return
	}
	var silent []string
	voters := 0
	for _, other := range m.replica.Membership().Members {
		if !other.Learner {
			voters++
		}
		if !other.Learner && other.ID != m.id && m.replica.ActiveSince(other.ID).IsZero() {
			silent = append(silent, fmt.Sprintf("%d at %s", other.ID, strings.Join(other.PeerURLs, ",")))
		}
	}
	if !pace.Due(now, strings.Join(silent, " ")) {
		return
	}
	m.lg.Warn("the cluster has no leader", zap.Duration("for", since.Round(time.Second)), zap.Int("voters", voters), zap.Strings("not_reached", silent),
		zap.String("remedy", "start the members that cannot be reached, or make them reachable at these URLs; a majority of the voters is needed. If that many are lost for good, see kvd recover --help"))
}

// logAlarms logs how the alarms differ from those that were active, and returns the
// new ones by name.
func (m *member) logAlarms(were map[string]bool, alarms []string) map[string]bool {
	active := make(map[string]bool)
	for _, a := range alarms {
		name := api.AlarmName(a)
		active[name] = true
		if !were[name] {
			m.lg.Warn("alarm started", zap.String("alarm", name), zap.String("detail", a))
		}
	}
	for name := range were {
		if !active[name] {
			m.lg.Info("alarm ended", zap.String("alarm", name))
		}
	}
	return active
}

// propose makes a proposal of a duty, and returns its result, or nil if it was lost.
// The next round makes up for that.
func (m *member) propose(ctx context.Context, cmd *kvstore.Command) *kvstore.Result {
	ctx, cancel := context.WithTimeout(ctx, dutyTimeout)
	defer cancel()
	r, err := m.replica.Propose(ctx, kvstore.EncodeCommand(nil, cmd))
	if err == nil {
		return r.(*kvstore.Result)
	}
	if !errors.Is(err, raftnode.ErrStopping) {
		m.lg.Warn("a leader's duty failed; it is retried in the next round", zap.Error(err))
	}
	return nil
}

// compareHashes has the leader compare the replicas continuously. A divergence
// is a bug or a broken machine, and raises an alarm at once.
func (m *member) compareHashes(ctx context.Context) {
	for pause(ctx, comparePace) == nil {
		if !m.leads() || len(m.replica.Membership().Members) < 2 || m.life.serves() != nil {
			continue
		}
		status := m.clusterStatus(ctx)
		m.counts.hashesCompared.Add(uint64(status.HashesCompared))
		if status.HashesAgree != nil && !*status.HashesAgree {
			m.counts.hashesDiverged.Add(1)
			m.alarms.raise(api.AlarmDiverged + ": replicas have different state hashes at the same index")
			m.lg.Error("replicas diverge: their state hashes differ at the same log index; compare them with GET /v1/cluster")
		}
	}
}
