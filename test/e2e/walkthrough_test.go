package e2e

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// The four walk-throughs from raftexample's README, run as they were written,
// with real curl and goreman.

// walkPorts returns the ports of a node in the walk-throughs.
func walkPorts(id uint64) (client, peer int) {
	return int(id)*10000 + 2380, int(id)*10000 + 2379
}

// walk translates the commands of the walk-throughs if their ports are taken on
// this machine.
type walk struct {
	t        testing.TB
	replaced *strings.Replacer
	ports    map[int]int
}

// walkGuard is a port held during a walk-through, so that two test runs on one
// machine do not use the same ports.
const walkGuard = 12378

const walkNodes = 4

func newWalk(t testing.TB) *walk {
	t.Helper()
	w := &walk{t: t, ports: make(map[int]int)}
	var pairs []string
	original := w.takeOriginalPorts()
	for id := uint64(1); id <= walkNodes; id++ {
		client, peer := walkPorts(id)
		for _, port := range []int{client, peer} {
			w.ports[port] = port
			if !original {
				w.ports[port] = freePort(t)
			}
			pairs = append(pairs, strconv.Itoa(port), strconv.Itoa(w.ports[port]))
		}
	}
	w.replaced = strings.NewReplacer(pairs...)
	if !original {
		t.Log("the ports of the walk-through are taken; with other ports:", pairs)
	}
	return w
}

// takeOriginalPorts reports whether all original ports are free for this test.
func (w *walk) takeOriginalPorts() bool {
	guard, err := net.Listen("tcp", loopback(walkGuard))
	if err != nil {
		return false
	}
	w.t.Cleanup(func() { guard.Close() })
	for id := uint64(1); id <= walkNodes; id++ {
		client, peer := walkPorts(id)
		if !portFree(client) || !portFree(peer) {
			return false
		}
	}
	return true
}

func (w *walk) nodePorts(id uint64) (client, peer int) {
	client, peer = walkPorts(id)
	return w.ports[client], w.ports[peer]
}

// args splits a command line of the walk-through.
func (w *walk) args(line string) []string { return strings.Fields(w.replaced.Replace(line)) }

// expectCurl repeats a curl line that reads until it prints the text; a node
// that is starting or catching up may have to refuse first.
func (w *walk) expectCurl(line, text string) {
	w.t.Helper()
	eventually(w.t, "curl "+line, func() error {
		got, err := tryCurl(w.t, w.args(line)...)
		if err == nil && got != text {
			err = fmt.Errorf("it prints %q, want %q", got, text)
		}
		return err
	})
}

// do repeats a curl line that writes until kvd says that it is done. The
// walk-through has no status in view; a node that has just started may have
// none but 503.
func (w *walk) do(line string) {
	w.t.Helper()
	eventually(w.t, "curl "+line, func() error {
		switch got := curl(w.t, w.args(line+" --write-out %{http_code}")...); {
		case got == "204":
			return nil
		case strings.HasSuffix(got, "503"):
			return fmt.Errorf("%s", got)
		default:
			return hopeless{fmt.Errorf("%s", got)}
		}
	})
}

func TestWalkthrough1SingleNode(t *testing.T) {
	w := newWalk(t)
	dir := t.TempDir()
	p := startProcess(t, "kvd", dir, binary, w.args("--id 1 --cluster http://127.0.0.1:12379 --port 12380")...)
	t.Cleanup(p.abandon)
	p.expectOutput(t, "ready to serve client requests")
	w.do("-L http://127.0.0.1:12380/my-key -XPUT -d hello")
	w.expectCurl("-L http://127.0.0.1:12380/my-key", "hello")
	p.signal(t, syscall.SIGINT)
	p.expectExit(t, 0)
	if out, code := doctor(filepath.Join(dir, "kvd-data", "1")); code != 0 {
		t.Fatalf("kvd doctor on the default directory ends with %d\n%s", code, out)
	}
}

// TestWalkthrough2Goreman runs the repository's Procfile.
func TestWalkthrough2Goreman(t *testing.T) {
	w := newWalk(t)
	g := startGoreman(t, w)
	for _, port := range []string{"12380", "22380", "32380"} {
		g.awaitReady(port)
	}
	w.do("-L http://127.0.0.1:12380/foo -XPUT -d foo")
	g.run("stop", "kvd2")
	w.do("-L http://127.0.0.1:12380/foo -XPUT -d bar")
	w.expectCurl("-L http://127.0.0.1:32380/foo", "bar")
	g.run("start", "kvd2")
	g.awaitReady("22380")
	w.expectCurl("-L http://127.0.0.1:22380/foo", "bar")
	g.stop()
}

// TestWalkthrough3AddMember grows the cluster of the Procfile by a fourth node,
// and TestWalkthrough4RemoveMember takes the third away.
func TestWalkthrough3AddMember(t *testing.T) {
	w := newWalk(t)
	c := w.startCluster(3)
	w.do("-L http://127.0.0.1:12380/my-key -XPUT -d hello")
	w.do("-L http://127.0.0.1:12380/4 -XPOST -d http://127.0.0.1:42379")
	added := c.joining()
	added.start()
	added.awaitReady()
	w.expectCurl("-L http://127.0.0.1:42380/my-key", "hello")
	w.do("-L http://127.0.0.1:42380/my-key -XPUT -d there")
	w.expectCurl("-L http://127.0.0.1:12380/my-key", "there")
	c.awaitVoter(added)
}

func TestWalkthrough4RemoveMember(t *testing.T) {
	w := newWalk(t)
	c := w.startCluster(3)
	w.do("-L http://127.0.0.1:12380/my-key -XPUT -d hello")
	w.do("-L http://127.0.0.1:12380/3 -XDELETE")
	removed := c.node(3)
	removed.removed = true
	removed.expectExit(0)
	removed.process().expectOutput(t, "removed")
	w.do("-L http://127.0.0.1:22380/my-key -XPUT -d on")
	w.expectCurl("-L http://127.0.0.1:12380/my-key", "on")
	t.Run("restart after removal does not rejoin", func(t *testing.T) {
		expectRefusedAsRemoved(t, removed)
		w.expectCurl("-L http://127.0.0.1:12380/my-key", "on")
	})
}

// expectRefusedAsRemoved starts a removed member again: it says why it must
// not take part, and what to do instead.
func expectRefusedAsRemoved(t *testing.T, m *member) {
	t.Helper()
	p := m.start()
	m.expectExit(3)
	for _, text := range []string{"removed", "new id", m.dir} {
		if !strings.Contains(p.output.String(), text) {
			t.Errorf("a removed member that is started again does not say %q:\n%s", text, p.output.tail(10))
		}
	}
}

// startCluster is the Procfile's cluster under the tests' own supervision.
func (w *walk) startCluster(n int) *cluster {
	w.t.Helper()
	requireTool(w.t, "curl")
	c := layOut(w.t, n, w.nodePorts)
	for _, m := range c.nodes {
		m.start()
	}
	c.awaitReady()
	return c
}
