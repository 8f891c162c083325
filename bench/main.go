// Command bench compares kvd with etcd on one machine: the same number of
// nodes, the same durability, the same load loop and histogram, alternating
// rounds, medians and ratios.
//
//	go run . all                    everything, about an hour
//	QUICK=1 go run . all            the same in about a quarter of an hour
//	go run . puts,gets --clients 64,256 --rounds 3 --seconds 5
//
// It prints a Markdown table on standard output and its progress on standard
// error. A measurement that fails, or takes far too long, is named below the
// table and does not stop the others.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// options apply to all measurements.
type options struct {
	clients   []int
	rounds    int
	seconds   float64
	valueSize int
	keySpace  uint64
	count     uint64        // keys of the bulk load, and random new keys
	watches   int           // idle ones
	leases    int           // idle ones
	limit     time.Duration // of one measurement
	floor     float64       // operations of a round
	dir       string        // for the data; its file system must have a real fsync
	// Binaries; empty ones are built. A baseline is another kvd, which takes etcd's place.
	kvdBinary, etcdBinary, baseline string
	// hurry makes pauses short, for tests that do not judge results.
	hurry bool
	// profiles is the directory for CPU profiles of kvd's leader, one of each round.
	profiles string
}

// measurement is one subcommand.
type measurement struct {
	name, help string
	run        func(ctx context.Context, b *bench) error
	// face drives kvd over etcd's API, by the client that drives etcd.
	face bool
}

// faceMeasurements stands for all measurements of etcd's API.
const faceMeasurements = "face"

var measurements = []measurement{
	{"ceilings", "limits of the machine: an idle net/http handler, write and fdatasync", ceilings, false},
	{"cold-start", "one node, from exec to its first acknowledged write", coldStart, false},
	{"puts", "puts to the leader of three nodes", puts, false},
	{"gets", "gets of the leader, linearizable and stale", gets, false},
	{"idle", "CPU and memory of three idle nodes", idle, false},
	{"failover", "longest write gap after killing and after stopping the leader", failover, false},
	{"bulk", "a million keys: load, memory, disk, restart, put p99 during a snapshot", bulk, false},
	{"overload", "goodput with ten times the clients that saturate the leader", overload, false},
	{"cache", "puts with kvd's metadata cache warm, cold, and too small", cache, false},
	{"txn", "transactions of one compare and one put", txns, false},
	{"watch", "events to 100 watchers, their latency, and 10,000 idle watches", watches, false},
	{"leases", "keep-alives, and CPU of the leader with 100,000 idle leases", leases, false},
	{"locks", "acquire and release, 16 clients on one lock and on 1,000", locks, false},
	{"once", "puts with Idempotency-Key relative to puts without, kvd alone", once, false},
	{"rights", "puts and gets with rights enabled, by a token and by a password, relative to without, kvd alone", rightsCost, false},
	{"tls", "puts and gets over TLS", overTLS, false},
	{"random", "a million puts of random new keys", random, false},
	{"face-puts", "etcd's API: puts to the leader of three nodes", puts, true},
	{"face-gets", "etcd's API: ranges of one key, linearizable and serializable", gets, true},
	{"face-txn", "etcd's API: transactions of one compare and one put", txns, true},
	{"face-watch", "etcd's API: events to 100 watchers, and their latency", events, true},
	{"face-streams", "etcd's API: 10,000 watches on 100 streams", streams, true},
	{"face-leases", "etcd's API: keep-alives, and idle leases", leases, true},
	{"face-pages", "etcd's API: a list of 100,000 pairs in pages of 500, and counts", pages, true},
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return usage()
	}
	if args[0] == nothingArgument && len(args) == 2 {
		return serveNothing(args[1])
	}
	flags := flag.NewFlagSet("bench "+args[0], flag.ExitOnError)
	quick := os.Getenv("QUICK") != ""
	defaults := options{rounds: 3, seconds: 5, count: 1_000_000, watches: 10_000, leases: 100_000, limit: time.Hour}
	if quick {
		defaults = options{rounds: 1, seconds: 2, count: 100_000, watches: 2_000, leases: 20_000, limit: 4 * time.Minute}
	}
	var o options
	clients := flags.String("clients", "1,16,64,256,1000", "numbers of clients")
	flags.IntVar(&o.rounds, "rounds", defaults.rounds, "rounds of each measurement")
	flags.Float64Var(&o.seconds, "seconds", defaults.seconds, "seconds per round")
	flags.IntVar(&o.valueSize, "value-size", 256, "value size in bytes")
	flags.Uint64Var(&o.keySpace, "key-space", 100_000, "number of keys that puts and gets choose from")
	flags.Uint64Var(&o.count, "count", defaults.count, "number of keys to bulk load, and of random new keys")
	flags.IntVar(&o.watches, "watches", defaults.watches, "number of idle watches")
	flags.IntVar(&o.leases, "leases", defaults.leases, "number of idle leases")
	flags.DurationVar(&o.limit, "limit", defaults.limit, "time after which a measurement is given up")
	flags.StringVar(&o.dir, "dir", "", "directory in which to create a temporary data directory")
	flags.StringVar(&o.kvdBinary, "kvd", "", "binary of kvd to measure; built from this tree by default")
	flags.StringVar(&o.etcdBinary, "etcd", "", "binary of etcd to compare with; built from its module by default")
	flags.StringVar(&o.baseline, "baseline", "", "binary of another kvd to compare with instead of etcd")
	flags.StringVar(&o.profiles, "profiles", "", "directory for a CPU profile of kvd's leader in each round; profiling slows it down")
	doc := flags.String("write", "", "Markdown file whose section between the bench markers to replace")
	_ = flags.Parse(args[1:]) // exits
	for text := range strings.SplitSeq(*clients, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return fmt.Errorf("--clients takes positive numbers, not %q", text)
		}
		o.clients = append(o.clients, n)
	}
	o.floor = leastOperations
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return measure(ctx, args[0], o, *doc)
}

func usage() error {
	var names []string
	for _, m := range measurements {
		names = append(names, fmt.Sprintf("  %-14s%s", m.name, m.help))
	}
	return errors.New("name measurements, separated by commas:\n  all           everything\n  face          everything about etcd's API\n" + strings.Join(names, "\n"))
}

// bench is one run of the program.
type bench struct {
	options
	systems []system // kvd first
	report  report
	// natives drive kvd over HTTP, and faces over etcd's API: what systems is set to.
	natives, faces []system
	running        string // the measurement
	profiled       int    // rounds
}

func measure(ctx context.Context, names string, o options, doc string) error {
	chosen, err := choose(names)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(o.dir, "kvd-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	o.dir = dir
	b := &bench{options: o}
	if err := b.build(ctx); err != nil {
		return err
	}
	var failed []error
	for i, m := range chosen {
		if err := b.one(ctx, m, i+1, len(chosen)); err != nil {
			failed = append(failed, err)
		}
		// Written after each, so that an interruption loses one at most.
		if err := b.write(doc); err != nil {
			return err
		}
		if ctx.Err() != nil {
			break
		}
	}
	fmt.Print(b.report.markdown(b))
	return errors.Join(failed...)
}

// choose returns the measurements with these names, in the order of the table.
func choose(names string) ([]measurement, error) {
	if names == "all" {
		return measurements, nil
	}
	var chosen []measurement
	wanted := strings.Split(names, ",")
	if i := slices.Index(wanted, faceMeasurements); i >= 0 {
		wanted = slices.Delete(wanted, i, i+1)
		for _, m := range measurements {
			if m.face {
				wanted = append(wanted, m.name)
			}
		}
	}
	for _, m := range measurements {
		if slices.Contains(wanted, m.name) {
			chosen = append(chosen, m)
		}
	}
	if len(chosen) != len(wanted) {
		return nil, usage()
	}
	return chosen, nil
}

// one runs a measurement and notes its failure in the report.
func (b *bench) one(ctx context.Context, m measurement, n, total int) error {
	begin := time.Now()
	b.say("== %s (%d of %d)", m.name, n, total)
	b.use(m.face)
	b.running = m.name
	ctx, cancel := context.WithTimeoutCause(ctx, b.limit, fmt.Errorf("not done after %v", b.limit))
	defer cancel()
	err := m.run(ctx, b)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause // the rest are its consequences
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", m.name, err)
		b.report.failures = append(b.report.failures, err.Error())
		b.say("== FAILED %v", err)
	}
	b.say("== %s took %v", m.name, time.Since(begin).Round(time.Second))
	return err
}

// use has kvd driven over etcd's API, or over its own.
func (b *bench) use(face bool) {
	if b.systems, b.report.face = b.natives, face; face {
		b.systems = b.faces
	}
}

// write updates the document and the figures beside it, if one is named.
func (b *bench) write(doc string) error {
	if doc == "" {
		return nil
	}
	return errors.Join(replaceSection(doc, b.report.markdown(b)), b.report.writeJSON(strings.TrimSuffix(doc, ".md")+".json"))
}

// build compiles kvd from this tree and etcd from its module, unless their binaries were
// named.
func (b *bench) build(ctx context.Context) error {
	for _, p := range []struct {
		binary             *string
		name, module, path string
	}{{&b.kvdBinary, "kvd", "..", "./cmd/kvd"}, {&b.etcdBinary, "etcd", ".", "./etcd"}} {
		if *p.binary != "" || b.baseline != "" && p.name == "etcd" {
			continue
		}
		*p.binary = filepath.Join(b.dir, p.name)
		if err := command(ctx, p.module, "go", "build", "-trimpath", "-o", *p.binary, p.path); err != nil {
			return fmt.Errorf("build %s: %w", p.name, err)
		}
	}
	native := &kvd{binary: b.kvdBinary}
	if b.profiles != "" {
		native.flags = []string{"--pprof", "true"}
	}
	if b.report.baseline = b.baseline != ""; b.report.baseline {
		other := &kvd{binary: b.baseline, label: "baseline"}
		b.natives, b.faces = []system{native, other}, []system{&face{nodes: native}, &face{nodes: other}}
		return nil
	}
	other := &etcd{binary: b.etcdBinary}
	b.natives, b.faces = []system{native, other}, []system{&face{nodes: native}, other}
	return nil
}

// say reports progress.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}

// round is the length of one round.
func (b *bench) round() time.Duration { return time.Duration(b.seconds * float64(time.Second)) }

// pause is the length of a pause that should take d.
func (b *bench) pause(d time.Duration) time.Duration {
	if b.hurry {
		return d / 20
	}
	return d
}

// rest waits while nodes do what others left to do.
func (b *bench) rest(ctx context.Context, d time.Duration) error { return wait(ctx, b.pause(d)) }

func machine() string {
	return fmt.Sprintf("%s, %d CPUs, %s, %s, %s", cpuModel(), runtime.NumCPU(), memoryTotal(), kernel(), runtime.Version())
}
