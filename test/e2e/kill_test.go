package e2e

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/proof"
)

// TestKillUnderLoad repeatedly kills the leader, a follower or all nodes at
// random moments, under clients that use all nodes. Every acknowledged write must
// be there, no read stale, nothing applied twice, and the members must agree on
// the state at the end.
func TestKillUnderLoad(t *testing.T) {
	kills, pace := 12, 15*time.Millisecond
	switch runSize {
	case sizeFull:
		kills, pace = 40, 25*time.Millisecond
	case sizeHuge:
		kills, pace = 60, 25*time.Millisecond
	}
	r := &killRun{
		t: t, cluster: newCluster(t, 3, quick...), random: seeded(t),
		counts: make(map[target]int),
	}
	r.load = startLoad(t, r.cluster, r.random, loadShape{clients: 8, keys: 8, paced: 4, pacedKeys: 4, pace: pace})
	for i := range kills {
		r.round(target(i % int(targets)))
	}
	r.load.await(r.t, 200)
	r.judge(kills)
}

// target is what a round kills.
type target int

const (
	theLeader target = iota
	aFollower
	everybody
	leaderAndFollower
	targets
)

func (g target) String() string {
	return [...]string{"leader", "follower", "all", "leader and a follower"}[g]
}

type killRun struct {
	t       *testing.T
	cluster *cluster
	load    *load
	random  *rand.Rand
	counts  map[target]int
}

// round kills, sometimes lets the others continue alone, and restarts.
func (r *killRun) round(g target) {
	r.t.Helper()
	r.load.await(r.t, 20+r.random.Int64N(200))
	victims := r.victims(g)
	for _, m := range victims {
		m.kill()
	}
	r.counts[g]++
	if len(victims) == 1 && r.random.IntN(2) == 0 {
		r.load.await(r.t, 50)
	}
	restart(victims...)
}

func (r *killRun) victims(g target) []*member {
	r.t.Helper()
	leader := r.cluster.leader()
	followers := r.cluster.followers()
	follower := followers[r.random.IntN(len(followers))]
	switch g {
	case theLeader:
		return []*member{leader}
	case aFollower:
		return []*member{follower}
	case leaderAndFollower:
		return []*member{leader, follower}
	default:
		return r.cluster.live()
	}
}

// await waits until the given number of further writes have been acknowledged and as
// many reads answered.
func (l *load) await(t testing.TB, n int64) {
	t.Helper()
	acked, read := l.acked.Load()+n, l.read.Load()+n
	eventually(t, fmt.Sprintf("%d more reads and writes are answered", n), func() error {
		if a, b := l.acked.Load(), l.read.Load(); a < acked || b < read {
			return fmt.Errorf("%d writes and %d reads to go", acked-a, read-b)
		}
		return nil
	})
}

func (r *killRun) judge(kills int) {
	t := r.t
	t.Helper()
	history := r.load.stop()
	t.Logf("%d kills %v; %s", kills, r.counts, outcomes(history))
	r.demandTraffic(kills, history)
	judgeLoad(t, r.cluster, r.load, history, nil)
}

// leastJudged is how many operations porcupine has to judge, or it proves nothing.
const leastJudged = 100

// judgeLoad has the history of a load judged, and returns the change of each revision.
// seen has those that watches saw, in place of history that is compacted.
func judgeLoad(t testing.TB, c *cluster, l *load, history []*operation, seen map[uint64]change) map[uint64]change {
	t.Helper()
	for _, s := range l.surprises() {
		t.Error("unexpected answer: ", s)
	}
	last := finalRevision(t, c)
	var changes map[uint64]change
	for _, m := range c.live() {
		// Ask each member separately, because each has its own copy of the history.
		w := &witness{operations: history, state: stateOf(m), seen: seen}
		for _, p := range w.judge(last) {
			t.Errorf("judged by %v: %s", m, p)
		}
		if t.Failed() {
			t.FailNow()
		}
		t.Logf("judged by %v: %d operations, %d revisions, %d unknown outcomes had taken effect: no violation", m, len(history), last, w.settled)
		forget(history)
		changes = w.changes
	}
	judgedHistory := l.judgedHistory()
	if n := len(judgedHistory); n < leastJudged {
		t.Errorf("only %d operations for porcupine: that proves nothing", n)
	}
	if err := askPorcupine(t, judgedHistory); err != nil {
		t.Fatalf("%d operations: %v", len(judgedHistory), err)
	}
	t.Logf("porcupine: %d operations are linearizable", len(judgedHistory))
	proof.Judged(t, len(history))
	return changes
}

// forget undoes what a witness settled, for the next witness.
func forget(history []*operation) {
	for _, o := range history {
		if o.outcome == unknown {
			o.revision = 0
		}
	}
}

// demandTraffic fails a run that saw too little to prove anything.
func (r *killRun) demandTraffic(kills int, history []*operation) {
	r.t.Helper()
	acked, read := r.load.acked.Load(), r.load.read.Load()
	if least := int64(50 * kills); acked < least || read < least {
		r.t.Errorf("only %d writes acknowledged and %d reads answered under %d kills: that proves nothing", acked, read, kills)
	}
	for g := range targets {
		if r.counts[g] == 0 {
			r.t.Errorf("never killed: %v", g)
		}
	}
	for _, o := range history {
		if o.outcome == unknown {
			return
		}
	}
	r.t.Error("no kill ever left an outcome unknown: the kills did not hit the load")
}

// finalRevision returns the revision of the store, from a linearizable read.
func finalRevision(t testing.TB, c *cluster) uint64 {
	t.Helper()
	var a answer
	eventually(t, "read the final revision", func() error {
		if a = get(c.live()[0], "/v1/kv/"+keyPrefix+"end"); a.err != nil || a.status != 404 {
			return fmt.Errorf("%v", a)
		}
		return nil
	})
	return a.revision()
}
