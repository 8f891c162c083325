package main

import (
	"context"
	"math/rand/v2"
	"strconv"
	"strings"

	"github.com/kvd-io/kvd/internal/loadgen"
)

// putOnce puts a key under an idempotency key of the client's number and the
// request's, and releases that of the request before. Client 0 puts without.
func (c *kvdClient) putOnce(client, request uint64, key, value []byte) (string, error) {
	c.body = append(append(c.body[:0], "/v1/kv/"...), key...)
	if client == 0 {
		_, code, err := c.conn.Request("PUT", string(c.body), nil, value)
		return code, err
	}
	name := func(b []byte, request uint64) []byte {
		return strconv.AppendUint(append(strconv.AppendUint(append(b, "bench-"...), client, 10), '-'), request, 10)
	}
	b := name(append(c.fields[:0], "Idempotency-Key: "...), request)
	b = name(append(b, "\r\nIdempotency-Release: "...), request-1)
	c.fields = append(b, "\r\n"...)
	_, code, err := c.conn.Request("PUT", string(c.body), c.fields, value)
	return code, err
}

// once compares puts that take effect exactly once with others.
func once(ctx context.Context, b *bench) error {
	const clients = 64
	return b.threeOf(ctx, b.systems[:1], func(clusters []*cluster) error {
		if err := b.fill(ctx, clusters); err != nil {
			return err
		}
		run := uint64(0) // no idempotency key is used again
		for range b.rounds {
			var rates [3]float64
			for i := range rates {
				run++
				s, err := b.drive(ctx, clusters[0], "puts", clients, b.putOnceOr(i == 1, run))
				if err != nil {
					return err
				}
				b.say("put, %d clients, with Idempotency-Key %v: %.0f/s, p99 %v, %v an operation, errors %v", clients, i == 1, s.rate, s.p99, s.cpu, s.errors)
				rates[i] = s.rate
			}
			b.report.row("kvd alone: puts with Idempotency-Key relative to puts without, 64 clients", "times", func(w *row) {
				w.More, w.Absolute, w.AtLeast, w.Goal = true, true, 0.85, 0.95
			}).add("kvd", 2*rates[1]/(rates[0]+rates[2]))
		}
		return nil
	})
}

// putOnceOr puts with an idempotency key or without, by the same code.
func (b *bench) putOnceOr(once bool, run uint64) work {
	value := []byte(strings.Repeat("v", b.valueSize))
	return func(conn client, worker int) loadgen.Op {
		client := uint64(0)
		if once {
			// The warm-up and the round each call this function, hence a number
			// at random.
			client = run<<48 | rand.Uint64N(1<<48)
		}
		keys, request := loadgen.RandomKeys(b.keySpace, uint64(worker)), uint64(0)
		return func(context.Context) (string, error) {
			request++
			return conn.(*kvdClient).putOnce(client, request, keys.Next(), value)
		}
	}
}
