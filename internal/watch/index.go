package watch

import (
	"bytes"
	"math/rand/v2"
)

// index finds the watches that a key concerns. Single keys are in a hash map, ranges in
// a treap: a binary tree that is ordered by start and end, balanced by random
// priorities, in which each node knows the greatest end below it (an interval tree; see
// Cormen et al., Introduction to Algorithms, on augmenting data structures, and Aragon
// and Seidel, Randomized Search Trees, 1989).
//
// The lock of the hub protects it. The index of a stream belongs to the stream.
type index struct {
	keys   map[string]*spot
	ranges *rangeNode
}

// spot is a key or a range with everybody who watches it.
type spot struct {
	watches []*Watch
	// batch is the number of the batch that last touched the spot. The streams of its
	// watches have been signaled then, and one signal is enough for a batch.
	batch uint64
}

type rangeNode struct {
	spot
	start, end  []byte // a nil end is open
	maxEnd      []byte // the greatest end in this subtree
	priority    uint32
	left, right *rangeNode
}

// add adds a watch.
func (x *index) add(w *Watch) {
	s := x.spotOf(w)
	s.watches = append(s.watches, w)
}

// spotOf returns the spot of a watch, which it makes if there is none.
func (x *index) spotOf(w *Watch) *spot {
	if w.spec.Single {
		if x.keys == nil {
			x.keys = make(map[string]*spot)
		}
		s := x.keys[string(w.spec.Start)]
		if s == nil {
			s = new(spot)
			x.keys[string(w.spec.Start)] = s
		}
		return s
	}
	n := x.ranges.find(w.spec.Start, w.spec.End)
	if n == nil {
		n = &rangeNode{start: w.spec.Start, end: w.spec.End, maxEnd: w.spec.End, priority: rand.Uint32()}
		x.ranges = x.ranges.insert(n)
	}
	return &n.spot
}

// remove removes a watch, and its spot if nobody else is there.
func (x *index) remove(w *Watch) {
	if w.spec.Single {
		if s := x.keys[string(w.spec.Start)]; s.drop(w) {
			delete(x.keys, string(w.spec.Start))
		}
		return
	}
	if n := x.ranges.find(w.spec.Start, w.spec.End); n.drop(w) {
		x.ranges = x.ranges.remove(n)
	}
}

// drop removes a watch from the spot, and reports whether the spot is now empty.
func (s *spot) drop(w *Watch) bool {
	last := len(s.watches) - 1
	for i := range s.watches {
		if s.watches[i] == w {
			s.watches[i], s.watches[last] = s.watches[last], nil
			s.watches = s.watches[:last]
			break
		}
	}
	return last == 0
}

// visit appends the spots of a key.
func (x *index) visit(key []byte, found []*spot) []*spot {
	if s := x.keys[string(key)]; s != nil {
		found = append(found, s)
	}
	return x.ranges.visit(key, found)
}

func (n *rangeNode) visit(key []byte, found []*spot) []*spot {
	for n != nil && before(key, n.maxEnd) {
		found = n.left.visit(key, found)
		if bytes.Compare(key, n.start) < 0 {
			break // the ranges to the right begin even later
		}
		if before(key, n.end) {
			found = append(found, &n.spot)
		}
		n = n.right
	}
	return found
}

// before reports whether a key is below the end of a range.
func before(key, end []byte) bool { return end == nil || bytes.Compare(key, end) < 0 }

// compareEnds orders the ends of ranges; an open one is the greatest.
func compareEnds(a, b []byte) int {
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil:
		return 1
	case b == nil:
		return -1
	}
	return bytes.Compare(a, b)
}

func (n *rangeNode) compare(start, end []byte) int {
	if c := bytes.Compare(start, n.start); c != 0 {
		return c
	}
	return compareEnds(end, n.end)
}

func (n *rangeNode) find(start, end []byte) *rangeNode {
	for n != nil {
		switch c := n.compare(start, end); {
		case c == 0:
			return n
		case c < 0:
			n = n.left
		default:
			n = n.right
		}
	}
	return nil
}

// insert adds a new node to the subtree and returns the subtree's root.
func (n *rangeNode) insert(add *rangeNode) *rangeNode {
	if n == nil {
		return add
	}
	if n.compare(add.start, add.end) < 0 {
		n.left = n.left.insert(add)
		if n.left.priority > n.priority {
			return n.rotateRight()
		}
	} else {
		n.right = n.right.insert(add)
		if n.right.priority > n.priority {
			return n.rotateLeft()
		}
	}
	n.update()
	return n
}

// remove removes a node of the subtree and returns the subtree's root.
func (n *rangeNode) remove(gone *rangeNode) *rangeNode {
	switch c := n.compare(gone.start, gone.end); {
	case c < 0:
		n.left = n.left.remove(gone)
	case c > 0:
		n.right = n.right.remove(gone)
	default:
		return merge(n.left, n.right)
	}
	n.update()
	return n
}

// merge joins two subtrees, all of one before all of the other.
func merge(a, b *rangeNode) *rangeNode {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	case a.priority > b.priority:
		a.right = merge(a.right, b)
		a.update()
		return a
	}
	b.left = merge(a, b.left)
	b.update()
	return b
}

func (n *rangeNode) rotateRight() *rangeNode {
	l := n.left
	n.left, l.right = l.right, n
	n.update()
	l.update()
	return l
}

func (n *rangeNode) rotateLeft() *rangeNode {
	r := n.right
	n.right, r.left = r.left, n
	n.update()
	r.update()
	return r
}

// update computes the greatest end after the children have changed.
func (n *rangeNode) update() {
	n.maxEnd = n.end
	for _, child := range []*rangeNode{n.left, n.right} {
		if child != nil && compareEnds(child.maxEnd, n.maxEnd) > 0 {
			n.maxEnd = child.maxEnd
		}
	}
}
