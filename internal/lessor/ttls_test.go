package lessor

import (
	"testing"
	"time"
)

func TestTTLs(t *testing.T) {
	var ttls TTLs
	for _, d := range []time.Duration{0, time.Second, time.Second + 1, time.Minute, 1 << 62} {
		ttls.Add(d)
	}
	got := ttls.Counts()
	for seconds, want := range map[float64]uint64{1: 2, 2: 3, 32: 3, 64: 4, 1 << 23: 4} {
		if n := got.UpTo[seconds]; n != want {
			t.Errorf("%d live for up to %v s, want %d", n, seconds, want)
		}
	}
	if longest := time.Duration(1 << 62).Seconds(); got.Count != 5 || len(got.UpTo) != 24 || got.Seconds < longest || got.Seconds > longest+63 {
		t.Errorf("%+v", got)
	}
}
