package etcdapi_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/etcdapi/etcdtest"
)

// The watches of a client survive the restart of one member after the other: nothing is
// missing and nothing comes twice.
func TestWatchesMoveOn(t *testing.T) {
	nodes := etcdtest.Start(t, 3, nil)
	var endpoints []string
	for _, n := range nodes {
		endpoints = append(endpoints, n.Etcd)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	open := func() *clientv3.Client {
		c, err := clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	writer := open()
	put := func(value string) int64 {
		for {
			r, err := writer.Put(ctx, "moving/key", value)
			if err == nil {
				return r.Header.Revision
			}
			if ctx.Err() != nil {
				t.Fatal(err)
			}
		}
	}
	first := put("first")
	var last int64 // of the last write, once it is known
	known := make(chan struct{})
	var watching sync.WaitGroup
	for i := range 4 {
		ch := open().Watch(clientv3.WithRequireLeader(ctx), "moving/", clientv3.WithPrefix(), clientv3.WithRev(first), clientv3.WithPrevKV())
		watching.Go(func() {
			next := first
			for r := range ch {
				if err := r.Err(); err != nil {
					t.Errorf("client %d at revision %d: %v", i, next, err)
					return
				}
				for _, e := range r.Events {
					if e.Kv.ModRevision != next || next > first && e.PrevKv.GetModRevision() != next-1 {
						t.Errorf("client %d got revision %d after %d, with the pair of %d", i, e.Kv.ModRevision, next-1, e.PrevKv.GetModRevision())
						return
					}
					next++
				}
				select {
				case <-known:
					if next > last {
						return
					}
				default:
				}
			}
			t.Errorf("client %d: the channel was closed at revision %d", i, next)
		})
	}
	for round, n := range nodes {
		for i := range 20 {
			put(fmt.Sprint(round, i))
		}
		n.Stop()
		for i := range 20 {
			put(fmt.Sprint(round, -i))
		}
		n.Restart()
	}
	last = put("last")
	close(known)
	put("beyond") // wakes those who have got the last already
	watching.Wait()
}
