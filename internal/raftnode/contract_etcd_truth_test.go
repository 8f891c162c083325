package raftnode

import (
	"bytes"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/kvstore"
)

// etcdWorld is what is known about the clients of etcd.
type etcdWorld struct {
	model   *etcdModel
	asked   map[uint64]*etcdCall // by the number of the command
	answers map[uint64]etcdResult
	acked   int64 // the newest revision that any answer named
	lease   int64 // that was granted last
	leases  int64 // how many ids were chosen
	// shared leases may be ended by somebody whose request is still on its way.
	shared map[int64]bool
	// ended and begun leases of the entry that is applied, which no command accounts for yet.
	pending []kvstore.LeaseChange
}

// etcdResult is what a client has to be answered.
type etcdResult struct {
	answer   proto.Message
	err      error
	revision int64
}

// etcdAnswer is any answer of etcd.
type etcdAnswer interface {
	proto.Message
	GetHeader() *pb.ResponseHeader
}

func newEtcdWorld() *etcdWorld {
	return &etcdWorld{model: newEtcdModel(), asked: make(map[uint64]*etcdCall), answers: make(map[uint64]etcdResult), shared: make(map[int64]bool)}
}

// begin takes what an entry does to the leases of clients of etcd.
func (e *etcdWorld) begin(commands []kvstore.Command, results []*kvstore.Result, changes []kvstore.LeaseChange) {
	ours := make(map[uint64]bool)
	for i := range commands {
		if r := results[i]; r.Lease != nil && e.asked[numberOf(&commands[i])] != nil {
			ours[r.Lease.ID] = true
		}
	}
	e.pending = e.pending[:0]
	for _, c := range changes {
		if ours[c.ID] || e.model.granted[int64(c.ID)] != nil {
			e.pending = append(e.pending, c)
		}
	}
}

// take takes what a command has done to these leases.
func (e *etcdWorld) take(c *kvstore.Command, r *kvstore.Result) (begun, ended []int64) {
	for r.Outcome == kvstore.OK && len(e.pending) > 0 {
		switch l := e.pending[0]; {
		case !l.Ended && c.Op == kvstore.OpLeaseGrant && r.Lease.ID == l.ID:
			begun = append(begun, int64(l.ID))
		case l.Ended && (c.Op == kvstore.OpLeaseRevoke && c.Lease == l.ID || c.Op == kvstore.OpLeaseExpire && l.Seq <= c.Sequence && slices.Contains(c.Leases, l.ID)):
			ended = append(ended, int64(l.ID))
		default:
			return begun, ended
		}
		e.pending = e.pending[1:]
	}
	return begun, ended
}

// followEtcd lets the model do what a command has done (X9). Requests of clients of etcd it
// carries out itself; of all others it takes the revision, and the leases that have ended.
func (t *truth) followEtcd(c *kvstore.Command, r *kvstore.Result) {
	e, id := t.w.etcd, numberOf(c)
	begun, ended := e.take(c, r)
	call, before := e.asked[id], e.model.revision
	switch {
	case call != nil && c.Origin.Principal == "" && t.guest.enabled:
		e.answers[id] = etcdResult{err: rpctypes.ErrGRPCUserEmpty}
		t.w.s.reach(etcdUserMissing)
	case call != nil && call.user != guest:
		chosen := int64(0)
		if r.Lease != nil {
			chosen = int64(r.Lease.ID)
		}
		a, err := e.model.run(call.req, chosen)
		e.answers[id] = etcdResult{a, err, e.model.revision}
		t.observeEtcd(call.req, err)
	default:
		for _, lease := range ended {
			t.endForEtcd(lease, uint64(before)+1, r.Revision)
		}
		for _, lease := range begun {
			e.model.begin(lease, wholeSeconds(r.Lease.TTLMillis))
		}
		if c.Op == kvstore.OpCompact && r.Outcome == kvstore.OK {
			e.model.compact = max(e.model.compact, int64(c.Revision))
		}
		if !r.Replayed { // whose revision is an earlier one
			e.model.revision = max(e.model.revision, int64(r.Revision))
		}
	}
	if e.model.revision != int64(r.Revision) && !r.Replayed {
		t.w.s.violate("X9: operation %d by %q takes revision %d to %d, want %d (%v)", c.Op, c.Origin.Principal, before, r.Revision, e.model.revision, e.answers[id].err)
	}
}

// endForEtcd lets a lease end with others, of which each that has keys takes a revision.
// Whose revision is whose is taken from the changes.
func (t *truth) endForEtcd(lease int64, from, to uint64) {
	m := t.w.etcd.model
	if bound := m.at(m.revision).bound(lease); len(bound) > 0 {
		deleted := func(e *kvstore.Event) bool { return bytes.Equal(e.KV.Key, bound[0].GetKey()) }
		for from <= to && len(t.eventsOf(from, deleted)) == 0 {
			from++
		}
		m.revision = int64(from) - 1
	}
	m.end(lease)
}

func wholeSeconds(ttlMillis int64) int64 {
	return (ttlMillis*int64(time.Millisecond) + int64(time.Second) - 1) / int64(time.Second)
}

// checkEtcd compares what revisions have changed with what the model says (X9).
func (t *truth) checkEtcd(from uint64) {
	for _, c := range t.w.etcd.pending {
		t.w.s.violate("X9: no command accounts for lease %+v", c)
	}
	for revision := from + 1; revision <= t.store.Revision(); revision++ {
		want := t.w.etcd.model.changes[int64(revision)]
		var got []*mvccpb.KeyValue
		for _, e := range t.eventsOf(revision, func(e *kvstore.Event) bool { return bytes.HasPrefix(e.KV.Key, []byte(etcdPrefix)) }) {
			got = append(got, etcdPair(&e))
		}
		byKey := func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.GetKey(), b.GetKey()) }
		slices.SortFunc(got, byKey)
		if want = slices.SortedFunc(slices.Values(want), byKey); !slices.EqualFunc(got, want, func(a, b *mvccpb.KeyValue) bool { return proto.Equal(a, b) }) {
			t.w.s.violate("X9: revision %d changes %v, want %v", revision, got, want)
		}
	}
}

func etcdPair(e *kvstore.Event) *mvccpb.KeyValue {
	if e.Deleted {
		return &mvccpb.KeyValue{Key: e.KV.Key, ModRevision: int64(e.KV.ModRevision)}
	}
	return &mvccpb.KeyValue{
		Key: e.KV.Key, Value: e.KV.Value, Lease: int64(e.KV.Lease),
		CreateRevision: int64(e.KV.CreateRevision), ModRevision: int64(e.KV.ModRevision), Version: int64(e.KV.Version),
	}
}

// judge compares the answer to a request that went through the log with that of the model.
func (call *etcdCall) judge(answer proto.Message, err error) {
	w := call.c.w
	want, known := w.etcd.answers[call.id]
	if !known {
		w.s.violate("X9: %v was answered with %v, %v, and has never run", call.req, answer, err)
		return
	}
	w.stats.etcd++
	if err != nil || want.err != nil {
		if !sameEtcdError(err, want.err) {
			w.s.violate("X9: member %d answers %v with %v, %v, want %v, %v", call.face.m.n.id, call.req, answer, err, want.answer, want.err)
		}
		return
	}
	call.compare(answer.(etcdAnswer), want.answer, want.revision)
}

// compare compares an answer with that of the model, but for the ids in its header, and
// the headers in it.
func (call *etcdCall) compare(got etcdAnswer, want proto.Message, revision int64) {
	if at := got.GetHeader().GetRevision(); at != revision {
		call.c.w.s.violate("X9: member %d answers %v at revision %d, want %d", call.face.m.n.id, call.req, at, revision)
	}
	got, want = withoutHeaders(got).(etcdAnswer), withoutHeaders(want)
	if !proto.Equal(got, want) {
		call.c.w.s.violate("X9: member %d answers %v with %v, want %v", call.face.m.n.id, call.req, got, want)
	}
}

// withoutHeaders returns a copy without headers.
func withoutHeaders(m proto.Message) proto.Message {
	m = proto.Clone(m)
	switch a := m.(type) {
	case *pb.PutResponse:
		a.Header = nil
	case *pb.RangeResponse:
		a.Header = nil
	case *pb.DeleteRangeResponse:
		a.Header = nil
	case *pb.CompactionResponse:
		a.Header = nil
	case *pb.LeaseGrantResponse:
		a.Header = nil
	case *pb.LeaseRevokeResponse:
		a.Header = nil
	case *pb.TxnResponse:
		a.Header = nil
		for i, op := range a.Responses {
			a.Responses[i] = withoutInner(op)
		}
	}
	return m
}

func withoutInner(op *pb.ResponseOp) *pb.ResponseOp {
	switch u := op.GetResponse().(type) {
	case *pb.ResponseOp_ResponsePut:
		u.ResponsePut.Header = nil
	case *pb.ResponseOp_ResponseRange:
		u.ResponseRange.Header = nil
	case *pb.ResponseOp_ResponseDeleteRange:
		u.ResponseDeleteRange.Header = nil
	case *pb.ResponseOp_ResponseTxn:
		u.ResponseTxn = withoutHeaders(u.ResponseTxn).(*pb.TxnResponse)
	}
	return op
}

// judgeRead compares the answer to a read with the state of the model at the revision that
// it names. serializable reads may be stale, others have everything that was answered to
// anybody before. revisions are those that the request names.
func (call *etcdCall) judgeRead(answer etcdAnswer, err error, serializable bool, revisions []int64, read func(*etcdView) (proto.Message, error)) {
	w, m := call.c.w, call.face.m
	w.stats.etcd++
	if err != nil {
		known := call.acked
		if serializable {
			known = int64(m.store.Revision())
		}
		switch {
		case sameEtcdError(err, rpctypes.ErrGRPCFutureRev) && slices.ContainsFunc(revisions, func(r int64) bool { return r > known }):
		case sameEtcdError(err, rpctypes.ErrGRPCCompacted) && slices.ContainsFunc(revisions, func(r int64) bool { return r > 0 && r < w.etcd.model.compact }):
		default:
			w.s.violate("X9: member %d answers %v with %v; revision %d was answered before, and history begins at %d", m.n.id, call.req, err, call.acked, w.etcd.model.compact)
		}
		return
	}
	at := answer.GetHeader().GetRevision()
	if !serializable && at < call.acked || at > w.etcd.model.revision {
		w.s.violate("X9: member %d answers %v at revision %d; revision %d was answered before, and %d is the newest", m.n.id, call.req, at, call.acked, w.etcd.model.revision)
		return
	}
	view := w.etcd.model.at(at)
	compact := w.etcd.model.compact
	w.etcd.model.compact = 0 // the member may not have compacted yet
	want, err := read(view)
	if w.etcd.model.compact = compact; err != nil {
		w.s.violate("X9: member %d answers %v at revision %d with %v, want %v", m.n.id, call.req, at, answer, err)
		return
	}
	call.compare(answer, want, at)
}

// judgeTime judges what a client was told about the time of a lease.
func (call *etcdCall) judgeTime(r *pb.LeaseTimeToLiveRequest, a *pb.LeaseTimeToLiveResponse) {
	w := call.c.w
	granted := w.etcd.model.granted[r.GetID()]
	switch {
	case a.GetTTL() == -1:
		if f := w.truth.fate(uint64(r.GetID())); !f.givenUp && w.s.now < f.promised {
			w.s.violate("X3: lease %d is said to be gone at %d ms, and was promised until %d ms", r.GetID(), w.s.now/milli, f.promised/milli)
		}
		return
	case !granted[a.GetGrantedTTL()] || a.GetTTL() > a.GetGrantedTTL():
		w.s.violate("X9: lease %d has %d s of %d s left, and was granted with %v", r.GetID(), a.GetTTL(), a.GetGrantedTTL(), granted)
	}
	if !r.GetKeys() {
		return
	}
	var want [][]byte
	for _, kv := range w.etcd.model.at(a.GetHeader().GetRevision()).bound(r.GetID()) {
		want = append(want, kv.GetKey())
	}
	w.s.reachIf(etcdTimeWithKeys, len(want) > 0)
	if !slices.EqualFunc(a.GetKeys(), want, bytes.Equal) || a.GetHeader().GetRevision() < call.acked {
		w.s.violate("X9: lease %d has the keys %q at revision %d, want %q, and at least revision %d", r.GetID(), a.GetKeys(), a.GetHeader().GetRevision(), want, call.acked)
	}
}

// checkReader checks X8 for a read of a guest that was answered.
func (call *etcdCall) checkReader() {
	m := call.face.m
	at, allowed := m.store.Position().Index, true
	for _, g := range call.c.w.truth.guestAt {
		if g.index > at {
			break
		}
		allowed = g.may
	}
	if call.user == guest && !allowed {
		call.c.w.s.violate("X8: member %d answers a read of the guest at entry %d", m.n.id, at)
	}
}

// observeEtcd sees situations.
func (t *truth) observeEtcd(req proto.Message, err error) {
	s := t.w.s
	if r, ok := req.(*pb.PutRequest); ok && err == nil && r.GetIgnoreLease() {
		kv := t.w.etcd.model.at(t.w.etcd.model.revision).get(string(r.GetKey()))
		s.reachIf(etcdLeaseKept, kv.GetLease() != 0)
	}
}
