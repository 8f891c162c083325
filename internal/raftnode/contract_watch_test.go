package raftnode

import (
	"bytes"
	"context"
	"errors"
	"reflect"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/watch"
)

// watcher is a client that watches keys, at its own pace, and goes on at another member
// when it wants, or has to.
type watcher struct {
	c     *client
	spec  watch.Spec
	slow  span
	next  uint64 // the first revision that it has not accounted for
	again bool   // it was connected before

	member *simNode
	hub    *watch.Hub
	stream *watch.Stream
	watch  *watch.Watch // of a stream with others
	// restored is the last snapshot that the member had installed.
	restored uint64
}

// watchers have different interests and speeds.
func newWatcher(w *contractWorld, number int) *watcher {
	v := &watcher{next: 2, slow: span{milli, 100 * milli}}
	switch number % 4 {
	case 0:
	case 1:
		v.spec = watch.Spec{Start: []byte("r/"), End: prefixEnd("r/"), NoDeletes: w.s.chance(0.3)}
	case 2:
		v.spec = watch.Spec{Start: []byte("count/all"), Single: true}
	default:
		v.spec = watch.Spec{Start: []byte("lease/"), End: prefixEnd("r/"), NoPuts: w.s.chance(0.3)}
	}
	if number%2 == 0 {
		v.slow.max = 4 * second
	}
	return v
}

// use takes one step.
func (v *watcher) use(c *client) {
	v.c = c
	v.step()
	c.pause(v.slow)
	if c.w.s.chance(0.05) {
		v.leave()
	}
}

// step reads once, from the member that it is connected to. It returns whether there was
// nothing to read.
func (v *watcher) step() (idle bool) {
	if v.stream != nil && (!v.member.up || storeOf(v.member).hub != v.hub) {
		v.c.w.s.reach(watchAcrossCrash)
		v.stream = nil // the connection broke
	}
	if v.stream == nil && !v.connect() {
		return false
	}
	v.c.w.s.reachIf(watchAcrossInstall, storeOf(v.member).restored != v.restored)
	v.restored = storeOf(v.member).restored
	p, err := v.stream.Next(context.Background())
	if err != nil {
		v.leave()
		return false
	}
	for _, d := range p.Deliveries {
		v.take(&d)
	}
	for _, e := range p.Ended {
		v.c.w.s.reach(compactionInStream)
		v.compacted(e.CompactRevision)
	}
	if len(p.Ended) > 0 {
		v.leave()
		return false
	}
	if through, ok := v.stream.Progress(); ok {
		v.passed(through + 1)
	}
	idle = p.Idle
	v.stream.Release()
	return idle
}

func (v *watcher) connect() bool {
	n, hub, stream := openStream(v.c.w.s)
	if stream == nil {
		return false
	}
	spec := v.spec
	spec.From = v.next
	if v.again && v.c.w.s.opts.bug == bugResumeOffByOne {
		spec.From++
	}
	_, _, err := stream.Add(spec)
	var gone *kvstore.CompactedError
	if errors.As(err, &gone) {
		v.c.w.s.reachIf(compactionInResume, v.again)
		v.compacted(gone.CompactRevision)
	}
	if err != nil {
		stream.Close()
		return false
	}
	if v.again {
		v.c.w.stats.resumed++
		v.c.w.s.reachIf(resumeAhead, v.next > storeOf(n).store.Revision()+1)
	}
	v.restored = storeOf(n).restored
	v.member, v.hub, v.stream, v.again = n, hub, stream, true
	return true
}

// openStream opens a stream at any member; it is nil if that is down or stopping.
func openStream(s *sim) (n *simNode, hub *watch.Hub, stream *watch.Stream) {
	if n = s.anyNode(); !n.up {
		return n, nil, nil
	}
	hub = storeOf(n).hub
	stream, _ = hub.OpenStream()
	return n, hub, stream
}

func (v *watcher) leave() {
	if v.stream != nil && v.member.up && storeOf(v.member).hub == v.hub {
		v.stream.Close()
	}
	v.stream = nil
}

func (v *watcher) wants(e *kvstore.Event) bool {
	switch {
	case e.Deleted && v.spec.NoDeletes || !e.Deleted && v.spec.NoPuts:
		return false
	case v.spec.Single:
		return bytes.Equal(e.KV.Key, v.spec.Start)
	}
	return bytes.Compare(e.KV.Key, v.spec.Start) >= 0 && (v.spec.End == nil || bytes.Compare(e.KV.Key, v.spec.End) < 0)
}

// take checks X6 for the events of a revision.
func (v *watcher) take(d *watch.Delivery) {
	s := v.c.w.s
	if newest := v.c.w.truth.store.Revision(); d.Revision > newest {
		s.violate("X6: member %d delivers revision %d, and the newest that is committed is %d", v.member.id, d.Revision, newest)
		return
	}
	if d.Revision < v.next {
		s.violate("X6: member %d delivers revision %d again, or out of order: the next is %d", v.member.id, d.Revision, v.next)
		return
	}
	v.passed(d.Revision)
	want := v.c.w.truth.eventsOf(d.Revision, v.wants)
	v.next = d.Revision + 1
	if len(want) != len(d.Events) {
		s.violate("X6: member %d delivers %d events of revision %d, want %d", v.member.id, len(d.Events), d.Revision, len(want))
		return
	}
	v.c.w.stats.events += len(want)
	v.c.w.s.reachIf(eventsInOne, len(want) > 1)
	for i, e := range d.Events {
		if e.Deleted != want[i].Deleted || !reflect.DeepEqual(e.KV, want[i].KV) {
			s.violate("X6: event %d of revision %d is %+v, want %+v", i, d.Revision, e.KV, want[i].KV)
		}
		v.checkPrevious(e)
	}
}

// checkPrevious compares the previous pair with that of the replica that judges, unless
// one of them has compacted it.
func (v *watcher) checkPrevious(e *watch.Event) {
	got, err := v.stream.Previous(e)
	if err != nil {
		v.c.w.s.violateUnlessDamaged("X6: previous pair", err)
		return
	}
	store := v.c.w.truth.store
	want, _, err := store.Get(e.KV.Key, e.KV.ModRevision-1)
	var gone *kvstore.CompactedError
	switch {
	case errors.As(err, &gone):
	case errors.Is(err, kvstore.ErrKeyNotFound) != (got == nil), got != nil && !reflect.DeepEqual(*got, want):
		v.c.w.s.violate("X6: the pair before %q at revision %d is %+v, want %+v", e.KV.Key, e.KV.ModRevision, got, want)
	}
}

// passed checks that nothing was left out before a revision.
func (v *watcher) passed(to uint64) {
	newest := v.c.w.truth.store.Revision()
	if to > newest+1 {
		v.c.w.s.violate("X6: member %d tells progress through %d, and the newest revision is %d", v.member.id, to-1, newest)
		return
	}
	for ; v.next < to; v.next++ {
		if missing := v.c.w.truth.eventsOf(v.next, v.wants); len(missing) > 0 {
			v.c.w.s.violate("X6: member %d leaves out revision %d, and is at %d", v.member.id, v.next, to)
			return
		}
	}
}

// compacted continues where it can after the history was compacted.
func (v *watcher) compacted(revision uint64) {
	if compact := v.c.w.truth.store.CompactRevision(); revision <= v.next || revision > compact {
		v.c.w.s.violate("X6: a watch at revision %d ends as compacted to %d, and the compact revision is %d", v.next, revision, compact)
	}
	v.next = max(v.next, revision)
}

// catchUp reads until it has everything.
func (v *watcher) catchUp() bool {
	for v.next <= v.c.w.truth.store.Revision() {
		if v.step() && v.next <= v.c.w.truth.store.Revision() {
			return false
		}
		if v.stream == nil || v.c.w.s.violation != nil {
			return false
		}
	}
	return true
}
