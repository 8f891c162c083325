package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/kvd-io/kvd/internal/certs"
)

// TestCertificatesRotateUnderLoad: on three nodes, certificates are replaced
// one by one, by files alone and with SIGHUP, and then the authority itself,
// while clients write and read over kept and new connections, HTTP/1.1 and
// HTTP/2, and members call each other anew. Not one request may fail.
func TestCertificatesRotateUnderLoad(t *testing.T) {
	f := newTLSFiles(t)
	// The test's clients read the pool that this adds to, so none may exist yet.
	next := f.newAuthority(t)
	c := startTLSCluster(t, f)
	load := c.load()
	for round := range 3 {
		for i := range c.nodes {
			c.renew(i, f.ca, round == 2)
		}
	}
	c.step("both authorities", func(i int) {
		f.write(t, c.caFile(i), append(f.ca.CertPEM[:len(f.ca.CertPEM):len(f.ca.CertPEM)], next.CertPEM...))
	})
	for i := range c.nodes {
		c.renew(i, next, false)
	}
	load.renew(next)
	c.step("the new authority alone", func(i int) { f.write(t, c.caFile(i), next.CertPEM) })
	load.goOn(200)
	load.stop()
	for _, p := range c.nodes {
		if resp, err := f.client(t, "client").Get(p.client + "/v1/status"); err == nil {
			_ = resp.Body.Close()
			t.Error("a certificate of the dropped authority is let in")
		}
	}
	t.Logf("%d requests, %d rounds of calls between the members, %d failed", load.requests.Load(), load.calls.Load(), load.failed.Load())
}

// tlsCluster is three nodes with files of their own.
type tlsCluster struct {
	t     *testing.T
	files *tlsFiles
	peers []string
	nodes []*daemonProcess
	// generation counts the certificates of the clients.
	generation atomic.Int64
	// reloads counts the reloads expected of each node, for clients and for
	// members alike.
	reloads []int
}

func startTLSCluster(t *testing.T, f *tlsFiles) *tlsCluster {
	c := &tlsCluster{t: t, files: f, reloads: make([]int, 3)}
	for range 3 {
		c.peers = append(c.peers, freeSecureURL(t))
	}
	f.issue(t, f.ca, clientName(0), certs.Order{})
	for i := range c.peers {
		name := fmt.Sprint("member", i+1)
		f.issue(t, f.ca, name, certs.Order{Hosts: loopbackNames})
		f.write(t, c.caFile(i), f.ca.CertPEM)
		flags := f.flags(name)
		for j := range flags {
			flags[j] = strings.ReplaceAll(flags[j], f.path("ca.pem"), f.path(c.caFile(i)))
		}
		c.nodes = append(c.nodes, startSecure(t, i+1, c.peers, freeSecureURL(t), nil, flags))
	}
	for _, p := range c.nodes {
		awaitSecure(t, f.client(t, "client"), p)
	}
	return c
}

func clientName(generation int64) string { return fmt.Sprint("client", generation) }

// client returns a client with the current certificate.
func (c *tlsCluster) client(kind func(*http.Transport)) *http.Client {
	return c.files.client(c.t, clientName(c.generation.Load()), kind)
}

func (c *tlsCluster) caFile(i int) string { return fmt.Sprintf("member%d-ca.pem", i+1) }

// renew gives a node a new certificate and waits until the node presents it.
func (c *tlsCluster) renew(i int, ca *certs.Authority, hup bool) {
	c.t.Helper()
	leaf := c.files.issue(c.t, ca, fmt.Sprint("member", i+1), certs.Order{Hosts: loopbackNames})
	if hup {
		c.nodes[i].signal(c.t, syscall.SIGHUP)
	}
	for _, url := range []string{c.nodes[i].client, c.peers[i]} {
		await(c.t, "the new certificate", func() error {
			conn, err := tls.Dial("tcp", strings.TrimPrefix(url, "https://"), &tls.Config{InsecureSkipVerify: true})
			if err != nil {
				return err
			}
			defer conn.Close()
			if !conn.ConnectionState().PeerCertificates[0].Equal(leaf) {
				return errors.New("the old one is shown")
			}
			return nil
		})
	}
	c.noteReload(i)
}

// step changes the authorities of each node and waits until they are loaded.
func (c *tlsCluster) step(what string, change func(i int)) {
	c.t.Helper()
	for i := range c.nodes {
		change(i)
		c.awaitReload(i, what)
	}
}

func (c *tlsCluster) reloadsOf(i int) (n [2]int) {
	resp, err := c.client(func(rt *http.Transport) { rt.DisableKeepAlives = true }).Get(c.nodes[i].client + "/metrics")
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	for j, whom := range []string{"clients", "members"} {
		_, after, _ := strings.Cut(string(text), fmt.Sprintf("kvd_certificate_reloads_total{for=%q} ", whom))
		_, _ = fmt.Sscan(after, &n[j]) // 0 if it is missing
	}
	return n
}

func (c *tlsCluster) noteReload(i int) {
	n := c.reloadsOf(i)
	c.reloads[i] = min(n[0], n[1])
}

func (c *tlsCluster) awaitReload(i int, what string) {
	c.t.Helper()
	await(c.t, what, func() error {
		if n := c.reloadsOf(i); min(n[0], n[1]) <= c.reloads[i] {
			return fmt.Errorf("%v reloads, %d before", n, c.reloads[i])
		}
		return nil
	})
	c.noteReload(i)
}

// tlsLoad is a group of clients that write and read without a pause.
type tlsLoad struct {
	c        *tlsCluster
	ctx      context.Context
	stop     func()
	requests atomic.Int64
	calls    atomic.Int64
	failed   atomic.Int64
	renewed  []atomic.Int64 // the generation that each worker uses
}

// load starts the workers: each has a node and a kind of connection.
func (c *tlsCluster) load() *tlsLoad {
	kinds := []func(*http.Transport){
		func(*http.Transport) {},
		func(rt *http.Transport) { rt.ForceAttemptHTTP2 = true },
		func(rt *http.Transport) { rt.DisableKeepAlives = true },
	}
	l := &tlsLoad{c: c, renewed: make([]atomic.Int64, len(kinds)*len(c.nodes))}
	var cancel context.CancelFunc
	l.ctx, cancel = context.WithCancel(context.Background())
	var working sync.WaitGroup
	for i, p := range c.nodes {
		for j, kind := range kinds {
			working.Go(func() { l.work(i*len(kinds)+j, p, kind) })
		}
		working.Go(func() { l.call(p) })
	}
	l.stop = sync.OnceFunc(func() { cancel(); working.Wait() })
	c.t.Cleanup(l.stop)
	l.goOn(100)
	return l
}

// goOn waits for the given number of further requests.
func (l *tlsLoad) goOn(n int64) {
	l.c.t.Helper()
	want := l.requests.Load() + n
	await(l.c.t, "requests", func() error {
		if l.requests.Load() < want {
			return errors.New("too few")
		}
		return nil
	})
}

// renew has all workers use the client's current certificate, on new
// connections.
func (l *tlsLoad) renew(ca *certs.Authority) {
	l.c.t.Helper()
	now := l.c.generation.Load() + 1
	l.c.files.issue(l.c.t, ca, clientName(now), certs.Order{})
	l.c.generation.Store(now)
	await(l.c.t, "new connections", func() error {
		for i := range l.renewed {
			if l.renewed[i].Load() < now {
				return fmt.Errorf("worker %d has the old ones", i)
			}
		}
		return nil
	})
}

func (l *tlsLoad) work(id int, p *daemonProcess, kind func(*http.Transport)) {
	client := l.c.client(kind)
	for n := 0; l.ctx.Err() == nil; n++ {
		if now := l.c.generation.Load(); l.renewed[id].Load() != now {
			client.CloseIdleConnections()
			client = l.c.client(kind)
			l.renewed[id].Store(now)
		}
		l.exchange(client, http.MethodPut, fmt.Sprintf("%s/v1/kv/w%d", p.client, id), fmt.Sprint(n), "")
		l.exchange(client, http.MethodGet, fmt.Sprintf("%s/v1/kv/w%d", p.client, id), "", fmt.Sprint(n))
	}
	client.CloseIdleConnections()
}

func (l *tlsLoad) exchange(client *http.Client, method, url, body, want string) {
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		l.fail(err)
		return
	}
	resp, err := client.Do(req)
	if err != nil {
		l.fail(err)
		return
	}
	data, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	switch {
	case err != nil:
		l.fail(err)
	case resp.StatusCode/100 != 2 || method == http.MethodGet && string(data) != want:
		l.fail(fmt.Errorf("%s %s: %s: %.200s", method, url, resp.Status, data))
	}
	l.requests.Add(1)
}

func (l *tlsLoad) fail(err error) {
	if l.failed.Add(1) <= 5 {
		l.c.t.Error(err)
	}
}

// call has the node ask all members for their status, over new connections.
func (l *tlsLoad) call(p *daemonProcess) {
	for l.ctx.Err() == nil {
		client := l.c.client(func(rt *http.Transport) { rt.DisableKeepAlives = true })
		resp, err := client.Get(p.client + "/v1/cluster")
		if err != nil {
			l.fail(err)
			continue
		}
		var answer struct {
			Members []struct {
				ID        uint64 `json:"id"`
				Reachable bool   `json:"reachable"`
				Error     string `json:"error"`
			} `json:"members"`
		}
		err = json.NewDecoder(resp.Body).Decode(&answer)
		_ = resp.Body.Close()
		if err != nil {
			l.fail(err)
		}
		for _, m := range answer.Members {
			if m.Error != "" {
				l.fail(fmt.Errorf("member %d: %s", m.ID, m.Error))
			}
		}
		l.calls.Add(1)
	}
}
