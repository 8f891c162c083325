package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// tools are the packages of etcd's clients, by name.
var tools = map[string]string{
	"etcdctl":   "go.etcd.io/etcd/etcdctl/v3",
	"etcdutl":   "go.etcd.io/etcd/etcdutl/v3",
	"benchmark": "go.etcd.io/etcd/v3/tools/benchmark",
}

// build makes the binaries. The go command decides what is stale.
func build(ctx context.Context, o options) error {
	if err := os.MkdirAll(o.logs, 0o755); err != nil {
		return err
	}
	etcd := "go.etcd.io/etcd/server/v3"
	if o.target == "kvd" {
		etcd = "./cmd/etcdshim"
	}
	for _, s := range o.suites {
		for _, name := range s.tools {
			if err := goBuild(ctx, ".", filepath.Join(o.bin, name), tools[name]); err != nil {
				return err
			}
		}
	}
	if err := goBuild(ctx, ".", filepath.Join(o.bin, "etcd"), etcd); err != nil || o.target == "etcd" {
		return err
	}
	// With the dependencies of its own module, not with those of this one.
	if err := goBuild(ctx, "../..", filepath.Join(o.bin, "kvd"), "./cmd/kvd"); err != nil {
		return err
	}
	return certificates(ctx, o)
}

// goBuild builds the package as the module in dir sees it.
func goBuild(ctx context.Context, dir, output, pkg string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-C", dir, "-o", output, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	text, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, text)
	}
	return nil
}

// certificates makes those that the shim uses where etcd would make its own.
func certificates(ctx context.Context, o options) error {
	dir := filepath.Join(o.bin, "certs")
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	text, err := exec.CommandContext(ctx, filepath.Join(o.bin, "kvd"), "cert", "init", "--dir", dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("make certificates: %w\n%s", err, text)
	}
	return nil
}

// row is the outcome of one run of a suite.
type row struct {
	suite string
	nodes int // 0 if the suite chooses
	took  time.Duration
	counts
}

// runSuite runs the suite, prints what is wrong, and keeps the whole output.
func (o *options) runSuite(ctx context.Context, s suite, nodes int) (row, error) {
	list, err := o.differences(s, nodes)
	if err != nil {
		return row{}, err
	}
	fmt.Printf("== %s%s on %s\n", s.name, ofNodes(nodes), o.target)
	begin := time.Now()
	r, err := o.test(ctx, s, nodes, list)
	if err != nil {
		return row{}, err
	}
	c, wrong := judge(r, list, o.run != "")
	for _, w := range wrong {
		name, _, _ := strings.Cut(w, " ")
		fmt.Printf("-- %s\n%s", w, tail(r.output[name]))
	}
	return row{suite: s.name, nodes: nodes, took: time.Since(begin), counts: c}, nil
}

// differences returns the lines that apply. Real etcd has none.
func (o *options) differences(s suite, nodes int) (applying []difference, _ error) {
	all, err := known(s.name)
	if err != nil || o.target == "etcd" {
		return nil, err
	}
	for _, d := range all {
		if nodes == 0 || d.appliesTo(nodes) {
			applying = append(applying, d)
		}
	}
	return applying, nil
}

// test runs go test, which fails if a test does.
func (o *options) test(ctx context.Context, s suite, nodes int, list []difference) (*results, error) {
	log, err := os.Create(filepath.Join(o.logs, fmt.Sprintf("%s-%d.json", s.name, nodes)))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, "go", s.command(*o, list, isolation(ctx))...)
	cmd.Env = append(os.Environ(), environment(*o, nodes)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r, err := read(io.TeeReader(out, log))
	if failure := cmd.Wait(); failure != nil {
		r.broken = true
	}
	return r, errors.Join(err, log.Close(), ctx.Err())
}

// isolation returns a command that runs another one in a network of its own, as go
// test's -exec takes it, or "". etcd's tests use fixed ports: two runs on one
// machine would disturb each other. It needs root, or a kernel that lets users
// make namespaces.
func isolation(ctx context.Context) string {
	script, err := filepath.Abs("alone.sh")
	if err != nil || exec.CommandContext(ctx, "unshare", "--net", "--map-root-user", script, "true").Run() != nil {
		return ""
	}
	return "unshare --net --map-root-user " + script
}

func ofNodes(n int) string {
	switch n {
	case 0:
		return ""
	case 1:
		return ", one node"
	default:
		return fmt.Sprintf(", %d nodes", n)
	}
}

// tail returns the end of a test's output, where the reason is. All of it is in
// the log.
func tail(b *strings.Builder) string {
	if b == nil {
		return ""
	}
	const most, width = 12, 400
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	var end strings.Builder
	for _, line := range lines[max(0, len(lines)-most):] {
		fmt.Fprintf(&end, "   %s\n", line[:min(len(line), width)])
	}
	return end.String()
}

// table shows all rows.
func table(target string, rows []row) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n| suite on %s | nodes | tests | subtests | passed | skipped | listed | wrong | seconds |\n|---|---|---|---|---|---|---|---|---|\n", target)
	for _, r := range rows {
		nodes := fmt.Sprint(r.nodes)
		if r.nodes == 0 {
			nodes = "its own"
		}
		fmt.Fprintf(&b, "| %s | %s | %d | %d | %d | %d | %d | %d | %.0f |\n",
			r.suite, nodes, r.tests, r.subtests, r.passed, r.skipped, r.listed, r.wrong, r.took.Seconds())
	}
	return b.String()
}
