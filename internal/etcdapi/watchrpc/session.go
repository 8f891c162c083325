package watchrpc

import (
	"context"
	"errors"
	"io"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/rights"
	"github.com/kvd-io/kvd/internal/watch"
)

const (
	// queuedRequests is how many requests wait while a session sends. Further ones wait at
	// the client: gRPC's flow control stops it.
	queuedRequests = 16
	// wholeStream is the id in a response that concerns all watches of a stream, and in the
	// refusal of one.
	wholeStream = -1
	// batchBytes is how much is encoded before it is sent, if it is more than one response.
	batchBytes = 64 << 10
	// batchRevisions bounds the revisions in a response.
	batchRevisions = 1000
	// framing is more than what a response has beside its events, in messages and in memory.
	framing = 128
)

// errNoRoom means that what was collected has to be sent first, or memory claimed.
var errNoRoom = errors.New("no room")

// session is one call of Watch. Its fields belong to the goroutine of run, except for the
// channels.
type session struct {
	server *Server
	rpc    pb.Watch_WatchServer
	stream *watch.Stream

	requests chan *pb.WatchRequest // from receive
	broken   chan error            // capacity 1: why receive has ended, unless the client just sends no more

	watchers map[int64]*watcher
	owners   map[*watch.Watch]*watcher
	nextID   int64
	// asked is the revision that must be passed before progress of the whole stream is
	// sent, and again that of the last request since; due is the one before watches are
	// told that asked for it. 0 means that nobody waits.
	asked, again, due uint64
	// changed is closed if the rights have changed since the watches were judged; nil if
	// they are not judged.
	changed <-chan struct{}
	// floor is the newest revision at which a watch was created. Progress below it would
	// take that watch back, should its client resume.
	floor  uint64
	ticker *time.Ticker // nil until a watch asks for progress
	// out are the responses that are to be sent, size bytes of events.
	out  []*response
	size int
	// loan is what is claimed for them, and wanted what has to be claimed first. lent is the
	// last loan that went to gRPC.
	loan, lent *loan
	wanted     int64
}

// watcher is a watch as its client knows it.
type watcher struct {
	id    int64
	watch *watch.Watch
	need  rights.Need
	// from is the first revision that the client asked for; 0 means what came next.
	from                       uint64
	previous, fragment, notify bool
	// quiet is set if there was no event since the last tick.
	quiet bool
	// late is set until a watch that began in the past has caught up.
	late bool
}

// receive passes the requests on. A client that sends no more may still listen: curl sends
// one request and closes its side.
func (s *session) receive() {
	ctx := s.rpc.Context()
	for {
		r, err := s.rpc.Recv()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				s.broken <- err
			}
			return
		}
		select {
		case s.requests <- r:
		case <-ctx.Done():
			return
		}
	}
}

// run serves until the client has gone, the node stops, or nothing can be read.
func (s *session) run(ctx context.Context) error {
	for {
		idle, err := s.turn(ctx)
		if err != nil {
			return err
		}
		if err := s.listen(ctx, idle); err != nil {
			return err
		}
	}
}

// end returns what was not returned.
func (s *session) end() {
	if s.ticker != nil {
		s.ticker.Stop()
	}
	s.giveBack()
	if s.lent != nil {
		s.lent.release()
	}
}

// turn sends what one step of the stream brings.
func (s *session) turn(ctx context.Context) (idle bool, err error) {
	if err := s.borrow(ctx); err != nil {
		return false, err
	}
	p, err := s.stream.Next(ctx)
	if err != nil {
		return false, err
	}
	idle = p.Idle          // the portion is gone once it is collected
	denied := s.judgeAll() // before what they would get is collected
	ended, err := s.collect(p)
	if err != nil {
		return false, err
	}
	s.arrive()
	if err := s.flush(); err != nil {
		return false, err
	}
	for _, r := range denied {
		if err := s.rpc.Send(r); err != nil {
			return false, err
		}
	}
	if err := s.compacted(ended); err != nil {
		return false, err
	}
	return idle, s.progress()
}

// listen handles what has been asked meanwhile. If the stream is idle, it waits for that
// or for something to deliver.
func (s *session) listen(ctx context.Context, idle bool) error {
	var tick <-chan time.Time
	if s.ticker != nil {
		tick = s.ticker.C
	}
	if !idle {
		select {
		case r := <-s.requests:
			return s.handle(r)
		case <-tick:
			s.tick()
		case err := <-s.broken:
			return err
		default:
		}
		return ctx.Err()
	}
	select {
	case r := <-s.requests:
		return s.handle(r)
	case <-tick:
		s.tick()
	case err := <-s.broken:
		return err
	case <-s.stream.Ready():
	case <-s.changed:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// collect makes responses of what there is room for, and lets go of the portion before the
// client is waited for.
func (s *session) collect(p *watch.Portion) (ended []watch.Compacted, err error) {
	defer s.stream.Release()
	ended = append(ended, p.Ended...)
	for i := 0; i < len(p.Deliveries); {
		if s.owners[p.Deliveries[i].Watch] == nil { // it was denied
			i++
			continue
		}
		n, err := s.respond(p.Deliveries[i:])
		if errors.Is(err, errNoRoom) {
			s.stream.PutBack(i)
			return ended, nil
		}
		if err != nil {
			return nil, err
		}
		i += n
	}
	return ended, nil
}

// respond makes a response of the first delivery, and of those that follow it for the same
// watch. It returns how many those are.
func (s *session) respond(deliveries []watch.Delivery) (n int, err error) {
	w := s.owners[deliveries[0].Watch]
	size := framing
	for n < len(deliveries) && n < batchRevisions && deliveries[n].Watch == w.watch {
		more, err := s.sizeOf(&deliveries[n], w)
		if err != nil {
			return 0, err
		}
		if n > 0 && size+more > budget.Free {
			break
		}
		n, size = n+1, size+more
	}
	if err := s.makeRoom(size); err != nil {
		return 0, err
	}
	w.quiet = false
	return n, s.encode(w, deliveries[:n])
}

// sizeOf returns at most how long the events of a delivery are.
func (s *session) sizeOf(d *watch.Delivery, w *watcher) (size int, err error) {
	for _, e := range d.Events {
		n, err := s.stream.Size(e, w.form())
		if err != nil {
			return 0, err
		}
		size += n
	}
	return size, nil
}

func (w *watcher) form() *watch.Form {
	if w.previous {
		return previousForm
	}
	return plainForm
}

// makeRoom provides for size more bytes. The error errNoRoom means that what was collected
// has to be sent first; if nothing was, memory is wanted.
func (s *session) makeRoom(size int) error {
	total := s.size + size
	switch {
	case total > batchBytes && s.size > 0:
		return errNoRoom
	case total > budget.Free && s.loan == nil:
		// A claim cannot be raised without the risk of losing it, so it is for a batch.
		if n := int64(max(total, batchBytes)); !s.tryBorrow(n) {
			if s.size == 0 {
				s.wanted = n
			}
			return errNoRoom
		}
	}
	s.size = total
	return nil
}

// encode appends the events as one response, or as several if it is to be split.
func (s *session) encode(w *watcher, deliveries []watch.Delivery) error {
	header := s.server.opts.Header(deliveries[len(deliveries)-1].Revision)
	r := &response{header: header, id: w.id, to: w}
	s.out = append(s.out, r)
	for i := range deliveries {
		for _, e := range deliveries[i].Events {
			b, err := s.stream.Encode(e, w.form())
			if err != nil {
				return err
			}
			if w.fragment && len(r.events) > 0 && r.size+len(b)+framing > s.server.opts.Fragment {
				r.fragment = true
				r = &response{header: header, id: w.id, to: w}
				s.out = append(s.out, r)
			}
			r.add(b)
		}
	}
	return nil
}

// arrive tells watches that have caught up how far that is: the header of the last response
// has the revision through which they have got everything, as in etcd, and not only that of
// the last event.
func (s *session) arrive() {
	through, ok := s.stream.Progress()
	for i := len(s.out) - 1; i >= 0 && ok; i-- {
		// What was put back may be of the same revision.
		if r := s.out[i]; r.to.late && uint64(r.header.Revision) <= through {
			r.to.late = false
			r.header = s.server.opts.Header(through)
		}
	}
}

// flush sends what was collected. gRPC keeps the order of a stream, so the last response is
// written after all others, and returns the loan for them.
func (s *session) flush() error {
	if len(s.out) == 0 {
		s.giveBack()
		return nil
	}
	if s.loan != nil {
		s.loan.lend(s.rpc.Context(), s.server.opts.Grace, s.size)
		s.out[len(s.out)-1].loan = s.loan
		s.lent, s.loan = s.loan, nil
	}
	defer func() {
		clear(s.out)
		s.out, s.size = s.out[:0], 0
	}()
	for _, r := range s.out {
		if err := s.rpc.SendMsg(r); err != nil {
			return err
		}
	}
	return nil
}

// compacted announces watches that have ended because what they were to get is gone.
func (s *session) compacted(ended []watch.Compacted) error {
	for _, c := range ended {
		w := s.owners[c.Watch]
		if w == nil { // it was denied
			continue
		}
		s.forget(w)
		if err := s.sendCompacted(w.id, c.CompactRevision); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) forget(w *watcher) {
	delete(s.watchers, w.id)
	delete(s.owners, w.watch)
}

// tick notes that watches are to be told of progress.
func (s *session) tick() {
	if s.due == 0 {
		s.due = s.server.opts.Watches.Revision()
	}
}

// progress tells of progress if somebody waits for it and the stream has got there.
func (s *session) progress() error {
	if s.asked == 0 && s.due == 0 {
		return nil
	}
	through, ok := s.stream.Progress()
	if !ok || through < s.floor {
		return nil
	}
	if s.asked > 0 && through >= s.asked {
		if s.asked, s.again = s.again, 0; s.asked <= through {
			s.asked = 0 // this is the answer to both
		}
		if err := s.rpc.Send(&pb.WatchResponse{Header: s.server.opts.Header(through), WatchId: wholeStream}); err != nil {
			return err
		}
	}
	if s.due > 0 && through >= s.due {
		s.due = 0
		return s.notify(through)
	}
	return nil
}

// notify tells each quiet watch that asked for it how far the stream is.
func (s *session) notify(through uint64) error {
	for _, w := range s.watchers {
		if w.notify && w.quiet && w.from <= through {
			if err := s.rpc.Send(&pb.WatchResponse{Header: s.server.opts.Header(through), WatchId: w.id}); err != nil {
				return err
			}
		}
		w.quiet = true
	}
	return nil
}
