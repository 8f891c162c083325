package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// system is one of the two systems being compared.
type system interface {
	name() string
	// args returns the command line of node i of a cluster.
	args(c *cluster, i int) []string
	// open makes a separate connection to a node.
	open(address string) (client, error)
	// leader returns the index of the leader.
	leader(ctx context.Context, c *cluster) (int, error)
	// bulk loads count keys over the given number of connections.
	bulk(ctx context.Context, c *cluster, count uint64, conns, valueSize int) error
	// snapshot reads a whole backup and discards it.
	snapshot(ctx context.Context, address string) error
}

// client is one connection. A code names an error response, and "" means
// success; an err means that the connection is no longer usable.
type client interface {
	put(ctx context.Context, key, value []byte) (code string, err error)
	get(ctx context.Context, key []byte, stale bool) (code string, err error)
	// txn puts a key if it exists.
	txn(ctx context.Context, key, value []byte) (code string, err error)
	close()
}

// cluster is a set of running nodes of one system.
type cluster struct {
	sys     system
	dir     string
	clients []string // host:port
	peers   []string // host:port
	metrics []string // host:port; of kvd, for profiles
	procs   []*exec.Cmd
}

// start runs the given number of nodes in fresh directories and waits for a
// leader.
func (b *bench) start(ctx context.Context, s system, nodes int) (*cluster, error) {
	dir, err := os.MkdirTemp(b.dir, s.name()+"-")
	if err != nil {
		return nil, err
	}
	c := &cluster{sys: s, dir: dir}
	for range nodes {
		c.clients = append(c.clients, freeAddress())
		c.peers = append(c.peers, freeAddress())
		c.metrics = append(c.metrics, freeAddress())
		c.procs = append(c.procs, nil)
	}
	for i := range nodes {
		if err := c.run(i); err != nil {
			return nil, errors.Join(err, c.stop())
		}
	}
	if _, err := c.leader(ctx); err != nil {
		return nil, errors.Join(err, c.stop())
	}
	return c, nil
}

// nextPort stays below the kernel's ephemeral range, so that no outgoing
// connection takes a port first.
var nextPort = 15000 + os.Getpid()%8000

func freeAddress() string {
	for ; ; nextPort++ {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(nextPort))
		if l, err := net.Listen("tcp", address); err == nil {
			_ = l.Close()
			nextPort++
			return address
		}
	}
}

// run starts node i. Its log goes to a file in the cluster's directory.
func (c *cluster) run(i int) error {
	args := c.sys.args(c, i)
	log, err := os.OpenFile(filepath.Join(c.dir, fmt.Sprintf("log%d", i)), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	p := exec.Command(args[0], args[1:]...)
	p.Stdout, p.Stderr = log, log
	// If the benchmark dies, its nodes die with it.
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.procs[i] = p
	return p.Start()
}

// end sends the signal to node i and waits for it to exit.
func (c *cluster) end(i int, sig syscall.Signal) error {
	p := c.procs[i]
	if p == nil || p.Process == nil {
		return nil
	}
	c.procs[i] = nil
	if err := p.Process.Signal(sig); err != nil {
		return err
	}
	kill := time.AfterFunc(20*time.Second, func() { _ = p.Process.Kill() })
	defer kill.Stop()
	_ = p.Wait() // its exit code does not matter here
	return nil
}

func (c *cluster) stop() error {
	var errs []error
	for i := range c.procs {
		errs = append(errs, c.end(i, syscall.SIGKILL))
	}
	return errors.Join(append(errs, os.RemoveAll(c.dir))...)
}

// leader waits until some node is the leader and answers, and returns its
// index.
func (c *cluster) leader(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		i, err := c.sys.leader(ctx, c)
		if err == nil {
			if err = c.writable(ctx, i); err == nil {
				return i, nil
			}
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%s has no leader: %w", c.sys.name(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (c *cluster) writable(ctx context.Context, i int) error {
	conn, err := c.sys.open(c.clients[i])
	if err != nil {
		return err
	}
	defer conn.close()
	code, err := conn.put(ctx, []byte("probe"), []byte("x"))
	if err == nil && code != "" {
		err = errors.New(code)
	}
	return err
}

func (c *cluster) pids() []int {
	var pids []int
	for _, p := range c.procs {
		if p != nil {
			pids = append(pids, p.Process.Pid)
		}
	}
	return pids
}

func command(ctx context.Context, dir, name string, args ...string) error {
	p := exec.CommandContext(ctx, name, args...)
	p.Dir = dir
	p.Stdout, p.Stderr = os.Stderr, os.Stderr
	p.Env = append(os.Environ(), "CGO_ENABLED=0")
	return p.Run()
}
