package lessor

import "time"

// deadlines is a heap of leases by their deadlines, for container/heap.
type deadlines []*entry

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].deadline < d[j].deadline }

func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].place, d[j].place = i, j
}

func (d *deadlines) Push(x any) {
	e := x.(*entry)
	e.place = len(*d)
	*d = append(*d, e)
}

func (d *deadlines) Pop() any {
	last := len(*d) - 1
	e := (*d)[last]
	(*d)[last] = nil // the array outlives the lease
	*d, e.place = (*d)[:last], -1
	return e
}

// maxStep is the longest time between two looks at the clock that counts in full.
// It is twice the longest pause, so that a busy machine does not slow leases down.
const maxStep = time.Second

// stopwatch measures the time during which this process ran. A process that was
// suspended for a minute finds every deadline passed when it continues, though the
// keep-alives that would have moved them are waiting in its sockets (T5). A step
// therefore counts up to maxStep. The stopwatch may fall behind true time, which
// makes leases longer, and never runs ahead of it.
type stopwatch struct {
	read  time.Time // of the last look, with its monotonic reading
	total time.Duration
}

func (s *stopwatch) now(t time.Time) time.Duration {
	s.total += min(max(t.Sub(s.read), 0), maxStep)
	s.read = t
	return s.total
}
