package cluster

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// startTimeout is how long a member may take to serve; a machine under load is
// slow.
const startTimeout = time.Minute

// Cluster is a running cluster. It ends with its test.
type Cluster struct {
	Members []*Member
	t       testing.TB
}

// Member is one process, which may be stopped, killed, and started again.
type Member struct {
	Name, Endpoint string

	t       testing.TB
	args    []string
	process *exec.Cmd
	log     *tail
	exited  chan struct{} // closed once the process has ended
}

// Size is the number of members that tests shall use.
func Size(t testing.TB) int {
	n, err := strconv.Atoi(os.Getenv("CONFORMANCE_NODES"))
	if err != nil || n < 1 {
		return 1
	}
	return n
}

// Binary returns the path of an executable under test or of a tool.
func Binary(t testing.TB, name string) string {
	t.Helper()
	dir := os.Getenv("CONFORMANCE_BIN")
	if dir == "" {
		t.Skip("CONFORMANCE_BIN is not set: run make conformance")
	}
	return filepath.Join(dir, name)
}

// Start runs a cluster with as many members as Size says, with these flags of
// etcd's in addition to those that they need, and waits until all serve.
func Start(t testing.TB, flags ...string) *Cluster {
	t.Helper()
	return StartSize(t, Size(t), flags...)
}

// StartSize runs a cluster of n members.
func StartSize(t testing.TB, n int, flags ...string) *Cluster {
	t.Helper()
	binary := Binary(t, "etcd")
	c := &Cluster{t: t}
	ports := freePorts(t, 2*n)
	var initial []string
	for i := range n {
		initial = append(initial, fmt.Sprintf("m%d=http://127.0.0.1:%d", i, ports[n+i]))
	}
	for i := range n {
		client, peer := fmt.Sprintf("http://127.0.0.1:%d", ports[i]), fmt.Sprintf("http://127.0.0.1:%d", ports[n+i])
		m := &Member{Name: fmt.Sprintf("m%d", i), Endpoint: client, t: t}
		m.args = append([]string{binary, "--name=" + m.Name, "--data-dir=" + filepath.Join(t.TempDir(), m.Name),
			"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
			"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer,
			"--initial-cluster=" + strings.Join(initial, ","), "--initial-cluster-state=new"}, flags...)
		c.Members = append(c.Members, m)
	}
	t.Cleanup(c.end)
	c.each((*Member).begin)
	c.each((*Member).await)
	return c
}

// end kills what still runs. Nothing of it is needed any more.
func (c *Cluster) end() {
	for _, m := range c.Members {
		if m.process != nil {
			m.Kill()
		}
	}
}

func (c *Cluster) each(do func(*Member)) {
	for _, m := range c.Members {
		do(m)
	}
}

// Endpoints returns the client URLs of all members.
func (c *Cluster) Endpoints() (all []string) {
	for _, m := range c.Members {
		all = append(all, m.Endpoint)
	}
	return all
}

// Client returns a client of all members, which is closed with the test.
func (c *Cluster) Client(t testing.TB) *clientv3.Client {
	t.Helper()
	return Dial(t, c.Endpoints()...)
}

// Dial returns a client of these endpoints, which is closed with the test.
func Dial(t testing.TB, endpoints ...string) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// Leader returns the member that leads.
func (c *Cluster) Leader(ctx context.Context, t testing.TB) *Member {
	t.Helper()
	for ctx.Err() == nil {
		for _, m := range c.Members {
			if m.process != nil && m.leads(ctx, t) {
				return m
			}
		}
	}
	t.Fatal("nobody leads")
	return nil
}

func (m *Member) leads(ctx context.Context, t testing.TB) bool {
	client := Dial(t, m.Endpoint)
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	s, err := client.Status(ctx, m.Endpoint)
	return err == nil && s.Leader != 0 && s.Leader == s.Header.MemberId
}

// Start runs the process again, on its data, and waits until it serves.
func (m *Member) Start() {
	m.t.Helper()
	m.begin()
	m.await()
}

// begin starts the process. A line on its standard error tells when it serves.
func (m *Member) begin() {
	m.t.Helper()
	m.log = &tail{ready: make(chan struct{})}
	m.exited = make(chan struct{})
	m.process = exec.Command(m.args[0], m.args[1:]...)
	// A test that dies takes its members with it.
	m.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := m.process.StderrPipe()
	if err == nil {
		err = m.process.Start()
	}
	if err != nil {
		m.process = nil
		m.t.Fatalf("start %s: %v", m.Name, err)
	}
	go func(p *exec.Cmd, exited chan struct{}, log *tail) {
		defer close(exited)
		log.read(out)
		_ = p.Wait() // how it ended is in its log
	}(m.process, m.exited, m.log)
}

func (m *Member) await() {
	m.t.Helper()
	select {
	case <-m.log.ready:
	case <-m.exited:
		m.t.Fatalf("%s ended instead of serving:\n%s", m.Name, m.log)
	case <-time.After(startTimeout):
		m.t.Fatalf("%s does not serve after %s:\n%s", m.Name, startTimeout, m.log)
	}
}

// Stop ends the process in its own good time.
func (m *Member) Stop() { m.signal(syscall.SIGTERM) }

// Kill ends the process at once.
func (m *Member) Kill() { m.signal(syscall.SIGKILL) }

func (m *Member) signal(s syscall.Signal) {
	m.t.Helper()
	if err := m.process.Process.Signal(s); err != nil && err != os.ErrProcessDone {
		m.t.Errorf("end %s: %v", m.Name, err)
	}
	<-m.exited
	m.process = nil
}

// tail keeps the end of a log.
type tail struct {
	ready chan struct{} // closed by the line that says so
	mu    struct {
		sync.Mutex
		lines []string
	}
}

// tailLines is how much of a log helps to understand a failure.
const tailLines = 20

func (l *tail) read(r io.Reader) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	ready := false
	for lines.Scan() {
		if !ready && strings.Contains(lines.Text(), "ready to serve client requests") {
			ready = true
			close(l.ready)
		}
		l.add(lines.Text())
	}
	_, _ = io.Copy(io.Discard, r) // a line too long must not block the process
}

func (l *tail) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.lines = append(l.mu.lines, line)
	if len(l.mu.lines) > tailLines {
		l.mu.lines = l.mu.lines[1:]
	}
}

func (l *tail) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.mu.lines, "\n")
}

// freePorts returns ports that nobody listens on now. All are held until the
// last one is found, so that they differ.
func freePorts(t testing.TB, n int) (ports []int) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}
