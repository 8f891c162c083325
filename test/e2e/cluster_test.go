package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// cluster is a set of kvd processes that form a cluster. Its cleanup is the full
// check: the members agree, every process exited as expected, and every data
// directory passes kvd doctor.
type cluster struct {
	t     testing.TB
	root  string
	flags []string // for every member
	nodes []*member
	ports func(id uint64) (client, peer int)
}

// member is one member: its addresses and its directory, and the process that
// currently runs there.
type member struct {
	t          testing.TB
	id         uint64
	clientPort int
	peerPort   int
	dir        string
	args       []string
	runs       []*process
	mu         sync.Mutex // guards expected; tests kill from several goroutines
	expected   map[*process]int
	paused     bool
	noDoctor   bool // the directory is gone on purpose
	removed    bool // from the cluster
}

// quick are flags that let leaders be replaced quickly.
var quick = []string{"--heartbeat-interval", "50ms", "--election-timeout", "500ms"}

// newCluster starts n members and waits until all are ready.
func newCluster(t testing.TB, n int, flags ...string) *cluster {
	t.Helper()
	c := newIdleCluster(t, n, flags...)
	for _, m := range c.nodes {
		m.start()
	}
	c.awaitReady()
	return c
}

// newIdleCluster prepares n members without starting them.
func newIdleCluster(t testing.TB, n int, flags ...string) *cluster {
	t.Helper()
	return layOut(t, n, func(uint64) (client, peer int) { return freePort(t), freePort(t) }, flags...)
}

func layOut(t testing.TB, n int, ports func(id uint64) (client, peer int), flags ...string) *cluster {
	t.Helper()
	c := &cluster{t: t, root: t.TempDir(), flags: flags, ports: ports}
	for id := range n {
		c.nodes = append(c.nodes, c.place(uint64(id+1)))
	}
	list := c.peerList()
	for _, m := range c.nodes {
		m.args = append(m.raftexampleArgs(list), flags...)
	}
	t.Cleanup(c.finish)
	return c
}

func (c *cluster) place(id uint64) *member {
	client, peer := c.ports(id)
	return &member{
		t:          c.t,
		id:         id,
		clientPort: client,
		peerPort:   peer,
		dir:        filepath.Join(c.root, strconv.FormatUint(id, 10)),
		expected:   make(map[*process]int),
	}
}

// peerList is the value of --cluster: the peer URLs in the order of the ids.
func (c *cluster) peerList() string {
	var urls []string
	for _, m := range c.nodes {
		urls = append(urls, m.peerURL())
	}
	return strings.Join(urls, ",")
}

func (m *member) raftexampleArgs(peers string) []string {
	return []string{
		"--id", strconv.FormatUint(m.id, 10), "--cluster", peers,
		"--port", strconv.Itoa(m.clientPort), "--data-dir", m.dir,
	}
}

func (m *member) url() string     { return "http://" + loopback(m.clientPort) }
func (m *member) peerURL() string { return "http://" + loopback(m.peerPort) }
func (m *member) String() string  { return fmt.Sprintf("member %d", m.id) }

// start runs the member's command line.
func (m *member) start(extra ...string) *process {
	m.t.Helper()
	p := startProcess(m.t, fmt.Sprintf("%v run %d", m, len(m.runs)+1), filepath.Dir(m.dir), binary, append(slices.Clone(m.args), extra...)...)
	m.runs = append(m.runs, p)
	return p
}

// moveTo gives a member that was never started another directory.
func (m *member) moveTo(dir string) {
	m.args[slices.Index(m.args, "--data-dir")+1] = dir
	m.dir = dir
}

// process returns the latest run.
func (m *member) process() *process { return m.runs[len(m.runs)-1] }

func (m *member) running() bool { return len(m.runs) > 0 && m.process().running() }

func (m *member) expect(p *process, code int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.expected[p] = code
}

// kill sends SIGKILL and waits for the process to exit.
func (m *member) kill() {
	m.t.Helper()
	p := m.process()
	m.expect(p, killed)
	p.signal(m.t, syscall.SIGKILL)
	p.expectExit(m.t, killed)
	m.paused = false
}

// stop is a graceful stop.
func (m *member) stop() {
	m.t.Helper()
	m.process().signal(m.t, syscall.SIGTERM)
	m.process().expectExit(m.t, 0)
}

// expectExit waits until the process exits with the code on its own.
func (m *member) expectExit(code int) {
	m.t.Helper()
	m.expect(m.process(), code)
	m.process().expectExit(m.t, code)
}

// pause freezes the process; resume lets it continue as if no time had passed.
func (m *member) pause() {
	m.t.Helper()
	m.process().signal(m.t, syscall.SIGSTOP)
	m.paused = true
	eventually(m.t, m.String()+" is stopped", func() error {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.process().pid()))
		if err != nil {
			return err
		}
		if _, state, _ := strings.Cut(string(data), ") "); !strings.HasPrefix(state, "T") {
			return fmt.Errorf("state %.1s", state)
		}
		return nil
	})
}

func (m *member) resume() {
	m.t.Helper()
	m.process().signal(m.t, syscall.SIGCONT)
	m.paused = false
}

// awaitReady waits until the member reports that it is ready.
func (m *member) awaitReady() {
	m.t.Helper()
	eventually(m.t, m.String()+" is ready", m.ready)
}

func (m *member) ready() error {
	if !m.running() {
		return hopeless{fmt.Errorf("its process ended with %v:\n%s", m.process().cmd.ProcessState, m.process().output.tail(20))}
	}
	a := get(m, "/readyz?verbose")
	if a.err == nil && a.status == 200 {
		return nil
	}
	return fmt.Errorf("/readyz: %v", a)
}

func (c *cluster) awaitReady() {
	c.t.Helper()
	for _, m := range c.live() {
		m.awaitReady()
	}
}

// node returns the member with the id.
func (c *cluster) node(id uint64) *member {
	c.t.Helper()
	for _, m := range c.nodes {
		if m.id == id {
			return m
		}
	}
	c.t.Fatalf("there is no member %d", id)
	return nil
}

// live returns the members whose processes are running and not paused.
func (c *cluster) live() []*member {
	return slices.DeleteFunc(slices.Clone(c.nodes), func(m *member) bool { return !m.running() || m.paused })
}

// leader waits until all live members name the same leader and it is live too.
func (c *cluster) leader() *member {
	c.t.Helper()
	var found *member
	eventually(c.t, "the members agree on a leader", func() error {
		var err error
		found, err = c.agreedLeader()
		return err
	})
	return found
}

func (c *cluster) agreedLeader() (*member, error) {
	var id uint64
	for i, m := range c.live() {
		st, err := m.status()
		switch {
		case err != nil:
			return nil, fmt.Errorf("%v: %w", m, err)
		case i > 0 && st.Leader != id:
			return nil, fmt.Errorf("%v follows %d, another one %d", m, st.Leader, id)
		}
		id = st.Leader
	}
	for _, m := range c.live() {
		if m.id == id {
			return m, nil
		}
	}
	return nil, fmt.Errorf("the leader is %d, which does not run", id)
}

// followers returns the live members except the leader.
func (c *cluster) followers() []*member {
	c.t.Helper()
	leader := c.leader()
	return slices.DeleteFunc(c.live(), func(m *member) bool { return m == leader })
}

// joining prepares another member, which must be started with --join.
func (c *cluster) joining() *member {
	c.t.Helper()
	m := c.place(uint64(len(c.nodes) + 1))
	c.nodes = append(c.nodes, m)
	m.args = append(append(m.raftexampleArgs(c.peerList()), "--join"), c.flags...)
	return m
}

// add prepares another member and adds it to the cluster, without starting it.
func (c *cluster) add() *member {
	c.t.Helper()
	via, m := c.live()[0], c.joining()
	if a := send(via, "POST", fmt.Sprintf("/%d", m.id), m.peerURL()); a.status != 204 {
		c.t.Fatalf("add %v through %v: %v", m, via, a)
	}
	return m
}

// remove removes a member from the cluster; if it is running, it exits.
func (c *cluster) remove(via, m *member) {
	c.t.Helper()
	if a := send(via, "DELETE", fmt.Sprintf("/%d", m.id), ""); a.status != 204 {
		c.t.Fatalf("remove %v through %v: %v", m, via, a)
	}
	m.removed = true
	if m.running() {
		m.expectExit(0)
	}
}

// awaitVoter waits until the cluster counts the member as a voter.
func (c *cluster) awaitVoter(m *member) {
	c.t.Helper()
	// Each node has to know: the leader may apply the promotion a moment
	// after others, and judges the next change by what it has applied.
	for _, at := range c.live() {
		eventually(c.t, m.String()+" is promoted, says "+at.String(), func() error {
			members, err := at.members()
			if err != nil {
				return err
			}
			for _, x := range members {
				if x.ID == m.id && !x.Learner {
					return nil
				}
			}
			return fmt.Errorf("the members are %+v", members)
		})
	}
}

// finish stops the cluster and checks it.
func (c *cluster) finish() {
	c.t.Helper()
	defer c.report()
	defer func() {
		for _, m := range c.nodes {
			for _, p := range m.runs {
				p.abandon()
			}
		}
	}()
	if c.t.Failed() {
		return // the first failure says more than its consequences
	}
	for _, m := range c.nodes {
		if m.paused {
			m.resume()
		}
	}
	c.judgeReplicas()
	c.stopAll()
	c.judgeExits()
	c.judgeDirectories()
}

// judgeReplicas waits until all live members have applied the same log and
// compares their state hashes at that index.
func (c *cluster) judgeReplicas() {
	c.t.Helper()
	if len(c.live()) == 0 {
		c.t.Fatal("no member runs in the end, so that there is nothing to judge")
	}
	eventually(c.t, "the members agree on the state", c.sameState)
	eventually(c.t, "the cluster calls itself healthy", c.healthy)
}

// healthy asks every member for its view of all members.
func (c *cluster) healthy() error {
	for _, m := range c.live() {
		var doc struct {
			Healthy     bool  `json:"healthy"`
			HashesAgree *bool `json:"hashes_agree"`
		}
		if err := m.getJSON("/v1/cluster", &doc); err != nil {
			return fmt.Errorf("%v: %w", m, err)
		}
		if !doc.Healthy || doc.HashesAgree != nil && !*doc.HashesAgree {
			return fmt.Errorf("%v answers %v", m, get(m, "/v1/cluster"))
		}
	}
	return nil
}

func (c *cluster) sameState() error {
	var first memberStatus
	for i, m := range c.live() {
		st, err := m.status()
		switch {
		case err != nil:
			return fmt.Errorf("%v: %w", m, err)
		case i == 0:
			first = st
		case st.Applied != first.Applied:
			return fmt.Errorf("%v has applied %d, member %d %d", m, st.Applied, first.ID, first.Applied)
		case st.StateHash != first.StateHash:
			return hopeless{fmt.Errorf("at index %d %v has state %s at revision %d, member %d %s at %d",
				st.Applied, m, st.StateHash, st.Revision, first.ID, first.StateHash, first.Revision)}
		}
	}
	if first.StateHash == "" || first.Applied == 0 {
		return hopeless{fmt.Errorf("member %d names no state: %+v", first.ID, first)}
	}
	return nil
}

// stopAll stops all members at the same time, like a machine that shuts down.
func (c *cluster) stopAll() {
	c.t.Helper()
	live := c.live()
	begin := time.Now()
	for _, m := range live {
		m.process().signal(c.t, syscall.SIGTERM)
	}
	for _, m := range live {
		m.process().expectExit(c.t, 0)
	}
	c.t.Logf("stopping %d nodes together took %v", len(live), time.Since(begin).Round(time.Millisecond))
}

func (c *cluster) judgeExits() {
	c.t.Helper()
	for _, m := range c.nodes {
		for _, p := range m.runs {
			if got, want := p.exitCode(c.t), m.expected[p]; got != want {
				c.t.Errorf("%s ended with %d, want %d\n%s", p.name, got, want, p.output.tail(40))
			}
		}
	}
}

// judgeDirectories runs kvd doctor on every directory.
func (c *cluster) judgeDirectories() {
	c.t.Helper()
	for _, m := range c.nodes {
		if m.noDoctor || len(m.runs) == 0 {
			continue
		}
		out, code := doctor(m.dir)
		switch {
		case m.removed && (code != 3 || !strings.Contains(out, "removed")):
			c.t.Errorf("kvd doctor %s ends with %d, though the member was removed\n%s", m.dir, code, out)
		case !m.removed && code != 0:
			c.t.Errorf("kvd doctor %s ends with %d\n%s", m.dir, code, out)
		}
	}
}

// doctor returns the output of kvd doctor for a directory, and its exit code.
func doctor(dir string) (string, int) {
	cmd := exec.Command(binary, "doctor", dir)
	cmd.Env = environment()
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		return err.Error(), killed
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// report shows the output of the processes if the test has failed.
func (c *cluster) report() {
	if !c.t.Failed() {
		return
	}
	for _, m := range c.nodes {
		for i, p := range m.runs {
			lines := 15
			if i == len(m.runs)-1 {
				lines = 60
			}
			c.t.Logf("---- %s (pid %d, %v) ----\n%s", p.name, p.pid(), p.cmd.ProcessState, p.output.tail(lines))
		}
	}
}

// restart restarts members and waits until they are ready.
func restart(members ...*member) time.Duration {
	begin := time.Now()
	for _, m := range members {
		m.start()
	}
	for _, m := range members {
		m.awaitReady()
	}
	return time.Since(begin)
}
