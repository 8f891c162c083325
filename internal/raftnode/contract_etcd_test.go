package raftnode

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/access"
	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/etcdapi"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/lessor"
	"github.com/kvd-io/kvd/internal/rights"
)

// The real etcd face of each member: package etcdapi, called in the coroutine of a client.
// Whatever the face waits for, its client waits for. Only calls with one answer can run
// so; the streams of etcd have goroutines of their own, and contract_etcd_watch_test.go
// does what a stream of watches does.

// etcdFace is the face of one life of a member.
type etcdFace struct {
	m      *storeMachine
	server *etcdapi.Server
}

// face returns the face of the member's current life.
func (m *storeMachine) face() *etcdFace {
	if m.etcd == nil {
		f := &etcdFace{m: m}
		store := m.store
		f.server = etcdapi.New(etcdapi.Options{
			Replicator: f, Member: etcdMember{m.n}, LeaseTimes: f, Watches: m.hub,
			// A call may take as long as its client waits, in virtual time.
			RequestTimeout: 24 * time.Hour,
			Gate: access.New(access.Options{
				Tables: store.Rights,
				EachBound: func(lease uint64, fn func(rights.Space, []byte) bool) error {
					return kvstore.EachBound(store, lease, fn)
				},
				Foreign: func(token string) (user string, ok bool) { return token, true },
			}),
		})
		f.server.Open(etcdapi.State{Store: store, Evaluator: kvstore.NewEvaluator(store), Limits: store, LeaseTable: store})
		m.etcd = f
	}
	return m.etcd
}

// gone reports whether the life of the member has ended.
func (f *etcdFace) gone() bool { return !f.m.n.up || f.m.n.machine != f.m || f.m.etcd != f }

// etcdMember is a member as the face describes it.
type etcdMember struct{ n *simNode }

func (m etcdMember) ID() uint64        { return m.n.id }
func (m etcdMember) ClusterID() string { return "000000000000c1d0" }
func (m etcdMember) Term() uint64      { return m.n.core.term }
func (m etcdMember) HasLeader() bool   { return m.n.core.lead != 0 }

func (m etcdMember) IsLearner() bool {
	self, known := m.n.applier.roster.Membership().Member(m.n.id)
	return known && self.Learner
}

// etcdCall is one call of a client.
type etcdCall struct {
	c      *client
	face   *etcdFace
	user   string
	req    proto.Message
	acked  int64  // the newest revision that was answered to anybody before the call
	id     uint64 // of the command that it proposed; 0: none
	broken any    // what unwound the client meanwhile
}

type etcdCallKey struct{}

// etcd calls a method at a member, as a user. The answer is nil if the call cannot tell
// what became of it, or was not carried out for a reason that is none of etcd's.
func (c *client) etcd(n *simNode, user, method string, req proto.Message) (call *etcdCall, answer proto.Message, err error) {
	call = &etcdCall{c: c, user: user, req: req, acked: c.w.etcd.acked}
	if !n.up {
		return call, nil, nil
	}
	call.face = storeOf(n).face()
	ctx := context.WithValue(c.w.s.t.Context(), etcdCallKey{}, call)
	ctx = metadata.NewIncomingContext(ctx, metadata.Pairs(rpctypes.TokenFieldNameGRPC, user))
	a, err := call.face.server.Call(ctx, "/etcdserverpb."+method, func(into any) error {
		proto.Merge(into.(proto.Message), req)
		return nil
	})
	if call.broken != nil { // the face has taken it for a panic of its own
		panic(call.broken)
	}
	if call.face.gone() { // the connection broke
		return call, nil, nil
	}
	if err != nil {
		return call, nil, call.judgeError(err)
	}
	answer = a.(proto.Message)
	if h, ok := answer.(etcdAnswer); ok {
		c.w.etcd.acked = max(c.w.etcd.acked, h.GetHeader().GetRevision())
		if h.GetHeader().GetMemberId() != n.id || h.GetHeader().GetClusterId() != 0xc1d0 {
			c.w.s.violate("X9: member %d answers with the header %v", n.id, h.GetHeader())
		}
	}
	return call, answer, nil
}

// judgeError returns the errors that are answers of etcd to this request, and nil for those
// that any request may get. A bug is a violation.
func (call *etcdCall) judgeError(err error) error {
	for _, any := range []error{
		rpctypes.ErrGRPCNoLeader, rpctypes.ErrGRPCTimeout, rpctypes.ErrGRPCRequestTooManyRequests, rpctypes.ErrGRPCNotSupportedForLearner,
	} {
		if sameEtcdError(err, any) {
			return nil
		}
	}
	if code := status.Code(err); code == codes.Internal || code == codes.Unknown {
		if m := call.face.m; m.failed() == nil {
			call.c.w.s.violate("X9: member %d answers %v with %v", m.n.id, call.req, err)
		}
		return nil
	}
	return err
}

// sameEtcdError compares errors by what a client sees of them.
func sameEtcdError(a, b error) bool {
	return status.Code(a) == status.Code(b) && (a == nil || b == nil || status.Convert(a).Message() == status.Convert(b).Message())
}

func callOf(ctx context.Context) *etcdCall { return ctx.Value(etcdCallKey{}).(*etcdCall) }

// waiting runs what may unwind the client at the end of a test.
func (call *etcdCall) waiting(do func() error) error {
	defer func() {
		if r := recover(); r != nil {
			call.broken = r
			panic(r)
		}
	}()
	if err := do(); err != nil {
		return err
	}
	if call.face.gone() {
		return errEtcdUnknown
	}
	return nil
}

var (
	errEtcdUnknown = &api.Error{Code: api.Timeout}
	errEtcdRefused = &api.Error{Code: api.NoLeader}
)

// Do implements etcdapi.Replicator.
func (f *etcdFace) Do(ctx context.Context, cmd *kvstore.Command, _ etcdapi.NoteStage) (result kvstore.Result, err error) {
	call := callOf(ctx)
	w := call.c.w
	err = call.waiting(func() error {
		call.id = w.s.nextCommand + 1
		w.etcd.asked[call.id] = call
		o := w.s.propose(f.m.n, encodeAs(call.id, cmd))
		switch {
		case call.c.await(o, call.c.patience()):
			result = *o.result.value.(*kvstore.Result)
		case o.outcome == refused:
			return errEtcdRefused
		default:
			return errEtcdUnknown
		}
		return nil
	})
	return result, err
}

// Barrier implements etcdapi.Replicator.
func (f *etcdFace) Barrier(ctx context.Context, _ etcdapi.NoteStage) error {
	call := callOf(ctx)
	return call.waiting(func() error {
		if !call.c.fresh(f.m.n) {
			return errEtcdUnknown
		}
		return nil
	})
}

// AskLease implements etcdapi.LeaseTimes.
func (f *etcdFace) AskLease(ctx context.Context, id uint64, renew bool) (left api.LeaseTime, err error) {
	call := callOf(ctx)
	err = call.waiting(func() error {
		begin := call.c.w.s.now
		a, answered := call.c.askLease(f.m.n, id, renew)
		switch {
		case !answered:
			return errEtcdUnknown
		case a.State == lessor.Unknown:
			return &api.Error{Code: api.LeaseNotFound}
		}
		left = api.LeaseTime{TTL: a.TTL, Remaining: a.Remaining}
		if !call.c.w.etcd.shared[int64(id)] {
			call.c.w.truth.promise(id, begin+call.c.w.promised(a.Remaining.Microseconds()))
		}
		return nil
	})
	return left, err
}

// RenewLease implements etcdapi.LeaseTimes, for streams, which do not run here.
func (f *etcdFace) RenewLease(_ uint64, _ time.Duration, done func(api.LeaseTime, error)) {
	done(api.LeaseTime{}, errors.ErrUnsupported)
}

// SortLeases implements etcdapi.LeaseTimes.
func (f *etcdFace) SortLeases(ids []uint64) { f.m.lessor.SortByDeadline(ids) }
