package main

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// failoverClients write continuously, spread over the nodes. A client whose
// connection breaks, or that gets an error, moves to the next node at once.
const failoverClients = 64

func failover(ctx context.Context, b *bench) error {
	return b.three(ctx, func(clusters []*cluster) error {
		for name, sig := range map[string]syscall.Signal{"kill -9": syscall.SIGKILL, "graceful stop": syscall.SIGTERM} {
			for range max(3, b.rounds) {
				for _, c := range clusters {
					gap, failed, err := b.gap(ctx, c, sig)
					if err != nil {
						return err
					}
					b.say("%-4s %s of the leader: longest gap %v, %d failed requests", c.sys.name(), name, gap, failed)
					b.report.row("longest write gap, "+name+" of the leader", "ms", func(w *row) {
						w.Absolute, w.AtLeast, w.Goal = true, 100, map[syscall.Signal]float64{syscall.SIGKILL: 30, syscall.SIGTERM: 20}[sig]
					}).add(c.sys.name(), ms(gap))
				}
			}
		}
		return nil
	})
}

// gap ends the leader under load, restarts it, and returns the longest time in
// which no client had a write acknowledged.
func (b *bench) gap(ctx context.Context, c *cluster, sig syscall.Signal) (time.Duration, int64, error) {
	leader, err := c.leader(ctx)
	if err != nil {
		return 0, 0, err
	}
	g := &gapMeter{}
	loadCtx, stop := context.WithCancel(ctx)
	var clients sync.WaitGroup
	for i := range failoverClients {
		clients.Go(func() { g.write(loadCtx, c, i, b.valueSize) })
	}
	err = wait(ctx, 2*time.Second)
	if err == nil {
		g.begin()
		err = c.end(leader, sig)
	}
	if err == nil {
		err = wait(ctx, 3*time.Second)
	}
	longest := g.end()
	stop()
	clients.Wait()
	if err != nil {
		return 0, 0, err
	}
	if err := c.run(leader); err != nil {
		return 0, 0, err
	}
	if _, err := c.leader(ctx); err != nil {
		return 0, 0, err
	}
	return longest, g.failed.Load(), wait(ctx, 2*time.Second) // it catches up
}

// gapMeter is told of every acknowledged write.
type gapMeter struct {
	failed atomic.Int64
	mu     struct {
		sync.Mutex
		last    time.Time
		longest time.Duration
		on      bool
	}
}

func (g *gapMeter) acknowledged() {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if g.mu.on {
		g.mu.longest = max(g.mu.longest, now.Sub(g.mu.last))
	}
	g.mu.last = now
}

func (g *gapMeter) begin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.on = true
}

// end returns the longest gap, including one that has not ended.
func (g *gapMeter) end() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.on = false
	return max(g.mu.longest, time.Since(g.mu.last))
}

// write puts until the context is done, starting at node i.
func (g *gapMeter) write(ctx context.Context, c *cluster, i, valueSize int) {
	value := []byte(strings.Repeat("v", valueSize))
	name := []byte(key(uint64(i)))
	for ; ctx.Err() == nil; i++ {
		conn, err := c.sys.open(c.clients[i%len(c.clients)])
		if err != nil {
			_ = wait(ctx, time.Millisecond) // do not spin on a dead node
			continue
		}
		for ctx.Err() == nil {
			if code, err := conn.put(ctx, name, value); err != nil || code != "" {
				g.failed.Add(1)
				break
			}
			g.acknowledged()
		}
		conn.close()
	}
}
