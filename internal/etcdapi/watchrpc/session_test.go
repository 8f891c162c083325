package watchrpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/etcdapi/codec"
	"github.com/kvd-io/kvd/internal/kvstore"
)

func number(n int64) string { return strconv.FormatInt(n, 10) }

// want reads responses until it has these events of a watch.
func (c *call) want(id int64, events ...string) *pb.WatchResponse {
	c.t.Helper()
	var got []string
	for {
		r := c.next()
		if r.WatchId != id || r.Created || r.Canceled || len(r.Events) == 0 {
			c.t.Fatalf("got %v, want events of watch %d", r, id)
		}
		if last := r.Events[len(r.Events)-1].Kv.ModRevision; r.Header.Revision < last {
			c.t.Errorf("the header has revision %d, an event %d", r.Header.Revision, last)
		}
		if got = append(got, texts(r.Events)...); len(got) < len(events) {
			continue
		}
		if !slices.Equal(got, events) {
			c.t.Fatalf("got %q, want %q", got, events)
		}
		return r
	}
}

// The whole life of watches on one stream.
func TestWatch(t *testing.T) {
	f := newFixture(t)
	f.put("a", "0") // revision 2
	c := f.open()
	id, revision := c.created(&pb.WatchCreateRequest{Key: []byte("a"), PrevKv: true})
	if id != 0 || revision != 2 {
		t.Errorf("watch %d at %d", id, revision)
	}
	all, _ := c.created(&pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte{0}})
	f.put("a", "1")
	c.want(id, "a=1@3<0@2")
	c.want(all, "a=1@3")
	f.apply(txn(put("b", "x"), remove("a"), put("c", "y")))
	r := c.want(all, "b=x@4", "-a@4", "c=y@4")
	c.want(id, "-a@4<1@3")
	if len(r.Events) != 3 || r.Header.Revision != 4 {
		t.Errorf("the revision came in parts: %v", r)
	}
	if kv := r.Events[1].Kv; kv.CreateRevision != 0 || kv.Version != 0 || kv.Value != nil {
		t.Errorf("deleted pair: %v", kv)
	}
	if kv := r.Events[0].Kv; kv.CreateRevision != 4 || kv.Version != 1 {
		t.Errorf("created pair: %v", kv)
	}
}

// G1: also if there is something to deliver at once.
func TestCreatedComesFirst(t *testing.T) {
	f := newFixture(t)
	for i := range 100 {
		f.put("a", number(int64(i)))
	}
	c := f.open()
	for id := range int64(4) {
		c.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 2 + id})
	}
	created := make(map[int64]bool)
	events := make(map[int64]int)
	for len(created) < 4 || events[0] < 100 || events[1] < 99 || events[2] < 98 || events[3] < 97 {
		r := c.next()
		if r.Created {
			created[r.WatchId] = true
		} else if !created[r.WatchId] {
			t.Fatalf("events of watch %d before it was announced", r.WatchId)
		}
		for _, e := range r.Events {
			if want := 2 + r.WatchId + int64(events[r.WatchId]); e.Kv.ModRevision != want {
				t.Fatalf("watch %d got revision %d, want %d", r.WatchId, e.Kv.ModRevision, want)
			}
			events[r.WatchId]++
		}
	}
}

// What a watch may be refused for, in the words that clients know.
func TestRefusals(t *testing.T) {
	f := newFixture(t)
	c := f.open()
	c.created(&pb.WatchCreateRequest{Key: []byte("a"), WatchId: 9})
	for reason, r := range map[string]*pb.WatchCreateRequest{
		"etcdserver: mvcc: required revision has been compacted": {Key: []byte("a"), StartRevision: -1},
		"mvcc: watcher range is empty":                           {Key: []byte("b"), RangeEnd: []byte("b")},
		"mvcc: duplicate watch ID provided on the WatchStream":   {Key: []byte("a"), WatchId: 9},
	} {
		got := c.create(r).next()
		if !got.Created || !got.Canceled || got.WatchId != -1 || got.CancelReason != reason || got.Header.Revision != 1 {
			t.Errorf("%v, want %q", got, reason)
		}
	}
	// Nothing of it ends the stream, and neither does what is not known.
	c.send(new(pb.WatchRequest)).cancel(77)
	if id, _ := c.created(&pb.WatchCreateRequest{Key: []byte("a")}); id != 0 {
		t.Errorf("the next watch is %d", id)
	}
}

// A limit on watches is told, and does not end those that exist.
func TestTooManyWatches(t *testing.T) {
	f := newFixture(t)
	c := f.open()
	for range 200 {
		c.created(&pb.WatchCreateRequest{Key: []byte("a")})
	}
	r := c.create(&pb.WatchCreateRequest{Key: []byte("a")}).next()
	if !r.Created || !r.Canceled || !strings.Contains(r.CancelReason, "too many watches") {
		t.Errorf("the watch beyond the limit: %v", r)
	}
	c.cancel(5)
	c.next()
	c.created(&pb.WatchCreateRequest{Key: []byte("a")})
}

// An empty key means the least one; an end of one zero byte is open.
func TestRanges(t *testing.T) {
	f := newFixture(t)
	c := f.open()
	all, _ := c.created(&pb.WatchCreateRequest{RangeEnd: []byte{0}})
	part, _ := c.created(&pb.WatchCreateRequest{Key: []byte("b"), RangeEnd: []byte("d")})
	from, _ := c.created(&pb.WatchCreateRequest{Key: []byte("c"), RangeEnd: []byte{0}})
	for _, k := range []string{"a", "b", "c", "d"} {
		f.put(k, "")
	}
	f.put("end", "")
	got := make(map[int64][]string)
	for len(got[all]) < 5 || len(got[part]) < 2 || len(got[from]) < 3 {
		r := c.next()
		for _, e := range r.Events {
			got[r.WatchId] = append(got[r.WatchId], string(e.Kv.Key))
		}
	}
	if fmt.Sprint(got[all], got[part], got[from]) != "[a b c d end] [b c] [c d end]" {
		t.Errorf("got %v", got)
	}
}

// Filters leave events out; a revision of which nothing is left is not sent.
func TestFilters(t *testing.T) {
	f := newFixture(t)
	c := f.open()
	puts, _ := c.created(&pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("z"), Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NODELETE}})
	deletes, _ := c.created(&pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("z"), Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}})
	f.apply(put("a", "1"), remove("a"), put("b", "1"))
	got := make(map[int64][]string)
	for len(got[puts]) < 2 || len(got[deletes]) < 1 {
		r := c.next()
		got[r.WatchId] = append(got[r.WatchId], texts(r.Events)...)
	}
	if fmt.Sprint(got[puts], got[deletes]) != "[a=1@2 b=1@4] [-a@3]" {
		t.Errorf("got %v", got)
	}
	c.askProgress()
	if r := c.next(); r.WatchId != -1 || r.Header.Revision != 4 {
		t.Errorf("progress: %v", r)
	}
}

// Where a watch may start.
func TestStart(t *testing.T) {
	f := newFixture(t)
	for i := range 9 { // revisions 2 to 10
		f.put("a", number(int64(i)))
	}
	f.compact(5)
	c := f.open()
	f.put("b", "") // 11
	at, _ := c.created(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 10})
	if r := c.want(at, "a=8@10"); r.Header.Revision != 11 {
		t.Errorf("a watch that has caught up was told revision %d", r.Header.Revision)
	}
	oldest, _ := c.created(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 5, PrevKv: true})
	c.want(oldest, "a=3@5", "a=4@6<3@5", "a=5@7<4@6", "a=6@8<5@7", "a=7@9<6@8", "a=8@10<7@9")
	gone, _ := c.created(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 4})
	if r := c.next(); r.WatchId != gone || !r.Canceled || r.CompactRevision != 5 || r.CancelReason != "" || r.Header.Revision != 0 || len(r.Events) > 0 {
		t.Errorf("compacted: %v", r)
	}
	c.cancel(at).next()
	c.cancel(oldest).next()
	future, revision := c.created(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 14})
	if revision != 11 {
		t.Errorf("created at %d", revision)
	}
	// No progress of a stream with a watch that has not begun (the other answer is not
	// there to overtake it).
	c.askProgress()
	f.put("a", "11")
	f.put("a", "12")
	c.askProgress()
	f.put("a", "13")
	c.want(future, "a=13@14")
	c.askProgress()
	if r := c.next(); r.WatchId != -1 || r.Header.Revision != 14 {
		t.Errorf("progress: %v", r)
	}
}

// A compaction that overtakes a watch ends it.
func TestOvertakenByCompaction(t *testing.T) {
	f := newFixture(t)
	for range 50 {
		f.put("a", "v")
	}
	// The session reads from disk what was before its first watch. It must not get to
	// that before the compaction, so its requests come in one piece behind one that waits.
	release := make(chan struct{})
	slow := &blockedStream{ctx: t.Context(), release: release, requests: []*pb.WatchRequest{
		{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 3}}},
	}}
	ended := make(chan error, 1)
	go func() {
		ended <- f.server.Watch(&grpc.GenericServerStream[pb.WatchRequest, pb.WatchResponse]{ServerStream: slow})
	}()
	slow.await(t, 1) // it is about to announce the watch
	f.compact(40)
	close(release)
	slow.await(t, 2)
	if r := slow.got(1); !r.Canceled || r.CompactRevision != 40 || len(r.Events) > 0 {
		t.Errorf("got %v", r)
	}
	f.hub.Close()
	if err := <-ended; !errors.Is(err, rpctypes.ErrGRPCStopped) {
		t.Error(err)
	}
}

// G3, and a canceled id is free again.
func TestCancel(t *testing.T) {
	f := newFixture(t)
	c := f.open()
	c.created(&pb.WatchCreateRequest{Key: []byte("a"), WatchId: 5})
	other, _ := c.created(&pb.WatchCreateRequest{Key: []byte("a")})
	var writing sync.WaitGroup
	writing.Go(func() {
		for i := range 200 {
			f.put("a", number(int64(i)))
		}
	})
	c.cancel(5)
	canceled, last := false, int64(0)
	for last < 201 || !canceled {
		r := c.next()
		switch {
		case r.WatchId == 5 && r.Canceled:
			canceled = true
			if r.CancelReason != "" || r.CompactRevision != 0 {
				t.Errorf("canceled: %v", r)
			}
		case r.WatchId == 5 && canceled:
			t.Fatal("an event after the end")
		case r.WatchId == other:
			last = r.Events[len(r.Events)-1].Kv.ModRevision
		}
	}
	writing.Wait()
	if id, _ := c.created(&pb.WatchCreateRequest{Key: []byte("a"), WatchId: 5}); id != 5 {
		t.Errorf("the watch has id %d", id)
	}
}

// A client that closes its side goes on listening.
func TestHalfClose(t *testing.T) {
	f := newFixture(t)
	c := f.open()
	id, _ := c.created(&pb.WatchCreateRequest{Key: []byte("a")})
	if err := c.rpc.CloseSend(); err != nil {
		t.Fatal(err)
	}
	f.put("a", "1")
	c.want(id, "a=1@2")
}

// G2: revisions are whole and ascend, over many watches and whatever is merged.
func TestRevisionsAreWhole(t *testing.T) {
	f := newFixture(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	c := f.open()
	want := make(map[int64][]string)
	keys := []string{"a", "b", "c", "d", "e"}
	revision := 1
	write := func() {
		revision++
		var commands []*kvstore.Command
		for _, k := range keys {
			if rnd.IntN(3) > 0 {
				commands = append(commands, put(k, number(int64(revision))))
			}
		}
		if len(commands) == 0 {
			commands = append(commands, put("a", number(int64(revision))))
		}
		f.apply(txn(commands...))
		for i, k := range keys {
			if slices.ContainsFunc(commands, func(c *kvstore.Command) bool { return string(c.Key) == k }) {
				want[int64(i)] = append(want[int64(i)], fmt.Sprintf("%s=%d@%d", k, revision, revision))
			}
		}
		var all []string
		for _, c := range commands {
			all = append(all, fmt.Sprintf("%s=%d@%d", c.Key, revision, revision))
		}
		want[5] = append(want[5], all...)
	}
	for range 300 {
		write()
	}
	for i := range 5 {
		c.create(&pb.WatchCreateRequest{Key: []byte(keys[i]), StartRevision: 2})
	}
	c.create(&pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("z"), StartRevision: 2})
	for range 300 {
		write()
	}
	got := make(map[int64][]string)
	last := make(map[int64]int64)
	for len(got[0]) < len(want[0]) || len(got[1]) < len(want[1]) || len(got[2]) < len(want[2]) || len(got[3]) < len(want[3]) || len(got[4]) < len(want[4]) || len(got[5]) < len(want[5]) {
		r := c.next()
		if len(r.Events) > 0 && r.Events[0].Kv.ModRevision <= last[r.WatchId] {
			t.Fatalf("watch %d: revision %d after %d", r.WatchId, r.Events[0].Kv.ModRevision, last[r.WatchId])
		}
		for _, e := range r.Events {
			last[r.WatchId] = e.Kv.ModRevision
		}
		got[r.WatchId] = append(got[r.WatchId], texts(r.Events)...)
	}
	for id := range want {
		if !slices.Equal(got[id], want[id]) {
			t.Errorf("watch %d got %d events, want %d", id, len(got[id]), len(want[id]))
		}
	}
}

// A large revision is split for those who allow it, and for nobody else.
func TestFragments(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.Fragment = 10 << 10 })
	c := f.open()
	split, _ := c.created(&pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("z"), Fragment: true})
	whole, _ := c.created(&pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("z")})
	var commands []*kvstore.Command
	for i := range 10 {
		commands = append(commands, put(fmt.Sprintf("k%d", i), strings.Repeat("x", 3<<10)))
	}
	f.apply(txn(commands...))
	f.put("b", "small")
	got := make(map[int64]int)
	var parts []bool
	for got[split] < 11 || got[whole] < 11 {
		r := c.next()
		got[r.WatchId] += len(r.Events)
		if r.WatchId == whole && (r.Fragment || got[whole] < 10) {
			t.Errorf("a part of %d events, fragment %v", len(r.Events), r.Fragment)
		}
		if r.WatchId == split {
			parts = append(parts, r.Fragment)
			if n := proto.Size(r); n > 10<<10 {
				t.Errorf("a fragment of %d bytes", n)
			}
		}
	}
	// Three at a time; the fourth part has the last one.
	if len(parts) != 5 || !parts[0] || !parts[1] || !parts[2] || parts[3] || parts[4] {
		t.Errorf("fragments %v", parts)
	}
}

// G4: a client that asks is told a revision up to which all watches have had everything, while
// others write.
func TestProgressOfStream(t *testing.T) {
	f := newFixture(t)
	c := f.open()
	const watches, writes = 20, 400
	for i := range watches {
		c.created(&pb.WatchCreateRequest{Key: fmt.Appendf(nil, "k%d", i)})
	}
	var writing sync.WaitGroup
	writing.Go(func() {
		for i := range writes { // revision i+2 is of watch i%20
			f.put(fmt.Sprintf("k%d", i%watches), "")
		}
	})
	next := make([]int64, watches)
	for i := range next {
		next[i] = int64(i) + 2
	}
	through := int64(0)
	for through < writes+1 {
		c.askProgress()
		for {
			r := c.next()
			if r.WatchId == -1 {
				through = r.Header.Revision
				for i, n := range next {
					if n <= through {
						t.Fatalf("progress %d, but watch %d lacks %d", through, i, n)
					}
				}
				break
			}
			for _, e := range r.Events {
				if e.Kv.ModRevision != next[r.WatchId] || e.Kv.ModRevision <= through {
					t.Fatalf("watch %d got %d after progress %d, want %d", r.WatchId, e.Kv.ModRevision, through, next[r.WatchId])
				}
				next[r.WatchId] += watches
			}
		}
	}
	writing.Wait()
}

// TestProgressOfNothing: a stream without watches gets no progress message.
func TestProgressOfNothing(t *testing.T) {
	f := newFixture(t)
	c := f.open()
	c.askProgress()
	c.created(&pb.WatchCreateRequest{Key: []byte("a")})
	c.askProgress()
	if r := c.next(); r.WatchId != -1 || r.Header.Revision != 1 || len(r.Events) > 0 || r.Created || r.Canceled {
		t.Errorf("got %v", r)
	}
}

// A quiet watch that asked for it is told of progress now and then; writes elsewhere move
// it on.
func TestProgressNotify(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.Progress = MinProgress })
	c := f.open()
	told, _ := c.created(&pb.WatchCreateRequest{Key: []byte("a"), ProgressNotify: true})
	c.created(&pb.WatchCreateRequest{Key: []byte("b")})
	f.put("elsewhere", "")
	for {
		r := c.next()
		if r.WatchId != told || len(r.Events) > 0 || r.Created || r.Canceled {
			t.Fatalf("got %v", r)
		}
		if r.Header.Revision == 2 {
			break
		}
	}
	f.put("a", "1")
	for {
		r := c.next()
		if r.WatchId != told {
			t.Fatalf("got %v", r)
		}
		if len(r.Events) > 0 {
			break
		}
		if r.Header.Revision > 2 {
			t.Fatalf("progress through %d without its event", r.Header.Revision)
		}
	}
	if r := c.next(); r.Header.Revision != 3 || len(r.Events) > 0 {
		t.Errorf("got %v", r)
	}
}

// The end of the node sends clients to others.
func TestStop(t *testing.T) {
	f := newFixture(t)
	c := f.open()
	c.created(&pb.WatchCreateRequest{Key: []byte("a")})
	f.hub.Close()
	if _, err := c.rpc.Recv(); status.Code(err) != codes.Unavailable || status.Convert(err).Message() != "etcdserver: server stopped" {
		t.Errorf("the stream ended with %v", err)
	}
	late := f.open()
	if _, err := late.rpc.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("a new stream: %v", err)
	}
}

// G5: clients that do not read hold no more than the budget has for them, and get all of
// it when they read.
func TestStalledClients(t *testing.T) {
	const value, writes, clients = 100 << 10, 40, 8
	memory := budget.New(4 << 20)
	f := newFixture(t, func(o *Options) { o.Memory = memory })
	var calls []*call
	for range clients {
		// Windows as small as HTTP/2 allows, so that the server has to wait early.
		c := f.open(grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(64<<10))
		c.created(&pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("z"), PrevKv: true})
		c.created(&pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("z")})
		calls = append(calls, c)
	}
	for i := range writes {
		f.put("a", strings.Repeat(string(rune('a'+i%26)), value))
	}
	waitFor(t, func() bool {
		small, large := memory.Taken()
		if small+large > memory.Limit()*3/8 {
			t.Fatalf("%d bytes are claimed", small+large)
		}
		return large > 0
	})
	var reading sync.WaitGroup
	for _, c := range calls {
		reading.Go(func() { c.readAll(2, writes+1) })
	}
	reading.Wait()
	waitFor(t, func() bool { small, large := memory.Taken(); return small+large == 0 })
}

// readAll reads every revision from 2 on for a number of watches, the first of which has
// asked for previous values.
func (c *call) readAll(watches int, last int64) {
	got := make([]int64, watches)
	for i := range got {
		got[i] = 1
	}
	for slices.ContainsFunc(got, func(n int64) bool { return n < last }) {
		r, err := c.rpc.Recv()
		if err != nil {
			c.t.Errorf("after %v: %v", got, err)
			return
		}
		for _, e := range r.Events {
			if e.Kv.ModRevision != got[r.WatchId]+1 {
				c.t.Errorf("watch %d got %d after %d", r.WatchId, e.Kv.ModRevision, got[r.WatchId])
				return
			}
			got[r.WatchId]++
			if r.WatchId == 0 && e.Kv.Version > 1 && (e.PrevKv == nil || e.PrevKv.ModRevision != e.Kv.ModRevision-1) {
				c.t.Errorf("revision %d came without its previous value", e.Kv.ModRevision)
			}
		}
	}
}

// A client that never reads what it has memory for loses its connection, and others get
// the memory.
func TestDeafClient(t *testing.T) {
	const value, streams = 60 << 10, 30
	memory := budget.New(4 << 20) // of which watches may have 24 times 64 KiB
	f := newFixture(t, func(o *Options) { o.Memory, o.Grace = memory, 300*time.Millisecond })
	deaf := []*call{f.open(grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(64<<10))}
	for len(deaf) < streams {
		deaf = append(deaf, deaf[0].again())
	}
	for _, c := range deaf {
		c.created(&pb.WatchCreateRequest{Key: []byte("a")})
	}
	f.put("a", strings.Repeat("x", value))
	f.put("a", strings.Repeat("y", value))
	waitFor(t, func() bool { small, large := memory.Taken(); return small+large > memory.Limit()*3/8-128<<10 })
	other := f.open()
	other.created(&pb.WatchCreateRequest{Key: []byte("a"), PrevKv: true, StartRevision: 2})
	other.readAll(1, 3)
	for _, c := range deaf {
		for err := error(nil); err == nil; {
			_, err = c.rpc.Recv()
		}
	}
	waitFor(t, func() bool { small, large := memory.Taken(); return small+large == 0 })
}

// What was claimed for a client that leaves is returned.
func TestGoneClients(t *testing.T) {
	memory := budget.New(4 << 20)
	f := newFixture(t, func(o *Options) { o.Memory = memory })
	ctx, cancel := context.WithCancel(t.Context())
	slow := &blockedStream{ctx: ctx, release: make(chan struct{}), free: 1, requests: []*pb.WatchRequest{
		{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("a")}}},
	}}
	ended := make(chan error, 1)
	go func() {
		ended <- f.server.Watch(&grpc.GenericServerStream[pb.WatchRequest, pb.WatchResponse]{ServerStream: slow})
	}()
	slow.await(t, 1)
	f.put("a", strings.Repeat("x", 200<<10))
	slow.await(t, 2)
	if _, large := memory.Taken(); large < 200<<10 {
		t.Errorf("%d bytes are claimed", large)
	}
	cancel()
	if err := <-ended; !errors.Is(err, rpctypes.ErrGRPCWatchCanceled) {
		t.Error(err)
	}
	if small, large := memory.Taken(); small+large != 0 {
		t.Errorf("%d bytes are still claimed", small+large)
	}
	if s := f.hub.Stats(); s.Streams != 0 || s.Watches != 0 {
		t.Errorf("left behind: %+v", s)
	}
}

// waitFor waits until something holds.
func waitFor(t *testing.T, holds func() bool) {
	t.Helper()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for late := time.After(enough); !holds(); {
		select {
		case <-ticker.C:
		case <-late:
			t.Fatal("it did not come true")
		}
	}
}

// blockedStream is a client that reads nothing from its response number free on, until it
// is released.
type blockedStream struct {
	grpc.ServerStream
	ctx     context.Context
	release chan struct{}
	free    int

	mu        sync.Mutex
	requests  []*pb.WatchRequest
	responses []*pb.WatchResponse
}

func (b *blockedStream) Context() context.Context { return b.ctx }

func (b *blockedStream) RecvMsg(m any) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.requests) == 0 {
		return io.EOF
	}
	proto.Merge(m.(proto.Message), b.requests[0])
	b.requests = b.requests[1:]
	return nil
}

func (b *blockedStream) SendMsg(m any) error {
	b.mu.Lock()
	n := len(b.responses)
	// Like gRPC it takes what a response refers to, and has it until it is read.
	r, err := decodeLater(m)
	b.responses = append(b.responses, r())
	b.mu.Unlock()
	if err != nil || n < b.free {
		return err
	}
	select {
	case <-b.release:
		return nil
	case <-b.ctx.Done():
		return b.ctx.Err()
	}
}

// decodeLater reads a response without freeing what it refers to.
func decodeLater(m any) (func() *pb.WatchResponse, error) {
	if r, ok := m.(*pb.WatchResponse); ok {
		return func() *pb.WatchResponse { return r }, nil
	}
	out := new(pb.WatchResponse)
	err := proto.Unmarshal(m.(codec.Message).Buffers().Materialize(), out)
	return func() *pb.WatchResponse { return out }, err
}

// await waits for a number of responses.
func (b *blockedStream) await(t *testing.T, n int) {
	t.Helper()
	waitFor(t, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.responses) >= n
	})
}

func (b *blockedStream) got(i int) *pb.WatchResponse {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.responses[i]
}

// The hand-made encoding is what the generated code makes of the same event.
func TestEncoding(t *testing.T) {
	kvs := []kvstore.KV{
		{Key: []byte("k"), Value: []byte("v"), CreateRevision: 2, ModRevision: 3, Version: 2, Lease: 1<<63 - 1},
		{Key: []byte{0, 0xff}, CreateRevision: 1 << 40, ModRevision: 1 << 41, Version: 1},
		{Key: bytes.Repeat([]byte("k"), 300), Value: bytes.Repeat([]byte{1}, 1<<17), CreateRevision: 2, ModRevision: 2, Version: 1},
	}
	for i := range kvs {
		for _, previous := range []*kvstore.KV{nil, &kvs[(i+1)%3]} {
			for _, deleted := range []bool{false, true} {
				e := kvstore.Event{KV: kvs[i], Deleted: deleted, Previous: previous}
				want := &pb.WatchResponse{
					Header: &pb.ResponseHeader{ClusterId: 1 << 63, MemberId: 2, Revision: 3, RaftTerm: 4}, WatchId: 5, Fragment: true,
					Events: []*mvccpb.Event{{Kv: pairOf(&e.KV)}},
				}
				if deleted {
					want.Events[0].Type = mvccpb.Event_DELETE
				}
				if previous != nil {
					want.Events[0].PrevKv = pairOf(previous)
				}
				b := appendEvent(nil, &e)
				if len(b) > maxEvent(&e) {
					t.Errorf("an event takes %d bytes, at most %d were expected", len(b), maxEvent(&e))
				}
				for _, l := range []*loan{nil, newLoan(budget.SharedClaim{})} {
					r := &response{header: want.Header, id: 5, fragment: true, loan: l}
					r.add(b)
					got, free, err := codec.Decode(r)
					if err != nil || !proto.Equal(got, want) {
						t.Fatalf("got %v, want %v, %v", got, want, err)
					}
					if l != nil && l.returned() {
						t.Error("the loan was returned too early")
					}
					if free(); l != nil && !l.returned() {
						t.Error("the loan was not returned")
					}
				}
			}
		}
	}
}

func pairOf(kv *kvstore.KV) *mvccpb.KeyValue {
	return &mvccpb.KeyValue{
		Key: kv.Key, Value: kv.Value, CreateRevision: int64(kv.CreateRevision), ModRevision: int64(kv.ModRevision), Version: int64(kv.Version), Lease: int64(kv.Lease),
	}
}

// A follower that gets a snapshot loses no events: what its watches have missed is in the
// change log that came with it, and what follows goes on.
func TestSnapshotInstalled(t *testing.T) {
	leader, follower := newFixture(t), newFixture(t)
	both := func(commands ...*kvstore.Command) { leader.apply(commands...); follower.apply(commands...) }
	both(put("a", "0"), put("b", "0")) // 2, 3
	c := follower.open()
	one, _ := c.created(&pb.WatchCreateRequest{Key: []byte("a"), PrevKv: true})
	all, _ := c.created(&pb.WatchCreateRequest{RangeEnd: []byte{0}})
	future, _ := c.created(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 7})
	both(put("a", "1")) // 4
	c.want(one, "a=1@4<0@2")
	c.want(all, "a=1@4")
	leader.apply(put("a", "2"), put("b", "1"), txn(put("c", "0"), remove("a")), put("a", "3")) // 5 to 8
	var body bytes.Buffer
	view, err := leader.store.View()
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	if _, err := view.WriteTo(&body); err != nil {
		t.Fatal(err)
	}
	if err := follower.store.Restore(&body); err != nil {
		t.Fatal(err)
	}
	follower.index = leader.index
	both(put("a", "4")) // 9
	got := make(map[int64][]string)
	for len(got[one]) < 4 || len(got[all]) < 6 || len(got[future]) < 3 {
		r := c.next()
		got[r.WatchId] = append(got[r.WatchId], texts(r.Events)...)
	}
	if g := fmt.Sprint(got[one], got[all], got[future]); g != "[a=2@5<1@4 -a@7<2@5 a=3@8 a=4@9<3@8] [a=2@5 b=1@6 c=0@7 -a@7 a=3@8 a=4@9] [-a@7 a=3@8 a=4@9]" {
		t.Errorf("got %v", g)
	}
	c.askProgress()
	if r := c.next(); r.WatchId != -1 || r.Header.Revision != 9 {
		t.Errorf("progress: %v", r)
	}
}
