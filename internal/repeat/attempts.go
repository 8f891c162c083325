package repeat

import "time"

// The pauses between two attempts.
const (
	FirstRetry   = time.Second
	LongestRetry = time.Minute
)

// Attempts paces the attempts at one thing. The zero value has no failures. Its
// owner tells it the time, so it may be virtual.
type Attempts struct {
	Failures int           // in a row
	Until    time.Duration // the next attempt must not begin before
}

// Fail notes a failure and returns the pause after it.
func (a *Attempts) Fail(now time.Duration) time.Duration {
	a.Failures++
	pause := min(FirstRetry<<min(a.Failures-1, 16), LongestRetry)
	a.Until = now + pause
	return pause
}
