package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// abuse is a kind of client that stops in the middle: it sends something, and then
// neither reads nor writes. Some time after the node must have cut it off, it comes back.
type abuse struct {
	name    string
	clients int
	send    []byte
	forever bool // send is repeated as long as the node takes it
}

// abuses are all kinds at once, factor times as many as in the short form.
func abuses(factor int) []abuse {
	request := func(line string, headers ...string) []byte {
		return []byte(line + " HTTP/1.1\r\nHost: 127.0.0.1\r\n" + strings.Join(append(headers, "", ""), "\r\n"))
	}
	const mib = 1 << 20
	value := bytes.Repeat([]byte("v"), mib-1)
	return []abuse{
		{name: "values that nobody reads", clients: 100 * factor, send: request("GET /v1/kv/big1")},
		{name: "values in JSON that nobody reads", clients: 50 * factor, send: request("GET /v1/kv/big1?meta&pretty")},
		{name: "pages that nobody reads", clients: 100 * factor, send: request("GET /v1/kv?prefix=big")},
		{name: "lists that nobody reads", clients: 50 * factor, send: request("GET /v1/kv?prefix=big", "Accept: application/x-ndjson")},
		{name: "snapshots that nobody reads", clients: 10 * factor, send: request("GET /v1/snapshot")},
		{name: "bodies without their last byte", clients: 50 * factor, send: append(request("PUT /v1/kv/body", fmt.Sprintf("Content-Length: %d", mib)), value...)},
		{name: "bodies that are only announced", clients: 100 * factor, send: request("PUT /v1/kv/body", fmt.Sprintf("Content-Length: %d", mib))},
		{name: "batches whose answers nobody reads", clients: 20 * factor, forever: true,
			send: append(request("POST /v1/batch", "Content-Length: 1000000000000"), bytes.Repeat([]byte(`{"get":{"key":"big1"}}`+"\n"), 1000)...)},
		{name: "watches that nobody reads", clients: 100 * factor, send: request("GET /v1/watch?prefix=big&from_revision=1")},
		{name: "silent connections", clients: 300 * factor},
	}
}

// stalled is how long a client stays. The node cuts it off earlier, which it cannot see
// without reading.
const stalled = 20 * time.Second

// run keeps the kind up until the context ends. It counts the connections.
func (a *abuse) run(ctx context.Context, m *member, conns *atomic.Int64) {
	var clients sync.WaitGroup
	for range a.clients {
		clients.Go(func() {
			for ctx.Err() == nil {
				if conn, err := net.Dial("tcp", loopback(m.clientPort)); err == nil {
					conns.Add(1)
					a.stall(ctx, conn)
				}
				rest(ctx, time.Second)
			}
		})
	}
	clients.Wait()
}

// stall sends what the kind sends, or as much as the node takes, and stays.
func (a *abuse) stall(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	_ = conn.(*net.TCPConn).SetReadBuffer(4096)
	for sent := false; a.forever || !sent; sent = true {
		if _, err := conn.Write(a.send); err != nil {
			return
		}
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
type others struct{ done, failed atomic.Int64 }

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
				switch a := roundTrip(ctx, m, method, path, strings.NewReader(body)); {
				case a.status == 200 || a.status == 201:
					p.done.Add(1)
				case ctx.Err() == nil:
					p.failed.Add(1)
				}
			}
		})
	}
	all.Wait()
}

// rate returns how much gets done per second, in a window of a second.
func (p *others) rate() float64 {
	before, begin := p.done.Load(), time.Now()
	<-time.After(time.Second)
	return float64(p.done.Load()-before) / time.Since(begin).Seconds()
}

// normal returns the median of three windows.
func (p *others) normal() float64 {
	rates := []float64{p.rate(), p.rate(), p.rate()}
	slices.Sort(rates)
	return rates[1]
}

// watched is what a supervisor sees of a node meanwhile.
type watched struct {
	peak    int64 // of the resident memory
	probes  int
	unready int      // those that were answered 503
	bad     []string // those that were not answered, or that the node is not alive
}

func (w *watched) run(ctx context.Context, t *testing.T, m *member) {
	for ctx.Err() == nil {
		w.peak = max(w.peak, m.process().memory(t, "VmRSS"))
		for _, path := range []string{"/livez", "/readyz"} {
			switch a := get(m, path); {
			case path == "/readyz" && a.status == 503:
				w.unready++
			case a.status != 200:
				w.bad = append(w.bad, fmt.Sprintf("%s: %v", path, a))
			}
			w.probes++
		}
		rest(ctx, 50*time.Millisecond)
	}
}

// TestAbuse has clients of all kinds stop at the same time, on a node with little
// memory. The node must stay small, answer its probes, and serve others.
func TestAbuse(t *testing.T) {
	if _, err := os.Stat("/proc/self/status"); err != nil {
		t.Skipf("NOT RUN: the memory of a process cannot be measured on %s: %v", runtime.GOOS, err)
	}
	const (
		memoryLimit = 256 << 20
		most        = 400 << 20 // of resident memory: the limit is one on Go's heap alone
		share       = 0.8       // of the rate without abuse
		least       = 200       // operations in total; with fewer, a rate says nothing
		patient     = 20        // windows in which the node may show that rate
	)
	factor, settle, windows := 1, 4*time.Second, 3
	if runSize == sizeHuge {
		factor, settle, windows = 4, 20*time.Second, 40
	}
	t.Setenv("GOMEMLIMIT", fmt.Sprint(memoryLimit))
	m := newCluster(t, 1).node(1)
	for i := range 12 {
		put(t, m, fmt.Sprintf("big%d", i), strings.Repeat("\x01", 1<<20))
	}
	client, serving := new(others), inBackground(t)
	serving.start(func(ctx context.Context) { client.run(ctx, m, 4) })
	before := client.normal()

	watching, conns, abusing := new(watched), new(atomic.Int64), inBackground(t)
	abusing.start(func(ctx context.Context) { watching.run(ctx, t, m) })
	for _, a := range abuses(factor) {
		abusing.start(func(ctx context.Context) { a.run(ctx, m, conns) })
	}
	<-time.After(settle)
	// Others use the machine, too, so one good window suffices: a node that is held up
	// is so in every window.
	best := 0.0
	for n := 0; n < windows || best < share*before && n < patient; n++ {
		best = max(best, client.rate())
	}
	refusals := metric(t, m, "kvd_request_memory_refusals_total")
	abusing.end()
	after := client.normal()
	serving.end()

	t.Logf("%d connections; %d MiB of memory at most; %v refused for memory; %.0f operations per second before, %.0f meanwhile, %.0f after, %d failed; %d probes, %d unready",
		conns.Load(), watching.peak>>20, refusals, before, best, after, client.failed.Load(), watching.probes, watching.unready)
	if watching.peak > most {
		t.Errorf("%d MiB of memory, of which %d MiB are allowed", watching.peak>>20, most>>20)
	}
	// A disk that others use, too, may make a node unready for a moment.
	if len(watching.bad) > 0 || watching.probes == 0 || watching.unready*10 > watching.probes {
		t.Errorf("%d of %d probes failed, and %d found the node unready: %.300s", len(watching.bad), watching.probes, watching.unready, watching.bad)
	}
	if client.failed.Load() > 0 || client.done.Load() < least {
		t.Errorf("%d operations done, %d failed", client.done.Load(), client.failed.Load())
	}
	if normal := min(before, after); best < share*normal {
		t.Errorf("%.0f operations per second, of %.0f", best, normal)
	}
	if refusals == "0" {
		t.Error("nothing was refused: the test does not use up the memory")
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
	for line := range strings.Lines(get(m, "/metrics").body) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("%s is not exported", name)
	return ""
}
