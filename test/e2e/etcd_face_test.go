package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// etcd is the API of etcd, through etcd's own client.
type etcd struct{ clients map[*member]*clientv3.Client }

// withEtcd makes the members of a cluster that was not started serve clients of etcd.
func withEtcd(t testing.TB, c *cluster) etcd {
	t.Helper()
	e := etcd{make(map[*member]*clientv3.Client)}
	for _, m := range c.nodes {
		url := "http://" + loopback(freePort(t))
		m.args = append(m.args, "--listen-etcd", url)
		e.clients[m] = etcdClient(t, url)
	}
	return e
}

// endpoints returns the URLs of all members.
func (e etcd) endpoints() (all []string) {
	for _, c := range e.clients {
		all = append(all, c.Endpoints()...)
	}
	return all
}

// etcdClient returns a client that tries again soon when a node is back. It is closed with
// the test.
func etcdClient(t testing.TB, endpoints ...string) *clientv3.Client {
	t.Helper()
	soon := grpc.WithConnectParams(grpc.ConnectParams{
		Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond}, MinConnectTimeout: time.Second,
	})
	c, err := clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop(), DialOptions: []grpc.DialOption{soon}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() }) // it reports that its context was canceled
	return c
}

func (e etcd) attempt(m *member, o *operation) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), loadLimit)
	defer cancel()
	c := e.clients[m]
	switch o.kind {
	case opGet:
		err = o.takeGet(c.Get(ctx, o.key))
	case opList:
		err = o.takeList(c.Get(ctx, keyPrefix, clientv3.WithPrefix()))
	case opPut:
		err = o.takePut(c.Put(ctx, o.key, o.value, clientv3.WithPrevKV()))
	case opSwap:
		err = o.takeSwap(c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(o.key), "=", int64(o.ifRev))).
			Then(clientv3.OpPut(o.key, o.value)).Else(clientv3.OpGet(o.key, clientv3.WithKeysOnly())).Commit())
	case opDelete:
		err = o.takeDelete(c.Delete(ctx, o.key))
	}
	if err != nil {
		o.outcome = etcdOutcome(o, err)
	}
	if err != nil && !temporary(err) {
		return err
	}
	return nil
}

// refusals are errors that promise that nothing was done.
var refusals = []error{rpctypes.ErrNoLeader, rpctypes.ErrStopped, rpctypes.ErrTooManyRequests, rpctypes.ErrNoSpace}

func etcdOutcome(o *operation, err error) outcome {
	if !o.kind.writes() {
		return failed
	}
	for _, r := range refusals {
		if errors.Is(err, r) {
			return failed
		}
	}
	return unknown
}

// temporary reports whether an error may come of what happens to the cluster.
func temporary(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, rpctypes.ErrTimeout) || etcdOutcome(&operation{kind: opPut}, err) == failed {
		return true
	}
	text := err.Error()
	return strings.Contains(text, "code = Unavailable") || strings.Contains(text, "code = DeadlineExceeded") || strings.Contains(text, "connection error")
}

func (o *operation) takeGet(r *clientv3.GetResponse, err error) error {
	if err != nil {
		return err
	}
	o.revision, o.found = uint64(r.Header.GetRevision()), len(r.Kvs) == 1
	if o.found {
		o.pair = pairOfEtcd(r.Kvs[0])
	}
	return nil
}

func pairOfEtcd(kv *mvccpb.KeyValue) pair {
	return pair{string(kv.GetValue()), uint64(kv.GetModRevision())}
}

func (o *operation) takeList(r *clientv3.GetResponse, err error) error {
	if err != nil {
		return err
	}
	o.revision, o.list = uint64(r.Header.GetRevision()), make(map[string]pair)
	for _, kv := range r.Kvs {
		o.list[string(kv.GetKey())] = pairOfEtcd(kv)
	}
	return nil
}

func (o *operation) takePut(r *clientv3.PutResponse, err error) error {
	if err != nil {
		return err
	}
	o.revision, o.created = uint64(r.Header.GetRevision()), r.PrevKv == nil
	return nil
}

func (o *operation) takeSwap(r *clientv3.TxnResponse, err error) error {
	if err != nil {
		return err
	}
	o.revision, o.created = uint64(r.Header.GetRevision()), o.ifRev == 0
	if r.Succeeded {
		return nil
	}
	o.outcome = refused
	if len(r.Responses) != 1 || r.Responses[0].GetResponseRange() == nil {
		return fmt.Errorf("a refused transaction has the results %v", r.Responses)
	}
	for _, kv := range r.Responses[0].GetResponseRange().GetKvs() {
		o.nowRev = uint64(kv.GetModRevision())
	}
	return nil
}

func (o *operation) takeDelete(r *clientv3.DeleteResponse, err error) error {
	if err != nil {
		return err
	}
	o.revision, o.found = uint64(r.Header.GetRevision()), r.Deleted == 1
	return nil
}
