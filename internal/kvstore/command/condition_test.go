package command

import "testing"

// TestConditionHolds has conditions for what exists, and for what does not.
func TestConditionHolds(t *testing.T) {
	for _, c := range []struct {
		cond Condition
		rev  uint64
		want bool
	}{
		{Condition{Kind: IfMatch, Any: true}, 0, false},
		{Condition{Kind: IfMatch, Any: true}, 5, true},
		{Condition{Kind: IfMatch, Revisions: []uint64{4, 5}}, 5, true},
		{Condition{Kind: IfMatch, Revisions: []uint64{4}}, 5, false},
		{Condition{Kind: IfMatch}, 5, false},
		{Condition{Kind: IfNoneMatch, Any: true}, 0, true},
		{Condition{Kind: IfNoneMatch, Any: true}, 5, false},
		{Condition{Kind: IfNoneMatch, Revisions: []uint64{5}}, 5, false},
		{Condition{Kind: IfNoneMatch, Revisions: []uint64{5}}, 6, true},
		{Condition{Kind: IfNoneMatch}, 5, true},
		{Condition{Kind: IfRevision, Revisions: []uint64{0}}, 0, true},
		{Condition{Kind: IfRevision, Revisions: []uint64{0}}, 5, false},
		{Condition{Kind: IfRevision, Revisions: []uint64{5}}, 5, true},
	} {
		if got := c.cond.Holds(c.rev); got != c.want {
			t.Errorf("%+v at %d: got %v", c.cond, c.rev, got)
		}
	}
}
