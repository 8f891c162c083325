package watchrpc

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/rights"
	"github.com/kvd-io/kvd/internal/watch"
)

// Reasons for refusing a watch. Clients see their text.
var (
	errEmptyRange  = errors.New("mvcc: watcher range is empty")
	errDuplicateID = errors.New("mvcc: duplicate watch ID provided on the WatchStream")
)

// handle carries out a request. What it does not know it ignores, as etcd does, so that
// newer clients can try.
func (s *session) handle(r *pb.WatchRequest) error {
	switch r := r.RequestUnion.(type) {
	case *pb.WatchRequest_CreateRequest:
		if r.CreateRequest != nil {
			return s.create(r.CreateRequest)
		}
	case *pb.WatchRequest_CancelRequest:
		if r.CancelRequest != nil {
			return s.cancel(r.CancelRequest.WatchId)
		}
	case *pb.WatchRequest_ProgressRequest:
		s.ask()
	}
	return nil
}

// create begins a watch.
func (s *session) create(r *pb.WatchCreateRequest) error {
	spec, err := specOf(r)
	if err != nil {
		return s.refuse(err)
	}
	need := rights.Need{Access: rights.Read, Range: rights.Range{Start: spec.Start, End: spec.End, One: spec.Single}}
	if err := s.allow(need); err != nil {
		return s.refuse(err)
	}
	id, err := s.takeID(r.WatchId)
	if err != nil {
		return s.refuse(err)
	}
	w := &watcher{id: id, need: need, from: spec.From, previous: r.PrevKv, fragment: r.Fragment, notify: r.ProgressNotify, quiet: true}
	var revision uint64
	var compacted *kvstore.CompactedError
	w.watch, revision, err = s.stream.Add(spec)
	switch {
	case errors.As(err, &compacted):
		return errors.Join(s.created(id, s.server.opts.Watches.Revision()), s.sendCompacted(id, compacted.CompactRevision))
	case errors.Is(err, watch.ErrTooMany):
		return s.refuse(fmt.Errorf("%w, the limit of --max-watches", err))
	case err != nil:
		return err
	}
	s.floor = max(s.floor, revision)
	w.late = w.from > 0 && w.from <= revision
	s.watchers[id], s.owners[w.watch] = w, w
	if w.notify && s.ticker == nil {
		s.ticker = time.NewTicker(s.server.interval())
	}
	return s.created(id, revision)
}

// specOf says what is to be watched.
func specOf(r *pb.WatchCreateRequest) (spec watch.Spec, err error) {
	if r.StartRevision < 0 {
		return spec, rpctypes.ErrCompacted
	}
	spec = watch.Spec{Start: r.Key, From: uint64(r.StartRevision)}
	if len(spec.Start) == 0 {
		spec.Start = []byte{0} // the least key
	}
	switch end := r.RangeEnd; {
	case len(end) == 0:
		spec.Single = true
	case len(end) == 1 && end[0] == 0: // all keys from here on
	case bytes.Compare(spec.Start, end) >= 0:
		return spec, errEmptyRange
	default:
		spec.End = end
	}
	// A watch may stay for long, and a key of a request may be as long as the request.
	spec.Start, spec.End = kvstore.Bound(spec.Start), kvstore.Bound(spec.End)
	spec.NoPuts = slices.Contains(r.Filters, pb.WatchCreateRequest_NOPUT)
	spec.NoDeletes = slices.Contains(r.Filters, pb.WatchCreateRequest_NODELETE)
	return spec, nil
}

// takeID returns the id of a new watch: the one that was asked for, or the next that is
// free.
func (s *session) takeID(asked int64) (id int64, err error) {
	if asked != 0 {
		if s.watchers[asked] != nil {
			return 0, errDuplicateID
		}
		return asked, nil
	}
	for s.watchers[s.nextID] != nil {
		s.nextID++
	}
	s.nextID++
	return s.nextID - 1, nil
}

// refuse says that a watch was not created, and why.
func (s *session) refuse(reason error) error {
	return s.rpc.Send(&pb.WatchResponse{
		Header: s.server.opts.Header(s.server.opts.Watches.Revision()), WatchId: wholeStream, Created: true, Canceled: true, CancelReason: reason.Error(),
	})
}

// created announces a watch (G1).
func (s *session) created(id int64, revision uint64) error {
	return s.rpc.Send(&pb.WatchResponse{Header: s.server.opts.Header(revision), WatchId: id, Created: true})
}

// sendCompacted says that a watch has ended because of a compaction.
func (s *session) sendCompacted(id int64, revision uint64) error {
	return s.rpc.Send(&pb.WatchResponse{Header: s.server.opts.Header(0), WatchId: id, Canceled: true, CompactRevision: int64(revision)})
}

// cancel ends a watch. Nobody waits for an answer about one that is not there.
func (s *session) cancel(id int64) error {
	w := s.watchers[id]
	if w == nil {
		return nil
	}
	s.stream.Remove(w.watch)
	s.forget(w)
	return s.rpc.Send(&pb.WatchResponse{Header: s.server.opts.Header(s.server.opts.Watches.Revision()), WatchId: id, Canceled: true})
}

// ask notes that the progress of the stream is wanted. There is none without a watch, or
// while one has not begun: it has nothing to say about what is before its beginning.
func (s *session) ask() {
	visible := s.server.opts.Watches.Revision()
	for _, w := range s.watchers {
		if w.from > visible {
			return
		}
	}
	switch {
	case len(s.watchers) == 0:
	case s.asked == 0:
		s.asked = visible
	default:
		// Who waits already must not wait for longer because others ask, too.
		s.again = visible
	}
}
