package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/internal/loadgen"
)

// benchOptions are what the load of kvd bench is.
type benchOptions struct {
	endpoints   []string
	to          string
	connections int
	valueSize   int
	keySpace    uint64
	sequential  bool
	warmup      time.Duration
	duration    time.Duration
	count       uint64
	consistency string
	reads       int
	lines       int
	noPrepare   bool
	output      string
}

// Limits of a load, so that a slip of the finger does not end the machine.
const (
	maxBenchConnections = 20_000
	maxBenchValue       = 64 << 20
	maxBenchLines       = 100_000
	maxBenchMemory      = 1 << 30 // of all connections' values
)

// benchCommand measures a running cluster.
func benchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure a running cluster with a closed loop of clients",
		Long: `Each connection sends its next request when it has the answer to the last one.
Answers that are errors are counted apart, and not as operations. The load needs
CPU too: on the machine of a node it takes from that node.

A request of kvd bench batch with a line that fails is one error, and none of
its lines counts. A load with --count gives up when nothing succeeds for 10 s.

It writes to keys key-00000000, key-00000001, ... of the cluster. Do not run it
on one whose keys have such names.`,
		Example: `  kvd bench put --connections 64 --duration 10s
  kvd bench get --consistency stale --to all --endpoints http://10.0.0.1:12380,http://10.0.0.2:12380
  kvd bench batch --connections 4 --count 1000000 --sequential`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usageError{fmt.Errorf("say what to measure: %s put, get, mixed or batch", cmd.CommandPath())}
		},
	}
	for _, load := range []struct{ name, short string }{
		{"put", "Measure puts"},
		{"get", "Measure gets, after writing the keys"},
		{"mixed", "Measure gets and puts together"},
		{"batch", "Measure puts by POST /v1/batch; an operation is a line"},
	} {
		cmd.AddCommand(loadCommand(load.name, load.short))
	}
	return cmd
}

func loadCommand(name, short string) *cobra.Command {
	var o benchOptions
	cmd := &cobra.Command{Use: name, Short: short, Args: noArguments, RunE: func(cmd *cobra.Command, _ []string) error {
		if cmd.Flags().Changed("count") {
			if cmd.Flags().Changed("duration") {
				return usageError{errors.New("--count and --duration both say when to end; give one of them")}
			}
			o.endByCount(cmd.Flags().Changed("warmup"))
		}
		if err := o.check(); err != nil {
			return usageError{err}
		}
		ctx, restore := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
		defer restore()
		defer context.AfterFunc(ctx, restore)() // a second signal ends the process
		return o.run(ctx, name, cmd.OutOrStdout(), cmd.ErrOrStderr())
	}}
	f := cmd.Flags()
	o.consistency = "linearizable"
	f.StringSliceVar(&o.endpoints, "endpoints", []string{"http://127.0.0.1:12380"}, "client `URLs` of nodes")
	f.StringVar(&o.to, "to", "leader", "send to the leader, or to all endpoints in turn (leader|all)")
	f.IntVar(&o.connections, "connections", 64, "connections, each of which waits for its answer")
	f.IntVar(&o.valueSize, "value-size", 256, "bytes of a value")
	f.Uint64Var(&o.keySpace, "key-space", 100_000, "number of keys to choose from")
	f.BoolVar(&o.sequential, "sequential", false, "take the keys one after the other instead of at random")
	f.DurationVar(&o.warmup, "warmup", time.Second, "time before anything counts; none by itself with --count")
	f.DurationVar(&o.duration, "duration", 10*time.Second, "time that counts")
	f.Uint64Var(&o.count, "count", 0, "operations to end after, in place of --duration")
	f.StringVar(&o.output, "output", "text", "form of the result (text|json)")
	o.noPrepare = name == "put" || name == "batch"
	if name == "get" || name == "mixed" {
		f.StringVar(&o.consistency, "consistency", "linearizable", "of reads (linearizable|stale)")
		f.BoolVar(&o.noPrepare, "no-prepare", false, "do not write all keys first; reads of those that do not exist are errors")
	}
	o.reads = map[string]int{"get": 100, "mixed": 90}[name]
	if name == "mixed" {
		f.IntVar(&o.reads, "reads", 90, "per cent of the operations that are gets")
	}
	if o.lines = 1; name == "batch" {
		f.IntVar(&o.lines, "lines", 1000, "operations a request")
	}
	return cmd
}

// endByCount makes --count what ends the load, after which exactly so many
// operations were made, unless a warm-up was asked for.
func (o *benchOptions) endByCount(warm bool) {
	o.duration = 0
	if !warm {
		o.warmup = 0
	}
}

// check refuses what makes no sense, all of it at once.
func (o *benchOptions) check() error {
	var wrong []string
	refuse := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	within := func(flag string, value, low, high int) {
		if value < low || value > high {
			refuse("--%s is %d, but must be from %d to %d", flag, value, low, high)
		}
	}
	oneOf := func(flag, value string, allowed ...string) {
		if !slices.Contains(allowed, value) {
			refuse("--%s is %q, but must be one of %s", flag, value, strings.Join(allowed, ", "))
		}
	}
	within("connections", o.connections, 1, maxBenchConnections)
	within("value-size", o.valueSize, 0, maxBenchValue)
	within("reads", o.reads, 0, 100)
	within("lines", o.lines, 1, maxBenchLines)
	oneOf("to", o.to, "leader", "all")
	oneOf("consistency", o.consistency, "linearizable", "stale")
	oneOf("output", o.output, "text", "json")
	if o.connections*o.valueSize > maxBenchMemory {
		refuse("--connections times --value-size is over %d MiB, which the connections hold at once; take fewer or smaller ones", maxBenchMemory>>20)
	}
	if o.keySpace == 0 {
		refuse("--key-space must be at least 1")
	}
	if o.duration <= 0 && o.count == 0 || o.warmup < 0 {
		refuse("--duration or --count must be positive, and --warmup not negative")
	}
	if len(o.endpoints) == 0 {
		refuse("--endpoints is empty, but takes http://HOST:PORT of nodes")
	}
	for i, text := range o.endpoints {
		var why string
		if o.endpoints[i], why = hostPort(text); why != "" {
			refuse("--endpoints has %q, but takes http://HOST:PORT%s", text, why)
		}
	}
	if len(wrong) > 0 {
		return errors.New(strings.Join(wrong, "\n"))
	}
	return nil
}

// hostPort returns the address in a URL that the load generator can use, or
// why there is none.
func hostPort(text string) (address, why string) {
	u, err := url.Parse(text)
	switch {
	case err == nil && (u.Scheme == "https" || u.Scheme == "unix"):
		return text, ": the load generator speaks plain HTTP over TCP; give the node one such address more in --listen-client, on loopback"
	case err != nil || u.Scheme != "http" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || strings.Trim(u.Path, "/") != "":
		return text, ", such as http://127.0.0.1:12380"
	case u.Port() == "":
		return net.JoinHostPort(u.Hostname(), "80"), ""
	}
	return u.Host, ""
}

func (o *benchOptions) run(ctx context.Context, name string, stdout, stderr io.Writer) error {
	if o.to == "leader" {
		leader, err := findLeader(ctx, o.endpoints)
		if err != nil {
			return err
		}
		o.endpoints = []string{leader}
	}
	if !o.noPrepare && o.reads > 0 {
		fmt.Fprintf(stderr, "writing %d keys\n", o.keySpace)
		if err := o.prepareKeys(ctx); err != nil {
			return fmt.Errorf("write the keys: %w", err)
		}
	}
	l := o.load(name)
	l.Progress = o.progress(stderr)
	r, err := l.Run(ctx)
	if r.Ops > 0 || len(r.Errors) > 0 {
		if printing := o.print(stdout, name, r); printing != nil {
			return printing
		}
	}
	switch {
	case errors.Is(err, context.Canceled):
		err = errors.New("interrupted; the figures are those until then")
	case err == nil && r.Ops == 0:
		err = errors.New("no operation succeeded in the time that counts")
	}
	if err != nil {
		return fmt.Errorf("bench %s on %s: %w", name, strings.Join(o.endpoints, ", "), err)
	}
	return nil
}

// progress prints what was done since it was last called.
func (o *benchOptions) progress(w io.Writer) func(loadgen.Snapshot) {
	var last loadgen.Snapshot
	return func(s loadgen.Snapshot) {
		if s.Elapsed < time.Second/2 {
			fmt.Fprintln(w, "warming up")
			return
		}
		rate := float64((s.Ops-last.Ops)*uint64(o.lines)) / (s.Elapsed - last.Elapsed).Seconds()
		fmt.Fprintf(w, "%6.1fs %9.0f ops/s %6d errors\n", s.Elapsed.Seconds(), rate, s.Errors)
		last = s
	}
}

// load is the work of all connections.
func (o *benchOptions) load(name string) *loadgen.Load {
	value := bytes.Repeat([]byte("v"), o.valueSize)
	lines := uint64(o.lines)
	l := &loadgen.Load{Workers: o.connections, Warmup: o.warmup, Duration: o.duration, Count: (o.count + lines - 1) / lines}
	l.Open = func(worker int) (loadgen.Op, func(), error) {
		address := o.endpoints[worker%len(o.endpoints)]
		keys := loadgen.RandomKeys(o.keySpace, uint64(worker))
		if o.sequential {
			keys = loadgen.SequentialKeys(o.keySpace, uint64(worker), uint64(o.connections))
		}
		if name == "batch" {
			b := newBatcher(address, keys, value)
			return func(ctx context.Context) (string, error) { return b.post(ctx, o.lines) }, b.close, nil
		}
		conn, err := loadgen.Dial(address)
		if err != nil {
			return nil, nil, err
		}
		return o.keyOp(conn, keys, value), conn.Close, nil
	}
	return l
}

// keyOp gets or puts one key, in the proportion asked for.
func (o *benchOptions) keyOp(conn *loadgen.HTTP, keys *loadgen.Keys, value []byte) loadgen.Op {
	stale, turn := o.consistency == "stale", 0
	return func(context.Context) (string, error) {
		turn = (turn + 37) % 100 // spreads the gets evenly among the puts
		if turn < o.reads {
			return conn.Get(keys.Next(), stale)
		}
		return conn.Put(keys.Next(), value)
	}
}

// findLeader asks the endpoints who leads, and where.
func findLeader(ctx context.Context, endpoints []string) (string, error) {
	var last error
	for _, address := range endpoints {
		var answer struct {
			ID         uint64   `json:"id"`
			ClientURLs []string `json:"client_urls"`
		}
		if last = askJSON(ctx, "http://"+address+"/v1/leader", &answer); last != nil {
			continue
		}
		for _, text := range answer.ClientURLs {
			if u, err := url.Parse(text); err == nil && u.Scheme == "http" {
				return u.Host, nil
			}
		}
		last = fmt.Errorf("the leader, member %d, tells no plain HTTP address for clients; use --to all with its address", answer.ID)
	}
	return "", fmt.Errorf("find the leader: %w", last)
}

func askJSON(ctx context.Context, from string, v any) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", from, resp.Status)
	}
	return json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(v)
}

// benchResult is the result in JSON; durations are in microseconds.
type benchResult struct {
	Load        string            `json:"load"`
	Connections int               `json:"connections"`
	Operations  uint64            `json:"operations"`
	Seconds     float64           `json:"seconds"`
	Rate        float64           `json:"operations_per_second"`
	P50         float64           `json:"p50_us"`
	P99         float64           `json:"p99_us"`
	P999        float64           `json:"p999_us"`
	Max         float64           `json:"max_us"`
	Errors      map[string]uint64 `json:"errors"`
}

func (o *benchOptions) print(w io.Writer, name string, r *loadgen.Result) error {
	us := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
	ops := r.Ops * uint64(o.lines)
	res := benchResult{Load: name, Connections: o.connections, Operations: ops, Seconds: r.Elapsed.Seconds(),
		Rate: float64(ops) / max(r.Elapsed, 1).Seconds(), P50: us(r.Latency.Quantile(0.5)), P99: us(r.Latency.Quantile(0.99)),
		P999: us(r.Latency.Quantile(0.999)), Max: us(r.Latency.Max()), Errors: r.Errors}
	if o.output == "json" {
		return json.NewEncoder(w).Encode(res)
	}
	fmt.Fprintf(w, "%s on %d connections: %d operations in %.1f s, %.0f a second\n", name, o.connections, ops, res.Seconds, res.Rate)
	what := "latency"
	if name == "batch" {
		what = fmt.Sprintf("latency of %d lines", o.lines)
	}
	if ops > 0 {
		fmt.Fprintf(w, "%s: p50 %.0f us, p99 %.0f us, p99.9 %.0f us, max %.0f us\n", what, res.P50, res.P99, res.P999, res.Max)
	}
	for _, code := range slices.Sorted(maps.Keys(r.Errors)) {
		fmt.Fprintf(w, "errors: %d of %s\n", r.Errors[code], code)
	}
	return nil
}
