package main

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/kvd-io/kvd/internal/loadgen"
)

// randomClients is the number at which both systems put the most.
const randomClients = 256

// random puts new keys, in random order, into empty systems.
func random(ctx context.Context, b *bench) error {
	for range max(1, b.rounds/2) {
		for _, s := range b.systems {
			if err := b.randomOne(ctx, s); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) randomOne(ctx context.Context, s system) (err error) {
	c, err := b.start(ctx, s, 3)
	if err != nil {
		return err
	}
	defer func() {
		if stopErr := c.stop(); err == nil {
			err = stopErr
		}
	}()
	leader, err := c.leader(ctx)
	if err != nil {
		return err
	}
	value := []byte(strings.Repeat("v", b.valueSize))
	var next atomic.Uint64
	l := &loadgen.Load{Workers: randomClients, Count: b.count, Open: func(int) (loadgen.Op, func(), error) {
		conn, err := s.open(c.clients[leader])
		if err != nil {
			return nil, nil, err
		}
		var buf []byte
		return func(ctx context.Context) (string, error) {
			buf = fmt.Appendf(buf[:0], "key-%016x", scatter(next.Add(1)))
			return conn.put(ctx, buf, value)
		}, conn.close, nil
	}}
	before := cpuTime(c.pids())
	r, err := l.Run(ctx)
	if err != nil {
		return err
	}
	b.noteRandom(s.name(), newSample(r, cpuTime(c.pids())-before))
	return nil
}

func (b *bench) noteRandom(system string, s sample) {
	b.say("%-4s %d random new keys: %.0f/s, p99 %v, %v an operation, errors %v", system, b.count, s.rate, s.p99, s.cpu, s.errors)
	name := fmt.Sprintf("put of %d random new keys, %s", b.count, clientCount(randomClients))
	b.report.row(name+", rate", "1/s", func(w *row) { w.More, w.AtLeast, w.Goal = true, 3, 5 }).add(system, s.rate)
	b.report.row(name+", p99", "ms", nil).add(system, ms(s.p99))
	b.report.row(name+", CPU of all servers", "µs each", nil).add(system, us(s.cpu))
}

// scatter maps each number to another one, far from that of its neighbor. It
// is the finalizer of SplitMix64: a bijection, so that no key comes twice.
func scatter(n uint64) uint64 {
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return n ^ n>>31
}
