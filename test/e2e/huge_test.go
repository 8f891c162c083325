package e2e

import (
	"fmt"
	"testing"
	"time"
)

// TestHugeCatchUp is as much a benchmark as a test, and runs with KVD_E2E=huge.
// With a gibibyte of data, a follower that was away catches up by snapshot, and
// nodes restart after a stop and after a kill. It prints the time and memory
// that this takes.
func TestHugeCatchUp(t *testing.T) {
	if runSize != sizeHuge {
		t.Skipf("NOT RUN: takes minutes and 5 GiB of disk; KVD_E2E=%s runs it", sizeHuge)
	}
	const values, size = 4096, 256 << 10
	c := newCluster(t, 3)
	leader, away := c.leader(), c.followers()[0]
	put(t, leader, "k", "v")
	away.kill()
	begin := time.Now()
	fill(t, leader, 0, values, size)
	took := time.Since(begin)
	t.Logf("%d MiB written in %v: %.0f MiB/s with two of three nodes", values*size>>20, took.Round(time.Millisecond), float64(values*size>>20)/took.Seconds())
	h := &huge{t: t, cluster: c}
	h.report("after the writes")
	h.catchUp(leader, away)
	expectFilled(t, away, 0, values, size)
	for _, m := range c.nodes {
		m.stop()
		h.timeRestart("a clean stop", m)
		h.leaveTail(m)
		m.kill()
		h.timeRestart("a kill with a log to replay", m)
	}
	h.leaveTail(leader)
	for _, m := range c.nodes {
		m.kill()
	}
	h.timeRestart("a kill of all at once", c.nodes...)
	h.report("in the end")
}

type huge struct {
	t       *testing.T
	cluster *cluster
}

// catchUp measures how the follower catches up while writes continue.
func (h *huge) catchUp(leader, away *member) {
	h.t.Helper()
	leader.process().forgetPeak(h.t)
	before := leader.process().memory(h.t, "VmRSS")
	w := startWriter(leader)
	took := restart(away)
	eventually(h.t, "writes go on", func() error { return w.written(100) })
	last := w.stop(h.t)
	expectValue(h.t, away, w.key, last)
	if !anyWrote(h.cluster, builtSnapshot) {
		h.t.Error("no snapshot was sent")
	}
	grown := leader.process().memory(h.t, "VmHWM") - before
	h.t.Logf("caught up in %v; the sender's memory grew by at most %d MiB, the receiver's is %d MiB at most",
		took.Round(time.Millisecond), grown>>20, away.process().memory(h.t, "VmHWM")>>20)
	if grown > 512<<20 {
		h.t.Errorf("the sender's memory grew by %d MiB for a snapshot of a gibibyte", grown>>20)
	}
}

// leaveTail writes entries that no checkpoint covers yet.
func (h *huge) leaveTail(m *member) {
	h.t.Helper()
	fill(h.t, m, 0, 128, 256<<10) // the same values again
}

func (h *huge) timeRestart(after string, members ...*member) {
	h.t.Helper()
	h.t.Logf("%d node(s) ready %v after %s", len(members), restart(members...).Round(time.Millisecond), after)
	h.report("  since then")
}

func (h *huge) report(when string) {
	h.t.Helper()
	line := when + ":"
	for _, m := range h.cluster.live() {
		st, err := m.status()
		if err != nil {
			h.t.Fatal(err)
		}
		line += fmt.Sprintf(" [%v: resident %d MiB, at most %d MiB; log %d MiB, store %d MiB]", m,
			m.process().memory(h.t, "VmRSS")>>20, m.process().memory(h.t, "VmHWM")>>20, st.LogSizeBytes>>20, st.StoreSizeBytes>>20)
	}
	h.t.Log(line)
}
