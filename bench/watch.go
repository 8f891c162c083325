package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/kvd-io/kvd/internal/loadgen"
)

const (
	watchers      = 100
	watchedPrefix = "key-"
	// timedRate is the number of puts a second by which latency is measured:
	// few enough for both systems to deliver each event at once.
	timedRate = 100
	// deliverPuts is how many puts are delivered in a round of a second.
	deliverPuts = 3000
	deliverWait = 2 * time.Minute
	openers     = 32
	// settle is how long the work of opening and closing thousands of
	// connections may last after it.
	settle = 2 * time.Second
)

// watcher is one watch on a connection of its own.
type watcher interface {
	// next waits for events and calls event with the value of each.
	next(event func(value []byte)) error
	close()
}

// watchable is what a system has to be for these measurements.
type watchable interface {
	// watch returns a watch that is in effect: later events are delivered.
	watch(ctx context.Context, address, prefix string) (watcher, error)
}

// watch reads the stream of lines up to the first one, which says that the
// watch is in effect.
func (k *kvd) watch(_ context.Context, address, prefix string) (watcher, error) {
	conn, err := k.dial(address)
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	_, err = fmt.Fprintf(conn, "GET /v1/watch?prefix=%s HTTP/1.1\r\nHost: %s\r\n\r\n", prefix, address)
	var answer *http.Response
	if err == nil {
		answer, err = http.ReadResponse(bufio.NewReaderSize(conn, 4<<10), nil)
	}
	if err == nil && answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 200))
		err = fmt.Errorf("GET /v1/watch: %s %s", answer.Status, text)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	w := &kvdWatch{closer: conn, lines: bufio.NewReaderSize(answer.Body, 4<<10)}
	if err := w.next(func([]byte) { err = errors.New("an event before the first progress") }); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	_ = conn.SetDeadline(time.Time{})
	return w, err
}

type kvdWatch struct {
	closer io.Closer
	lines  *bufio.Reader
}

// next reads one line.
func (w *kvdWatch) next(event func(value []byte)) error {
	line, err := w.lines.ReadSlice('\n')
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(line, []byte(`{"type":"put"`)) {
		if bytes.HasPrefix(line, []byte(`{"type":"progress"`)) {
			return nil
		}
		return fmt.Errorf("watch: %.100s", line)
	}
	_, rest, _ := bytes.Cut(line, []byte(`"value":"`))
	value, _, ok := bytes.Cut(rest, []byte(`"`))
	if !ok {
		return fmt.Errorf("watch: no value in %.100s", line)
	}
	event(value)
	return nil
}

func (w *kvdWatch) close() { _ = w.closer.Close() }

// watch opens a stream of gRPC with one watch. etcd's client library would
// only take more CPU from the servers.
func (e *etcd) watch(ctx context.Context, address, prefix string) (watcher, error) {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithReadBufferSize(4<<10), grpc.WithWriteBufferSize(4<<10))
	if err != nil {
		return nil, err
	}
	stream, err := pb.NewWatchClient(conn).Watch(ctx)
	if err == nil {
		err = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
			Key: []byte(prefix), RangeEnd: []byte(clientv3.GetPrefixRangeEnd(prefix))}}})
	}
	var created *pb.WatchResponse
	if err == nil {
		created, err = stream.Recv()
	}
	if err == nil && !created.Created {
		err = fmt.Errorf("watch: not created: %v", created)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &etcdWatch{closer: conn, stream: stream}, nil
}

type etcdWatch struct {
	closer io.Closer
	stream pb.Watch_WatchClient
}

func (w *etcdWatch) next(event func(value []byte)) error {
	r, err := w.stream.Recv()
	if err != nil {
		return err
	}
	if r.Canceled {
		return fmt.Errorf("watch: canceled: %s", r.CancelReason)
	}
	for _, e := range r.Events {
		event(e.Kv.Value)
	}
	return nil
}

func (w *etcdWatch) close() { _ = w.closer.Close() }

// audience is a number of watches that are being read.
type audience struct {
	all     []watcher
	counts  []atomic.Int64      // of events, by watcher
	latency []loadgen.Histogram // of timed events, by watcher
	reading sync.WaitGroup
	closing atomic.Bool
	failed  chan error // the first failure
}

// gather opens watches at the leader, on the prefix of each.
func (b *bench) gather(ctx context.Context, c *cluster, count int, prefix func(i int) string) (*audience, error) {
	leader, err := c.leader(ctx)
	if err != nil {
		return nil, err
	}
	a := &audience{all: make([]watcher, count), counts: make([]atomic.Int64, count), latency: make([]loadgen.Histogram, count), failed: make(chan error, 1)}
	err = shared(uint64(count), openers, func(from, to uint64) error {
		for i := from; i < to; i++ {
			w, err := c.sys.(watchable).watch(ctx, c.clients[leader], prefix(int(i)))
			if err != nil {
				return err
			}
			a.all[i] = w
		}
		return nil
	})
	if err != nil {
		a.close()
		return nil, err
	}
	for i := range a.all {
		a.reading.Go(func() { a.read(i) })
	}
	return a, nil
}

// read counts the events of one watch until it ends.
func (a *audience) read(i int) {
	count := &a.counts[i]
	event := func(value []byte) {
		count.Add(1)
		if sent, ok := sentAt(value); ok {
			if a.latency[i] == (loadgen.Histogram{}) {
				a.latency[i] = loadgen.NewHistogram()
			}
			a.latency[i].Record(time.Since(sent))
		}
	}
	for {
		if err := a.all[i].next(event); err != nil {
			if !a.closing.Load() {
				select {
				case a.failed <- err:
				default:
				}
			}
			return
		}
	}
}

// close ends the watches and waits for their readers.
func (a *audience) close() {
	a.closing.Store(true)
	for _, w := range a.all {
		if w != nil {
			w.close()
		}
	}
	a.reading.Wait()
}

// failure returns why a watch ended by itself, if one did.
func (a *audience) failure() error {
	select {
	case err := <-a.failed:
		return fmt.Errorf("a watch ended: %w", err)
	default:
		return nil
	}
}

// await waits until every watch has delivered that many events, and fails if
// one delivers more.
func (a *audience) await(ctx context.Context, events int64) error {
	ctx, cancel := context.WithTimeout(ctx, deliverWait)
	defer cancel()
	for i := range a.counts {
		for a.counts[i].Load() < events {
			select {
			case err := <-a.failed:
				return err
			case <-ctx.Done():
				return fmt.Errorf("a watch got %d of %d events: %w", a.counts[i].Load(), events, ctx.Err())
			case <-time.After(time.Millisecond):
			}
		}
		if got := a.counts[i].Load(); got > events {
			return fmt.Errorf("a watch got %d events of %d puts", got, events)
		}
	}
	return nil
}

// timed returns a value that holds the time.
func timed(size int) []byte {
	return fmt.Appendf(nil, "at=%019d%s", time.Now().UnixNano(), strings.Repeat("v", max(0, size-22)))
}

// sentAt returns the time in a value of timed.
func sentAt(value []byte) (time.Time, bool) {
	if len(value) < 22 || !bytes.HasPrefix(value, []byte("at=")) {
		return time.Time{}, false
	}
	ns, err := strconv.ParseInt(string(value[3:22]), 10, 64)
	return time.Unix(0, ns), err == nil
}

// events measures what watchers of the written prefix get.
func events(ctx context.Context, b *bench) error {
	return b.three(ctx, func(clusters []*cluster) error {
		if err := b.fill(ctx, clusters); err != nil {
			return err
		}
		if err := b.alternate(clusters, func(_ int, c *cluster) error { return b.deliver(ctx, c) }); err != nil {
			return err
		}
		return b.alternate(clusters, func(_ int, c *cluster) error { return b.eventLatency(ctx, c) })
	})
}

func watches(ctx context.Context, b *bench) error {
	err := events(ctx, b)
	// The idle watches need fresh nodes, because memory once used is not given
	// back soon.
	for range b.rounds {
		for _, s := range b.systems {
			if e := b.idleWatches(ctx, s); e != nil {
				err = errors.Join(err, fmt.Errorf("%s: %w", s.name(), e))
			}
		}
	}
	return err
}

// everyKey is the prefix of each watch that is to get all events.
func everyKey(int) string { return watchedPrefix }

// deliver puts from 64 clients, and takes the time until the last of the
// watches has delivered the last event.
func (b *bench) deliver(ctx context.Context, c *cluster) error {
	a, err := b.gather(ctx, c, watchers, everyKey)
	if err != nil {
		return err
	}
	defer a.close()
	leader, err := c.leader(ctx)
	if err != nil {
		return err
	}
	const clients = 64
	conns, closeAll, err := openAll(c, leader, clients)
	if err != nil {
		return err
	}
	defer closeAll()
	puts := max(clients, uint64(deliverPuts*b.seconds))
	value := []byte(strings.Repeat("v", b.valueSize))
	next := atomic.Int64{}
	begin, before := time.Now(), cpuTime(c.pids())
	err = shared(puts, clients, func(from, to uint64) error {
		conn := conns[next.Add(1)-1]
		for i := from; i < to; i++ {
			if code, err := conn.put(ctx, appendKey(nil, i%b.keySpace), value); err != nil || code != "" {
				return fmt.Errorf("put: %s (%w)", code, err)
			}
		}
		return nil
	})
	putting := time.Since(begin)
	if err = errors.Join(err, a.await(ctx, int64(puts))); err != nil {
		return err
	}
	took, used := time.Since(begin), cpuTime(c.pids())-before
	events := float64(puts) * watchers
	b.say("%-4s %d puts in %v, %.0f events delivered in %v", c.sys.name(), puts, putting, events, took)
	name := fmt.Sprintf("events to %d watchers of the written prefix, ", watchers)
	b.report.row(name+"rate", "1/s", func(w *row) { w.More, w.AtLeast, w.Goal = true, 3, 6 }).add(c.sys.name(), events/took.Seconds())
	b.report.row(name+"CPU of all servers", "µs each", nil).add(c.sys.name(), us(used)/events)
	return nil
}

// eventLatency puts from one client, at a fixed rate.
func (b *bench) eventLatency(ctx context.Context, c *cluster) error {
	a, err := b.gather(ctx, c, watchers, everyKey)
	if err != nil {
		return err
	}
	defer a.close()
	leader, err := c.leader(ctx)
	if err != nil {
		return err
	}
	conn, err := c.sys.open(c.clients[leader])
	if err != nil {
		return err
	}
	defer conn.close()
	tick := time.NewTicker(time.Second / timedRate)
	defer tick.Stop()
	puts := int64(timedRate * b.seconds)
	for i := range puts {
		<-tick.C
		if code, err := conn.put(ctx, appendKey(nil, uint64(i)), timed(b.valueSize)); err != nil || code != "" {
			return fmt.Errorf("put: %s (%w)", code, err)
		}
	}
	if err := a.await(ctx, puts); err != nil {
		return err
	}
	a.close() // the histograms belong to the readers until then
	total := loadgen.NewHistogram()
	for _, h := range a.latency {
		total.Merge(h)
	}
	b.say("%-4s put to event, %d watchers: p50 %v, p99 %v, max %v of %d", c.sys.name(), watchers, total.Quantile(0.5), total.Quantile(0.99), total.Max(), total.Count())
	name := fmt.Sprintf("put to event, 1 writer, %d watchers, ", watchers)
	b.report.row(name+"p50", "ms", nil).add(c.sys.name(), ms(total.Quantile(0.5)))
	b.report.row(name+"p99", "ms", func(w *row) { w.AtLeast, w.Goal = 0.6, 0.3 }).add(c.sys.name(), ms(total.Quantile(0.99)))
	return nil
}

// idleWatches compares puts with many watches elsewhere with puts without, and
// the memory of the leader.
func (b *bench) idleWatches(ctx context.Context, s system) (err error) {
	if k, ok := s.(*kvd); ok {
		s = &kvd{binary: k.binary, label: k.label, flags: []string{"--max-connections", "0", "--max-watches", strconv.Itoa(2 * b.watches)}}
	}
	c, err := b.start(ctx, s, 3)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	idle, err := b.weigh(ctx, c)
	if err != nil {
		return err
	}
	defer idle.close()
	if err := b.fill(ctx, []*cluster{c}); err != nil {
		return err
	}
	first, err := b.load(ctx, c, opPut, 64, b.keySpace)
	if err == nil {
		err = idle.failure()
	}
	if err != nil {
		return err
	}
	idle.close()
	if err := b.rest(ctx, settle); err != nil {
		return err
	}
	without, err := b.load(ctx, c, opPut, 64, b.keySpace)
	if err != nil {
		return err
	}
	again, err := b.gather(ctx, c, b.watches, elsewhere)
	if err != nil {
		return err
	}
	defer again.close()
	if err := b.rest(ctx, settle); err != nil {
		return err
	}
	second, err := b.load(ctx, c, opPut, 64, b.keySpace)
	if err != nil {
		return err
	}
	with := (first.rate + second.rate) / 2
	b.say("%-4s put, 64 clients: %.0f/s without and %.0f/s with %d idle watches", s.name(), without.rate, with, b.watches)
	b.report.row(fmt.Sprintf("put rate with %d idle watches elsewhere relative to without, 64 clients", b.watches), "times", func(w *row) {
		w.More, w.Absolute, w.AtLeast, w.Goal = true, true, 0.95, 0.99
	}).add(s.name(), with/without.rate)
	return again.failure()
}

// elsewhere is the prefix of an idle watch.
func elsewhere(i int) string { return fmt.Sprintf("elsewhere/%06d/", i) }

// weigh opens the idle watches at nodes that have done nothing yet: later, the
// watches could use memory that others have left.
func (b *bench) weigh(ctx context.Context, c *cluster) (*audience, error) {
	leader, err := c.leader(ctx)
	if err != nil {
		return nil, err
	}
	resident := func() float64 { return residentBytes([]int{c.procs[leader].Process.Pid})[0] }
	light, begin := resident(), time.Now()
	idle, err := b.gather(ctx, c, b.watches, elsewhere)
	if err != nil {
		return nil, err
	}
	opened := time.Since(begin)
	if err := b.rest(ctx, settle); err != nil {
		idle.close()
		return nil, err
	}
	each := (resident() - light) / float64(b.watches) / (1 << 10)
	b.say("%-4s %d idle watches opened in %v: %.1f KiB each", c.sys.name(), b.watches, opened, each)
	b.report.row(fmt.Sprintf("memory of the leader for each of %d idle watches", b.watches), "KiB", func(w *row) {
		w.AtLeast, w.Goal = 0.5, 0.25
	}).add(c.sys.name(), each)
	return idle, nil
}
