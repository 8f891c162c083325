package peers

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
)

// refusalReason is why something from outside was refused.
type refusalReason uint8

const (
	refusedType     refusalReason = iota // not a message that members exchange
	refusedSender                        // an impossible sender
	refusedTarget                        // meant for somebody else
	refusedRemoved                       // the sender was removed
	refusedUnknown                       // the sender is not known (yet)
	refusedTerm                          // an impossible term
	refusedIndex                         // an impossible log index
	refusedEntries                       // entries that do not form a piece of a log
	refusedSize                          // too big
	refusedContext                       // a context that raft cannot read
	refusedSnapshot                      // an impossible snapshot
	refusedRequest                       // path, method or headers
	refusedCluster                       // meant for another cluster
	refusedBody                          // a body that cannot be read or decoded
	refusedIdentity                      // the certificate is not the sender's
	refusedBusy                          // too much of this at a time
	refusedPanic                         // the library panicked over it
	refusalReasons
)

var refusalNames = [refusalReasons]string{
	"type", "sender", "target", "removed", "unknown", "term", "index", "entries", "size",
	"context", "snapshot", "request", "cluster", "body", "identity", "busy", "panic",
}

func (r refusalReason) String() string {
	if r < refusalReasons {
		return refusalNames[r]
	}
	return fmt.Sprintf("refusal(%d)", uint8(r))
}

// refusalCounts counts refusals by reason.
type refusalCounts [refusalReasons]atomic.Uint64

func (c *refusalCounts) add(r refusalReason) { c[r].Add(1) }

// snapshot returns the counts by name; all names are there.
func (c *refusalCounts) snapshot() map[string]uint64 {
	out := make(map[string]uint64, len(c))
	for i := range c {
		out[refusalReason(i).String()] = c[i].Load()
	}
	return out
}

// refusalError says why something from outside is refused, and how to answer.
type refusalError struct {
	reason refusalReason
	text   string
}

func refusef(reason refusalReason, format string, args ...any) *refusalError {
	return &refusalError{reason: reason, text: fmt.Sprintf(format, args...)}
}

func (e *refusalError) Error() string { return e.reason.String() + ": " + e.text }

// WriteTo answers a POST. rafthttp panics over an error without this method,
// and a sender that gets 403 takes itself for removed: no other refusal may
// use that status.
func (e *refusalError) WriteTo(w http.ResponseWriter) {
	text := e.Error()
	if e.reason == refusedCluster {
		// What rafthttp on the other side looks for. Its own answer would also
		// tell a stranger the id of this cluster.
		text = rafthttp.ErrClusterIDMismatch.Error()
	}
	http.Error(w, text, e.status())
}

func (e *refusalError) status() int {
	switch e.reason {
	case refusedRemoved:
		return http.StatusForbidden
	case refusedUnknown, refusedBusy:
		return http.StatusServiceUnavailable
	case refusedIdentity:
		return http.StatusUnauthorized
	case refusedCluster:
		return http.StatusPreconditionFailed
	case refusedSize:
		return http.StatusRequestEntityTooLarge
	}
	return http.StatusBadRequest
}

// processError is an error of the Receiver on its way through rafthttp.
type processError struct{ err error }

func (e *processError) Error() string { return "process message: " + e.err.Error() }
func (e *processError) Unwrap() error { return e.err }

// WriteTo answers that the sender may try again.
func (e *processError) WriteTo(w http.ResponseWriter) {
	http.Error(w, e.Error(), http.StatusServiceUnavailable)
}

// raftSide is what rafthttp calls. Only Process may take a lock (T4).
type raftSide struct{ t *Transport }

// Process takes what came over a stream, in a POST, or after a snapshot's body
// was stored.
func (s raftSide) Process(ctx context.Context, m *raftpb.Message) error {
	t := s.t
	if !t.enter() {
		return &processError{errStopping}
	}
	defer t.leave()
	if err := t.vet(m); err != nil {
		return err
	}
	if isSnapshotMessage(m) && !t.expects(m) {
		return t.refuse(refusef(refusedSnapshot, "a MsgSnap without its body"))
	}
	if ctx.Done() == nil { // the handlers pass a context that never ends
		ctx = t.ctx
	}
	if err := t.cfg.Receiver.Process(ctx, m); err != nil {
		return &processError{err}
	}
	return nil
}

func (s raftSide) IsIDRemoved(id uint64) bool { return s.t.cfg.Receiver.IsRemoved(id) }

func (s raftSide) ReportUnreachable(id uint64) { s.t.cfg.Receiver.Unreachable(id) }

// ReportSnapshot is not used: rafthttp does not call it for an unknown peer.
// watchTransfer reports how the transfers end (T1).
func (s raftSide) ReportSnapshot(uint64, raft.SnapshotStatus) {}

// vet decides whether a message may be looked at. An unknown sender is looked
// up meanwhile; raft sends its messages again.
func (t *Transport) vet(m *raftpb.Message) error {
	if err := ValidateMessage(m, t.self.member); err != nil {
		return t.refuse(err)
	}
	switch from := m.GetFrom(); {
	case t.cfg.Receiver.IsRemoved(from):
		return t.refuse(refusef(refusedRemoved, "member %d was removed", from))
	case !t.known(from):
		t.lookUp(from)
		return t.refuse(refusef(refusedUnknown, "member %d is not known here yet", from))
	}
	return nil
}

// refuse counts a refusal.
func (t *Transport) refuse(err error) error {
	if r, ok := err.(*refusalError); ok {
		t.refusals.add(r.reason)
	}
	return err
}

// Limits of the look-ups that strangers can cause.
const (
	maxLookups        = 2                      // at a time
	lookupPace        = 100 * time.Millisecond // between any two
	lookupRetry       = time.Second            // between two for one id
	lookupTimeout     = 3 * time.Second
	maxLookupsNoticed = 256 // ids whose last look-up is remembered
)

// lookupState holds back the look-ups.
type lookupState struct {
	mu struct {
		sync.Mutex
		running int
		any     time.Time            // before it, no look-up
		next    map[uint64]time.Time // id → before it, none for this id
	}
}

// begin reports whether the id may be looked up now; end must follow then.
func (l *lookupState) begin(id uint64, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.running >= maxLookups || now.Before(l.mu.any) || now.Before(l.mu.next[id]) {
		return false
	}
	for old, next := range l.mu.next {
		if !now.Before(next) {
			delete(l.mu.next, old)
		}
	}
	if len(l.mu.next) >= maxLookupsNoticed {
		return false
	}
	l.mu.running++
	l.mu.any = now.Add(lookupPace)
	l.mu.next[id] = now.Add(lookupRetry)
	return true
}

func (l *lookupState) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.running--
}

// lookUp finds out in the background who an unknown sender is, and adds it as
// a remote so that it can be heard and answered: a member that slept through
// changes of the membership must be able to hear its new leader.
func (t *Transport) lookUp(id uint64) {
	if t.cfg.Lookup == nil || !t.lookups.begin(id, time.Now()) {
		return
	}
	if !t.spawn(func() { t.lookUpNow(id) }) {
		t.lookups.end()
	}
}

func (t *Transport) lookUpNow(id uint64) {
	defer t.lookups.end()
	ctx, cancel := context.WithTimeout(t.ctx, lookupTimeout)
	defer cancel()
	urls, ok := t.cfg.Lookup(ctx, id)
	if !ok || t.cfg.Receiver.IsRemoved(id) {
		t.lg.Debug("no member knows the sender", zap.Uint64("sender", id))
		return
	}
	if err := t.AddRemote(id, urls); err != nil {
		t.lg.Warn("cannot add the sender that was looked up", zap.Uint64("sender", id), zap.Error(err))
	}
}
