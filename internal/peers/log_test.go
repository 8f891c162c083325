package peers

import (
	"sync/atomic"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// TestTransportLog holds that rafthttp's steps become debug lines, and that its
// repeated lines are sampled.
func TestTransportLog(t *testing.T) {
	core, lines := observer.New(zap.DebugLevel)
	var stopping atomic.Bool
	lg := newTransportLogger(zap.New(core), &stopping).With(zap.String("peer", "2"))
	lg.Info("started stream reader with remote peer")
	lg.Info("peer became active")
	for range 100 {
		lg.Warn("prober detected unhealthy status")
	}
	lg.Error("request sent was ignored")
	stopping.Store(true)
	lg.Warn("lost TCP streaming connection")
	lg.Error("disk full")
	got := make(map[string]int)
	for _, l := range lines.All() {
		got[l.Level.String()+" "+l.Message]++
	}
	want := map[string]int{
		"debug started stream reader with remote peer": 1, "info peer became active": 1,
		"warn prober detected unhealthy status": sampleFirst, "error request sent was ignored": 1,
		"debug lost TCP streaming connection": 1, "error disk full": 1,
	}
	if len(got) != len(want) {
		t.Errorf("the lines are %v", got)
	}
	for line, n := range want {
		if got[line] != n {
			t.Errorf("%q %d times, want %d", line, got[line], n)
		}
	}
}
