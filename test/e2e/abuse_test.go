package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/proof"
)

// abuse is a kind of client that stops in the middle: it sends something, and then
// neither reads nor writes. Some time after the node must have cut it off, it comes back.
type abuse struct {
	name    string
	clients int
	send    []byte
	at      func(*abused) string // its address; nil for that of HTTP
	tls     bool                 // send goes through TLS, with HTTP/2
	reads   bool                 // it takes what comes, and comes back as soon as it is cut off
	forever bool                 // send is repeated as long as the node takes it
}

// abused is the node, which has a listener of each kind.
type abused struct {
	*member
	https, etcd int     // ports
	side        *member // the same node, at a listener for its supervisor alone
}

// newAbused starts the node with the values that abusive clients ask for.
func newAbused(t *testing.T, memoryLimit int64, args ...string) *abused {
	t.Helper()
	if _, err := os.Stat("/proc/self/status"); err != nil {
		t.Skipf("NOT RUN: the memory of a process cannot be measured on %s: %v", runtime.GOOS, err)
	}
	t.Setenv("GOMEMLIMIT", fmt.Sprint(memoryLimit))
	c := newIdleCluster(t, 1)
	n := &abused{member: c.node(1), https: freePort(t), etcd: freePort(t), side: &member{clientPort: freePort(t)}}
	dir := filepath.Join(t.TempDir(), "certs")
	if out, err := exec.Command(binary, "cert", "init", "--dir", dir).CombinedOutput(); err != nil {
		t.Fatalf("kvd cert init: %v: %s", err, out)
	}
	at := slices.Index(n.args, "--port")
	n.args = slices.Concat(n.args[:at], n.args[at+2:], args, []string{
		"--listen-client", n.url() + ",https://" + loopback(n.https), "--listen-etcd", "http://" + loopback(n.etcd),
		"--listen-metrics", n.side.url(), // where strangers cannot take all places
		"--tls-cert-file", filepath.Join(dir, "member1.pem"), "--tls-key-file", filepath.Join(dir, "member1-key.pem"),
	})
	restart(n.member)
	for i := range 12 {
		put(t, n.member, fmt.Sprintf("big%d", i), strings.Repeat("\x01", 1<<20))
	}
	return n
}

func (n *abused) httpsAddress() string { return loopback(n.https) }
func (n *abused) etcdAddress() string  { return loopback(n.etcd) }

// abuses are all kinds at once: 10,000 connections, divided by fraction.
func abuses(fraction int) []abuse {
	request := func(line string, headers ...string) []byte {
		return []byte(line + " HTTP/1.1\r\nHost: 127.0.0.1\r\n" + strings.Join(append(headers, "", ""), "\r\n"))
	}
	const mib = 1 << 20
	value := bytes.Repeat([]byte("v"), mib-1)
	list := request("GET /v1/kv?prefix=big", "Accept: application/x-ndjson")
	all := []abuse{
		{name: "silent connections", clients: 2000, reads: true},
		{name: "half a request line", clients: 1000, reads: true, send: []byte("GET /v1/kv/bi")},
		{name: "half the headers", clients: 1000, reads: true, send: list[:len(list)-10]},
		{name: "bodies without their last byte", clients: 1000, send: append(request("PUT /v1/kv/body", fmt.Sprintf("Content-Length: %d", mib)), value...)},
		{name: "bodies that are only announced", clients: 500, send: request("PUT /v1/kv/body", fmt.Sprintf("Content-Length: %d", mib))},
		{name: "idle after an answer", clients: 1000, reads: true, send: request("GET /livez")},
		{name: "values that nobody reads", clients: 300, send: request("GET /v1/kv/big1")},
		{name: "values in JSON that nobody reads", clients: 200, send: request("GET /v1/kv/big1?meta&pretty")},
		{name: "pages that nobody reads", clients: 200, send: request("GET /v1/kv?prefix=big")},
		{name: "lists that nobody reads", clients: 200, send: list},
		{name: "snapshots that nobody reads", clients: 40, send: request("GET /v1/snapshot")},
		{name: "batches whose answers nobody reads", clients: 80, forever: true,
			send: append(request("POST /v1/batch", "Content-Length: 1000000000000"), bytes.Repeat([]byte(`{"get":{"key":"big1"}}`+"\n"), 1000)...)},
		{name: "watches that nobody reads", clients: 1000, send: request("GET /v1/watch?prefix=big&from_revision=1")},
		{name: "half a hello of TLS", clients: 480, at: (*abused).httpsAddress, reads: true, send: []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03half of it")},
		{name: "HTTP/2 without requests", clients: 100, at: (*abused).httpsAddress, tls: true, send: preface()},
		{name: "HTTP/2 whose answers nobody reads", clients: 200, at: (*abused).httpsAddress, tls: true,
			send: http2Requests("GET", "https", "/v1/kv?prefix=big", nil)},
		{name: "gRPC: silent connections", clients: 200, at: (*abused).etcdAddress, reads: true},
		{name: "gRPC without calls", clients: 200, at: (*abused).etcdAddress, reads: true, send: preface()},
		{name: "gRPC: half a frame", clients: 100, at: (*abused).etcdAddress, reads: true, send: append(preface(), 0, 1, 0, 1, 4, 0, 0, 0, 1, 'h')},
		{name: "gRPC: answers that nobody reads", clients: 200, at: (*abused).etcdAddress,
			send: http2Requests("POST", "http", "/etcdserverpb.KV/Range", []byte("\x00\x00\x00\x00\x0a\x0a\x03big\x12\x03bih"))},
	}
	for i := range all {
		all[i].clients /= fraction
	}
	return all
}

// frame returns a frame of HTTP/2.
func frame(kind, flags byte, stream uint32, payload []byte) []byte {
	n := len(payload)
	return append([]byte{byte(n >> 16), byte(n >> 8), byte(n), kind, flags, byte(stream >> 24), byte(stream >> 16), byte(stream >> 8), byte(stream)}, payload...)
}

// preface is what a client of HTTP/2 begins with.
func preface() []byte {
	const settings = 4
	return append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), frame(settings, 0, 0, nil)...)
}

// http2Requests are ten requests on one connection.
func http2Requests(method, scheme, path string, body []byte) []byte {
	const (
		data, headers         = 0, 1
		endStream, endHeaders = 1, 4
	)
	var block []byte // of literals without Huffman codes (RFC 7541, 6.2.2)
	for _, h := range [][2]string{{":method", method}, {":scheme", scheme}, {":path", path}, {":authority", "127.0.0.1"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		block = append(append(append(block, 0, byte(len(h[0]))), h[0]...), byte(len(h[1])))
		block = append(block, h[1]...)
	}
	out := preface()
	for stream := uint32(1); stream < 20; stream += 2 {
		if body == nil {
			out = append(out, frame(headers, endStream|endHeaders, stream, block)...)
			continue
		}
		out = append(out, frame(headers, endHeaders, stream, block)...)
		out = append(out, frame(data, endStream, stream, body)...)
	}
	return out
}

// stalled is how long a client stays. The node cuts it off earlier, which it cannot see
// without reading.
const stalled = 20 * time.Second

// run keeps the kind up until the context ends. It counts the connections.
func (a *abuse) run(ctx context.Context, n *abused, conns *atomic.Int64) {
	address := loopback(n.clientPort)
	if a.at != nil {
		address = a.at(n)
	}
	var clients sync.WaitGroup
	for i := range a.clients {
		clients.Go(func() {
			rest(ctx, time.Duration(i)*2*time.Second/time.Duration(a.clients)) // not all in one moment
			for ctx.Err() == nil {
				if conn, err := a.dial(ctx, address); err == nil {
					conns.Add(1)
					a.stall(ctx, conn)
				}
				rest(ctx, time.Second)
			}
		})
	}
	clients.Wait()
}

func (a *abuse) dial(ctx context.Context, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	_ = conn.(*net.TCPConn).SetReadBuffer(4096)
	if !a.tls {
		return conn, nil
	}
	secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return secure, nil
}

// stall sends what the kind sends, or as much as the node takes, and stays.
func (a *abuse) stall(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	for sent := false; a.forever || !sent; sent = true {
		if _, err := conn.Write(a.send); err != nil {
			return
		}
	}
	if a.reads {
		_, _ = io.Copy(io.Discard, conn) // until the node cuts it off
		return
	}
	rest(ctx, stalled)
}

// rest waits, unless the context ends.
func rest(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// others counts what well-behaved clients get done with small values.
type others struct {
	done, failed atomic.Int64
	// stalled counts refusals because the machine's disk hung, which abusive clients cannot
	// cause: they write nothing. Nothing was done then, and the request may be repeated.
	stalled atomic.Int64
	// mu owns the writes whose outcome is unknown, and the first failures, for the report.
	mu struct {
		sync.Mutex
		unknown  []span
		failures []string
	}
}

// span is the time that a request took.
type span struct{ begin, end time.Time }

// fail notes an answer that no such client should get.
func (p *others) fail(method, path string, took time.Duration, a answer) {
	p.failed.Add(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.mu.failures) < 10 {
		p.mu.failures = append(p.mu.failures, fmt.Sprintf("%s %s after %v: %v", method, path, took.Round(time.Millisecond), a))
	}
}

func (p *others) run(ctx context.Context, m *member, clients int) {
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			path := fmt.Sprintf("/v1/kv/others%d", i)
			for n := 0; ctx.Err() == nil; n++ {
				method, body := http.MethodPut, "value"
				if n%2 == 1 {
					method, body = http.MethodGet, ""
				}
				begin := time.Now()
				switch a := roundTrip(ctx, m, method, path, strings.NewReader(body)); {
				case a.status == 200 || a.status == 201:
					p.done.Add(1)
				case a.status == 503 && strings.Contains(a.body, "the disk of this node is not responding"):
					p.stalled.Add(1)
				case a.status == 504 && method == http.MethodPut && strings.Contains(a.body, "it may still take effect"):
					p.doubt(span{begin, time.Now()})
				case ctx.Err() == nil:
					p.fail(method, path, time.Since(begin), a)
				}
			}
		})
	}
	all.Wait()
}

// doubt notes a write whose outcome is unknown.
func (p *others) doubt(s span) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.unknown = append(p.mu.unknown, s)
}

// settleDoubts takes the writes whose outcome is unknown for failures, unless the disk hung: a
// write that was on its way to the disk then cannot be told what became of it.
func (p *others) settleDoubts(w *watched) {
	p.mu.Lock()
	unknown := p.mu.unknown
	p.mu.Unlock()
	for _, s := range unknown {
		if w.hung(s) {
			p.stalled.Add(1)
			continue
		}
		p.fail(http.MethodPut, "/v1/kv/others", s.end.Sub(s.begin), answer{status: 504, body: "while the disk answered"})
	}
}

// rate returns how much gets done per second: the median of windows of a second.
func (p *others) rate(windows int) float64 {
	var rates []float64
	for range windows {
		before, begin := p.done.Load(), time.Now()
		<-time.After(time.Second)
		rates = append(rates, float64(p.done.Load()-before)/time.Since(begin).Seconds())
	}
	return median(rates)
}

// median returns the lower one of two medians.
func median(of []float64) float64 {
	sorted := slices.Sorted(slices.Values(of))
	return sorted[(len(sorted)-1)/2]
}

const (
	// leastShare is what well-behaved clients must keep of their rate.
	leastShare = 0.8
	// rounds is how often the rates are compared at least, and mostRounds how often the
	// machine may be too busy with others for that.
	rounds, mostRounds = 3, 7
)

// comparison has the rates of well-behaved clients in turn without abuse and with it. Others
// use the machine, too, so each rate with abuse is compared with those just before and after
// it, and the median of these shares counts.
type comparison struct {
	client        *others
	windows       int
	settle        time.Duration // how long the abuse takes until it has its full effect
	without, with []float64
}

// run compares until there is enough, and calls meanwhile in each round before the abuse ends.
func (c *comparison) run(t *testing.T, start func(*background), meanwhile func()) {
	c.without = append(c.without, c.client.rate(c.windows))
	for len(c.with) < rounds || c.share() < leastShare && len(c.with) < mostRounds {
		abusing := inBackground(t)
		start(abusing)
		<-time.After(c.settle)
		c.with = append(c.with, c.client.rate(c.windows))
		meanwhile()
		abusing.end()
		<-time.After(time.Second) // the node closes the connections
		c.without = append(c.without, c.client.rate(c.windows))
	}
}

// share returns what the clients keep of their rate.
func (c *comparison) share() float64 {
	var shares []float64
	for i, rate := range c.with {
		shares = append(shares, rate/min(c.without[i], c.without[i+1]))
	}
	return median(shares)
}

// watched is what a supervisor sees of a node meanwhile.
type watched struct {
	probes  int
	unready int      // those that were answered 503
	bad     []string // those that were not answered, or that the node is not alive
	looks   []look
}

// look is whether a write to the log had been running for more than a second.
type look struct {
	at    time.Time
	hangs bool
}

// hung reports whether most looks within the span found the disk hanging.
func (w *watched) hung(s span) bool {
	all, hangs := 0, 0
	for _, l := range w.looks {
		if l.at.After(s.begin) && l.at.Before(s.end) {
			all++
			if l.hangs {
				hangs++
			}
		}
	}
	return 2*hangs > all
}

func (w *watched) run(ctx context.Context, n *abused) {
	for ctx.Err() == nil {
		for _, path := range []string{"/livez", "/readyz", "/health"} {
			a := get(n.side, path)
			if path == "/readyz" {
				w.looks = append(w.looks, look{time.Now(), strings.Contains(a.body, "a write to the log has been running")})
			}
			switch {
			case path != "/livez" && a.status == 503:
				w.unready++
			case a.status != 200:
				w.bad = append(w.bad, fmt.Sprintf("%s: %v", path, a))
			}
			w.probes++
		}
		rest(ctx, 50*time.Millisecond)
	}
}

// Of the short form: the limit on the memory of the node, and by what the number of abusive
// clients is divided.
const (
	shortMemory   = 256 << 20
	shortFraction = 10
)

// TestAbuse has clients of all kinds stop at the same time, on a node with little
// memory. The node must stay as small as GOMEMLIMIT says, answer its probes, and serve others.
func TestAbuse(t *testing.T) {
	long(t)
	const least = 200 // operations in total; with fewer, a rate says nothing
	most, fraction := int64(shortMemory), shortFraction
	rates := &comparison{client: new(others), windows: 3, settle: 4 * time.Second}
	if runSize == sizeHuge {
		most, fraction = 512<<20, 1
		rates.windows, rates.settle = 9, 20*time.Second
	}
	n := newAbused(t, most)
	m, client := n.member, rates.client
	watching, conns := new(watched), new(atomic.Int64)
	serving, supervising := inBackground(t), inBackground(t)
	supervising.start(func(ctx context.Context) { watching.run(ctx, n) })
	serving.start(func(ctx context.Context) { client.run(ctx, m, 4) })
	var refusals string
	var open []os.DirEntry
	rates.run(t, func(abusing *background) {
		for _, a := range abuses(fraction) {
			abusing.start(func(ctx context.Context) { a.run(ctx, n, conns) })
		}
	}, func() {
		var err error
		if open, err = os.ReadDir(fmt.Sprintf("/proc/%d/fd", m.process().pid())); err != nil {
			t.Error(err)
		}
		refusals = metric(t, n.side, "kvd_request_memory_refusals_total")
	})
	serving.end()
	supervising.end()
	client.settleDoubts(watching)
	peak := m.process().memory(t, "VmHWM") // that of the whole run, however short it was

	t.Logf("%d connections, %d files of the node open in the end; %d MiB of memory at most; %v refused for memory; operations per second with abuse %.0f, without %.0f: %.2f of the rate; %d failed, %d refused or in doubt for a stalled disk; %d probes, %d unready",
		conns.Load(), len(open), peak>>20, refusals, rates.with, rates.without, rates.share(), client.failed.Load(), client.stalled.Load(), watching.probes, watching.unready)
	if peak > most {
		t.Errorf("%d MiB of memory, of which %d MiB are allowed", peak>>20, most>>20)
	}
	// A disk that others use, too, may make a node unready for a moment.
	if len(watching.bad) > 0 || watching.probes == 0 || watching.unready*10 > watching.probes {
		t.Errorf("%d of %d probes failed, and %d found the node unready: %.300s", len(watching.bad), watching.probes, watching.unready, watching.bad)
	}
	if client.failed.Load() > 0 || client.done.Load() < least {
		t.Errorf("%d operations done, %d failed: %q", client.done.Load(), client.failed.Load(), client.mu.failures)
	}
	if rates.share() < leastShare {
		t.Errorf("well-behaved clients keep %.2f of their rate: %.0f operations per second with abuse, %.0f without", rates.share(), rates.with, rates.without)
	}
	if refusals == "0" {
		t.Error("nothing was refused: the test does not use up the memory")
	}
	proof.Judged(t, int(client.done.Load()))
}

// TestControlAbuseRate: clients that ask for much and read all of it, which no node can tell
// from others, cost these more of their rate than TestAbuse allows.
func TestControlAbuseRate(t *testing.T) {
	long(t)
	begin := time.Now()
	n := newAbused(t, 512<<20)
	rates := &comparison{client: new(others), windows: 1, settle: time.Second}
	serving := inBackground(t)
	serving.start(func(ctx context.Context) { rates.client.run(ctx, n.member, 4) })
	rates.run(t, func(flood *background) {
		for range 2 {
			flood.start(func(ctx context.Context) {
				for ctx.Err() == nil {
					roundTrip(ctx, n.member, http.MethodGet, "/v1/kv?prefix=big&limit=4", nil)
				}
			})
		}
	}, func() {})
	serving.end()
	t.Logf("operations per second with the flood %.0f, without %.0f: %.2f of the rate", rates.with, rates.without, rates.share())
	if rates.share() >= leastShare || len(rates.with) < mostRounds {
		t.Error("a flood went unnoticed")
		return
	}
	proof.Caught(t, "control of the abuse", "a flood takes the time of others", 1, begin)
}

// TestControlAbuse: without the bound on what bodies and answers hold, the clients that make
// the node hold them make it larger than TestAbuse allows.
func TestControlAbuse(t *testing.T) {
	long(t)
	begin := time.Now()
	n := newAbused(t, shortMemory, "--request-memory", "1TiB")
	conns, abusing := new(atomic.Int64), inBackground(t)
	for _, a := range abuses(shortFraction) {
		if kind, _, _ := strings.Cut(a.name, " "); slices.Contains([]string{"bodies", "values", "pages", "lists"}, kind) {
			abusing.start(func(ctx context.Context) { a.run(ctx, n, conns) })
		}
	}
	eventually(t, "the node exceeds its memory", func() error {
		if peak := n.process().memory(t, "VmHWM"); peak <= shortMemory {
			return fmt.Errorf("%d MiB of memory after %d connections, of which %d MiB are allowed", peak>>20, conns.Load(), shortMemory>>20)
		}
		return nil
	})
	n.kill() // it is too large to stop in time
	abusing.end()
	restart(n.member)
	proof.Caught(t, "control of the abuse", "bodies and responses hold as much as clients ask for", 1, begin)
}

// TestDoubtsNeedAHungDisk: a write whose outcome is unknown is a failure, unless the disk hung
// for most of its time.
func TestDoubtsNeedAHungDisk(t *testing.T) {
	begin := time.Now()
	at := func(seconds int) time.Time { return begin.Add(time.Duration(seconds) * time.Second) }
	w := new(watched)
	for second := range 30 {
		w.looks = append(w.looks, look{at(second), second > 10 && second < 20})
	}
	p := new(others)
	p.doubt(span{at(10), at(15)}) // the disk hung from the tenth second on
	p.doubt(span{at(0), at(5)})
	p.doubt(span{at(17), at(25)})
	p.doubt(span{at(40), at(45)}) // nobody looked
	p.settleDoubts(w)
	if stalled, failed := p.stalled.Load(), p.failed.Load(); stalled != 1 || failed != 3 {
		t.Errorf("%d writes in doubt because of the disk, %d failed; want 1 and 3", stalled, failed)
	}
}

// background runs functions until it is ended, at the latest with the test.
type background struct {
	ctx    context.Context
	cancel context.CancelFunc
	all    sync.WaitGroup
}

func inBackground(t *testing.T) *background {
	b := new(background)
	b.ctx, b.cancel = context.WithCancel(context.Background())
	t.Cleanup(b.end)
	return b
}

func (b *background) start(run func(context.Context)) { b.all.Go(func() { run(b.ctx) }) }

func (b *background) end() {
	b.cancel()
	b.all.Wait()
}

// metric returns the value of a metric without labels.
func metric(t *testing.T, m *member, name string) string {
	t.Helper()
	a := get(m, "/metrics")
	for line := range strings.Lines(a.body) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("%s is not exported: %v", name, a)
	return ""
}
