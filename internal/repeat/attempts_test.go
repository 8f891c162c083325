package repeat

import (
	"testing"
	"time"
)

func TestAttemptsPause(t *testing.T) {
	var a Attempts
	now, want := time.Hour, FirstRetry
	for i := 1; i <= 100; i++ {
		pause := a.Fail(now)
		if pause != want || a.Until != now+pause || a.Failures != i {
			t.Fatalf("failure %d: a pause of %v, want %v; %+v", i, pause, want, a)
		}
		want = min(2*want, LongestRetry)
		now += pause
	}
}
