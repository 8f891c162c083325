package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/kvd-io/kvd/internal/loadgen"
)

// face is kvd as clients of etcd see it: kvd's nodes, and etcd's client.
type face struct {
	etcd
	nodes *kvd
}

// name implements system.
func (f *face) name() string { return f.nodes.name() }

// args implements system. kvd's own API listens, too, but nobody asks it.
func (f *face) args(c *cluster, i int) []string {
	return append(f.nodes.node(c, i, "http://127.0.0.1:0"), "--listen-etcd", "http://"+c.clients[i])
}

// facePrefix begins the rows of etcd's API.
const facePrefix = "etcd's API: "

// faceTargets returns the targets of a row of etcd's API in place of those of the same row of
// kvd's own: clients that change one URL must not be worse off in anything.
func faceTargets(name string, set func(*row)) func(*row) {
	return func(w *row) {
		if set != nil {
			set(w)
		}
		if w.Goal = 0; w.Absolute {
			return // kvd alone against its own target
		}
		w.AtLeast = 1
		if !strings.HasSuffix(name, ", rate") {
			return
		}
		for begin, ratio := range map[string]float64{
			"put, 64 ": 1.5, "put, 256 ": 1.5, "linearizable get, 64 ": 1.5, "linearizable get, 256 ": 1.5,
			"events to ": 2, "keep-alive, ": 2,
		} {
			if strings.HasPrefix(name, begin) {
				w.AtLeast = ratio
			}
		}
	}
}

// pageSize is how many objects Kubernetes lists at once.
const pageSize = 500

// pages lists all keys as Kubernetes does: in pages, at the revision of the first.
func pages(ctx context.Context, b *bench) error {
	return b.three(ctx, func(clusters []*cluster) error {
		if err := b.fill(ctx, clusters); err != nil {
			return err
		}
		for _, clients := range []int{1, 16} {
			if err := b.alternate(clusters, func(_ int, c *cluster) error { return b.list(ctx, c, clients) }); err != nil {
				return err
			}
		}
		if err := b.alternate(clusters, func(_ int, c *cluster) error { return b.firstPage(ctx, c) }); err != nil {
			return err
		}
		return b.alternate(clusters, func(_ int, c *cluster) error { return b.countAll(ctx, c) })
	})
}

var allKeys = clientv3.WithRange(clientv3.GetPrefixRangeEnd(watchedPrefix))

// list reads page after page, and then begins anew.
func (b *bench) list(ctx context.Context, c *cluster, clients int) error {
	s, err := b.drive(ctx, c, "pages", clients, func(conn client, _ int) loadgen.Op {
		from, revision := watchedPrefix, int64(0)
		return func(ctx context.Context) (string, error) {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			r, err := conn.(*etcdClient).c.Get(ctx, from, allKeys, clientv3.WithLimit(pageSize), clientv3.WithRev(revision))
			if err != nil {
				return outcome(err)
			}
			if revision = r.Header.Revision; r.More {
				from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
			} else {
				from, revision = watchedPrefix, 0
			}
			return "", nil
		}
	})
	if err != nil {
		return err
	}
	b.say("%-4s page of %d, %d clients: %.0f/s, p50 %v, p99 %v, %v an operation, errors %v", c.sys.name(), pageSize, clients, s.rate, s.p50, s.p99, s.cpu, s.errors)
	name := fmt.Sprintf("page of %d of %d pairs, %s, ", pageSize, b.keySpace, clientCount(clients))
	b.report.row(name+"rate", "1/s", func(w *row) { w.More = true }).add(c.sys.name(), s.rate)
	b.report.row(name+"p99", "ms", nil).add(c.sys.name(), ms(s.p99))
	b.report.row(name+"CPU of all servers", "µs each", nil).add(c.sys.name(), us(s.cpu))
	return nil
}

// repeats is how often a single request is made whose median counts.
const repeats = 11

// firstPage takes the time of a page whose range nobody has counted yet: after a put.
func (b *bench) firstPage(ctx context.Context, c *cluster) error {
	took, err := b.medianOf(ctx, c, func(cl *clientv3.Client) error {
		_, err := cl.Get(ctx, watchedPrefix, allKeys, clientv3.WithLimit(pageSize))
		return err
	})
	if err != nil {
		return err
	}
	b.say("%-4s first page of %d: %v", c.sys.name(), pageSize, took)
	b.report.row(fmt.Sprintf("first page of %d of %d pairs, p50", pageSize, b.keySpace), "ms", nil).add(c.sys.name(), ms(took))
	return nil
}

// countAll takes the time of counting all keys.
func (b *bench) countAll(ctx context.Context, c *cluster) error {
	took, err := b.medianOf(ctx, c, func(cl *clientv3.Client) error {
		_, err := cl.Get(ctx, watchedPrefix, allKeys, clientv3.WithCountOnly())
		return err
	})
	if err != nil {
		return err
	}
	b.say("%-4s count of %d: %v", c.sys.name(), b.keySpace, took)
	b.report.row(fmt.Sprintf("count of %d keys, p50", b.keySpace), "ms", nil).add(c.sys.name(), ms(took))
	return nil
}

// medianOf returns the median time of a request to the leader that follows a put.
func (b *bench) medianOf(ctx context.Context, c *cluster, request func(*clientv3.Client) error) (time.Duration, error) {
	leader, err := c.leader(ctx)
	if err != nil {
		return 0, err
	}
	conn, err := c.sys.open(c.clients[leader])
	if err != nil {
		return 0, err
	}
	defer conn.close()
	took := loadgen.NewHistogram()
	for i := range repeats {
		if code, err := conn.put(ctx, appendKey(nil, uint64(i)), []byte("x")); err != nil || code != "" {
			return 0, fmt.Errorf("put: %s (%w)", code, err)
		}
		begin := time.Now()
		if err := request(conn.(*etcdClient).c); err != nil {
			return 0, err
		}
		took.Record(time.Since(begin))
	}
	return took.Quantile(0.5), nil
}

// watchesPerStream is how many watches share a stream: Kubernetes has about as many.
const watchesPerStream = 100

// stream is a connection with watches on one stream of gRPC.
type stream struct {
	conn *grpc.ClientConn
	rpc  pb.Watch_WatchClient
}

// crowd is many watches on few streams.
type crowd struct {
	streams []*stream
	reading sync.WaitGroup
	mu      struct {
		sync.Mutex
		latency loadgen.Histogram // of timed events
		failed  error             // the first failure
		closing bool
	}
}

// streams measures many watches on few streams, each on a prefix of its own: their memory,
// what they cost a put that concerns none of them, and the latency of one that does.
func streams(ctx context.Context, b *bench) error {
	for range b.rounds {
		for _, s := range b.systems {
			if err := b.streamsOf(ctx, s); err != nil {
				return fmt.Errorf("%s: %w", s.name(), err)
			}
		}
	}
	return nil
}

func (b *bench) streamsOf(ctx context.Context, s system) (err error) {
	c, err := b.start(ctx, s, 3)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	leader, err := c.leader(ctx)
	if err != nil {
		return err
	}
	resident := func() float64 { return residentBytes([]int{c.procs[leader].Process.Pid})[0] }
	light := resident()
	idle, err := b.crowdOf(ctx, c.clients[leader])
	if err != nil {
		return err
	}
	defer idle.close()
	if err := b.rest(ctx, settle); err != nil {
		return err
	}
	each := (resident() - light) / float64(b.watches) / (1 << 10)
	b.say("%-4s %d watches on %d streams: %.2f KiB each", s.name(), b.watches, len(idle.streams), each)
	name := fmt.Sprintf("%d watches on streams of %d", b.watches, watchesPerStream)
	b.report.row(name+", memory of the leader for each", "KiB", nil).add(s.name(), each)
	if err := b.crowdLatency(ctx, c, leader, idle, name); err != nil {
		return err
	}
	if err := b.fill(ctx, []*cluster{c}); err != nil {
		return err
	}
	with, err := b.load(ctx, c, opPut, 64, b.keySpace)
	if err != nil {
		return err
	}
	if err := idle.close(); err != nil {
		return err
	}
	b.say("%-4s put, 64 clients, %d watches elsewhere: %.0f/s, p99 %v, %v an operation", s.name(), b.watches, with.rate, with.p99, with.cpu)
	b.report.row(name+" elsewhere, put, 64 clients, rate", "1/s", func(w *row) { w.More = true }).add(s.name(), with.rate)
	b.report.row(name+" elsewhere, put, 64 clients, p99", "ms", nil).add(s.name(), ms(with.p99))
	return nil
}

// crowdLatency puts to the prefixes of watches at random, at a fixed rate.
func (b *bench) crowdLatency(ctx context.Context, c *cluster, leader int, idle *crowd, name string) error {
	conn, err := c.sys.open(c.clients[leader])
	if err != nil {
		return err
	}
	defer conn.close()
	tick := time.NewTicker(time.Second / timedRate)
	defer tick.Stop()
	puts := int64(timedRate * b.seconds)
	for range puts {
		<-tick.C
		if code, err := conn.put(ctx, []byte(elsewhere(rand.IntN(b.watches))+"key"), timed(b.valueSize)); err != nil || code != "" {
			return fmt.Errorf("put: %s (%w)", code, err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, deliverWait)
	defer cancel()
	for idle.delivered() < puts {
		if err := wait(ctx, time.Millisecond); err != nil {
			return fmt.Errorf("%d of %d events: %w", idle.delivered(), puts, err)
		}
	}
	idle.mu.Lock()
	defer idle.mu.Unlock()
	l := idle.mu.latency
	b.say("%-4s put to event, %d watches: p50 %v, p99 %v", c.sys.name(), b.watches, l.Quantile(0.5), l.Quantile(0.99))
	b.report.row(name+", put to event, p50", "ms", nil).add(c.sys.name(), ms(l.Quantile(0.5)))
	b.report.row(name+", put to event, p99", "ms", nil).add(c.sys.name(), ms(l.Quantile(0.99)))
	return nil
}

// crowdOf opens the streams and creates the watches.
func (b *bench) crowdOf(ctx context.Context, address string) (*crowd, error) {
	all := new(crowd)
	all.mu.latency = loadgen.NewHistogram()
	for first := 0; first < b.watches; first += watchesPerStream {
		st, err := openStream(ctx, address, first, min(watchesPerStream, b.watches-first))
		if err != nil {
			return nil, errors.Join(err, all.close())
		}
		all.streams = append(all.streams, st)
		all.reading.Go(func() { all.read(st) })
	}
	return all, nil
}

func openStream(ctx context.Context, address string, first, count int) (*stream, error) {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	st := &stream{conn: conn}
	if st.rpc, err = pb.NewWatchClient(conn).Watch(ctx); err == nil {
		err = st.create(first, count)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return st, nil
}

// create creates watches and waits until they are in effect.
func (st *stream) create(first, count int) error {
	for i := first; i < first+count; i++ {
		prefix := elsewhere(i)
		err := st.rpc.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
			Key: []byte(prefix), RangeEnd: []byte(clientv3.GetPrefixRangeEnd(prefix))}}})
		if err != nil {
			return err
		}
	}
	for range count {
		if r, err := st.rpc.Recv(); err != nil || !r.Created {
			return fmt.Errorf("watch: not created: %v (%w)", r, err)
		}
	}
	return nil
}

// read notes the latency of timed events until the stream ends.
func (a *crowd) read(st *stream) {
	for {
		r, err := st.rpc.Recv()
		a.mu.Lock()
		if err != nil {
			if !a.mu.closing && a.mu.failed == nil {
				a.mu.failed = err
			}
			a.mu.Unlock()
			return
		}
		for _, e := range r.Events {
			if sent, ok := sentAt(e.Kv.Value); ok {
				a.mu.latency.Record(time.Since(sent))
			}
		}
		a.mu.Unlock()
	}
}

// delivered returns the number of timed events.
func (a *crowd) delivered() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return int64(a.mu.latency.Count())
}

// close ends the streams and returns why one of them ended before.
func (a *crowd) close() error {
	a.mu.Lock()
	a.mu.closing = true
	a.mu.Unlock()
	for _, st := range a.streams {
		_ = st.conn.Close()
	}
	a.reading.Wait()
	return a.mu.failed
}
