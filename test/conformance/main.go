package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// options apply to all suites of a run.
type options struct {
	target string // "kvd" or "etcd"
	nodes  []int
	run    string // a pattern that selects tests, or ""
	bin    string // where the binaries are
	logs   string // where the output of the suites goes
	suites []suite
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := conform(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func conform(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if err := build(ctx, o); err != nil {
		return err
	}
	var rows []row
	for _, s := range o.suites {
		for _, n := range s.sizes(o.nodes) {
			r, err := o.runSuite(ctx, s, n)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			rows = append(rows, r)
		}
	}
	fmt.Print(table(o.target, rows))
	for _, r := range rows {
		if r.wrong > 0 {
			return errors.New("not all suites ended as listed in known/")
		}
	}
	return nil
}

// parse accepts flags before, between, and after the names of suites.
func parse(args []string) (o options, _ error) {
	flags := flag.NewFlagSet("conformance", flag.ContinueOnError)
	nodes := flags.String("nodes", "1,3", "sizes of cluster, for the suites that do not choose for themselves")
	flags.StringVar(&o.target, "target", "kvd", "what is tested: kvd or etcd")
	flags.StringVar(&o.run, "run", "", "run only the tests that match this pattern")
	flags.StringVar(&o.bin, "bin", "", "build the binaries into this directory (default: bin/TARGET)")
	var names []string
	for len(args) > 0 {
		if err := flags.Parse(args); err != nil {
			return o, err
		}
		if args = flags.Args(); len(args) > 0 {
			names, args = append(names, args[0]), args[1:]
		}
	}
	if o.target != "kvd" && o.target != "etcd" {
		return o, fmt.Errorf("--target %q is neither kvd nor etcd", o.target)
	}
	for n := range strings.SplitSeq(*nodes, ",") {
		size, err := strconv.Atoi(n)
		if err != nil || size < 1 {
			return o, fmt.Errorf("--nodes %q: %q is not a size of cluster", *nodes, n)
		}
		o.nodes = append(o.nodes, size)
	}
	if o.bin == "" {
		o.bin = filepath.Join("bin", o.target)
	}
	o.logs = filepath.Join(o.bin, "log")
	var err error
	o.bin, err = filepath.Abs(o.bin)
	if err != nil {
		return o, err
	}
	return o, o.choose(names)
}

func (o *options) choose(names []string) error {
	if len(names) == 0 {
		o.suites = suites
	}
	for _, name := range names {
		i := slices.IndexFunc(suites, func(s suite) bool { return s.name == name })
		if i < 0 {
			return fmt.Errorf("there is no suite %q; the suites are:\n%s", name, help())
		}
		o.suites = append(o.suites, suites[i])
	}
	return nil
}

func help() string {
	var b strings.Builder
	for _, s := range suites {
		fmt.Fprintf(&b, "  %-11s %s\n", s.name, s.help)
	}
	return strings.TrimSuffix(b.String(), "\n")
}
