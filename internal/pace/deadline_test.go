package pace

import (
	"context"
	"testing"
	"time"
)

// A deadline that has expired never serves another request.
func TestDeadlinesAreReused(t *testing.T) {
	var pool Deadlines
	parent := context.Background()
	for range 100 {
		late, release := pool.Get(parent, time.Now())
		<-late.Done()
		if late.Err() != context.DeadlineExceeded {
			t.Fatalf("Err is %v", late.Err())
		}
		release()
		d, release := pool.Get(parent, time.Now().Add(time.Hour))
		select {
		case <-d.Done():
			t.Fatal("a new deadline has expired")
		default:
		}
		if at, ok := d.Deadline(); d.Err() != nil || !ok || time.Until(at) < time.Minute {
			t.Fatalf("%v, expires at %v", d.Err(), at)
		}
		release()
	}
}
