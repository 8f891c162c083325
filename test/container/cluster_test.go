package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/kvd-io/kvd/internal/freeport"
)

// cluster is the cluster that compose.yaml starts.
type cluster struct {
	t       *testing.T
	compose []string // the command with its project and file
	project string
	nodes   []*node // in the order of their ids
}

// node is one service of the cluster.
type node struct {
	id        int
	service   string
	container string // its id
	url       string // for clients
	alias     string // its name among members
}

// testCluster puts three containers under load and inflicts the faults that
// machines suffer.
func testCluster(t *testing.T, run, image string) {
	tool := composeTool(t)
	c := &cluster{t: t, project: run}
	c.compose = append(tool, "--project-name", run, "--file", c.prepare(image))
	t.Cleanup(func() {
		args := append(slices.Clone(c.compose[1:]), "down", "--volumes", "--timeout", "1")
		if out, err := exec.Command(c.compose[0], args...).CombinedOutput(); err != nil {
			t.Errorf("left behind: %v: %v: %s", args, err, out)
		}
	})
	c.run("up", "--detach", "--no-build")
	for _, m := range c.nodes {
		m.container = c.run("ps", "--quiet", m.service)
		awaitHealth(t, m.container)
		demandUser(t, m.container)
		demandPrivate(t, m.container)
	}
	l := startLoad(c.nodes)
	stopped := false
	defer func() {
		if !stopped {
			l.stop()
		}
	}()
	l.awaitTraffic(t, 300)
	c.killOne(l)
	c.cutOffAnother(l)
	c.killAll(l)
	l.stop()
	stopped = true
	c.agree()
	c.stopAll()
	c.judge(l)
	c.loseVolume()
}

// composeTool returns "docker compose" or the older docker-compose.
func composeTool(t *testing.T) []string {
	t.Helper()
	if exec.Command("docker", "compose", "version").Run() == nil {
		return []string{"docker", "compose"}
	}
	if path, err := exec.LookPath("docker-compose"); err == nil {
		return []string{path}
	}
	t.Skip("SKIPPED: neither docker compose nor docker-compose is installed, so compose.yaml was NOT started")
	return nil
}

// prepare copies compose.yaml with the image under test, with ports that are free on
// this machine, and with frequent health checks. Everything else is as users get it.
func (c *cluster) prepare(image string) (file string) {
	t := c.t
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repository, "compose.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Services map[string]map[string]any
		Networks map[string]any
		Volumes  map[string]any
	}
	if err := yaml.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	for i, name := range slices.Sorted(maps.Keys(doc.Services)) {
		port := freePort(t)
		doc.Services[name]["image"], doc.Services[name]["ports"] = image, []string{fmt.Sprintf("127.0.0.1:%d:12380", port)}
		delete(doc.Services[name], "build")
		check, ok := doc.Services[name]["healthcheck"].(map[string]any)
		if !ok {
			t.Fatalf("%s has no health check: %v", name, doc.Services[name])
		}
		check["interval"] = healthInterval
		c.nodes = append(c.nodes, &node{id: i + 1, service: name, url: fmt.Sprintf("http://127.0.0.1:%d", port), alias: fmt.Sprintf("peer%d", i+1)})
	}
	out, err := yaml.Marshal(map[string]any{"services": doc.Services, "networks": doc.Networks, "volumes": doc.Volumes})
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "compose.yaml")
	if err := os.WriteFile(file, out, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func freePort(t *testing.T) int {
	t.Helper()
	port, err := freeport.Port()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// run runs one compose command.
func (c *cluster) run(args ...string) string {
	c.t.Helper()
	return command(c.t, append(slices.Clone(c.compose), args...)...)
}

// status is a part of /v1/status.
type status struct {
	Leader    int    `json:"leader"`
	Applied   uint64 `json:"applied"`
	StateHash string `json:"state_hash"`
}

func (m *node) status() (s status, err error) {
	code, body, err := m.do("GET", "/v1/status", "")
	if err == nil && code != 200 {
		err = fmt.Errorf("%s: status %d: %s", m.service, code, body)
	}
	return s, errors.Join(err, json.Unmarshal([]byte(body), &s))
}

// leader returns the leader according to a node that is not cut off.
func (c *cluster) leader() (leader *node) {
	c.t.Helper()
	eventually(c.t, "there is a leader", func() error {
		for _, m := range c.nodes {
			if s, err := m.status(); err == nil && s.Leader == m.id {
				leader = m
				return nil
			}
		}
		return errors.New("nobody leads")
	})
	return leader
}

func (c *cluster) awaitReady(nodes ...*node) {
	c.t.Helper()
	for _, m := range nodes {
		eventually(c.t, m.service+" is ready", func() error {
			if code, body, err := m.do("GET", "/readyz", ""); err != nil || code != 200 {
				return fmt.Errorf("%d %s %v\n%s", code, body, err, logs(m.container))
			}
			return nil
		})
	}
}

func (c *cluster) killOne(l *load) {
	m := c.leader()
	docker(c.t, "kill", m.container)
	l.awaitTraffic(c.t, 300)
	docker(c.t, "start", m.container)
	c.awaitReady(m)
	l.awaitTraffic(c.t, 300)
	c.t.Logf("killed the leader, %s, and started it again under load", m.service)
}

// cutOffAnother removes the leader from the members' network. Clients still
// reach it, and it must not acknowledge anything.
func (c *cluster) cutOffAnother(l *load) {
	t := c.t
	m := c.leader()
	network := c.project + "_peers"
	docker(t, "network", "disconnect", network, m.container)
	for range 3 {
		code, body, err := m.do("PUT", "/cut-off?timeout=1s", "x")
		if err != nil || code/100 == 2 {
			t.Errorf("a write to a node that is cut off: %d %s %v", code, body, err)
		}
	}
	l.awaitTraffic(t, 300)
	if code, body, err := m.do("GET", "/v1/kv/load/w0/again?consistency=stale", ""); err != nil || code != 200 {
		t.Errorf("a stale read of a node that is cut off: %d %s %v", code, body, err)
	}
	docker(t, "network", "connect", "--alias", m.alias, network, m.container)
	c.awaitReady(m)
	l.awaitTraffic(t, 300)
	t.Logf("cut the leader, %s, off from the members' network: it acknowledged nothing, the others went on; healed", m.service)
}

func (c *cluster) killAll(l *load) {
	docker(c.t, append([]string{"kill"}, c.containers()...)...)
	docker(c.t, append([]string{"start"}, c.containers()...)...)
	c.awaitReady(c.nodes...)
	l.awaitTraffic(c.t, 300)
	c.t.Log("killed all three at once and started them again under load")
}

func (c *cluster) containers() (ids []string) {
	for _, m := range c.nodes {
		ids = append(ids, m.container)
	}
	return ids
}

// agree waits until all nodes have the same state at the same position.
func (c *cluster) agree() {
	c.t.Helper()
	eventually(c.t, "all nodes have the same state", func() error {
		var all []status
		for _, m := range c.nodes {
			s, err := m.status()
			if err != nil {
				return err
			}
			all = append(all, s)
		}
		if all[0] != all[1] || all[1] != all[2] || all[0].StateHash == "" {
			return fmt.Errorf("%+v", all)
		}
		c.t.Logf("state %s at position %d on all three", all[0].StateHash, all[0].Applied)
		return nil
	})
}

// stopAll stops each node gracefully, then starts all of them.
func (c *cluster) stopAll() {
	for _, m := range c.nodes {
		stopGracefully(c.t, m.container)
	}
	docker(c.t, append([]string{"start"}, c.containers()...)...)
	c.awaitReady(c.nodes...)
	for _, m := range c.nodes {
		awaitHealth(c.t, m.container)
	}
}

func (c *cluster) judge(l *load) {
	c.t.Logf("%d writes acknowledged, %d not", l.acked.Load(), l.failed.Load())
	if l.failed.Load() == 0 {
		c.t.Error("no write ever failed: the faults did not hit the load")
	}
	for _, m := range c.nodes {
		read, err := l.judge(m)
		if err != nil {
			c.t.Errorf("%s: %v", m.service, err)
			continue
		}
		c.t.Logf("%s has all %d keys that were acknowledged", m.service, read)
	}
	c.agree()
}

// loseVolume starts a member without its data. It refuses, and Docker gives up
// instead of restarting it forever.
func (c *cluster) loseVolume() {
	t := c.t
	m := c.nodes[2]
	c.run("rm", "--stop", "--force", m.service)
	docker(t, "volume", "rm", c.project+"_"+m.service)
	c.run("up", "--detach", "--no-build", m.service)
	m.container = c.run("ps", "--all", "--quiet", m.service)
	eventually(t, "the engine gives up a member that refuses to run", func() error {
		if state := docker(t, "inspect", "--format", "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}", m.container); state != "exited 3 5" {
			return fmt.Errorf("it is %s\n%s", state, logs(m.container))
		}
		return nil
	})
	lines := strings.Split(strings.TrimSpace(strings.TrimSuffix(logs(m.container), "<nil>")), "\n")
	t.Logf("a member without its volume was started 5 times more and given up: %s", lines[len(lines)-1])
	c.awaitReady(c.nodes[:2]...)
}
