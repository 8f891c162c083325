package watchrpc

import (
	"cmp"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvd-io/kvd/internal/rights"
)

// allow judges what the client wants to watch.
func (s *session) allow(need rights.Need) error {
	if s.server.opts.Rights == nil {
		return nil
	}
	return s.server.opts.Rights.Allow(s.rpc.Context(), need)
}

// await begins to wait for the next change of the rights. What is judged after it is judged
// by rights that are at least as new.
func (s *session) await() {
	if s.server.opts.Rights != nil {
		s.changed = s.server.opts.Rights.Changed()
	}
}

// judgeAll ends the watches that are not allowed anymore, if the rights have changed, and
// returns what their client has to be told. Nobody owns them from now on.
func (s *session) judgeAll() (denied []*pb.WatchResponse) {
	select {
	case <-s.changed:
	default:
		return nil
	}
	s.await()
	for id, w := range s.watchers {
		err := s.allow(w.need)
		if err == nil {
			continue
		}
		s.stream.Remove(w.watch)
		s.forget(w)
		denied = append(denied, &pb.WatchResponse{
			Header: s.server.opts.Header(s.server.opts.Watches.Revision()), WatchId: id, Canceled: true, CancelReason: err.Error(),
		})
	}
	slices.SortFunc(denied, func(a, b *pb.WatchResponse) int { return cmp.Compare(a.GetWatchId(), b.GetWatchId()) })
	return denied
}
