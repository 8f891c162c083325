package watchrpc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// receive returns the next response of a channel of clientv3.
func receive(t *testing.T, ctx context.Context, ch clientv3.WatchChan) clientv3.WatchResponse {
	t.Helper()
	select {
	case r, ok := <-ch:
		if !ok {
			t.Fatal("the channel was closed")
		}
		return r
	case <-ctx.Done():
		t.Fatal("nothing came")
	}
	return clientv3.WatchResponse{}
}

// etcd's client with each of its options.
func TestClientOptions(t *testing.T) {
	f := newFixture(t)
	c := f.client()
	ctx, cancel := context.WithTimeout(t.Context(), enough)
	defer cancel()
	f.put("p/a", "0")
	prefix := c.Watch(ctx, "p/", clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithCreatedNotify())
	if r := receive(t, ctx, prefix); !r.Created || r.Header.Revision != 2 {
		t.Fatalf("got %+v", r)
	}
	history := c.Watch(ctx, "p/", clientv3.WithFromKey(), clientv3.WithRev(2), clientv3.WithFragment())
	puts := c.Watch(ctx, "p/a", clientv3.WithFilterDelete(), clientv3.WithRev(1))
	f.apply(put("p/a", "1"), remove("p/a"))
	for _, w := range []struct {
		ch   clientv3.WatchChan
		want string
	}{
		{prefix, "p/a=1@3<0@2 -p/a@4<1@3"}, {history, "p/a=0@2 p/a=1@3 -p/a@4"}, {puts, "p/a=0@2 p/a=1@3"},
	} {
		var got []string
		for len(got) < len(strings.Fields(w.want)) {
			for _, e := range receive(t, ctx, w.ch).Events {
				got = append(got, text((*mvccpb.Event)(e)))
			}
		}
		if fmt.Sprint(got) != "["+w.want+"]" {
			t.Errorf("got %q, want %q", got, w.want)
		}
	}
	if err := c.RequestProgress(ctx); err != nil {
		t.Fatal(err)
	}
	for _, ch := range []clientv3.WatchChan{prefix, history, puts} {
		if r := receive(t, ctx, ch); !r.IsProgressNotify() || r.Header.Revision != 4 {
			t.Errorf("progress: %+v", r)
		}
	}
	f.compact(4)
	late := c.Watch(ctx, "p/a", clientv3.WithRev(3))
	if r := receive(t, ctx, late); r.CompactRevision != 4 || !errors.Is(r.Err(), rpctypes.ErrCompacted) {
		t.Errorf("compacted: %+v", r)
	}
}

// A client whose connection breaks misses nothing and gets nothing twice.
func TestClientResumes(t *testing.T) {
	f := newFixture(t)
	c := f.client()
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(t.Context()), enough)
	defer cancel()
	const writes = 300
	var clients sync.WaitGroup
	for range 5 {
		ch := c.Watch(ctx, "a", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
		receive(t, ctx, ch)
		clients.Go(func() {
			for next := int64(2); next < writes+2; {
				r, ok := <-ch
				if !ok || r.Err() != nil {
					t.Errorf("the channel ended before revision %d: %v", next, r.Err())
					return
				}
				for _, e := range r.Events {
					if e.Kv.ModRevision != next {
						t.Errorf("got revision %d, want %d", e.Kv.ModRevision, next)
						return
					}
					next++
				}
			}
		})
	}
	for i := range writes {
		if i%100 == 50 {
			f.connections.cut()
		}
		f.put("a", fmt.Sprint(i))
	}
	clients.Wait()
}
