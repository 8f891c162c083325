package raftnode

import (
	"testing"
	"time"
)

// TestRecencyFollowsTheAppliedIndex: a proof counts once its index is applied, and
// with the time of its question, however many proofs wait.
func TestRecencyFollowsTheAppliedIndex(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	var r recency
	if got := r.confirmed(100); !got.IsZero() {
		t.Fatalf("before any proof: %v", got)
	}
	r.note(&effects{asks: true}, at(0), 0)
	for s := 1; s <= 10; s++ { // a question each second; 10 entries each
		r.note(&effects{proved: uint64(10*s - 5), asks: true}, at(s), 5)
	}
	for _, c := range []struct {
		applied uint64
		want    time.Time
	}{
		{5, at(0)},  // of the first question, which is applied
		{14, at(0)}, // one entry is missing
		{15, at(1)}, // the oldest that waited
		{94, at(1)},
		{95, at(9)}, // the newest answer; the question of second 10 has none
	} {
		if got := r.confirmed(c.applied); !got.Equal(c.want) {
			t.Errorf("with %d entries applied: %v, want %v", c.applied, got.Sub(start), c.want.Sub(start))
		}
	}
}
