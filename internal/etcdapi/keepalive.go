package etcdapi

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/rights"
)

// keepAlives are the keep-alives of one stream that are under way. One goroutine receives
// requests and queues them, another sends the answers at the head of the queue. settle stores
// an answer, and wakes the sender only if that answer is the next to be sent.
type keepAlives struct {
	s *leaseService
	// room holds a token for each of the queue.
	room chan struct{}
	// ready has a token once there is something for the sender to do. Its capacity is 1.
	ready chan struct{}
	mu    struct {
		sync.Mutex
		queue []*renewal // in the order of the requests
		last  bool       // no more will come
	}
	answered []*renewal // scratch of the sender
}

// renewal is a keep-alive that waits for the leader, or to be sent.
type renewal struct {
	answer pb.LeaseKeepAliveResponse
	err    error
	done   bool
}

func newKeepAlives(s *leaseService) *keepAlives {
	return &keepAlives{s: s, room: make(chan struct{}, keepAlivesAhead), ready: make(chan struct{}, 1)}
}

// receive takes requests until the client has sent its last one.
func (k *keepAlives) receive(ctx context.Context, stream pb.Lease_LeaseKeepAliveServer) error {
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case k.room <- struct{}{}:
			k.renew(ctx, r.GetID())
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// renew keeps a lease alive. The header is older than the renewal: a client must not take
// a lease for alive at a revision at which it had ended.
func (k *keepAlives) renew(ctx context.Context, id int64) {
	n := &renewal{answer: pb.LeaseKeepAliveResponse{Header: k.s.headers.Now(), ID: id}}
	k.mu.Lock()
	k.mu.queue = append(k.mu.queue, n)
	k.mu.Unlock()
	if n.err = k.s.allowLease(ctx, uint64(id), rights.Write); n.err != nil {
		k.settle(n)
		return
	}
	k.s.opts.LeaseTimes.RenewLease(uint64(id), k.s.opts.RequestTimeout, func(left api.LeaseTime, err error) {
		switch {
		case codeOf(err) == api.LeaseNotFound: // reported as a time to live of 0
		case err != nil:
			n.err = err
		case left.TTL == 0:
			n.answer.TTL = maxTTLSeconds
		default:
			n.answer.TTL = wholeSeconds(left.TTL)
		}
		k.settle(n)
	})
}

// settle stores the answer of a keep-alive.
func (k *keepAlives) settle(n *renewal) {
	k.mu.Lock()
	n.done = true
	first := len(k.mu.queue) > 0 && k.mu.queue[0] == n
	k.mu.Unlock()
	if first {
		k.wake()
	}
}

// end says that no more requests will come.
func (k *keepAlives) end() {
	k.mu.Lock()
	k.mu.last = true
	k.mu.Unlock()
	k.wake()
}

func (k *keepAlives) wake() {
	select {
	case k.ready <- struct{}{}:
	default:
	}
}

// send sends the answers at the head of the queue, and reports whether more may follow.
func (k *keepAlives) send(stream pb.Lease_LeaseKeepAliveServer) (more bool, err error) {
	more = k.take()
	for _, n := range k.answered {
		if n.err != nil {
			return false, n.err
		}
		if err := stream.Send(&n.answer); err != nil {
			return false, err
		}
		<-k.room
	}
	clear(k.answered)
	return more, nil
}

// take moves what can be sent out of the queue.
func (k *keepAlives) take() (more bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := 0
	for n < len(k.mu.queue) && k.mu.queue[n].done {
		n++
	}
	k.answered = append(k.answered[:0], k.mu.queue[:n]...)
	k.mu.queue = slices.Delete(k.mu.queue, 0, n)
	return !k.mu.last || len(k.mu.queue) > 0
}
