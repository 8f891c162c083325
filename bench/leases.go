package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/kvd-io/kvd/internal/loadgen"
)

// leaser is a connection that can have leases.
type leaser interface {
	grant(ctx context.Context) (lease int64, code string, err error)
	keepAlive(ctx context.Context, lease int64) (code string, err error)
}

// leaseSeconds is long enough for no lease to end during a measurement.
const leaseSeconds = 7200

func (c *kvdClient) grant(context.Context) (int64, string, error) {
	c.body = append(strconv.AppendInt(append(c.body[:0], `{"ttl":`...), leaseSeconds, 10), '}')
	answer, code, err := c.conn.Request("POST", "/v1/leases", nil, c.body)
	if err != nil || code != "" {
		return 0, code, err
	}
	_, rest, _ := bytes.Cut(answer, []byte(`"id":`))
	end := bytes.IndexAny(rest, ",}")
	if end < 0 {
		return 0, "", fmt.Errorf("grant: no id in %.100s", answer)
	}
	lease, err := strconv.ParseInt(string(bytes.Trim(rest[:end], `"`)), 10, 64) // large ids are strings
	return lease, "", err
}

func (c *kvdClient) keepAlive(_ context.Context, lease int64) (string, error) {
	target := append(strconv.AppendInt(append(c.body[:0], "/v1/leases/"...), lease, 10), "/keepalive"...)
	c.body = target
	_, code, err := c.conn.Request("POST", string(target), nil, nil)
	return code, err
}

func (c *etcdClient) grant(ctx context.Context) (int64, string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := c.c.Grant(ctx, leaseSeconds)
	if err != nil {
		code, err := outcome(err)
		return 0, code, err
	}
	return int64(r.ID), "", nil
}

// keepAlive uses one stream for all keep-alives of the connection.
func (c *etcdClient) keepAlive(_ context.Context, lease int64) (string, error) {
	if c.keep == nil {
		// The stream outlives this call; it ends with the connection.
		stream, err := pb.NewLeaseClient(c.c.ActiveConnection()).LeaseKeepAlive(context.Background())
		if err != nil {
			return outcome(err)
		}
		c.keep = stream
	}
	err := c.keep.Send(&pb.LeaseKeepAliveRequest{ID: lease})
	if err != nil {
		return outcome(err)
	}
	r, err := c.keep.Recv()
	if err == nil && r.TTL <= 0 {
		return "lease not found", nil
	}
	return outcome(err)
}

func leases(ctx context.Context, b *bench) error {
	return b.three(ctx, func(clusters []*cluster) error {
		if err := b.alternate(clusters, func(_ int, c *cluster) error { return b.keepAlives(ctx, c) }); err != nil {
			return err
		}
		for _, c := range clusters {
			if err := b.grantMany(ctx, c); err != nil {
				return fmt.Errorf("%s: %w", c.sys.name(), err)
			}
		}
		if err := b.rest(ctx, 5*time.Second); err != nil {
			return err
		}
		return b.alternate(clusters, func(_ int, c *cluster) error { return b.idleLeases(ctx, c) })
	})
}

// keepAlives renews one lease per connection, over and over.
func (b *bench) keepAlives(ctx context.Context, c *cluster) error {
	const clients = 64
	s, err := b.drive(ctx, c, "keep-alives", clients, func(conn client, _ int) loadgen.Op {
		l, lease := conn.(leaser), int64(0)
		return func(ctx context.Context) (code string, err error) {
			if lease == 0 {
				if lease, code, err = l.grant(ctx); err != nil || code != "" {
					return code, err
				}
			}
			return l.keepAlive(ctx, lease)
		}
	})
	if err != nil {
		return err
	}
	b.say("%-4s keep-alive, %d connections: %.0f/s, p99 %v, %v an operation, errors %v", c.sys.name(), clients, s.rate, s.p99, s.cpu, s.errors)
	b.report.row("keep-alive, 64 connections, rate", "1/s", func(w *row) { w.More, w.AtLeast, w.Goal = true, 2, 5 }).add(c.sys.name(), s.rate)
	b.report.row("keep-alive, 64 connections, p99", "ms", nil).add(c.sys.name(), ms(s.p99))
	b.report.row("keep-alive, 64 connections, CPU of all servers", "µs each", nil).add(c.sys.name(), us(s.cpu))
	return nil
}

// grantMany grants the leases whose idle cost is measured.
func (b *bench) grantMany(ctx context.Context, c *cluster) error {
	leader, err := c.leader(ctx)
	if err != nil {
		return err
	}
	begin := time.Now()
	err = shared(uint64(b.leases), 64, func(from, to uint64) error {
		conn, err := c.sys.open(c.clients[leader])
		if err != nil {
			return err
		}
		defer conn.close()
		for ; from < to; from++ {
			if _, code, err := conn.(leaser).grant(ctx); err != nil || code != "" {
				return fmt.Errorf("grant: %s (%w)", code, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	rate := float64(b.leases) / time.Since(begin).Seconds()
	b.say("%-4s granted %d leases: %.0f/s", c.sys.name(), b.leases, rate)
	b.report.row("grant of a lease, 64 clients, rate", "1/s", func(w *row) { w.More = true }).add(c.sys.name(), rate)
	return nil
}

func (b *bench) idleLeases(ctx context.Context, c *cluster) error {
	length := b.pause(max(5*time.Second, min(20*time.Second, 4*b.round())))
	leader, err := c.leader(ctx)
	if err != nil {
		return err
	}
	pid := []int{c.procs[leader].Process.Pid}
	before := cpuTime(pid)
	if err := wait(ctx, length); err != nil {
		return err
	}
	percent := 100 * (cpuTime(pid) - before).Seconds() / length.Seconds()
	if now, err := c.leader(ctx); err != nil || now != leader {
		return errors.Join(errors.New("the leader changed"), err)
	}
	b.say("%-4s %d idle leases: %.2f %% of a core for the leader", c.sys.name(), b.leases, percent)
	b.report.row(fmt.Sprintf("idle CPU of the leader with %d leases", b.leases), "% of a core", func(w *row) { w.AtLeast, w.Goal = 0.5, 0.1 }).add(c.sys.name(), percent)
	return nil
}
