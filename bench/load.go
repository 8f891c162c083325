package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/kvd-io/kvd/internal/loadgen"
)

// operation is what a client of the load does, over and over.
type operation string

const (
	opPut   operation = "put"
	opGet   operation = "get"
	opStale operation = "stale get"
	// opTxn puts a key on the condition that it exists.
	opTxn operation = "transaction"
	// opPatientPut waits after a 429.
	opPatientPut operation = "patient put"
)

// rowName is how rows of the report name it.
func (op operation) rowName() string {
	if op == opGet {
		return "linearizable get"
	}
	return string(op)
}

// sample is the result of one round.
type sample struct {
	rate          float64 // operations per second
	p50, p99      time.Duration
	p999, longest time.Duration
	cpu           time.Duration // of all servers, per operation
	errors        map[string]uint64
}

// retryAfter is the value of kvd's header of that name.
const retryAfter = time.Second

// leastOperations is the number below which a round does not count.
const leastOperations = 100

// connections returns how many connections a number of clients uses. gRPC
// multiplexes calls, and above this bound etcd gets slower with a connection
// per client.
func connections(s system, clients int) int {
	if _, native := s.(*kvd); !native && clients > 256 {
		return 100
	}
	return clients
}

// load drives the cluster's leader with one operation on random keys.
func (b *bench) load(ctx context.Context, c *cluster, op operation, clients int, keys uint64) (sample, error) {
	value := []byte(strings.Repeat("v", b.valueSize))
	return b.drive(ctx, c, string(op), clients, func(conn client, worker int) loadgen.Op {
		return do(conn, op, value, keys, uint64(worker))
	})
}

// work returns what a worker does over and over on its connection.
type work func(conn client, worker int) loadgen.Op

// drive drives the cluster's leader for one round, after a short warm-up. A
// round below the floor is repeated once.
func (b *bench) drive(ctx context.Context, c *cluster, what string, clients int, w work) (sample, error) {
	for try := 0; ; try++ {
		s, err := b.driveOnce(ctx, c, clients, w)
		if err != nil || s.rate*b.seconds >= b.floor {
			return s, err
		}
		b.say("%s: void, only %.0f operations a second: %v", c.sys.name(), s.rate, s.errors)
		if try > 0 {
			return s, fmt.Errorf("%s: two rounds of %s with %d clients below the floor: %v", c.sys.name(), what, clients, s.errors)
		}
	}
}

func (b *bench) driveOnce(ctx context.Context, c *cluster, clients int, w work) (sample, error) {
	leader, err := c.leader(ctx)
	if err != nil {
		return sample{}, err
	}
	conns, closeAll, err := openAll(c, leader, connections(c.sys, clients))
	if err != nil {
		return sample{}, err
	}
	defer closeAll()
	l := &loadgen.Load{Workers: clients, Duration: b.round() / 4, Open: func(worker int) (loadgen.Op, func(), error) {
		return w(conns[worker%len(conns)], worker), func() {}, nil
	}}
	if _, err := l.Run(ctx); err != nil {
		return sample{}, err
	}
	l.Duration = b.round()
	defer b.profile(ctx, c, leader)()
	pids := c.pids()
	before := cpuTime(pids)
	r, err := l.Run(ctx)
	if err != nil {
		return sample{}, err
	}
	return newSample(r, cpuTime(pids)-before), ctx.Err()
}

func newSample(r *loadgen.Result, used time.Duration) sample {
	return sample{
		rate: float64(r.Ops) / r.Elapsed.Seconds(),
		p50:  r.Latency.Quantile(0.5), p99: r.Latency.Quantile(0.99), p999: r.Latency.Quantile(0.999), longest: r.Latency.Max(),
		cpu: used / time.Duration(max(1, r.Ops)), errors: r.Errors,
	}
}

func openAll(c *cluster, node, count int) ([]client, func(), error) {
	var conns []client
	closeAll := func() {
		for _, conn := range conns {
			conn.close()
		}
	}
	for range count {
		conn, err := c.sys.open(c.clients[node])
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		conns = append(conns, conn)
	}
	return conns, closeAll, nil
}

// do returns a function that runs the operation on random keys.
func do(conn client, op operation, value []byte, keys, seed uint64) loadgen.Op {
	random := rand.New(rand.NewPCG(seed, keys))
	buf := make([]byte, 0, 32)
	return func(ctx context.Context) (string, error) {
		buf = appendKey(buf[:0], random.Uint64N(keys))
		switch op {
		case opPut:
			return conn.put(ctx, buf, value)
		case opTxn:
			return conn.txn(ctx, buf, value)
		case opPatientPut:
			code, err := conn.put(ctx, buf, value)
			if strings.HasPrefix(code, "429") && err == nil {
				err = wait(ctx, retryAfter)
			}
			return code, err
		}
		return conn.get(ctx, buf, op == opStale)
	}
}

func appendKey(dst []byte, n uint64) []byte { return fmt.Appendf(dst, "key-%08d", n) }

func key(n uint64) string { return string(appendKey(nil, n)) }

// shared divides the keys among concurrent workers.
func shared(count uint64, parts int, work func(from, to uint64) error) error {
	done := make(chan error, parts)
	for p := range uint64(parts) {
		go func() { done <- work(count*p/uint64(parts), count*(p+1)/uint64(parts)) }()
	}
	var errs []error
	for range parts {
		errs = append(errs, <-done)
	}
	return errors.Join(errs...)
}
