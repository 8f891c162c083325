package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kvd-io/kvd/internal/loadgen"
)

// kvd is driven over HTTP/1.1, with one connection per client.
type kvd struct {
	binary string
	label  string    // "" means "kvd"
	flags  []string  // in addition to those that every node needs
	tls    *tlsFiles // nil: clients connect without TLS
	// credentials are the header Authorization of each request; "" means none.
	credentials string
}

func (k *kvd) name() string { return cmp.Or(k.label, "kvd") }

func (k *kvd) args(c *cluster, i int) []string { return k.node(c, i, k.url(c.clients[i], "")) }

// node returns the command line of node i, which serves clients at the given URL.
func (k *kvd) node(c *cluster, i int, listen string) []string {
	var urls []string
	for _, p := range c.peers {
		urls = append(urls, "http://"+p)
	}
	args := append([]string{k.binary, "--id", strconv.Itoa(i + 1), "--cluster", strings.Join(urls, ","),
		"--listen-client", listen, "--data-dir", filepath.Join(c.dir, strconv.Itoa(i+1))}, k.flags...)
	if slices.Contains(args, "--pprof") {
		args = append(args, "--listen-metrics", "http://"+c.metrics[i])
	}
	if k.tls != nil {
		args = append(args, "--tls-cert-file", k.tls.cert, "--tls-key-file", k.tls.key)
	}
	return args
}

func (k *kvd) url(address, path string) string {
	if k.tls != nil {
		return "https://" + address + path
	}
	return "http://" + address + path
}

func (k *kvd) open(address string) (client, error) {
	conn, err := k.dial(address)
	if err != nil {
		return nil, err
	}
	c := &kvdClient{conn: loadgen.New(conn, address)}
	c.conn.Authorize(k.credentials)
	return c, nil
}

func (k *kvd) dial(address string) (net.Conn, error) {
	d := &net.Dialer{Timeout: 5 * time.Second}
	if k.tls == nil {
		return d.Dial("tcp", address)
	}
	return tls.DialWithDialer(d, "tcp", address, k.tls.config)
}

// kvdClient is one connection. One goroutine owns it.
type kvdClient struct {
	conn   *loadgen.HTTP
	body   []byte
	fields []byte
	lease  int64 // of the client, for locks
}

func (c *kvdClient) put(_ context.Context, key, value []byte) (string, error) {
	return c.conn.Put(key, value)
}

func (c *kvdClient) get(_ context.Context, key []byte, stale bool) (string, error) {
	return c.conn.Get(key, stale)
}

func (c *kvdClient) txn(_ context.Context, key, value []byte) (string, error) {
	b := append(append(c.body[:0], `{"if":[{"key":"`...), key...)
	b = append(append(b, `","version":{"gt":0}}],"then":[{"put":{"key":"`...), key...)
	c.body = append(append(append(b, `","value":"`...), value...), `"}}]}`...)
	answer, code, err := c.conn.Request("POST", "/v1/txn", nil, c.body)
	if err == nil && code == "" && !bytes.HasPrefix(answer, []byte(`{"succeeded":true`)) {
		code = "not succeeded"
	}
	return code, err
}

func (c *kvdClient) close() { c.conn.Close() }

func (k *kvd) leader(ctx context.Context, c *cluster) (int, error) {
	var answer struct {
		ClientURLs []string `json:"client_urls"`
	}
	err := fmt.Errorf("no node answers")
	for i, p := range c.procs {
		if p == nil {
			continue
		}
		if err = k.getJSON(ctx, k.url(c.clients[i], "/v1/leader"), &answer); err == nil {
			break
		}
	}
	if err != nil {
		return 0, err
	}
	for i, address := range c.clients {
		for _, u := range answer.ClientURLs {
			if parsed, err := url.Parse(u); err == nil && parsed.Host == address {
				return i, nil
			}
		}
	}
	return 0, fmt.Errorf("the leader %v is none of ours", answer.ClientURLs)
}

func (k *kvd) getJSON(ctx context.Context, from string, v any) error {
	return k.askJSON(ctx, http.MethodGet, from, "", v)
}

// askJSON sends a request that is not measured, and decodes its answer, unless v is nil.
func (k *kvd) askJSON(ctx context.Context, method, target, body string, v any) error {
	resp, err := k.do(ctx, method, target, strings.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s %s answers %s", method, target, resp.Status)
	}
	if v == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(v)
}

// do sends a request.
func (k *kvd) do(ctx context.Context, method, target string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, err
	}
	if k.credentials != "" {
		req.Header.Set("Authorization", k.credentials)
	}
	return k.web().Do(req)
}

// web is the client for what is not measured, and for streams.
func (k *kvd) web() *http.Client {
	if k.tls == nil {
		return http.DefaultClient
	}
	return k.tls.web
}

// bulk sends one POST /v1/batch per connection.
func (k *kvd) bulk(ctx context.Context, c *cluster, count uint64, conns, valueSize int) error {
	leader, err := c.leader(ctx)
	if err != nil {
		return err
	}
	return shared(count, conns, func(from, to uint64) error {
		return k.batch(ctx, k.url(c.clients[leader], "/v1/batch"), from, to, valueSize)
	})
}

// batch puts a range of keys and checks each answer.
func (k *kvd) batch(ctx context.Context, target string, from, to uint64, valueSize int) error {
	r, w := io.Pipe()
	go func() {
		out := bufio.NewWriterSize(w, 64<<10)
		value := strings.Repeat("v", valueSize)
		for i := from; i < to; i++ {
			fmt.Fprintf(out, `{"put":{"key":"%s","value":"%s"}}`+"\n", key(i), value)
		}
		w.CloseWithError(out.Flush())
	}()
	resp, err := k.do(ctx, http.MethodPost, target, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answers := bufio.NewScanner(resp.Body)
	done := uint64(0)
	for answers.Scan() {
		if line := answers.Text(); !strings.Contains(line, `"status":20`) {
			return fmt.Errorf("batch: %s", line)
		}
		done++
	}
	if err := answers.Err(); err != nil || done != to-from {
		return fmt.Errorf("batch: %d answers to %d lines (%w)", done, to-from, err)
	}
	return nil
}

func (k *kvd) snapshot(ctx context.Context, address string) error {
	resp, err := k.do(ctx, http.MethodGet, k.url(address, "/v1/snapshot"), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
