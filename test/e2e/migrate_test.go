package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// commandLine runs the examples of documents about the command line.
type commandLine struct {
	t       *testing.T
	dir     string   // working directory, empty at first
	bin     string   // first directory of PATH, with kvd in it
	environ []string // of the examples
}

func newCommandLine(t *testing.T, endpoints string) *commandLine {
	t.Helper()
	c := &commandLine{t: t, dir: t.TempDir(), bin: t.TempDir()}
	path, err := filepath.Abs(binary)
	if err == nil {
		err = os.Symlink(path, filepath.Join(c.bin, "kvd"))
	}
	if err != nil {
		t.Fatal(err)
	}
	c.environ = append(os.Environ(), "PATH="+c.bin+":"+os.Getenv("PATH"), "KVD_ENDPOINTS="+endpoints, "TERM=dumb")
	return c
}

// script puts a program of the user's into the path.
func (c *commandLine) script(name, text string) {
	c.t.Helper()
	if err := os.WriteFile(filepath.Join(c.bin, name), []byte("#!/bin/sh\n"+text), 0o700); err != nil {
		c.t.Fatal(err)
	}
}

// document runs the examples of a document in order. before is called with each
// command, and returns the one to run.
func (c *commandLine) document(name string, before func(command string) string) {
	c.t.Helper()
	text, err := os.ReadFile(filepath.Join(repository, name))
	if err != nil {
		c.t.Fatal(err)
	}
	all := examples(string(text))
	for i := range all {
		e := &all[i]
		cmd := exec.Command("sh", "-c", before(e.command))
		cmd.Dir, cmd.Env = c.dir, c.environ
		out, _ := cmd.CombinedOutput() // an example may show a failure
		if !e.matches(string(out)) {
			c.t.Errorf("%s:%d: %s\nprints %s\nwant   %s", name, e.line, e.command, out, e.output)
		}
	}
	if len(all) < 8 {
		c.t.Errorf("only %d examples were found in %s", len(all), name)
	}
}

// TestCommandLineDocument runs the examples of docs/cli.md against one node and three.
func TestCommandLineDocument(t *testing.T) {
	for _, n := range []int{1, 3} {
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			var endpoints []string
			for _, m := range newCluster(t, n).nodes {
				endpoints = append(endpoints, "http://"+loopback(m.clientPort))
			}
			c := newCommandLine(t, strings.Join(endpoints, ","))
			c.document("docs/cli.md", func(command string) string { return command })
		})
	}
}

// consulExport is what consul kv export writes: with tabs, a folder, flags, an empty value,
// bytes that are no text, and where the pair was, in the edition that has such places.
const consulExport = `[
	{
		"key": "app/",
		"flags": 0,
		"value": ""
	},
	{
		"key": "app/name",
		"flags": 7,
		"value": "c2hvcA=="
	},
	{
		"key": "app/tls",
		"flags": 18446744073709551615,
		"value": "/wA=",
		"namespace": "default",
		"partition": "default"
	}
]`

// TestMigrationDocument runs the examples of docs/migrate.md against a real etcd, and one
// node and three. In place of Consul there is a script that prints one of its exports.
func TestMigrationDocument(t *testing.T) {
	if runSize != sizeFull {
		t.Skipf("NOT RUN: builds etcd; KVD_E2E=%s runs it", sizeFull)
	}
	path := buildEtcd(t)
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d nodes", n), func(t *testing.T) {
			t.Parallel()
			etcd := startEtcd(t, path)
			for _, kv := range [][2]string{{"/config/debug", "on"}, {"/config/name", "shop"}, {"/config/port", "8080"}, {"other", "\xff\x00"}} {
				etcd.put(kv[0], kv[1], "0")
			}
			lease := etcd.call("/v3/lease/grant", map[string]any{"TTL": "600"})
			etcd.put("session", "s", lease["ID"].(string))
			nodes := newCluster(t, n).nodes
			c := newCommandLine(t, "")
			c.script("consul", "cat <<'END'\n"+consulExport+"\nEND\n")
			example := 0
			c.document("docs/migrate.md", func(command string) string {
				if strings.Contains(command, "--prefix /config/") {
					etcd.put("/config/debug", "off", "0")
				}
				example++ // each by another node
				return "export KVD_ENDPOINTS=" + nodes[example%n].url() + "; " + strings.ReplaceAll(command, "http://127.0.0.1:2379", etcd.endpoint)
			})
		})
	}
}

// etcdProcess is an etcd that runs.
type etcdProcess struct {
	t        *testing.T
	endpoint string
}

// buildEtcd builds the etcd that bench/ compares kvd with.
func buildEtcd(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "etcd")
	build := exec.Command("go", "build", "-o", path, "./etcd")
	build.Dir = filepath.Join(repository, "bench")
	if out, err := build.CombinedOutput(); err != nil {
		t.Skipf("NOT TESTED: etcd cannot be built here: %v\n%s", err, out)
	}
	return path
}

// startEtcd starts one node.
func startEtcd(t *testing.T, path string) *etcdProcess {
	t.Helper()
	e := &etcdProcess{t, "http://" + loopback(freePort(t))}
	peer := "http://" + loopback(freePort(t))
	cmd := exec.Command(path, "--data-dir", t.TempDir(), "--log-level", "error", "--unsafe-no-fsync",
		"--listen-client-urls", e.endpoint, "--advertise-client-urls", e.endpoint,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	eventually(t, "etcd answers", func() error {
		_, err := e.try("/v3/kv/range", map[string]any{"key": []byte("a")})
		return err
	})
	return e
}

// put stores a value. Lease 0 is none.
func (e *etcdProcess) put(key, value, lease string) {
	e.t.Helper()
	e.call("/v3/kv/put", map[string]any{"key": []byte(key), "value": []byte(value), "lease": lease})
}

func (e *etcdProcess) call(path string, doc any) map[string]any {
	e.t.Helper()
	out, err := e.try(path, doc)
	if err != nil {
		e.t.Fatal(err)
	}
	return out
}

// try sends a request to etcd's JSON gateway.
func (e *etcdProcess) try(path string, doc any) (map[string]any, error) {
	body, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	resp, err := http.Post(e.endpoint+path, "application/json", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s: %s %w", path, resp.Status, text, err)
	}
	out := make(map[string]any)
	return out, json.Unmarshal(text, &out)
}
