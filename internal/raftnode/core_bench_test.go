package raftnode

import (
	"fmt"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// roomy sets limits that do not split the batches of a benchmark.
func roomy(c *coreConfig) { c.maxBatchBytes, c.maxQueueBytes = 1<<20, 64<<20 }

// BenchmarkPack makes one entry of the commands that wait, of 256 bytes each.
func BenchmarkPack(b *testing.B) {
	for _, n := range []int{1, 16, 256} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			g := lone(b, roomy)
			waiting := make([]*proposal, n)
			for i := range waiting {
				waiting[i] = g.command(byte(i), 256)
			}
			b.ReportAllocs()
			for b.Loop() {
				for _, p := range waiting {
					p.stage.Store(stageQueued)
					if err := g.core.propose(p); err != nil {
						b.Fatal(err)
					}
				}
				if g.core.proposals.pack() == nil {
					b.Fatal("nothing was packed")
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/command")
		})
	}
}

// BenchmarkCoreRound takes a batch of a lone leader through propose, Ready, the
// save, the commit and the answer of the apply loop, without disk and state.
func BenchmarkCoreRound(b *testing.B) {
	for _, n := range []int{1, 256} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			g := lone(b, roomy)
			g.machine.violation = func(string, ...any) {} // the same commands come again and again
			b.ReportAllocs()
			for b.Loop() {
				waiting := make([]*proposal, n)
				for i := range waiting {
					waiting[i] = g.command(byte(i), 256)
					if err := g.core.propose(waiting[i]); err != nil {
						b.Fatal(err)
					}
				}
				g.work()
				for _, p := range waiting {
					if a := <-p.done; a.err != nil {
						b.Fatal(a.err)
					}
				}
				g.log.MaxBytes, g.log.MaxEntries = 0, 0
				if err := g.log.Compact(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/command")
		})
	}
}

// BenchmarkCoreStep is a follower taking a heartbeat and answering it.
func BenchmarkCoreStep(b *testing.B) {
	g := newRig(b, 3, nil)
	beat := func() {
		g.core.step(&raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: new(uint64(5)), Commit: new(uint64(InitialIndex))})
		g.work()
		g.sent = g.sent[:0]
	}
	beat()
	b.ReportAllocs()
	for b.Loop() {
		beat()
	}
}
