package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kvd-io/kvd/internal/loadgen"
)

// kvd is driven over HTTP/1.1, with one connection per client.
type kvd struct {
	binary string
	flags  []string // in addition to those that every node needs
}

func (*kvd) name() string { return "kvd" }

func (k *kvd) args(c *cluster, i int) []string {
	var urls []string
	for _, p := range c.peers {
		urls = append(urls, "http://"+p)
	}
	return append([]string{k.binary, "--id", strconv.Itoa(i + 1), "--cluster", strings.Join(urls, ","),
		"--listen-client", "http://" + c.clients[i], "--data-dir", filepath.Join(c.dir, strconv.Itoa(i+1))}, k.flags...)
}

func (*kvd) open(address string) (client, error) {
	conn, err := loadgen.Dial(address)
	if err != nil {
		return nil, err
	}
	return kvdClient{conn}, nil
}

type kvdClient struct{ conn *loadgen.HTTP }

func (c kvdClient) put(_ context.Context, key, value []byte) (string, error) {
	return c.conn.Put(key, value)
}

func (c kvdClient) get(_ context.Context, key []byte, stale bool) (string, error) {
	return c.conn.Get(key, stale)
}

func (c kvdClient) close() { c.conn.Close() }

func (*kvd) leader(ctx context.Context, c *cluster) (int, error) {
	var answer struct {
		ClientURLs []string `json:"client_urls"`
	}
	err := fmt.Errorf("no node answers")
	for i, p := range c.procs {
		if p == nil {
			continue
		}
		if err = getJSON(ctx, "http://"+c.clients[i]+"/v1/leader", &answer); err == nil {
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

func getJSON(ctx context.Context, from string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", from, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(v)
}

// bulk sends one POST /v1/batch per connection.
func (*kvd) bulk(ctx context.Context, c *cluster, count uint64, conns, valueSize int) error {
	leader, err := c.leader(ctx)
	if err != nil {
		return err
	}
	return shared(count, conns, func(from, to uint64) error {
		return batch(ctx, "http://"+c.clients[leader]+"/v1/batch", from, to, valueSize)
	})
}

// batch puts a range of keys and checks each answer.
func batch(ctx context.Context, target string, from, to uint64, valueSize int) error {
	r, w := io.Pipe()
	go func() {
		out := bufio.NewWriterSize(w, 64<<10)
		value := strings.Repeat("v", valueSize)
		for i := from; i < to; i++ {
			fmt.Fprintf(out, `{"put":{"key":"%s","value":"%s"}}`+"\n", key(i), value)
		}
		w.CloseWithError(out.Flush())
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, r)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
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

func (*kvd) snapshot(ctx context.Context, address string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/v1/snapshot", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
