package peers

import (
	"context"
	"runtime"
	"testing"
	"time"
)

// One process of a member is listened to at a time. Its successor is heard as soon
// as its streams have ended, which a broken connection shows.
func TestOneProcessOfAMemberIsHeard(t *testing.T) {
	var p processes
	a, b := identity{member: 2, boot: "a"}, identity{member: 2, boot: "b"}
	if !p.hear(a) || !p.hear(b) {
		t.Fatal("without streams, somebody is not heard")
	}
	ctx, broken := context.WithCancel(t.Context())
	first, ok := p.hold(ctx, a)
	second, ok2 := p.hold(t.Context(), a)
	if !ok || !ok2 {
		t.Fatal("two streams of one process")
	}
	if _, ok := p.hold(t.Context(), b); ok || p.hear(b) || !p.hear(a) {
		t.Error("a second process is heard beside the first")
	}
	if other := (identity{member: 3, boot: "b"}); !p.hear(other) {
		t.Error("another member is not heard")
	}
	second()
	second() // it counts once
	if p.hear(b) {
		t.Error("a second process is heard while the first has a stream")
	}
	broken()
	held := false
	for deadline := time.Now().Add(10 * time.Second); !held && time.Now().Before(deadline); runtime.Gosched() {
		_, held = p.hold(t.Context(), b) // the break is noticed on another goroutine
	}
	if !held || !p.hear(b) || p.hear(a) {
		t.Error("the successor is not heard once the connections of the first have broken")
	}
	first()
}

// Refusals make a process a clone only if they last.
func TestCloneIsOneThatIsRefusedForLong(t *testing.T) {
	c := clones{}
	c.mu.since = make(map[string]time.Time)
	at := time.Unix(1, 0)
	for _, step := range []struct {
		host    string
		refused bool
		after   time.Duration
		clone   bool
	}{
		{"x", true, 0, false},
		{"x", true, cloneAfter - 1, false},
		{"y", true, cloneAfter, false},
		{"x", false, cloneAfter, false},
		{"x", true, cloneAfter + 1, false},
		{"y", true, 2*cloneAfter - 1, false},
		{"y", true, 2 * cloneAfter, true},
	} {
		if got := c.note(step.host, step.refused, at.Add(step.after)); got != step.clone {
			t.Errorf("%+v: %v", step, got)
		}
	}
}
