package e2e

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/proof"
)

// lossyProxy forwards connections to random members and loses answers: it closes some
// connections when the answer comes, and some before the request goes out. A client
// cannot tell one from the other.
type lossyProxy struct {
	t       testing.TB
	c       *cluster
	l       net.Listener
	conns   sync.WaitGroup
	dropped atomic.Int64 // answers that came and were lost

	mu struct {
		sync.Mutex
		random *rand.Rand
	}
}

func newLossyProxy(t testing.TB, c *cluster, random *rand.Rand) *lossyProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &lossyProxy{t: t, c: c, l: l}
	p.mu.random = rand.New(rand.NewPCG(random.Uint64(), 2))
	p.conns.Go(p.accept)
	t.Cleanup(func() { _ = l.Close(); p.conns.Wait() })
	return p
}

func (p *lossyProxy) url() string { return "http://" + p.l.Addr().String() }

func (p *lossyProxy) accept() {
	for {
		conn, err := p.l.Accept()
		if err != nil {
			return
		}
		p.conns.Go(func() { p.serve(conn) })
	}
}

// roll chooses a member, and what becomes of the connection.
func (p *lossyProxy) roll() (m *member, loseRequest, loseAnswer bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.mu.random.IntN(10)
	return pick(p.mu.random, p.c.nodes), n == 0, n >= 1 && n <= 4
}

func (p *lossyProxy) serve(client net.Conn) {
	defer client.Close()
	m, loseRequest, loseAnswer := p.roll()
	if loseRequest {
		return
	}
	server, err := net.DialTimeout("tcp", loopback(m.clientPort), time.Second)
	if err != nil {
		return // the member is down; for the client this is the same
	}
	defer server.Close()
	p.conns.Go(func() {
		_, _ = io.Copy(server, client) // the first to close ends both
		if t, ok := server.(*net.TCPConn); ok {
			_ = t.CloseWrite()
		}
	})
	if !loseAnswer {
		_, _ = io.Copy(client, server)
		return
	}
	var first [1]byte
	if _, err := server.Read(first[:]); err == nil {
		p.dropped.Add(1)
	}
}

// TestContractExactlyOnce: clients repeat each request under its Idempotency-Key until
// they get an answer, through a proxy that loses half of them, while leaders are
// killed. Each takes effect exactly once.
func TestContractExactlyOnce(t *testing.T) {
	t.Parallel()
	requireTool(t, "curl")
	random := seeded(t)
	c := newCluster(t, 3, small...)
	p := newLossyProxy(t, c, random)
	stop := make(chan struct{})
	var nemesis sync.WaitGroup
	kills := 0
	nemesis.Go(func() { kills = killLeadersUntil(c, random, stop) })
	each := 10
	if runSize == sizeFull {
		each = 100
	}
	o := &onceLoad{t: t, proxy: p.url(), answers: make(map[string]int)}
	var clients sync.WaitGroup
	// curl waits a second before each repeat, so there are many of it.
	for i := range 20 {
		clients.Go(func() { o.curls(fmt.Sprint("curl", i), each/5) })
	}
	for i := range 4 {
		clients.Go(func() { o.repeats(fmt.Sprint("go", i), 4*each) })
	}
	clients.Go(func() { o.addMembers(each / 5) })
	clients.Wait()
	close(stop)
	nemesis.Wait()
	c.awaitReady()
	t.Logf("%d requests, %d answers lost, %d replayed, leader killed %d times", o.sent.Load(), p.dropped.Load(), o.replayed.Load(), kills)
	if p.dropped.Load() < o.sent.Load()/4 || o.replayed.Load() == 0 || kills == 0 {
		t.Error("too little was lost: the run proves nothing")
	}
	o.judge(c)
	proof.Judged(t, int(o.sent.Load()))
}

// killLeadersUntil kills one leader after the other, and returns how many.
func killLeadersUntil(c *cluster, random *rand.Rand, stop chan struct{}) (kills int) {
	for {
		leader := c.leader()
		leader.kill()
		kills++
		restart(leader)
		select {
		case <-stop:
			return kills
		case <-time.After(time.Duration(500+random.IntN(1500)) * time.Millisecond):
		}
	}
}

// onceLoad sends increments and appends, each with a key of its own.
type onceLoad struct {
	t        testing.TB
	proxy    string
	sent     atomic.Int64
	replayed atomic.Int64

	mu      sync.Mutex
	answers map[string]int // the value of an increment → how often it was answered
	texts   []string       // that were appended
	last    int
}

// curls is a client that leaves everything to curl --retry.
func (o *onceLoad) curls(name string, n int) {
	for i := range n {
		o.sent.Add(1)
		key := fmt.Sprintf("Idempotency-Key: %s-%d", name, i)
		args := []string{"-s", "-X", "POST", "-H", key, "--retry", "60", "--retry-all-errors", "--retry-delay", "1", "--max-time", "120", "--fail"}
		if i%2 == 0 {
			out, err := exec.Command("curl", append(args, o.proxy+"/v1/kv/counter?incr=1")...).Output()
			o.increased(string(out), err)
			continue
		}
		text := fmt.Sprintf("%s-%d;", name, i)
		if err := exec.Command("curl", append(args, "--data-binary", text, o.proxy+"/v1/kv/text?append")...).Run(); err != nil {
			o.t.Errorf("append %s: %v", text, err)
		}
		o.appended(text)
	}
}

// repeats is a client in Go that repeats by itself, at once.
func (o *onceLoad) repeats(name string, n int) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for i := range n {
		o.sent.Add(1)
		key, text := fmt.Sprintf("%s-%d", name, i), fmt.Sprintf("%s-%d;", name, i)
		if i%2 == 0 {
			out, err := o.insist(client, key, "/v1/kv/counter?incr=1", "")
			o.increased(out, err)
			continue
		}
		if _, err := o.insist(client, key, "/v1/kv/text?append", text); err != nil {
			o.t.Errorf("append %s: %v", text, err)
		}
		o.appended(text)
	}
}

// addMembers adds learners and removes them again. A second addition would be refused, for
// their URL is taken, and would use up an id.
func (o *onceLoad) addMembers(n int) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for i := range n {
		o.sent.Add(2)
		key, id := fmt.Sprint("member-", i), i+4
		out, err := o.insist(client, key, "/v1/members", fmt.Sprintf(`{"peer_urls":["http://127.0.0.1:%d"],"learner":true}`, 1+i))
		if err != nil || !strings.Contains(out, fmt.Sprintf(`"id":%d,`, id)) {
			o.t.Errorf("add member %d: %s, %v", id, out, err)
			return
		}
		if _, err := o.insistOn(client, http.MethodDelete, key+"-removed", fmt.Sprint("/v1/members/", id), ""); err != nil {
			o.t.Errorf("remove member %d: %v", id, err)
			return
		}
	}
}

// insist repeats a request until its outcome is known.
func (o *onceLoad) insist(client *http.Client, key, path, body string) (out string, err error) {
	return o.insistOn(client, http.MethodPost, key, path, body)
}

func (o *onceLoad) insistOn(client *http.Client, method, key, path, body string) (out string, err error) {
	err = poll(patience, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), requestLimit)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, method, o.proxy+path, strings.NewReader(body))
		if err != nil {
			return hopeless{err}
		}
		req.Header.Set("Idempotency-Key", key)
		req.GetBody = nil // this client repeats, not net/http
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		switch {
		case err != nil:
			return err
		case resp.StatusCode/100 == 2:
			if resp.Header.Get("Idempotency-Replayed") == "true" {
				o.replayed.Add(1)
			}
			out = string(b)
			return nil
		case resp.StatusCode == 503 || resp.StatusCode == 504 || resp.StatusCode == 429:
			return fmt.Errorf("%d %s", resp.StatusCode, b)
		}
		return hopeless{fmt.Errorf("%d %s", resp.StatusCode, b)}
	})
	return out, err
}

func (o *onceLoad) increased(out string, err error) {
	var doc struct{ Value string }
	if err == nil {
		err = decodeNumbers(out, &doc)
	}
	if err != nil {
		o.t.Errorf("incr: %v", err)
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answers[doc.Value]++
	o.last++
}

func (o *onceLoad) appended(text string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.texts = append(o.texts, text)
}

// judge demands that the counter is the number of increments, that each of its values
// was answered once, and that every text was appended once, in the order of its client.
func (o *onceLoad) judge(c *cluster) {
	for _, m := range c.nodes {
		if members, err := m.members(); err != nil || len(members) != len(c.nodes) {
			o.t.Errorf("the members are %+v, %v", members, err)
		}
		expectValue(o.t, m, "counter", fmt.Sprint(o.last))
	}
	for i := 1; i <= o.last; i++ {
		if n := o.answers[fmt.Sprint(i)]; n != 1 {
			o.t.Errorf("the value %d was answered %d times", i, n)
		}
	}
	got := get(c.node(1), "/v1/kv/text").body
	place := make(map[string]int)
	for i, text := range strings.SplitAfter(got, ";") {
		if _, twice := place[text]; twice {
			o.t.Errorf("%q was appended twice", text)
		}
		place[text] = i
	}
	delete(place, "")
	if len(place) != len(o.texts) {
		o.t.Errorf("%d texts were appended, want %d", len(place), len(o.texts))
	}
	before := make(map[string]int) // by client
	for _, text := range o.texts {
		client, _, _ := strings.Cut(text, "-")
		at, there := place[text]
		if !there || at < before[client] {
			o.t.Errorf("%q is at place %d (%v), after place %d", text, at, there, before[client])
		}
		before[client] = at
	}
}
