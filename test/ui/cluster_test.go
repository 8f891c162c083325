package ui

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/freeport"
)

// patience bounds every wait for something that happens soon.
const patience = 40 * time.Second

// cluster is real nodes of one cluster.
type cluster struct {
	t     *testing.T
	peers []string
	ports []int
	dir   string
	procs []*exec.Cmd
}

// startCluster starts nodes and waits until they are ready.
func startCluster(t *testing.T, size int, args ...string) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir()}
	for range size {
		c.peers = append(c.peers, fmt.Sprintf("http://127.0.0.1:%d", freePort(t)))
		c.ports = append(c.ports, freePort(t))
	}
	t.Cleanup(c.stop)
	for i := range size {
		c.start(i, args...)
	}
	for i := range size {
		c.wait(i)
	}
	return c
}

// start runs the node at a position of the list.
func (c *cluster) start(i int, args ...string) {
	c.t.Helper()
	all := append([]string{"--id", fmt.Sprint(i + 1), "--cluster", strings.Join(c.peers, ","), "--listen-client", c.url(i),
		"--data-dir", filepath.Join(c.dir, fmt.Sprint(i+1))}, args...)
	log, err := os.Create(filepath.Join(c.dir, fmt.Sprintf("log-%d", i+1)))
	if err != nil {
		c.t.Fatal(err)
	}
	cmd := exec.Command(binary, all...)
	cmd.Stderr = log
	// A node takes every variable with its prefix for a setting.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "KVD_") })
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	_ = log.Close()
	c.procs = append(c.procs, cmd)
}

func (c *cluster) stop() {
	for _, p := range c.procs {
		_ = p.Process.Kill()
		_ = p.Wait()
	}
	if !c.t.Failed() {
		return
	}
	for i := range c.procs {
		text, _ := os.ReadFile(filepath.Join(c.dir, fmt.Sprintf("log-%d", i+1)))
		c.t.Logf("log of node %d:\n%s", i+1, text[max(0, len(text)-600):])
	}
}

func (c *cluster) url(i int) string { return fmt.Sprintf("http://127.0.0.1:%d", c.ports[i]) }

// wait returns once a node is ready.
func (c *cluster) wait(i int) {
	c.t.Helper()
	until(c.t, "node "+fmt.Sprint(i+1)+" is ready", func() bool {
		res, err := http.Get(c.url(i) + "/readyz")
		if err != nil {
			return false
		}
		defer res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
}

// do sends a request to the first node, and returns the body. Other statuses than 2xx
// end the test.
func (c *cluster) do(method, path, body string, header ...string) string {
	c.t.Helper()
	status, text := c.ask(method, path, body, header...)
	if status/100 != 2 {
		c.t.Fatalf("%s %s: %d %s", method, path, status, text)
	}
	return text
}

func (c *cluster) ask(method, path, body string, header ...string) (int, string) {
	c.t.Helper()
	req, err := http.NewRequest(method, c.url(0)+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

func (c *cluster) put(key, value string) { c.t.Helper(); c.do("PUT", "/v1/kv/"+key, value) }

// fill stores many keys, as name writes them.
func (c *cluster) fill(from, to int, name string) {
	c.t.Helper()
	var lines bytes.Buffer
	for i := from; i < to; i++ {
		fmt.Fprintf(&lines, "{\"put\":{\"key\":%q,\"value\":\"value of %d\"}}\n", fmt.Sprintf(name, i), i)
	}
	c.do("POST", "/v1/batch", lines.String())
}

// until waits for a condition.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	again := time.NewTicker(30 * time.Millisecond)
	defer again.Stop()
	for !holds() {
		select {
		case <-again.C:
		case <-deadline.C:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// freePort returns a port that nobody has at the moment.
func freePort(t *testing.T) int {
	t.Helper()
	port, err := freeport.Port()
	if err != nil {
		t.Fatal(err)
	}
	return port
}
