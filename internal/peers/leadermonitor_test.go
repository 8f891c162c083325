package peers

import (
	"testing"
	"time"
)

// The pauses between dials grow, also when the same leader is followed again
// in between, and start over after a connection that held.
func TestMonitorPausesGrow(t *testing.T) {
	var w MonitorState
	last := time.Duration(-1)
	for range 11 {
		w.Follow(2, 5)
		if w.Pause() <= last {
			t.Fatalf("a pause of %v after one of %v", w.Pause(), last)
		}
		last = w.Pause()
		w.Ended(false)
	}
	for range 100 {
		w.Ended(false)
	}
	if w.Pause() != maxMonitorPause {
		t.Errorf("a pause of %v, want %v", w.Pause(), maxMonitorPause)
	}
	if w.Follow(2, 6); w.Pause() != 0 {
		t.Errorf("a new leader is dialled after %v", w.Pause())
	}
	w.Ended(false)
	if w.Ended(true); w.Pause() != 0 {
		t.Errorf("after a connection that held the dial waits %v", w.Pause())
	}
}
