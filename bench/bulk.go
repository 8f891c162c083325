package main

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// bulkConnections are the numbers of connections tried; the better one counts.
var bulkConnections = map[string][]int{"kvd": {1, 4}, "baseline": {1, 4}, "etcd": {4, 16}}

// bulk loads many keys, then measures the memory, disk use and restart time of
// a system that holds them.
func bulk(ctx context.Context, b *bench) error {
	for range max(1, b.rounds/2) {
		for _, s := range b.systems {
			if err := b.bulkOne(ctx, s); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) bulkOne(ctx context.Context, s system) (err error) {
	var c *cluster
	best := 0.0
	for _, conns := range bulkConnections[s.name()] {
		if c != nil {
			if err := c.stop(); err != nil {
				return err
			}
		}
		if c, err = b.start(ctx, s, 3); err != nil {
			return err
		}
		begin := time.Now()
		if err := s.bulk(ctx, c, b.count, conns, b.valueSize); err != nil {
			return errors.Join(err, c.stop())
		}
		rate := float64(b.count) / time.Since(begin).Seconds()
		b.say("%-4s bulk load on %d connections: %.0f keys/s", s.name(), conns, rate)
		best = max(best, rate)
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	b.report.row("bulk load", "keys/s", func(w *row) { w.More, w.AtLeast, w.Goal = true, 3.5, 5 }).add(s.name(), best)
	if err := b.rest(ctx, 10*time.Second); err != nil {
		return err
	}
	b.noteSizes(c, "after the load")
	if err := b.duringSnapshot(ctx, c); err != nil {
		return err
	}
	return b.restart(ctx, c)
}

func (b *bench) noteSizes(c *cluster, when string) {
	memory := slices.Max(residentBytes(c.pids())) / (1 << 20)
	disk := diskBytes(filepath.Join(c.dir, "1")) / (1 << 20)
	b.say("%-4s with %d keys, %s: %.0f MiB of memory, %.0f MiB of disk a node", c.sys.name(), b.count, when, memory, disk)
	suffix := " with " + strconv.FormatUint(b.count, 10) + " keys, " + when
	b.report.row("memory of the largest node"+suffix, "MiB", func(w *row) { w.AtLeast, w.Goal = 0.3, 0.2 }).add(c.sys.name(), memory)
	b.report.row("disk of a node"+suffix, "MiB", nil).add(c.sys.name(), disk)
}

// restart stops all nodes gracefully and measures the time until a write is
// acknowledged again.
func (b *bench) restart(ctx context.Context, c *cluster) error {
	for i := range c.procs {
		if err := c.end(i, syscall.SIGTERM); err != nil {
			return err
		}
	}
	begin := time.Now()
	for i := range c.procs {
		if err := c.run(i); err != nil {
			return err
		}
	}
	if _, err := c.leader(ctx); err != nil {
		return err
	}
	took := time.Since(begin)
	b.say("%-4s restart of three nodes with %d keys: %v", c.sys.name(), b.count, took)
	b.report.row("restart to first write with "+strconv.FormatUint(b.count, 10)+" keys", "ms", func(w *row) { w.AtLeast, w.Goal = 0.12, 0.08 }).add(c.sys.name(), ms(took))
	if err := b.rest(ctx, 3*time.Second); err != nil {
		return err
	}
	b.noteSizes(c, "after a restart")
	return nil
}

// duringSnapshot compares puts while backups are read from the leader, one
// after the other, with puts without backups.
func (b *bench) duringSnapshot(ctx context.Context, c *cluster) error {
	for range b.rounds {
		without, err := b.load(ctx, c, opPut, 64, b.count)
		if err != nil {
			return err
		}
		leader, err := c.leader(ctx)
		if err != nil {
			return err
		}
		snapCtx, stop := context.WithCancel(ctx)
		done := make(chan int)
		go func() {
			n := 0
			for ; snapCtx.Err() == nil; n++ {
				if c.sys.snapshot(snapCtx, c.clients[leader]) != nil && snapCtx.Err() == nil {
					_ = wait(snapCtx, 100*time.Millisecond)
				}
			}
			done <- n
		}()
		during, err := b.load(ctx, c, opPut, 64, b.count)
		stop()
		n := <-done
		if err != nil {
			return err
		}
		b.say("%-4s put p99: %v without, %v during %d snapshots", c.sys.name(), without.p99, during.p99, n)
		b.report.row("put p99 during a snapshot relative to without, 64 clients", "times", func(w *row) {
			w.AtLeast, w.Goal, w.Absolute = 1.25, 1.1, true
		}).add(c.sys.name(), float64(during.p99)/float64(without.p99))
	}
	return nil
}
