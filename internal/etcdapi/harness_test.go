package etcdapi_test

import (
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/etcdapi/etcdtest"
)

// clientOf returns a client of the nodes, which is closed with the test.
func clientOf(t testing.TB, nodes ...*etcdtest.Node) *clientv3.Client {
	t.Helper()
	var urls []string
	for _, n := range nodes {
		urls = append(urls, n.Etcd)
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: urls, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// alone starts a cluster of one node and returns a client of it.
func alone(t testing.TB, c *etcdtest.Config) (*etcdtest.Node, *clientv3.Client) {
	t.Helper()
	n := etcdtest.Start(t, 1, c)[0]
	return n, clientOf(t, n)
}

// must fails the test for an error.
func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
