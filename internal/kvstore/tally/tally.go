package tally

import (
	"context"
	"errors"
	"slices"

	"github.com/kvd-io/kvd/internal/kvstore/changelog"
	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/kvstore/walk"
)

// Grain is the usual number of keys in a bucket.
const Grain = 1024

// maxBytes bounds the memory of the buckets. With more, buckets become larger.
const maxBytes = 1 << 20

// Bounds of the revisions to go along the change log instead of walking: a change in the log
// costs about a quarter of a step of a walk.
const (
	fewRevisions  = 1 << 12
	manyRevisions = 1 << 20
)

// looksPerTurn bounds the walk of a turn: 16,384 keys, which take about 30 ms.
const looksPerTurn = 64

// Tally counts the keys of ranges. It is safe for concurrent use.
type Tally struct {
	// turn is full while somebody reads or changes the fields below. It is a channel
	// because whoever waits for it may lose patience.
	turn chan struct{}
	few  uint64 // keys that are not worth a turn; does not change

	grain      int64 // keys of a bucket when it is made; few, or more to save memory
	generation uint64
	revision   uint64
	buckets    []bucket // in order; the first one starts with the empty key
}

// bucket is the keys from its start to that of the next bucket.
type bucket struct {
	start string
	keys  int64 // that exist, or unknown
}

const unknown = -1

// bucketBytes is what a bucket takes beside its key.
const bucketBytes = 24

// New returns a tally that knows nothing, with grain keys in a bucket.
func New(grain int64) *Tally {
	return &Tally{turn: make(chan struct{}, 1), few: uint64(grain), grain: grain}
}

// Few is the number of keys up to which walking over a range is cheaper than Count.
func (t *Tally) Few() uint64 { return t.few }

// Source is a store at one moment.
type Source struct {
	engine.Snapshot
	// Generation counts how often the whole state was replaced.
	Generation uint64
	// Newest and Compact are the bounds of the revisions that can be read, and Keys is the
	// number of all keys at the newest one.
	Newest, Compact, Keys uint64
	// At is the revision to count at.
	At uint64
}

// span is the keys from start to end; a nil end is open.
type span struct{ start, end []byte }

func (s span) has(key []byte) bool {
	return string(key) >= string(s.start) && s.endsAfter(string(key))
}

func (s span) endsAfter(key string) bool { return s.end == nil || key < string(s.end) }

// count is a count under way.
type count struct {
	ctx context.Context //nolint:containedctx // it lives as long as the call that has it
	span
	// What the last turn found.
	src   Source
	keys  int64
	walks []span // what has to be walked over at the revision in at
	at    uint64
}

// Count returns the number of keys in start <= key < end, and the revision of that. A nil
// end is open. pin returns the store as it is when it is called, which is once in each turn;
// Count closes what it returns. Besides its errors, those of Count are the context's and the
// engine's.
func (t *Tally) Count(ctx context.Context, start, end []byte, pin func() (Source, error)) (keys, at uint64, err error) {
	c := &count{ctx: ctx, span: span{start, end}}
	for known := false; !known; {
		if known, err = t.takeTurn(c, pin); err != nil {
			return 0, 0, err
		}
	}
	err = errors.Join(c.finish(), c.src.Close())
	return uint64(max(c.keys, 0)), c.src.At, err
}

// takeTurn reports whether the tally knows the range. If not, it knows a piece more of it
// than before.
func (t *Tally) takeTurn(c *count, pin func() (Source, error)) (known bool, err error) {
	if err := c.ctx.Err(); err != nil {
		return false, err
	}
	select {
	case t.turn <- struct{}{}:
		defer func() { <-t.turn }()
	case <-c.ctx.Done():
		return false, c.ctx.Err()
	}
	// A store that is pinned in turn is never older than the tally.
	if c.src, err = pin(); err != nil {
		return false, err
	}
	if known, err = t.look(c); !known {
		err = errors.Join(err, c.src.Close())
	}
	return known, err
}

func (t *Tally) look(c *count) (known bool, err error) {
	c.keys, c.walks, c.at = 0, nil, c.src.At
	if c.src.Newest-c.src.At > max(fewRevisions, c.src.Keys/4) {
		c.walks = []span{c.span}
		return true, nil
	}
	c.at = c.src.Newest
	if len(c.start) == 0 && c.end == nil {
		c.keys = int64(c.src.Keys)
		return true, nil
	}
	if err := t.advance(c); err != nil {
		return false, err
	}
	return t.add(c)
}

// advance moves the tally to the newest revision. If the context ends on the way, the tally
// stays at the revision that it has come to.
func (t *Tally) advance(c *count) error {
	src := &c.src
	far := src.Newest-t.revision > min(max(fewRevisions, src.Keys), manyRevisions)
	if t.buckets == nil || t.generation != src.Generation || t.revision+1 < src.Compact || far {
		t.grain, t.generation, t.revision = int64(t.few), src.Generation, src.Newest
		t.buckets = []bucket{{keys: int64(src.Keys)}}
		return nil
	}
	at, err := c.eachCreated(t.revision, src.Newest, func(key []byte, by int64) {
		if b := &t.buckets[t.find(key)]; b.keys != unknown {
			b.keys += by
		}
	})
	if err != nil {
		t.buckets = nil // it may have come half of the way through a revision
		return err
	}
	if t.revision = at; at < src.Newest {
		return c.ctx.Err()
	}
	return nil
}

// eachCreated calls fn with each key that was created (1) or deleted (-1) after a revision
// up to another. It returns the revision up to which fn has seen everything: the last one, or
// one before it if the context has ended.
func (c *count) eachCreated(after, until uint64, fn func(key []byte, by int64)) (at uint64, err error) {
	if after == until {
		return until, nil
	}
	at = until
	passed, current := 0, after // changes since the last look at the context, and their revision
	err = changelog.Each(c.src, after+1, until, func(revision uint64, change *changelog.Change) (more bool, err error) {
		if revision > current && passed >= walk.WorkPerLook {
			if passed = 0; c.ctx.Err() != nil {
				at = revision - 1
				return false, nil
			}
		}
		current = revision
		passed++
		switch {
		case change.Deleted: // only what exists is deleted
			fn(change.Key, -1)
		case change.Previous == 0:
			fn(change.Key, 1)
		}
		return true, nil
	})
	return at, err
}

// find returns the position of the bucket that a key is in.
func (t *Tally) find(key []byte) int {
	low, high := 0, len(t.buckets) // the bucket is in low <= i < high
	for high-low > 1 {
		if mid := (low + high) / 2; t.buckets[mid].start <= string(key) {
			low = mid
		} else {
			high = mid
		}
	}
	return low
}

// add adds up what is known of the range. At the first part that is not known, or is large
// and only in part in the range, it divides a piece of that and is done for this turn.
func (t *Tally) add(c *count) (known bool, err error) {
	for i := t.find(c.start); i < len(t.buckets) && c.endsAfter(t.buckets[i].start); i++ {
		switch keys := t.buckets[i].keys; {
		case keys != unknown && t.within(i, c.span):
			c.keys += keys
		case keys != unknown && keys <= 2*t.grain:
			c.walks = append(c.walks, t.partOf(i, c.span))
		default:
			return false, t.divide(c, i, t.partOf(i, c.span))
		}
	}
	return true, nil
}

// endOf returns where the bucket at i ends, or an empty key.
func (t *Tally) endOf(i int) string {
	if i+1 == len(t.buckets) {
		return ""
	}
	return t.buckets[i+1].start
}

// within reports whether all of the bucket at i is in a range.
func (t *Tally) within(i int, s span) bool {
	end := t.endOf(i)
	return t.buckets[i].start >= string(s.start) && (s.end == nil || end != "" && end <= string(s.end))
}

// partOf returns what the bucket at i and a range have in common.
func (t *Tally) partOf(i int, s span) span {
	if start := t.buckets[i].start; start > string(s.start) {
		s.start = []byte(start)
	}
	if end := t.endOf(i); end != "" && s.endsAfter(end) {
		s.end = []byte(end)
	}
	return s
}

// divide makes buckets of a piece of s, which is a part of the bucket at i. What is left of
// the bucket on both sides is unknown, unless it is all that is.
func (t *Tally) divide(c *count, i int, s span) error {
	parts, end, err := t.walk(c, s)
	if err != nil {
		return err
	}
	if start := t.buckets[i].start; start < string(s.start) {
		parts = slices.Insert(parts, 0, bucket{start, unknown})
	}
	if string(end) != t.endOf(i) {
		parts = append(parts, bucket{string(end), unknown})
	}
	t.buckets = slices.Replace(t.buckets, i, i+1, parts...)
	t.join(0)
	t.bound()
	t.complete(int64(c.src.Keys))
	return nil
}

// errPause ends the walk of a turn.
var errPause = errors.New("the turn is over")

// walk walks over keys at the tally's revision and divides them into buckets, until s ends,
// the turn is over, or the context has ended. It returns the key that it has come to.
func (t *Tally) walk(c *count, s span) (parts []bucket, end []byte, err error) {
	it, err := c.src.Iter(layout.VersionBounds(s.start, s.end))
	if err != nil {
		return nil, nil, err
	}
	looks := 0
	w := walk.New(it, walk.Range{}, t.revision, func() error {
		if looks++; looks == looksPerTurn || c.ctx.Err() != nil {
			return errPause
		}
		return nil
	})
	defer w.Close()
	start := string(s.start)
	for {
		n, err := w.CountUpTo(uint64(t.grain))
		paused := errors.Is(err, errPause)
		if err != nil && !paused {
			return nil, nil, err
		}
		parts = append(parts, bucket{start, int64(n)}) // join removes an empty one
		ahead, err := w.Ahead()
		if err != nil {
			return nil, nil, err
		}
		if ahead == nil {
			return parts, s.end, nil
		}
		if paused {
			return parts, ahead, nil
		}
		start = string(ahead)
	}
}

// bound makes buckets larger until they take no more than maxBytes. The grain grows each
// time: a walk whose piece is forgotten again and again would not end.
func (t *Tally) bound() {
	for t.bytes() > maxBytes {
		t.grain *= 2
		t.join(0)
		t.join(t.grain / 2)
	}
}

func (t *Tally) bytes() (n int) {
	for i := range t.buckets {
		n += bucketBytes + len(t.buckets[i].start)
	}
	return n
}

// join makes one bucket of neighbors that together have no more keys than the grain, or are
// both unknown. One of fewer keys than forget beside one that is unknown is forgotten.
func (t *Tally) join(forget int64) {
	kept := t.buckets[:1]
	for _, b := range t.buckets[1:] {
		last := &kept[len(kept)-1]
		switch {
		case last.keys != unknown && b.keys != unknown:
			if last.keys+b.keys <= t.grain {
				last.keys += b.keys
				continue
			}
		case last.keys < forget && b.keys < forget: // as what is unknown always is
			last.keys = unknown
			continue
		}
		kept = append(kept, b)
	}
	clear(t.buckets[len(kept):])
	t.buckets = kept
}

// complete fills in the only bucket that is unknown, if one is, from the number of all keys.
func (t *Tally) complete(all int64) {
	var missing []*bucket
	for i := range t.buckets {
		if b := &t.buckets[i]; b.keys == unknown {
			missing = append(missing, b)
		} else {
			all -= b.keys
		}
	}
	if len(missing) == 1 {
		missing[0].keys = all
	}
}

// finish walks over what is left, and goes back to the revision that was asked for.
func (c *count) finish() error {
	for _, s := range c.walks {
		it, err := c.src.Iter(layout.VersionBounds(s.start, s.end))
		if err != nil {
			return err
		}
		w := walk.New(it, walk.Range{}, c.at, c.ctx.Err)
		n, err := w.Count()
		w.Close()
		if err != nil {
			return err
		}
		c.keys += int64(n)
	}
	at, err := c.eachCreated(c.src.At, c.at, func(key []byte, by int64) {
		if c.has(key) {
			c.keys -= by
		}
	})
	if err == nil && at < c.at {
		err = c.ctx.Err()
	}
	return err
}
