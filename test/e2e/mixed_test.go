package e2e

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
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
// 100,000 operations were answered, or as many as KVD_MIXED says, and has more faults.
func TestMixedFaces(t *testing.T) {
	long(t)
	mixFaces(t, 3, mixedOperations(t, 5000))
}

// TestMixedFacesOfOne does the same to a cluster of one.
func TestMixedFacesOfOne(t *testing.T) {
	long(t)
	mixFaces(t, 1, mixedOperations(t, 2000))
}

// TestMixedFacesOfFive does the same to five members, of which two may fail at a time.
func TestMixedFacesOfFive(t *testing.T) {
	if runSize != sizeHuge {
		t.Skipf("NOT RUN: takes minutes; KVD_E2E=%s runs it", sizeHuge)
	}
	mixFaces(t, 5, mixedOperations(t, 0))
}

// mixedOperations is how many operations have to be answered.
func mixedOperations(t *testing.T, otherwise int) int {
	t.Helper()
	if runSize != sizeHuge {
		return otherwise
	}
	text := cmp.Or(os.Getenv("KVD_MIXED"), "100000")
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("KVD_MIXED: %v", err)
	}
	return n
}

// mixedDisk is the size of the disk that is filled.
const mixedDisk = 600 << 20

func mixFaces(t *testing.T, nodes, least int) {
	t.Helper()
	random := seeded(t)
	r := &mixedRun{t: t, random: random, counts: make(map[string]int)}
	if runSize == sizeHuge { // before the cluster, so that it is unmounted after it
		var err error
		if r.disk, err = mountDisk(t, fmt.Sprint(mixedDisk)); err != nil {
			t.Logf("NOT TESTED: full disks, because this user may not mount a file system: %v", err)
		}
	}
	c, l := newLinkedCluster(t, nodes, small...)
	r.c, r.links, r.members = c, l, slices.Clone(c.nodes)
	if r.disk != "" {
		c.nodes[0].moveTo(filepath.Join(r.disk, "data"))
	}
	r.etcd = withEtcd(t, c)
	l.start(c.nodes...)
	ctx, cancel := context.WithCancel(context.Background())
	var following sync.WaitGroup
	defer following.Wait()
	defer cancel()
	r.follow(ctx, &following)
	r.load = startLoad(t, c, random, loadShape{
		clients: 8, keys: 8, paced: 4, pacedKeys: 4, pace: 25 * time.Millisecond, faces: []face{native{}, r.etcd}, padding: 100,
	})
	faults := r.faults()
	for n := 0; n < len(faults) || r.load.answered() < least || r.load.paced.Load() < leastJudged; n++ {
		f := faults[n%len(faults)]
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
	members   []*member // those that it began with, which never leave
	links     *links
	disk      string // of the first member; empty: it is not to become full
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
			newFollower(fmt.Sprint("watch ", i), firstRevision+1, watchNative(r.members, random)),
			newFollower(fmt.Sprint("etcd's watch ", i), firstRevision+1, watchEtcd(etcdClient(r.t, r.etcd.endpoints()...))))
	}
	for _, f := range r.followers {
		running.Go(func() { f.run(ctx) })
	}
}

// mixedFault is something that happens to the cluster.
type mixedFault struct {
	name  string
	least int  // how many members it takes
	whole bool // only in whole runs
	cause func(*mixedRun)
}

// mixedFaults happen in this order, again and again.
var mixedFaults = []mixedFault{
	{"leader killed", 1, false, func(r *mixedRun) { r.kill(r.c.leader()) }},
	{"history compacted", 1, false, (*mixedRun).compact},
	{"leader frozen", 3, false, func(r *mixedRun) { r.freeze(r.c.leader()) }},
	{"leader cut off", 3, false, func(r *mixedRun) { r.isolate(r.c.leader(), true, true) }},
	{"follower killed", 3, false, func(r *mixedRun) { r.kill(pick(r.random, r.c.followers())) }},
	{"follower frozen", 3, false, func(r *mixedRun) { r.freeze(pick(r.random, r.c.followers())) }},
	{"member joins, leads, and is removed", 1, true, (*mixedRun).changeMembers},
	{"snapshot sent", 3, false, (*mixedRun).lagBehind},
	{"leader cannot receive", 3, false, func(r *mixedRun) { r.isolate(r.c.leader(), false, true) }},
	{"history compacted", 1, false, (*mixedRun).compact},
	{"leader cannot send", 3, false, func(r *mixedRun) { r.isolate(r.c.leader(), true, false) }},
	{"links late", 3, true, (*mixedRun).delay},
	{"leader and follower killed", 5, true, func(r *mixedRun) { r.kill(r.c.leader(), pick(r.random, r.c.followers())) }},
	{"leadership handed over", 3, true, func(r *mixedRun) { moveLeader(r.t, r.c, pick(r.random, r.c.followers())) }},
	{"disk full", 1, true, (*mixedRun).fillDisk},
	{"all killed", 1, false, func(r *mixedRun) { r.kill(r.members...) }},
	{"follower cut off", 3, false, func(r *mixedRun) { r.isolate(pick(r.random, r.c.followers()), true, true) }},
	{"leader and follower cut off", 5, true, func(r *mixedRun) { r.isolateTwo() }},
}

// faults returns those of this run.
func (r *mixedRun) faults() []mixedFault {
	return slices.DeleteFunc(slices.Clone(mixedFaults), func(f mixedFault) bool {
		return len(r.members) < f.least || f.whole && runSize != sizeHuge || f.name == "disk full" && r.disk == ""
	})
}

func (r *mixedRun) kill(members ...*member) {
	for _, m := range members {
		m.kill()
	}
	if len(members) <= (len(r.members)-1)/2 {
		r.load.await(r.t, 20) // the others go on
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
	r.links.isolate(m, r.members, sends, receives)
	r.load.await(r.t, 20)
	r.links.heal()
}

// isolateTwo cuts the leader and a follower off, each from everybody.
func (r *mixedRun) isolateTwo() {
	follower := pick(r.random, r.c.followers())
	r.links.isolate(r.c.leader(), r.members, true, true)
	r.isolate(follower, true, true)
}

// delay makes all links late for a while.
func (r *mixedRun) delay() {
	r.links.late.Store(true)
	r.load.await(r.t, 50)
	r.links.late.Store(false)
}

// changeMembers adds a member, hands the leadership to it, and removes it.
func (r *mixedRun) changeMembers() {
	m := r.links.place(r.c)
	r.change("a member is added", m.id, "POST", m.peerURL(), "member_exists")
	r.links.start(m)
	r.c.awaitVoter(m)
	r.load.await(r.t, 20)
	moveLeader(r.t, r.c, m)
	r.load.await(r.t, 20)
	r.change("the member is removed", m.id, "DELETE", "", "member_removed")
	m.removed = true
	m.expectExit(0)
}

// change repeats a change of the membership until it is made, or was by an earlier attempt.
func (r *mixedRun) change(what string, id uint64, method, body, made string) {
	eventually(r.t, what, func() error {
		if a := send(pick(r.random, r.members), method, fmt.Sprintf("/%d", id), body); a.status != http.StatusNoContent && a.code() != made {
			return fmt.Errorf("%v", a)
		}
		return nil
	})
}

// fillDisk leaves the disk of the first member without room, until the member has ended or
// others have gone on for a while. Whatever it did then, it has to come back once there is
// room.
func (r *mixedRun) fillDisk() {
	m, before := r.members[0], r.load.answered()
	// A file may grow between the two.
	eventually(r.t, "a disk without room", func() error { return resizeDisk(r.disk, fmt.Sprint(usedBytes(r.t, r.disk))) })
	eventually(r.t, "the full disk is noticed, or the others go on", func() error {
		if n := r.load.answered() - before; m.running() && n < 200 {
			return fmt.Errorf("%d operations were answered meanwhile", n)
		}
		return nil
	})
	p := m.process()
	p.signal(r.t, syscall.SIGTERM)
	code := p.exitCode(r.t)
	if m.expect(p, code); code > 1 {
		r.t.Errorf("on a full disk, %s ended with %d:\n%s", p.name, code, p.output.tail(10))
	}
	growDisk(r.t, r.disk, fmt.Sprint(mixedDisk))
	r.links.start(m)
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
	m := pick(r.random, r.members)
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
