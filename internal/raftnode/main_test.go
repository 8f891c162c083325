package raftnode

import (
	"os"
	"runtime/debug"
	"testing"
)

// TestMain lets the collector run less often: the simulator makes much garbage and keeps
// little, and a fifth of its time went there.
func TestMain(m *testing.M) {
	debug.SetGCPercent(400)
	os.Exit(m.Run())
}
