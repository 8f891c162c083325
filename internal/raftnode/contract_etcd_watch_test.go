package raftnode

import (
	"context"
	"errors"
	"slices"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/watch"
)

// etcdStream is a client of etcd's Watch service: many watches on one stream of the hub,
// with all that package etcdapi/watchrpc does to such a stream. That package serves a
// stream with two goroutines, so it cannot run here itself.
type etcdStream struct {
	c      *client
	all    []*watcher
	member *simNode
	hub    *watch.Hub
	stream *watch.Stream // nil: not connected
	owners map[*watch.Watch]*watcher
	// asked is the revision that has to be passed before progress of the whole stream is
	// told; 0: nobody has asked. floor is the newest revision at which a watch was created.
	asked, floor uint64
}

const etcdWatches = 4 // at once on a stream

// use takes one step, after a request or two.
func (st *etcdStream) use(c *client) {
	st.c = c
	if len(st.all) < etcdWatches && c.one(3) {
		st.all = append(st.all, st.newWatch())
	}
	if c.one(20) && len(st.all) > 0 {
		st.cancel(c.w.s.rng.IntN(len(st.all)))
	}
	if c.one(8) && st.stream != nil && st.asked == 0 {
		st.asked = st.hub.Revision()
	}
	st.step()
	if c.one(30) {
		st.leave()
	}
	c.pause(span{milli, []int64{100 * milli, 2 * second}[c.w.s.rng.IntN(2)]})
}

// newWatch returns a watch of a key, of some, or of all, with filters, from now on, or from
// a revision of the past or the future.
func (st *etcdStream) newWatch() *watcher {
	c := st.c
	v := &watcher{c: c}
	key, end := c.etcdRange()
	switch {
	case len(end) == 0:
		v.spec = watch.Spec{Start: key, Single: true}
	case string(end) == "\x00":
		v.spec = watch.Spec{Start: key}
	default:
		v.spec = watch.Spec{Start: []byte(etcdPrefix), End: prefixEnd(etcdPrefix)}
	}
	v.spec.NoPuts, v.spec.NoDeletes = c.one(5), c.one(5)
	if newest := c.w.truth.store.Revision(); c.half() {
		v.next = max(newest+3-c.w.s.rng.Uint64N(min(newest+1, 60)), 2)
	}
	return v
}

func (st *etcdStream) cancel(i int) {
	if v := st.all[i]; v.watch != nil {
		delete(st.owners, v.watch)
		st.stream.Remove(v.watch)
	}
	st.all = slices.Delete(st.all, i, i+1)
}

// step connects if need be, and takes what there is. It returns whether that was all.
func (st *etcdStream) step() (idle bool) {
	if st.stream != nil && (!st.member.up || storeOf(st.member).hub != st.hub) {
		st.lose()
	}
	if st.stream == nil && !st.connect() {
		return false
	}
	for _, v := range st.all {
		if v.watch == nil {
			st.create(v)
		}
	}
	p, err := st.stream.Next(context.Background())
	if err != nil {
		st.leave()
		return false
	}
	idle = p.Idle
	ended := slices.Clone(p.Ended)
	st.collect(p)
	for _, e := range ended {
		st.end(e)
	}
	st.progress()
	return idle
}

func (st *etcdStream) connect() bool {
	n, hub, stream := openStream(st.c.w.s)
	if stream == nil {
		return false
	}
	st.member, st.hub, st.stream, st.owners = n, hub, stream, make(map[*watch.Watch]*watcher)
	return true
}

// create adds a watch to the stream. One whose revision is gone goes on where it can.
func (st *etcdStream) create(v *watcher) {
	spec := v.spec
	spec.From = v.next
	w, revision, err := st.stream.Add(spec)
	var gone *kvstore.CompactedError
	if errors.As(err, &gone) {
		v.member = st.member
		v.compacted(gone.CompactRevision)
	}
	if err != nil {
		return
	}
	if v.next == 0 {
		v.next = revision + 1
	}
	v.member, v.stream, v.watch = st.member, st.stream, w
	st.owners[w] = v
	st.floor = max(st.floor, revision)
}

// collect takes what was delivered, or a part of it, and puts the rest back, as if there
// was no room.
func (st *etcdStream) collect(p *watch.Portion) {
	room := len(p.Deliveries)
	if room > 0 && st.c.one(6) {
		room = st.c.w.s.rng.IntN(room)
	}
	for i := range p.Deliveries[:room] {
		if v := st.owners[p.Deliveries[i].Watch]; v != nil {
			v.take(&p.Deliveries[i])
		}
	}
	if room < len(p.Deliveries) {
		st.c.w.s.reach(etcdPutBack)
		st.stream.PutBack(room)
		return
	}
	st.stream.Release()
}

func (st *etcdStream) end(e watch.Compacted) {
	v := st.owners[e.Watch]
	if v == nil {
		return
	}
	delete(st.owners, e.Watch)
	v.watch = nil
	v.compacted(e.CompactRevision)
	st.c.w.s.reachIf(etcdCompactedAlone, len(st.owners) > 0)
}

// progress takes the answer to a request for it: everything up to it was delivered.
func (st *etcdStream) progress() {
	through, ok := st.stream.Progress()
	if st.c.w.s.opts.bug == bugProgressAhead {
		through, ok = st.hub.Revision(), true
	}
	if !ok || st.asked == 0 || through < max(st.asked, st.floor) {
		return
	}
	st.c.w.s.reach(etcdProgress)
	st.asked = 0
	for _, v := range st.owners {
		v.passed(through + 1)
	}
}

// lose forgets a connection that broke, and leave ends one.
func (st *etcdStream) lose() {
	st.stream, st.asked, st.floor = nil, 0, 0
	for _, v := range st.all {
		v.watch, v.stream = nil, nil
	}
}

func (st *etcdStream) leave() {
	if st.stream != nil && st.member.up && storeOf(st.member).hub == st.hub {
		st.stream.Close()
	}
	st.lose()
}

// catchUp reads until all watches have everything.
func (st *etcdStream) catchUp() bool {
	for st.c.w.s.violation == nil {
		idle := st.step()
		if st.stream == nil || len(st.owners) < len(st.all) {
			return false
		}
		if !idle {
			continue
		}
		st.asked = st.c.w.truth.store.Revision()
		st.progress()
		return st.asked == 0
	}
	return false
}
