package main

import (
	"context"
	"fmt"
)

func txns(ctx context.Context, b *bench) error {
	return b.three(ctx, func(clusters []*cluster) error {
		if err := b.fill(ctx, clusters); err != nil {
			return err
		}
		for _, n := range []int{64, 256} {
			err := b.alternate(clusters, func(_ int, c *cluster) error {
				s, err := b.load(ctx, c, opTxn, n, b.keySpace)
				if err == nil {
					b.noteTxns(c.sys.name(), n, s)
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

func (b *bench) noteTxns(system string, clients int, s sample) {
	b.say("%-4s transaction, %d clients: %.0f/s, p99 %v, %v an operation, errors %v", system, clients, s.rate, s.p99, s.cpu, s.errors)
	name := func(what string) string {
		return fmt.Sprintf("transaction of one compare and one put, %s, %s", clientCount(clients), what)
	}
	b.report.row(name("rate"), "1/s", func(w *row) { w.More, w.AtLeast, w.Goal = true, 2.5, 4 }).add(system, s.rate)
	b.report.row(name("p99"), "ms", nil).add(system, ms(s.p99))
	b.report.row(name("CPU of all servers"), "µs each", nil).add(system, us(s.cpu))
}
