package main

import (
	"path/filepath"
	"strconv"
	"time"
)

// suite is a body of tests that run with go test.
type suite struct {
	name string
	help string
	// args of go test: flags, and the package.
	args []string
	// after has what follows "-args", given the directory of the binaries.
	after func(bin string) []string
	// tools are binaries that it needs beside the servers.
	tools []string
	// sized says that the tests take the size of their cluster from the
	// environment. The others choose it for themselves.
	sized   bool
	timeout time.Duration
}

// suites are in the order in which they run: the ones that find a fault at
// its root come first.
var suites = []suite{
	{name: "clients", help: "clientv3 and its packages: sessions, locks, elections, STM, leasing, ordering, mirrors, snapshots",
		args: []string{"./clients"}, sized: true, timeout: 10 * time.Minute},
	{name: "kubernetes", help: "Kubernetes' storage layer and its watch cache (k8s.io/apiserver/pkg/storage)",
		args: []string{"./kubernetes"}, sized: true, timeout: 20 * time.Minute},
	{name: "common", help: "etcd's common tests, by etcdctl and etcdutl",
		args: []string{"-tags", "e2e", "go.etcd.io/etcd/tests/v3/common"}, after: binDir, tools: []string{"etcdctl", "etcdutl"}, timeout: 40 * time.Minute},
	{name: "http", help: "etcd's end-to-end tests of the gateway, health checks, and metrics",
		args:  []string{"-tags", "e2e", "-run", "TestCurl|TestHTTP|TestMetrics", "go.etcd.io/etcd/tests/v3/e2e"},
		after: binDir, tools: []string{"etcdctl", "etcdutl"}, timeout: 20 * time.Minute},
	{name: "sidebyside", help: "600 command lines of etcdctl and requests to the gateway, on etcd and on kvd at once",
		args: []string{"./sidebyside"}, tools: []string{"etcdctl", "etcdutl"}, timeout: 10 * time.Minute},
	{name: "benchmark", help: "all commands of etcd's benchmark tool",
		args: []string{"./benchmark"}, tools: []string{"benchmark"}, sized: true, timeout: 10 * time.Minute},
	{name: "robustness", help: "etcd's traffics and judges, with members killed on the way",
		args: []string{"./robustness"}, after: binDir, sized: true, timeout: 20 * time.Minute},
}

func binDir(bin string) []string { return []string{"-bin-dir=" + bin} }

// sizes returns the sizes of cluster with which the suite runs.
func (s suite) sizes(wanted []int) []int {
	if s.sized {
		return wanted
	}
	return []int{0}
}

// command returns the arguments of the go command for a run of the suite, whose
// tests are started by the command alone, if that is not "".
func (s suite) command(o options, list []difference, alone string) []string {
	args := []string{"test", "-json", "-count=1", "-timeout", s.timeout.String()}
	if skip := skipPattern(list); skip != "" {
		args = append(args, "-skip", skip)
	}
	if alone != "" {
		args = append(args, "-exec", alone)
	}
	args = append(args, s.args...)
	if o.run != "" { // the last -run wins
		args = append(args[:len(args)-1:len(args)-1], "-run", o.run, args[len(args)-1])
	}
	if s.after != nil {
		args = append(append(args, "-args"), s.after(o.bin)...)
	}
	return args
}

// environment tells the tests of this module where and how large.
func environment(o options, nodes int) []string {
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		bin = o.bin
	}
	return []string{"CONFORMANCE_BIN=" + bin, "CONFORMANCE_NODES=" + strconv.Itoa(nodes)}
}
