package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/lessor"
	"github.com/kvd-io/kvd/internal/raftnode"
)

// leaseObserver passes what the store does to leases on to the lessor. Before there is
// a member nobody leads here, and the lessor of a leader reads the table.
type leaseObserver struct{ n *Node }

func (o leaseObserver) LeasesChanged(changes []kvstore.LeaseChange) {
	m := o.n.member.Load()
	if m == nil {
		return
	}
	out := make([]lessor.Change, len(changes))
	for i, c := range changes {
		out[i] = lessor.Change{Lease: timed(c.Lease, c.Seq), Ended: c.Ended}
		if c.Ended {
			m.counts.leasesEnded.Add(1)
		} else {
			m.counts.leasesGranted.Add(out[i].TTL)
		}
	}
	m.leases.lessor.Changed(out)
}

func (o leaseObserver) LeasesReset() {
	if m := o.n.member.Load(); m != nil {
		m.leases.lessor.Reset()
	}
}

func timed(l kvstore.Lease, seq uint64) lessor.Lease {
	return lessor.Lease{ID: l.ID, TTL: time.Duration(l.TTLMillis) * time.Millisecond, Seq: seq}
}

// leaseTable is the store's table of leases as the lessor reads it.
type leaseTable struct{ store *kvstore.Store }

func (t leaseTable) Leases(after uint64, limit int) ([]lessor.Lease, error) {
	page, err := t.store.Leases(after, limit)
	out := make([]lessor.Lease, len(page))
	for i := range page {
		out[i] = timed(page[i].Lease, page[i].Seq)
	}
	return out, err
}

func (t leaseTable) LeaseKeys(id uint64) (int, error) {
	l, err := t.store.Lease(id)
	if errors.Is(err, kvstore.ErrLeaseNotFound) {
		return 0, nil
	}
	return int(l.Keys + l.Tickets), err
}

// leaseOffice is the member's part in the cluster as the lessor sees it.
type leaseOffice struct{ m *member }

func (o leaseOffice) Tenure() uint64 {
	pos := o.m.replica.Position()
	if pos.Leader != o.m.id || o.m.store.Position().Term != pos.Term {
		return 0
	}
	return pos.Term
}

// Prove makes a barrier, which proves that some leader was in office after it began. It
// was this one if it still is: a node does not lead in the same term twice.
func (o leaseOffice) Prove(ctx context.Context, term uint64) error {
	if err := o.m.replica.Barrier(ctx); err != nil {
		return err
	}
	if pos := o.m.replica.Position(); pos.Leader != o.m.id || pos.Term != term {
		return lessor.ErrNotLeader
	}
	return nil
}

func (o leaseOffice) Expire(ctx context.Context, term, asOf uint64, leases []uint64) error {
	ctx, cancel := context.WithTimeout(ctx, dutyTimeout)
	defer cancel()
	cmd := kvstore.Command{Op: kvstore.OpLeaseExpire, Term: term, Sequence: asOf, Leases: leases}
	_, err := o.m.replica.Propose(ctx, kvstore.EncodeCommand(nil, &cmd))
	return err
}

// leases is the member's part for the time of leases.
type leases struct {
	m *member
	// lessor keeps the time while this member leads, and batcher asks the leader.
	lessor  *lessor.Lessor
	batcher *lessor.Batcher
}

func newLeases(m *member) *leases {
	ls := &leases{m: m}
	ls.lessor = lessor.New(leaseTable{m.store}, leaseOffice{m}, time.Now, ls.trouble)
	ls.batcher = lessor.NewBatcher(ls.askLeader)
	return ls
}

// run works until the context ends.
func (ls *leases) run(ctx context.Context) {
	var done sync.WaitGroup
	done.Go(func() { ls.batcher.Run(ctx) })
	ls.lessor.Run(ctx)
	done.Wait()
}

// trouble logs what the lessor repeats by itself.
func (ls *leases) trouble(err error) {
	if errors.Is(err, raftnode.ErrStopping) || ls.m.life.closing.Load() {
		return
	}
	ls.m.lg.Warn("leases could not be ended or read; the leader tries again", zap.Error(err))
}

// askLeader asks the leader about leases, be it this member or another one.
func (ls *leases) askLeader(ctx context.Context, requests []lessor.Request) ([]lessor.Answer, error) {
	leader := ls.m.replica.Position().Leader
	if leader == 0 {
		return nil, raftnode.ErrNoLeader
	}
	if leader == ls.m.id {
		return ls.lessor.Serve(ctx, requests)
	}
	peer, ok := ls.m.replica.Membership().Member(leader)
	if !ok {
		return nil, fmt.Errorf("%w: this node does not know the URLs of member %d", raftnode.ErrNoLeader, leader)
	}
	return ls.m.calls.leases(ctx, peer.PeerURLs, requests)
}

// ask returns the time of a lease, as the leader knows it.
func (ls *leases) ask(ctx context.Context, id uint64, renew bool) (api.LeaseTime, error) {
	a, err := ls.batcher.Ask(ctx, lessor.Request{ID: id, Renew: renew})
	return leaseTime(id, renew, a, err)
}

// renew is ask for a keep-alive, without waiting.
func (ls *leases) renew(id uint64, within time.Duration, done func(api.LeaseTime, error)) {
	reply := func(a lessor.Answer, err error) { done(leaseTime(id, true, a, err)) }
	if err := ls.batcher.Post(lessor.Request{ID: id, Renew: true}, time.Now().Add(within), reply); err != nil {
		reply(lessor.Answer{}, err)
	}
}

// leaseTime turns the leader's answer into that of a client.
func leaseTime(id uint64, renew bool, a lessor.Answer, err error) (api.LeaseTime, error) {
	switch {
	case err != nil:
		return api.LeaseTime{}, leaseError(err, renew)
	case a.State == lessor.Unknown:
		return api.LeaseTime{}, api.Errorf(api.LeaseNotFound, "lease %d does not exist; it may have ended", id)
	}
	return api.LeaseTime{TTL: a.TTL, Remaining: a.Remaining}, nil
}

// leaseError tells a client why the leader did not answer. A renewal that was sent may
// have happened.
func leaseError(err error, renew bool) error {
	switch {
	case errors.Is(err, lessor.ErrStopping):
		return retryable(api.Stopping, "this node is stopping; ask another node")
	case errors.Is(err, lessor.ErrOverloaded):
		return retryable(api.Overloaded, "too many requests about leases are waiting on this node; nothing was changed; slow down and try again")
	case errors.Is(err, raftnode.ErrNoLeader), errors.Is(err, raftnode.ErrNotLeader), errors.Is(err, lessor.ErrNotLeader):
		return retryable(api.NoLeader, "no leader is tracking leases right now (%v); try again", err)
	case renew:
		return api.Errorf(api.Timeout, "the leader did not answer in time (%v): the lease may have been renewed; it is safe to try again", err)
	}
	return retryable(api.ReadTimeout, "the leader did not answer in time (%v); try again", err)
}

// minTTLElections is the shortest time to live of a lease, in election timeouts. A
// shorter one would end during a change of leaders, whatever its holder does.
const minTTLElections = 2

// minTTLMillis returns the shortest time to live that this member proposes.
func (ls *leases) minTTLMillis() int64 {
	return (minTTLElections * electionTimeout(ls.m.cfg)).Milliseconds()
}

// electionTimeout returns the election timeout of a node with these settings.
func electionTimeout(cfg *Config) time.Duration {
	return cmp.Or(cfg.TickInterval, raftnode.DefaultTickInterval) * time.Duration(cmp.Or(cfg.ElectionTicks, raftnode.DefaultElectionTicks))
}

// leaseCall is the call by which a node asks the leader about leases.
type leaseCall struct {
	Requests []lessor.Request `json:"requests"`
}

type leaseCallAnswer struct {
	Answers []lessor.Answer `json:"answers"`
}

// leases asks the leader. Repeating a request about leases is harmless, so these calls
// use connections that stay open, unlike those of N5.
func (p *peerCaller) leases(ctx context.Context, urls []string, requests []lessor.Request) ([]lessor.Answer, error) {
	var out leaseCallAnswer
	err := fmt.Errorf("%w: the leader has no peer URL", raftnode.ErrNoLeader)
	for _, u := range urls {
		if err = p.callWith(ctx, p.standing, u, pathLeases, leaseCall{requests}, &out); err == nil {
			return out.Answers, nil
		}
	}
	return nil, err
}

// standingClient returns a client that keeps connections open.
func standingClient(oneCall *http.Client) *http.Client {
	c := *oneCall
	t := oneCall.Transport.(*http.Transport).Clone()
	t.DisableKeepAlives, t.MaxIdleConnsPerHost, t.IdleConnTimeout = false, 2, 30*time.Second
	c.Transport = t
	return &c
}

// leases answers another member about leases.
func (s callServer) leases(ctx context.Context, c caller, in leaseCall) (leaseCallAnswer, error) {
	m, err := s.n.serving()
	if err != nil {
		return leaseCallAnswer{}, raftnode.ErrNotLeader
	}
	if err := s.identified(c); err != nil {
		return leaseCallAnswer{}, err
	}
	if n := len(in.Requests); n > lessor.MaxBatch {
		return leaseCallAnswer{}, fmt.Errorf("%w: %d requests in one call, the limit is %d", raftnode.ErrOverloaded, n, lessor.MaxBatch)
	}
	answers, err := m.leases.lessor.Serve(ctx, in.Requests)
	if errors.Is(err, lessor.ErrNotLeader) {
		err = fmt.Errorf("%w: %w", raftnode.ErrNotLeader, err)
	}
	return leaseCallAnswer{answers}, err
}
