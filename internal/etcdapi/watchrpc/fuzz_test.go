package watchrpc

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/etcdapi/codec"
)

// The steps of a script for FuzzStream. Before each step but stepRequest, the session does
// all that it has to.
const (
	stepRequest = iota
	stepRequestWaits
	stepPut
	stepTxn
	stepDelete
	stepCompact
	stepTick
	stepKinds
)

const (
	maxFuzzedSteps = 80
	fuzzedProgress = time.Second
	fuzzedFragment = 400
	fuzzedLarge    = 250 // arguments of writes from here on mean a large value
)

// FuzzStream sends arbitrary bytes as the requests of a stream, between writes and
// compactions, to a session on a real store. A second reader of the requests says what
// comes back: each request is answered in order or, if it is unknown, ignored; each watch
// gets the events that it asked for, once and in order, and none before it is announced or
// after it is canceled; and progress is behind all events that it speaks of.
func FuzzStream(f *testing.F) {
	create := func(r *pb.WatchCreateRequest) []byte {
		return fuzzedRequest(f, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}})
	}
	cancel := func(id int64) []byte {
		return fuzzedRequest(f, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}})
	}
	ask := fuzzedRequest(f, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: new(pb.WatchProgressRequest)}})
	all := &pb.WatchCreateRequest{RangeEnd: []byte{0}, PrevKv: true, Fragment: true, ProgressNotify: true}
	writes := []byte{stepPut, 0, stepPut, 1, stepTxn, 2, stepDelete, 1, stepTxn, 1}
	f.Add(slices.Concat(create(all), writes, ask, []byte{stepTick, 0}, cancel(0), writes))
	f.Add(slices.Concat(writes, []byte{stepCompact, 3}, create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 2}), create(&pb.WatchCreateRequest{Key: []byte("b"), StartRevision: 4, PrevKv: true}), ask))
	f.Add(slices.Concat(writes, create(&pb.WatchCreateRequest{RangeEnd: []byte{0}, StartRevision: 2, Filters: []pb.WatchCreateRequest_FilterType{1}}), ask, cancel(0), ask,
		create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 2}), ask, create(&pb.WatchCreateRequest{StartRevision: 7}), ask))
	f.Add(slices.Concat(create(&pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("c"), StartRevision: 4, ProgressNotify: true, WatchId: 7}), ask, []byte{stepTick, 0}, writes, ask, []byte{stepTick, 0}))
	f.Add(slices.Concat(create(&pb.WatchCreateRequest{Key: []byte("b"), RangeEnd: []byte("a")}), create(&pb.WatchCreateRequest{StartRevision: -1}), create(&pb.WatchCreateRequest{StartRevision: math.MaxInt64}), ask))
	f.Add(slices.Concat(create(&pb.WatchCreateRequest{WatchId: -7}), create(&pb.WatchCreateRequest{WatchId: -7}), create(&pb.WatchCreateRequest{StartRevision: 3}), cancel(0), create(all)))
	f.Add(slices.Concat(create(all), []byte{stepPut, 255, stepTxn, 254, stepPut, 253}, create(&pb.WatchCreateRequest{Key: []byte("b"), RangeEnd: []byte{0}, StartRevision: 1, WatchId: 1}), create(all), cancel(1)))
	f.Add([]byte{stepRequest, 0, stepRequest, 2, 0x0a, 0xff, stepPut, 0})
	f.Fuzz(func(t *testing.T, script []byte) {
		synctest.Test(t, func(t *testing.T) { newFuzzed(t).run(script) })
	})
}

// fuzzedRequest returns the step that sends a request.
func fuzzedRequest(t testing.TB, r *pb.WatchRequest) []byte {
	b, err := proto.Marshal(r)
	if err != nil || len(b) > math.MaxUint8 {
		t.Fatal(len(b), err)
	}
	return append([]byte{stepRequest, byte(len(b))}, b...)
}

// fuzzed is a session with a client whose requests are bytes, and what the client has to get.
type fuzzed struct {
	*fixture
	t      *testing.T
	memory *budget.Budget
	rpc    *fuzzedRPC
	ended  chan error

	live               map[string]string // pairs by key, as text
	changes            []fuzzedChange
	visible, compacted uint64

	pending []*pb.WatchRequest // requests that are not answered yet
	watches map[int64]*fuzzedWatch
	lost    *fuzzedWatch // was announced as created, and begins where history is compacted
	split   *fuzzedWatch // of which only a part of a response has come
	asked   int          // answers to requests for progress that may come
	owed    bool         // at least one of them has to come
	large   bool         // a large value was written
}

// fuzzedChange is one event. previous is the pair before it as text, "" for none.
type fuzzedChange struct {
	revision            uint64
	key, text, previous string
	deleted             bool
}

// fuzzedWatch is a watch by its request, with the events that are still to come.
type fuzzedWatch struct {
	*pb.WatchCreateRequest
	id   int64
	want []fuzzedChange
	last uint64 // revision of the last event
	told bool   // of progress, since the clock was moved
	late bool   // it began in the past, and has not caught up
}

func newFuzzed(t *testing.T) *fuzzed {
	f := &fuzzed{t: t, memory: budget.New(16 << 20), ended: make(chan error, 1), live: make(map[string]string), visible: 1, compacted: 1, watches: make(map[int64]*fuzzedWatch)}
	f.fixture = newUnserved(t, func(o *Options) { o.Memory, o.Progress, o.Fragment = f.memory, fuzzedProgress, fuzzedFragment })
	ctx, cancel := context.WithCancel(t.Context())
	f.rpc = &fuzzedRPC{ctx: ctx, cancel: cancel, requests: make(chan []byte, maxFuzzedSteps), codec: codec.New()}
	go func() {
		f.ended <- f.server.Watch(&grpc.GenericServerStream[pb.WatchRequest, pb.WatchResponse]{ServerStream: f.rpc})
	}()
	return f
}

// run carries out the script and judges all responses.
func (f *fuzzed) run(script []byte) {
	for n := 0; n < maxFuzzedSteps && len(script) >= 2; n++ {
		kind, arg := int(script[0])%stepKinds, script[1]
		script = script[2:]
		if kind != stepRequest {
			f.settle()
		}
		switch kind {
		case stepRequest, stepRequestWaits:
			size := min(int(arg), len(script))
			if !f.request(script[:size]) {
				f.over(codes.Internal)
				return
			}
			script = script[size:]
		case stepTick:
			f.tick()
		case stepCompact:
			if to := uint64(arg); to > f.compacted && to <= f.visible {
				f.compact(to)
				f.compacted = to
			}
		default:
			f.write(kind, arg)
		}
	}
	f.settle()
	close(f.rpc.requests) // the client sends no more, and listens
	f.write(stepTxn, 0)
	f.settle()
	f.rpc.cancel()
	f.over(codes.Canceled)
}

// request sends a request. It returns false if its bytes are none, which ends the stream.
func (f *fuzzed) request(b []byte) bool {
	r := new(pb.WatchRequest)
	good := proto.Unmarshal(b, r) == nil
	if good {
		f.pending = append(f.pending, r)
	} else {
		f.settle() // what is broken may overtake what waits
	}
	f.rpc.requests <- bytes.Clone(b)
	return good
}

// write makes a revision, unless it deletes what is not there.
func (f *fuzzed) write(kind int, arg byte) {
	keys := []string{"a", "b", "c", "\x00"}
	first, second := keys[arg%4], keys[(arg+1)%4]
	value := number(int64(f.visible))
	if arg >= fuzzedLarge {
		value += strings.Repeat("v", budget.Free)
		f.large = true
	}
	next := f.visible + 1
	switch kind {
	case stepPut:
		f.put(first, value)
		f.changed(next, first, value)
	case stepTxn:
		f.apply(txn(put(first, value), remove(second)))
		f.changed(next, first, value)
		f.changed(next, second, "")
	case stepDelete:
		f.apply(remove(first))
		f.changed(next, first, "")
	}
	if got := f.hub.Revision(); got != f.visible {
		f.t.Fatalf("revision %d, want %d", got, f.visible)
	}
}

// changed notes a change; without a value, a deletion.
func (f *fuzzed) changed(revision uint64, key, value string) {
	c := fuzzedChange{revision: revision, key: key, previous: f.live[key], deleted: value == ""}
	if c.deleted && c.previous == "" {
		return
	}
	if delete(f.live, key); !c.deleted {
		f.live[key] = value + "@" + number(int64(revision))
	}
	f.visible = revision
	if c.text = key + "=" + f.live[key]; c.deleted {
		c.text = "-" + key + "@" + number(int64(revision))
	}
	f.changes = append(f.changes, c)
	for _, w := range f.watches {
		w.expect(c)
	}
}

// expect adds a change to what the watch has to get, if it asks for it.
func (w *fuzzedWatch) expect(c fuzzedChange) {
	in := c.key == w.start()
	if len(w.RangeEnd) > 0 {
		in = c.key >= w.start() && (string(w.RangeEnd) == "\x00" || c.key < string(w.RangeEnd))
	}
	filter := pb.WatchCreateRequest_NOPUT
	if c.deleted {
		filter = pb.WatchCreateRequest_NODELETE
	}
	if in && int64(c.revision) >= w.StartRevision && !slices.Contains(w.Filters, filter) {
		w.want = append(w.want, c)
	}
}

func (w *fuzzedWatch) start() string { return cmp.Or(string(w.Key), "\x00") }

// tick lets time pass: each quiet watch that asked for it is told of progress.
func (f *fuzzed) tick() {
	for _, w := range f.watches {
		w.told = false
	}
	time.Sleep(3 * fuzzedProgress)
	f.settle()
	for id, w := range f.watches {
		if w.ProgressNotify && w.StartRevision <= int64(f.visible) && !w.told {
			f.t.Fatalf("watch %d was not told of progress: %v", id, w)
		}
	}
}

// settle waits until the session has nothing to do, and judges what it has sent.
func (f *fuzzed) settle() {
	synctest.Wait()
	for _, r := range f.rpc.take() {
		f.judge(r)
	}
	f.pass()
	for id, w := range f.watches {
		if len(w.want) > 0 {
			f.t.Fatalf("watch %d lacks %v", id, w.want)
		}
	}
	if len(f.pending) > 0 || f.lost != nil || f.split != nil || f.owed {
		f.t.Fatalf("no answer to %v (lost: %v, split: %v, progress owed: %v)", f.pending, f.lost, f.split, f.owed)
	}
	if n := f.hub.Stats().Watches; n != len(f.watches) {
		f.t.Fatalf("%d watches are counted, and there are %d", n, len(f.watches))
	}
	f.asked = 0
}

// over waits for the end of the call.
func (f *fuzzed) over(want codes.Code) {
	synctest.Wait()
	f.rpc.cancel()
	if err := <-f.ended; status.Code(err) != want {
		f.t.Fatalf("ended with %v, want %v", err, want)
	}
	small, large := f.memory.Taken()
	if s := f.hub.Stats(); s.Streams != 0 || s.Watches != 0 || small+large != 0 {
		f.t.Fatalf("left behind: %+v, and %d bytes are claimed", s, small+large)
	}
}

// pass takes the next requests that nobody answers, or not at once.
func (f *fuzzed) pass() {
	for ; len(f.pending) > 0; f.pending = f.pending[1:] {
		switch r := f.pending[0]; {
		case r.GetCreateRequest() != nil:
			return
		case r.GetCancelRequest() != nil:
			if f.watches[r.GetCancelRequest().WatchId] != nil {
				return
			}
		case r.GetProgressRequest() != nil:
			begun := len(f.watches) > 0
			for _, w := range f.watches {
				begun = begun && w.StartRevision <= int64(f.visible)
			}
			if begun {
				f.asked++
				f.owed = true
			}
		}
	}
}

// judge judges one response.
func (f *fuzzed) judge(r *pb.WatchResponse) {
	f.pass()
	w := f.watches[r.WatchId]
	if f.split != nil && (w != f.split || len(r.Events) == 0) {
		f.t.Fatalf("%v came between the parts of a response to watch %d", r, f.split.id)
	}
	switch {
	case r.Created:
		f.created(r)
	case r.Canceled && f.lost != nil:
		if r.WatchId != f.lost.id || r.CompactRevision != int64(f.compacted) {
			f.t.Fatalf("%v, want the end of watch %d by the compaction at %d", r, f.lost.id, f.compacted)
		}
		f.lost = nil
	case r.Canceled:
		if len(f.pending) == 0 || f.pending[0].GetCancelRequest() == nil || f.pending[0].GetCancelRequest().WatchId != r.WatchId {
			f.t.Fatalf("%v, and nobody asked for it", r)
		}
		f.pending = f.pending[1:]
		delete(f.watches, r.WatchId)
	case len(r.Events) > 0:
		f.events(w, r)
	default:
		f.progress(w, r)
	}
	if r.Header.Revision > int64(f.visible) {
		f.t.Fatalf("%v, at revision %d", r, f.visible)
	}
}

// created judges the answer to a request for a watch.
func (f *fuzzed) created(r *pb.WatchResponse) {
	if len(f.pending) == 0 || f.pending[0].GetCreateRequest() == nil {
		f.t.Fatalf("%v, and nobody asked for it", r)
	}
	w := &fuzzedWatch{WatchCreateRequest: f.pending[0].GetCreateRequest(), id: r.WatchId}
	f.pending = f.pending[1:]
	end := string(w.RangeEnd)
	refused := w.StartRevision < 0 || end != "" && end != "\x00" && w.start() >= end || f.watches[w.WatchId] != nil && w.WatchId != 0
	switch {
	case r.Canceled != refused || r.Header.Revision != int64(f.visible) || refused && (r.WatchId != wholeStream || r.CancelReason == ""):
		f.t.Fatalf("%v: %v at revision %d", w, r, f.visible)
	case refused:
		return
	case f.watches[w.id] != nil || w.WatchId != 0 && w.WatchId != w.id:
		f.t.Fatalf("%v was created with the id %d", w, w.id)
	case w.StartRevision > 0 && w.StartRevision < int64(f.compacted):
		f.lost = w
		return
	}
	f.watches[w.id] = w
	if w.late = w.StartRevision > 0 && w.StartRevision <= int64(f.visible); w.late {
		for _, c := range f.changes {
			w.expect(c)
		}
	}
}

// events judges a response with events, or a part of one.
func (f *fuzzed) events(w *fuzzedWatch, r *pb.WatchResponse) {
	if w == nil || len(r.Events) > len(w.want) {
		f.t.Fatalf("%v: not asked for", r)
	}
	if first := w.want[0].revision; f.split == nil && first == w.last {
		f.t.Fatalf("%v: a part of revision %d came before", r, first)
	}
	for i, e := range r.Events {
		want := w.want[i].text
		if previous := w.want[i].previous; w.PrevKv && previous != "" && (e.PrevKv != nil || w.want[i].revision > f.compacted) {
			want += "<" + previous
		}
		if got := text(e); got != want {
			f.t.Fatalf("watch %d %v: got %.200q, want %.200q", w.id, w, got, want)
		}
	}
	w.last, w.want = w.want[len(r.Events)-1].revision, w.want[len(r.Events):]
	if f.split = nil; r.Fragment {
		f.split = w
	} else if len(w.want) > 0 && w.want[0].revision == w.last {
		f.t.Fatalf("%v: it ends within revision %d", r, w.last)
	}
	if r.Fragment && !w.Fragment || w.Fragment && len(r.Events) > 1 && proto.Size(r) > fuzzedFragment+framing || r.Header.Revision < int64(w.last) {
		f.t.Fatalf("watch %d %v: %v", w.id, w, r)
	}
	if len(w.want) == 0 {
		// It is told what the stream has read then: not all, if others lack something, or if
		// there was too much to read at once.
		if w.late && len(f.watches) == 1 && !f.large && r.Header.Revision != int64(f.visible) {
			f.t.Fatalf("watch %d %v has caught up at revision %d, and was told %v", w.id, w, f.visible, r)
		}
		w.late = false
	}
}

// progress judges a response without events: about one watch, or about all.
func (f *fuzzed) progress(w *fuzzedWatch, r *pb.WatchResponse) {
	about := []*fuzzedWatch{w}
	revision := r.Header.Revision
	switch {
	case r.WatchId == wholeStream && f.asked > 0:
		f.asked--
		f.owed = false
		about = slices.Collect(maps.Values(f.watches))
	case w == nil || !w.ProgressNotify || w.StartRevision > revision:
		f.t.Fatalf("%v: not asked for by %v", r, w)
	default:
		w.told = true
	}
	for _, w := range about {
		if len(w.want) > 0 || revision != int64(f.visible) {
			f.t.Fatalf("%v at revision %d, and watch %d %v lacks %v", r, f.visible, w.id, w, w.want)
		}
	}
}

// fuzzedRPC is the call, with requests as bytes. It is done with a response at once.
type fuzzedRPC struct {
	grpc.ServerStream
	ctx      context.Context
	cancel   context.CancelFunc
	codec    *codec.Codec
	requests chan []byte

	mu        sync.Mutex
	responses []*pb.WatchResponse
}

func (c *fuzzedRPC) Context() context.Context { return c.ctx }

func (c *fuzzedRPC) RecvMsg(m any) error {
	select {
	case b, more := <-c.requests:
		if !more {
			return io.EOF
		}
		return malformed(c.codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(b)}, m))
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
}

// malformed is the error of gRPC.
func malformed(err error) error {
	if err == nil {
		return nil
	}
	return status.Error(codes.Internal, err.Error())
}

func (c *fuzzedRPC) SendMsg(m any) error {
	buffers, err := c.codec.Marshal(m)
	if err != nil {
		return err
	}
	defer buffers.Free()
	r := new(pb.WatchResponse)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.responses = append(c.responses, r)
	return proto.Unmarshal(buffers.Materialize(), r)
}

// take returns the responses since the last call.
func (c *fuzzedRPC) take() []*pb.WatchResponse {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.responses
	c.responses = nil
	return out
}
