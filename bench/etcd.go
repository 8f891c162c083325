package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"
)

// etcd is driven over gRPC, as by its own tools: its fastest interface.
type etcd struct {
	binary string
	tls    *tlsFiles // nil: clients connect without TLS
}

func (*etcd) name() string { return "etcd" }

func (e *etcd) args(c *cluster, i int) []string {
	var members []string
	for j, p := range c.peers {
		members = append(members, fmt.Sprintf("n%d=http://%s", j+1, p))
	}
	client, peer := "http://"+c.clients[i], "http://"+c.peers[i]
	var secure []string
	if e.tls != nil {
		client = "https://" + c.clients[i]
		secure = []string{"--cert-file", e.tls.cert, "--key-file", e.tls.key}
	}
	return append([]string{e.binary, "--name", fmt.Sprintf("n%d", i+1), "--data-dir", filepath.Join(c.dir, strconv.Itoa(i+1)),
		"--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer,
		"--initial-advertise-peer-urls", peer, "--initial-cluster", strings.Join(members, ","),
		"--initial-cluster-state", "new", "--quota-backend-bytes", "8589934592", "--log-level", "error"}, secure...)
}

func (e *etcd) dial(address string) (*clientv3.Client, error) {
	config := clientv3.Config{Endpoints: []string{address}, DialTimeout: 5 * time.Second, Logger: zap.NewNop(), MaxCallSendMsgSize: 16 << 20}
	if e.tls != nil {
		config.Endpoints, config.TLS = []string{"https://" + address}, e.tls.config.Clone()
	}
	return clientv3.New(config)
}

func (e *etcd) open(address string) (client, error) {
	c, err := e.dial(address)
	if err != nil {
		return nil, err
	}
	return &etcdClient{c: c}, nil
}

// etcdClient is one connection. Several goroutines may use it, except for its
// keep-alives.
type etcdClient struct {
	c       *clientv3.Client
	keep    pb.Lease_LeaseKeepAliveClient // nil until the first keep-alive
	session *concurrency.Session          // nil until the first lock
}

func (c *etcdClient) put(ctx context.Context, key, value []byte) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := c.c.Put(ctx, string(key), string(value))
	return outcome(err)
}

func (c *etcdClient) get(ctx context.Context, key []byte, stale bool) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var opts []clientv3.OpOption
	if stale {
		opts = append(opts, clientv3.WithSerializable())
	}
	r, err := c.c.Get(ctx, string(key), opts...)
	if err == nil && len(r.Kvs) == 0 {
		return "404 key_not_found", nil
	}
	return outcome(err)
}

func (c *etcdClient) txn(ctx context.Context, key, value []byte) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := c.c.Txn(ctx).If(clientv3.Compare(clientv3.Version(string(key)), ">", 0)).Then(clientv3.OpPut(string(key), string(value))).Commit()
	if err == nil && !r.Succeeded {
		return "not succeeded", nil
	}
	return outcome(err)
}

// outcome turns an error into an answer. The connection stays usable, because
// gRPC repairs it.
func outcome(err error) (string, error) {
	if err == nil {
		return "", nil
	}
	text, _, _ := strings.Cut(err.Error(), "\n")
	return text[:min(len(text), 80)], nil
}

func (c *etcdClient) close() { _ = c.c.Close() }

func (e *etcd) leader(ctx context.Context, c *cluster) (int, error) {
	for i, p := range c.procs {
		if p == nil {
			continue
		}
		leads, err := e.isLeader(ctx, c.clients[i])
		if err == nil && leads {
			return i, nil
		}
	}
	return 0, errors.New("no node leads")
}

func (e *etcd) isLeader(ctx context.Context, address string) (bool, error) {
	cl, err := e.dial(address)
	if err != nil {
		return false, err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	st, err := cl.Status(ctx, cl.Endpoints()[0])
	return err == nil && st.Leader == st.Header.MemberId, err
}

// bulkKeys stays a little below etcd's limit on operations per transaction.
const bulkKeys = 100

func (e *etcd) bulk(ctx context.Context, c *cluster, count uint64, conns, valueSize int) error {
	leader, err := c.leader(ctx)
	if err != nil {
		return err
	}
	value := strings.Repeat("v", valueSize)
	return shared(count, conns, func(from, to uint64) error {
		cl, err := e.dial(c.clients[leader])
		if err != nil {
			return err
		}
		defer cl.Close()
		for i := from; i < to; {
			var ops []clientv3.Op
			for ; i < to && len(ops) < bulkKeys; i++ {
				ops = append(ops, clientv3.OpPut(key(i), value))
			}
			if _, err := cl.Txn(ctx).Then(ops...).Commit(); err != nil {
				return err
			}
		}
		return nil
	})
}

func (e *etcd) snapshot(ctx context.Context, address string) error {
	cl, err := e.dial(address)
	if err != nil {
		return err
	}
	defer cl.Close()
	r, err := cl.Snapshot(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return err
}
