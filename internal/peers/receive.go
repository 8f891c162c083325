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

// refusalReason is why a request or a message from outside was refused.
type refusalReason uint8

const (
	refusedType     refusalReason = iota // a type that members do not exchange
	refusedSender                        // an impossible sender
	refusedTarget                        // addressed to another member
	refusedRemoved                       // the sender was removed
	refusedUnknown                       // the sender is not known, or not yet
	refusedTerm                          // an impossible term
	refusedIndex                         // an impossible log index
	refusedEntries                       // entries that are not a section of a log
	refusedSize                          // over a size limit
	refusedContext                       // a context that raft cannot read
	refusedSnapshot                      // an impossible snapshot
	refusedRequest                       // path, method, or headers
	refusedCluster                       // addressed to another cluster
	refusedBody                          // a body that cannot be read or decoded
	refusedIdentity                      // the certificate does not match the sender
	refusedRoom                          // the disk is too full for the body
	refusedBusy                          // a limit on what runs at the same time
	refusedPanic                         // a library panicked
	refusedClone                         // another process of the same member is listened to
	refusalReasons
)

var refusalNames = [refusalReasons]string{
	"type", "sender", "target", "removed", "unknown", "term", "index", "entries", "size",
	"context", "snapshot", "request", "cluster", "body", "identity", "room", "busy", "panic", "clone",
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

// snapshot returns the counts of all reasons, including those that are 0.
func (c *refusalCounts) snapshot() map[string]uint64 {
	out := make(map[string]uint64, len(c))
	for i := range c {
		out[refusalReason(i).String()] = c[i].Load()
	}
	return out
}

// refusalError is the answer to a request or a message that was refused.
type refusalError struct {
	reason refusalReason
	text   string
}

func refusef(reason refusalReason, format string, args ...any) *refusalError {
	return &refusalError{reason: reason, text: fmt.Sprintf(format, args...)}
}

func (e *refusalError) Error() string { return e.reason.String() + ": " + e.text }

// WriteTo answers a POST. rafthttp looks for this method in the errors of its
// receiver; its handler of POSTs panics over an error without it.
func (e *refusalError) WriteTo(w http.ResponseWriter) {
	text := e.Error()
	if e.reason == refusedCluster {
		// The rafthttp on the other side compares with this text.
		text = rafthttp.ErrClusterIDMismatch.Error()
	}
	http.Error(w, text, e.status())
}

// status returns the HTTP status for a POST. No reason but refusedRemoved may
// have the status 403 (T5).
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
	case refusedRoom:
		return http.StatusInsufficientStorage
	case refusedClone:
		return http.StatusConflict
	case refusedSize:
		return http.StatusRequestEntityTooLarge
	}
	return http.StatusBadRequest
}

// processError carries an error of the Receiver through rafthttp.
type processError struct{ err error }

func (e *processError) Error() string { return "process message: " + e.err.Error() }
func (e *processError) Unwrap() error { return e.err }

// WriteTo answers that the sender may try again.
func (e *processError) WriteTo(w http.ResponseWriter) {
	http.Error(w, e.Error(), http.StatusServiceUnavailable)
}

// callbacks is what rafthttp calls. None of them may take Transport.change (T4).
type callbacks struct{ t *Transport }

// Process takes a message: from a stream, from a POST, or from a snapshot request
// whose body rafthttp has stored.
func (c callbacks) Process(ctx context.Context, m *raftpb.Message) error {
	t := c.t
	if !t.enter() {
		return &processError{errStopping}
	}
	defer t.leave()
	if err := t.vet(m); err != nil {
		return err
	}
	if ctx.Done() == nil { // rafthttp's handlers pass a context that never ends
		ctx = t.ctx
	}
	if isSnapshotMessage(m) {
		if err := t.vetBody(ctx, m); err != nil {
			return err
		}
	}
	if err := t.cfg.Receiver.Process(ctx, m); err != nil {
		return &processError{err}
	}
	return nil
}

// IsIDRemoved is rafthttp's question before it serves a stream.
func (c callbacks) IsIDRemoved(id uint64) bool { return c.t.cfg.Receiver.IsRemoved(id) }

// ReportUnreachable is called for each message that rafthttp could not send.
func (c callbacks) ReportUnreachable(id uint64) { c.t.cfg.Receiver.Unreachable(id) }

// ReportSnapshot does nothing. rafthttp does not call it when the peer is
// unknown, so awaitTransfer reports how transfers end (T1).
func (c callbacks) ReportSnapshot(uint64, raft.SnapshotStatus) {}

// vet decides whether the Receiver may see a message. It has an unknown sender
// looked up in the background; raft repeats what it sends, so refusing the message
// loses nothing.
func (t *Transport) vet(m *raftpb.Message) error {
	if err := ValidateMessage(m, t.self.member); err != nil {
		return t.refuse(err)
	}
	switch from := m.GetFrom(); {
	case t.cfg.Receiver.IsRemoved(from):
		return t.refuse(refusef(refusedRemoved, "member %d was removed from the cluster", from))
	case !t.known(from):
		t.lookUp(from)
		return t.refuse(refusef(refusedUnknown, "member %d is not known yet", from))
	}
	return nil
}

// vetBody decides whether the body of a snapshot may be used. It is on disk as a
// whole by now, and nothing refers to it: if it is refused here, the snapshot has
// had no effect, and the sender learns why its transfer failed. Once raft has
// taken the message it is too late: the log refers to the body then, and a body
// that cannot be read would end this member and each later start of it.
//
// A MsgSnap without a body can arrive on a stream, which the guard does not see.
func (t *Transport) vetBody(ctx context.Context, m *raftpb.Message) error {
	if !t.expects(m) {
		return t.refuse(refusef(refusedSnapshot, "MsgSnap without a body"))
	}
	if err := t.cfg.Bodies.Check(ctx, m.GetSnapshot()); err != nil {
		return t.refuse(refusef(refusedSnapshot, "%v", err))
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
	maxLookups        = 2                      // at the same time
	lookupPace        = 100 * time.Millisecond // between any two
	lookupRetry       = time.Second            // between two for the same id
	lookupTimeout     = 3 * time.Second
	maxLookupsNoticed = 256 // ids whose last look-up is remembered
)

// lookupState limits the rate of look-ups. Without it, anyone who reaches the
// peer port could make this member ask all others as fast as requests arrive.
type lookupState struct {
	mu struct {
		sync.Mutex // held by handlers to begin and end a look-up, not while it runs
		running    int
		any        time.Time            // no look-up starts earlier
		next       map[uint64]time.Time // id → no look-up of it starts earlier
	}
}

// begin reports whether the id may be looked up now. If so, the caller must call
// end afterwards.
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

// lookUp finds out in the background who an unknown sender is, and adds it as a
// remote. A member that slept through changes of the membership can then hear its
// new leader, which is how it learns of those changes.
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
	// It may have been removed while the others were asked.
	if !ok || t.cfg.Receiver.IsRemoved(id) {
		t.lg.Debug("unknown sender not found", zap.Uint64("sender", id))
		return
	}
	if err := t.addRemote(id, urls); err != nil {
		t.lg.Warn("unknown sender not added", zap.Uint64("sender", id), zap.Error(err))
	}
}
