package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/proof"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestMixedFaces: half of the clients use kvd's own API and half that of etcd, on the same
// keys, while members are killed, frozen, and cut off, catch up by snapshot, and history is
// compacted. Both kinds watch. To the judges they are one history. KVD_E2E=huge lasts until
// 100,000 operations were answered.
func TestMixedFaces(t *testing.T) {
	long(t)
	least := 1500
	switch runSize {
	case sizeFull:
		least = 5000
	case sizeHuge:
		least = 100_000
	}
	random := seeded(t)
	c, l := newLinkedCluster(t, 3, small...)
	e := withEtcd(t, c)
	l.start(c.nodes...)
	r := &mixedRun{t: t, c: c, links: l, etcd: e, random: random, counts: make(map[string]int)}
	ctx, cancel := context.WithCancel(context.Background())
	var following sync.WaitGroup
	defer following.Wait()
	defer cancel()
	r.follow(ctx, &following)
	r.load = startLoad(t, c, random, loadShape{
		clients: 8, keys: 8, paced: 4, pacedKeys: 4, pace: 25 * time.Millisecond, faces: []face{native{}, e}, padding: 100,
	})
	for n := 0; n < len(mixedFaults) || r.load.answered() < least; n++ {
		f := mixedFaults[n%len(mixedFaults)]
		r.load.await(t, 20+random.Int64N(int64(least)/50))
		r.counts[f.name]++
		f.cause(r)
		c.awaitReady()
	}
	r.load.await(t, 100)
	r.judge()
}

// mixedRun is one run.
type mixedRun struct {
	t         *testing.T
	c         *cluster
	links     *links
	etcd      etcd
	random    *rand.Rand
	load      *load
	followers []*follower
	counts    map[string]int
	compacted uint64
}

// follow begins watches of both kinds.
func (r *mixedRun) follow(ctx context.Context, running *sync.WaitGroup) {
	for i := range 3 {
		random := rand.New(rand.NewPCG(r.random.Uint64(), 4))
		r.followers = append(r.followers,
			newFollower(fmt.Sprint("watch ", i), firstRevision+1, watchNative(r.c.nodes, random)),
			newFollower(fmt.Sprint("etcd's watch ", i), firstRevision+1, watchEtcd(etcdClient(r.t, r.etcd.endpoints()...))))
	}
	for _, f := range r.followers {
		running.Go(func() { f.run(ctx) })
	}
}

// mixedFaults are what happens to the cluster, in this order again and again.
var mixedFaults = []struct {
	name  string
	cause func(*mixedRun)
}{
	{"leader killed", func(r *mixedRun) { r.kill(r.c.leader()) }},
	{"history compacted", (*mixedRun).compact},
	{"leader frozen", func(r *mixedRun) { r.freeze(r.c.leader()) }},
	{"leader cut off", func(r *mixedRun) { r.isolate(r.c.leader(), true, true) }},
	{"follower killed", func(r *mixedRun) { r.kill(pick(r.random, r.c.followers())) }},
	{"follower frozen", func(r *mixedRun) { r.freeze(pick(r.random, r.c.followers())) }},
	{"snapshot sent", (*mixedRun).lagBehind},
	{"leader cannot receive", func(r *mixedRun) { r.isolate(r.c.leader(), false, true) }},
	{"history compacted", (*mixedRun).compact},
	{"leader cannot send", func(r *mixedRun) { r.isolate(r.c.leader(), true, false) }},
	{"all killed", func(r *mixedRun) { r.kill(r.c.nodes...) }},
	{"follower cut off", func(r *mixedRun) { r.isolate(pick(r.random, r.c.followers()), true, true) }},
}

func (r *mixedRun) kill(members ...*member) {
	for _, m := range members {
		m.kill()
	}
	if len(members) == 1 {
		r.load.await(r.t, 20)
	}
	r.links.start(members...)
}

// freeze stops a process for longer than the others wait for a leader. It does not know
// afterwards how long it was.
func (r *mixedRun) freeze(m *member) {
	m.pause()
	r.load.await(r.t, 20)
	m.resume()
}

func (r *mixedRun) isolate(m *member, sends, receives bool) {
	r.links.isolate(m, r.c.nodes, sends, receives)
	r.load.await(r.t, 20)
	r.links.heal()
}

// lagBehind keeps a follower away until the others have given up the log that it lacks.
func (r *mixedRun) lagBehind() {
	away := pick(r.random, r.c.followers())
	built := r.c.count(builtSnapshot)
	away.process().signal(r.t, syscall.SIGTERM)
	away.process().expectExit(r.t, 0)
	ballast := strings.Repeat("x", ballastBytes)
	r.c.releaseLog(r.t, func() {
		eventually(r.t, "a put is refused", func() error {
			if a := send(r.c.leader(), http.MethodPut, fmt.Sprintf("/v1/kv/%sballast?if_revision=%d", keyPrefix, uint64(1)<<52), ballast); a.status != 412 {
				return fmt.Errorf("%v", a)
			}
			return nil
		})
	})
	r.links.start(away)
	eventually(r.t, "a snapshot is built for who was away", func() error {
		if n := r.c.count(builtSnapshot); n <= built {
			return fmt.Errorf("%d snapshots", n)
		}
		return nil
	})
}

// compact removes the history that all watches have had, through one API or the other.
// Watches that begin before are told so by both.
func (r *mixedRun) compact() {
	to := uint64(0)
	for _, f := range r.followers {
		if next := f.at(); to == 0 || next < to {
			to = next
		}
	}
	if to--; to <= r.compacted+1 {
		return // a watch is still where the last compaction was
	}
	m := pick(r.random, r.c.nodes)
	eventually(r.t, "history is compacted", func() (err error) {
		if r.random.IntN(2) == 0 {
			ctx, cancel := context.WithTimeout(context.Background(), loadLimit)
			defer cancel()
			_, err = r.etcd.clients[m].Compact(ctx, int64(to))
			return err
		}
		if a := send(m, http.MethodPost, fmt.Sprintf("/v1/compact?revision=%d", to), ""); a.status != 200 {
			return fmt.Errorf("%v", a)
		}
		return nil
	})
	r.compacted = to
	for _, f := range []*follower{
		newFollower("a late watch", firstRevision+1, watchNative([]*member{m}, r.random)),
		newFollower("a late watch of etcd", firstRevision+1, watchEtcd(r.etcd.clients[m])),
	} {
		ctx, cancel := context.WithTimeout(context.Background(), requestLimit)
		err := f.read(ctx, f)
		cancel()
		if err != nil || f.at() != to || len(f.mu.seen) > 0 {
			r.t.Fatalf("%s after a compaction up to %d goes on at %d, having seen %d revisions: %v", f.name, to, f.at(), len(f.mu.seen), err)
		}
	}
}

func (r *mixedRun) judge() {
	t := r.t
	history := r.load.stop()
	t.Logf("%v; %s", r.counts, outcomes(history))
	ofEtcd := 0
	for _, o := range history {
		if o.worker%2 == 1 && (o.outcome == applied || o.outcome == refused) {
			ofEtcd++
		}
	}
	if n := r.load.answered(); ofEtcd < n/10 || ofEtcd > n-n/10 {
		t.Errorf("%d of %d operations were those of clients of etcd: the run proves too little", ofEtcd, n)
	}
	last := finalRevision(t, r.c)
	for _, f := range r.followers {
		eventually(t, f.name+" has everything", func() error { return f.judge(nil, last+1, last) })
	}
	changes := judgeLoad(t, r.c, r.load, history, seenBy(r.followers))
	streams := 0
	for _, f := range r.followers {
		if err := f.judge(changes, firstRevision+1, last); err != nil {
			t.Error(err)
		}
		streams += f.mu.streams
	}
	proof.Judged(t, len(r.followers)*int(last-firstRevision)) // events
	t.Logf("%d watches saw %d revisions, on %d streams; history is compacted up to %d", len(r.followers), last-firstRevision, streams, r.compacted)
	if streams == 0 || r.compacted == 0 {
		t.Error("no watch had to resume, or nothing was compacted: the run proves too little")
	}
	r.judgePast(last)
}

// judgePast compares what both APIs say of the oldest revision that is kept.
func (r *mixedRun) judgePast(last uint64) {
	for _, m := range r.c.live() {
		for _, revision := range []uint64{r.compacted, (r.compacted + last) / 2} {
			ofNative, err := stateOf(m)(revision)
			if err != nil {
				r.t.Error(err)
				continue
			}
			var o operation
			ctx, cancel := context.WithTimeout(context.Background(), requestLimit)
			err = o.takeList(r.etcd.clients[m].Get(ctx, keyPrefix, clientv3.WithPrefix(), clientv3.WithRev(int64(revision))))
			cancel()
			if err != nil || fmt.Sprint(o.list) != fmt.Sprint(ofNative) {
				r.t.Errorf("%v at revision %d, to clients of etcd: %v, %v; to others: %v", m, revision, o.list, err, ofNative)
			}
		}
	}
}
