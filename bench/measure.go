package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// three starts three nodes of each system and calls work with both clusters.
func (b *bench) three(ctx context.Context, work func([]*cluster) error) error {
	return b.threeOf(ctx, b.systems, work)
}

func (b *bench) threeOf(ctx context.Context, systems []system, work func([]*cluster) error) (err error) {
	var clusters []*cluster
	defer func() {
		for _, c := range clusters {
			err = errors.Join(err, c.stop())
		}
	}()
	for _, s := range systems {
		c, err := b.start(ctx, s, 3)
		if err != nil {
			return err
		}
		clusters = append(clusters, c)
	}
	return work(clusters)
}

// clientCount names a number of clients.
func clientCount(clients int) string {
	if clients == 1 {
		return "1 client"
	}
	return fmt.Sprintf("%d clients", clients)
}

// alternate calls work with one cluster after the other, round by round.
func (b *bench) alternate(clusters []*cluster, work func(round int, c *cluster) error) error {
	for round := range b.rounds {
		for _, c := range clusters {
			if err := work(round, c); err != nil {
				return fmt.Errorf("%s: %w", c.sys.name(), err)
			}
		}
	}
	return nil
}

func puts(ctx context.Context, b *bench) error {
	return b.three(ctx, func(clusters []*cluster) error {
		if err := b.fill(ctx, clusters); err != nil {
			return err
		}
		for _, n := range b.clients {
			err := b.alternate(clusters, func(_ int, c *cluster) error {
				s, err := b.load(ctx, c, opPut, n, b.keySpace)
				if err == nil {
					b.notePuts(c.sys.name(), n, s)
				}
				return err
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// fill writes every key once, so that the measurements overwrite and find
// existing keys.
func (b *bench) fill(ctx context.Context, clusters []*cluster) error {
	for _, c := range clusters {
		if err := c.sys.bulk(ctx, c, b.keySpace, 4, b.valueSize); err != nil {
			return fmt.Errorf("%s: fill: %w", c.sys.name(), err)
		}
	}
	return nil
}

func (b *bench) notePuts(system string, clients int, s sample) {
	b.say("%-4s put, %d clients: %.0f/s, p50 %v, p99 %v, p99.9 %v, max %v, %v an operation, errors %v", system, clients, s.rate, s.p50, s.p99, s.p999, s.longest, s.cpu, s.errors)
	name := func(what string) string { return fmt.Sprintf("put, %s, %s", clientCount(clients), what) }
	b.report.row(name("rate"), "1/s", func(w *row) {
		w.More = true
		switch clients {
		case 64:
			w.AtLeast, w.Goal = 3.5, 4.5
		case 256:
			w.AtLeast, w.Goal = 4.5, 6
		}
	}).add(system, s.rate)
	b.report.row(name("p50"), "ms", func(w *row) {
		if clients == 1 {
			w.AtLeast, w.Goal = 0.6, 0.5
		}
	}).add(system, ms(s.p50))
	b.report.row(name("p99"), "ms", func(w *row) {
		if clients == 64 || clients == 256 {
			w.AtLeast, w.Goal = 0.6, 0.3
		}
	}).add(system, ms(s.p99))
	b.report.row(name("CPU of all servers"), "µs each", func(w *row) {
		if clients == 256 {
			w.AtLeast, w.Goal = 0.26, 0.18
		}
	}).add(system, us(s.cpu))
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
func us(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func gets(ctx context.Context, b *bench) error {
	return b.three(ctx, func(clusters []*cluster) error {
		if err := b.fill(ctx, clusters); err != nil {
			return err
		}
		for _, n := range []int{1, 64, 256} {
			for _, op := range []operation{opGet, opStale} {
				err := b.alternate(clusters, func(_ int, c *cluster) error {
					s, err := b.load(ctx, c, op, n, b.keySpace)
					if err == nil {
						b.noteGets(c.sys.name(), op, n, s)
					}
					return err
				})
				if err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func (b *bench) noteGets(system string, op operation, clients int, s sample) {
	b.say("%-4s %s, %d clients: %.0f/s, p50 %v, p99 %v, %v an operation, errors %v", system, op, clients, s.rate, s.p50, s.p99, s.cpu, s.errors)
	name := func(what string) string { return fmt.Sprintf("%s, %s, %s", op.rowName(), clientCount(clients), what) }
	b.report.row(name("rate"), "1/s", func(w *row) {
		if w.More = true; clients > 1 {
			w.AtLeast, w.Goal = leastGets(op, clients), 5
		}
	}).add(system, s.rate)
	b.report.row(name("p99"), "ms", nil).add(system, ms(s.p99))
	b.report.row(name("CPU of all servers"), "µs each", nil).add(system, us(s.cpu))
}

func leastGets(op operation, clients int) float64 {
	switch {
	case op == opStale:
		return 3.5
	case clients == 64:
		return 3.6
	}
	return 4.5
}

func coldStart(ctx context.Context, b *bench) error {
	for range max(3, 2*b.rounds-1) {
		for _, s := range b.systems {
			begin := time.Now()
			c, err := b.start(ctx, s, 1)
			if err != nil {
				return err
			}
			took := time.Since(begin)
			b.say("%-4s cold start: %v", s.name(), took)
			b.report.row("cold start to first write, one node", "ms", func(w *row) { w.AtLeast, w.Goal = 0.3, 0.1 }).add(s.name(), ms(took))
			if err := c.stop(); err != nil {
				return err
			}
		}
	}
	return nil
}

func idle(ctx context.Context, b *bench) error {
	return b.three(ctx, func(clusters []*cluster) error {
		if err := wait(ctx, 3*time.Second); err != nil {
			return err
		}
		return b.alternate(clusters, func(_ int, c *cluster) error {
			before := cpuTime(c.pids())
			if err := wait(ctx, max(5*time.Second, 2*b.round())); err != nil {
				return err
			}
			used := cpuTime(c.pids()) - before
			percent := 100 * used.Seconds() / max(5*time.Second, 2*b.round()).Seconds()
			b.say("%-4s idle: %.1f %% of a core", c.sys.name(), percent)
			b.report.row("idle CPU of three nodes", "% of a core", func(w *row) { w.AtLeast, w.Goal = 1, 0.5 }).add(c.sys.name(), percent)
			b.report.row("memory of an idle node", "MiB", nil).add(c.sys.name(), slices.Max(residentBytes(c.pids()))/(1<<20))
			return nil
		})
	})
}

// overload compares the goodput at the number of clients that saturates the
// leader with the goodput at ten times that number: once with all of them
// admitted, and twice with places for a tenth of them, where clients either
// obey Retry-After after a 429 or retry at once.
func overload(ctx context.Context, b *bench) error {
	const enough, tooMany = 256, 2560
	open := b.systems[0].(*kvd)
	tight := &kvd{binary: open.binary, flags: []string{"--max-inflight", strconv.Itoa(enough)}}
	for _, o := range []struct {
		sys  *kvd
		op   operation
		what string
	}{{open, opPut, "all admitted"}, {tight, opPatientPut, "256 admitted, the others wait"}, {tight, opPut, "256 admitted, the others retry at once"}} {
		if err := b.overloadOne(ctx, o.sys, o.op, enough, tooMany, o.what); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) overloadOne(ctx context.Context, sys *kvd, op operation, enough, tooMany int, what string) error {
	c, err := b.start(ctx, sys, 3)
	if err != nil {
		return err
	}
	defer func() { _ = c.stop() }()
	if err := c.sys.bulk(ctx, c, b.keySpace, 4, b.valueSize); err != nil {
		return err
	}
	for range max(3, b.rounds) {
		before, err := b.load(ctx, c, op, enough, b.keySpace)
		if err != nil {
			return err
		}
		over, err := b.load(ctx, c, op, tooMany, b.keySpace)
		if err != nil {
			return err
		}
		after, err := b.load(ctx, c, op, enough, b.keySpace)
		if err != nil {
			return err
		}
		// On a shared machine, the mean of before and after is fairer than
		// either.
		peak := (before.rate + after.rate) / 2
		b.say("%s: put, %d clients: %.0f/s, p99 %v, %v an operation; %d clients: %.0f/s, p99 %v, %v an operation, errors %v", what, enough, peak, before.p99, before.cpu, tooMany, over.rate, over.p99, over.cpu, over.errors)
		b.report.row(fmt.Sprintf("kvd alone: goodput of puts with %d clients relative to %d, %s", tooMany, enough, what), "times", func(w *row) {
			w.More, w.Absolute, w.AtLeast, w.Goal = true, true, 0.9, 0.97
		}).add("kvd", over.rate/peak)
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// cache measures, for kvd alone, the cost of a put whose key has its metadata
// on disk only.
func cache(ctx context.Context, b *bench) error {
	// A node caches the metadata of at least this many keys; see
	// internal/kvstore.
	const remembered = 1 << 17
	c, err := b.start(ctx, b.systems[0], 3)
	if err != nil {
		return err
	}
	defer func() { _ = c.stop() }()
	many := uint64(10 * 2 * remembered)
	if err := c.sys.bulk(ctx, c, many, 4, b.valueSize); err != nil {
		return err
	}
	measure := func(what string, keys uint64) error {
		s, err := b.load(ctx, c, opPut, 64, keys)
		if err != nil {
			return err
		}
		b.say("%s: %.0f/s, %v an operation", what, s.rate, s.cpu)
		b.report.row("kvd alone: put, 64 clients, metadata "+what+", rate", "1/s", nil).add("kvd", s.rate)
		b.report.row("kvd alone: put, 64 clients, metadata "+what+", CPU of all servers", "µs each", nil).add("kvd", us(s.cpu))
		return nil
	}
	for range b.rounds {
		if err := measure("of ten times more keys than the cache holds", many); err != nil {
			return err
		}
		for i := range c.procs {
			if err := errors.Join(c.end(i, syscall.SIGTERM), c.run(i)); err != nil {
				return err
			}
		}
		if err := measure("cold, after a restart", remembered); err != nil {
			return err
		}
		if err := measure("warm", remembered); err != nil {
			return err
		}
	}
	return nil
}
