package repeat

import (
	"testing"
	"time"
)

func TestPaceGrows(t *testing.T) {
	var p Pace
	start := time.Unix(1, 0)
	var due []time.Duration
	for at := time.Duration(0); at < time.Hour; at += time.Second {
		if p.Due(start.Add(at), "a") {
			due = append(due, at)
		}
	}
	for i := 2; i < len(due); i++ {
		before, now := due[i-1]-due[i-2], due[i]-due[i-1]
		if now != min(2*before, LongestPause) {
			t.Fatalf("warnings at %v: the pause after %v is %v", due, before, now)
		}
	}
	if len(due) < 8 || due[0] != 0 || due[1] != FirstPause {
		t.Fatalf("warnings at %v", due)
	}
	if !p.Due(start.Add(time.Hour), "b") {
		t.Error("a warning about something else waits")
	}
}
