package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/kvd-io/kvd/internal/loadgen"
)

// lockLimit bounds one acquisition. It is below the limit on an answer.
const lockLimit = 10 * time.Second

// locker is a connection that can hold locks.
type locker interface {
	// cycle acquires the lock and releases it.
	cycle(ctx context.Context, name string) (code string, err error)
}

func (c *kvdClient) cycle(ctx context.Context, name string) (code string, err error) {
	if c.lease == 0 {
		if c.lease, code, err = c.grant(ctx); err != nil || code != "" {
			return code, err
		}
	}
	target := "/v1/locks/" + name + "?lease=" + strconv.FormatInt(c.lease, 10)
	if _, code, err = c.conn.Request("POST", target+"&wait="+lockLimit.String(), nil, nil); err != nil || code != "" {
		return code, err
	}
	_, code, err = c.conn.Request("DELETE", target, nil, nil)
	return code, err
}

func (c *etcdClient) cycle(ctx context.Context, name string) (code string, err error) {
	// The end of the round does not interrupt a cycle: a canceled request would
	// leave the lock taken.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lockLimit)
	defer cancel()
	if c.session == nil {
		// Without WithContext, the session ends with the connection.
		if c.session, err = concurrency.NewSession(c.c, concurrency.WithTTL(leaseSeconds)); err != nil {
			return outcome(err)
		}
	}
	m := concurrency.NewMutex(c.session, "/locks/"+name)
	if err := m.Lock(ctx); err != nil {
		return outcome(err)
	}
	return outcome(m.Unlock(ctx))
}

func locks(ctx context.Context, b *bench) error {
	return b.three(ctx, func(clusters []*cluster) error {
		for _, count := range []int{1, 1000} {
			if err := b.alternate(clusters, func(_ int, c *cluster) error { return b.cycles(ctx, c, count) }); err != nil {
				return err
			}
		}
		return nil
	})
}

// cycles acquires and releases locks, chosen at random.
func (b *bench) cycles(ctx context.Context, c *cluster, count int) error {
	const clients = 16
	s, err := b.drive(ctx, c, "locks", clients, func(conn client, worker int) loadgen.Op {
		random := rand.New(rand.NewPCG(uint64(worker), uint64(count)))
		return func(ctx context.Context) (string, error) {
			return conn.(locker).cycle(ctx, fmt.Sprintf("lock-%04d", random.IntN(count)))
		}
	})
	if err != nil {
		return err
	}
	what := "one lock"
	if count > 1 {
		what = fmt.Sprintf("%d locks", count)
	}
	b.say("%-4s acquire and release, %d clients on %s: %.0f/s, p99 %v, %v an operation, errors %v", c.sys.name(), clients, what, s.rate, s.p99, s.cpu, s.errors)
	name := fmt.Sprintf("acquire and release, %d clients on %s, ", clients, what)
	b.report.row(name+"rate", "1/s", func(w *row) { w.More, w.AtLeast, w.Goal = true, 2, 4 }).add(c.sys.name(), s.rate)
	b.report.row(name+"p99", "ms", nil).add(c.sys.name(), ms(s.p99))
	b.report.row(name+"CPU of all servers", "µs each", nil).add(c.sys.name(), us(s.cpu))
	return nil
}
