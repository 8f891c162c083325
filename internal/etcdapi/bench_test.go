package etcdapi_test

import (
	"fmt"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// BenchmarkCalls measures calls of 64 clients on one connection against a node alone,
// client and node in one process.
func BenchmarkCalls(b *testing.B) {
	_, c := alone(b, nil)
	ctx, value := b.Context(), strings.Repeat("v", 256)
	for i := range 1000 {
		if _, err := c.Put(ctx, fmt.Sprintf("k%04d", i), value); err != nil {
			b.Fatal(err)
		}
	}
	for name, call := range map[string]func(key string) error{
		"put": func(key string) error { _, err := c.Put(ctx, key, value); return err },
		"get": func(key string) error { _, err := c.Get(ctx, key); return err },
		"serializable get": func(key string) error {
			_, err := c.Get(ctx, key, clientv3.WithSerializable())
			return err
		},
		"list of 500": func(string) error {
			_, err := c.Get(ctx, "k", clientv3.WithPrefix(), clientv3.WithLimit(500))
			return err
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.SetParallelism(32)
			b.ReportAllocs()
			b.RunParallel(func(p *testing.PB) {
				for i := 0; p.Next(); i++ {
					if err := call(fmt.Sprintf("k%04d", i%1000)); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
