package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
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
	prepare     bool
	output      string
}

// Limits of a load, so that a slip of the finger does not end the machine.
const (
	maxBenchConnections = 20_000
	maxBenchValue       = 64 << 20
	maxBenchLines       = 100_000
)

// benchCommand measures a running cluster.
func benchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure a running cluster with a closed loop of clients",
		Long: `Each connection sends its next request when it has the answer to the last one.
Answers that are errors are counted apart, and not as operations. The load needs
CPU too: on the machine of a node it takes from that node.

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
		if err := o.check(); err != nil {
			return usageError{err}
		}
		return o.run(cmd.Context(), name, cmd.OutOrStdout(), cmd.ErrOrStderr())
	}}
	f := cmd.Flags()
	f.StringSliceVar(&o.endpoints, "endpoints", []string{"http://127.0.0.1:12380"}, "client `URLs` of nodes")
	f.StringVar(&o.to, "to", "leader", "send to the leader, or to all endpoints in turn (leader|all)")
	f.IntVar(&o.connections, "connections", 64, "connections, each of which waits for its answer")
	f.IntVar(&o.valueSize, "value-size", 256, "bytes of a value")
	f.Uint64Var(&o.keySpace, "key-space", 100_000, "number of keys to choose from")
	f.BoolVar(&o.sequential, "sequential", false, "take the keys one after the other instead of at random")
	f.DurationVar(&o.warmup, "warmup", time.Second, "time before anything counts")
	f.DurationVar(&o.duration, "duration", 10*time.Second, "time that counts")
	f.Uint64Var(&o.count, "count", 0, "operations to end after, in place of --duration")
	f.StringVar(&o.output, "output", "text", "form of the result (text|json)")
	if name == "get" || name == "mixed" {
		f.StringVar(&o.consistency, "consistency", "linearizable", "of reads (linearizable|stale)")
		f.BoolVar(&o.prepare, "prepare", true, "write all keys first, so that reads find them")
	}
	o.reads = map[string]int{"get": 100, "mixed": 90}[name]
	if name == "mixed" {
		f.IntVar(&o.reads, "reads", 90, "per cent of the operations that are gets")
	}
	if name == "batch" {
		f.IntVar(&o.lines, "lines", 1000, "operations a request")
	}
	return cmd
}

// check refuses what makes no sense, all of it at once.
func (o *benchOptions) check() error {
	var wrong []string
	within := func(flag string, value, low, high int) {
		if value < low || value > high {
			wrong = append(wrong, fmt.Sprintf("--%s is %d, but must be from %d to %d", flag, value, low, high))
		}
	}
	oneOf := func(flag, value string, allowed ...string) {
		if value != "" && !slices.Contains(allowed, value) {
			wrong = append(wrong, fmt.Sprintf("--%s is %q, but must be one of %s", flag, value, strings.Join(allowed, ", ")))
		}
	}
	within("connections", o.connections, 1, maxBenchConnections)
	within("value-size", o.valueSize, 0, maxBenchValue)
	within("reads", o.reads, 0, 100)
	within("lines", o.lines, 0, maxBenchLines)
	oneOf("to", o.to, "leader", "all")
	oneOf("consistency", o.consistency, "linearizable", "stale")
	oneOf("output", o.output, "text", "json")
	if o.keySpace == 0 {
		wrong = append(wrong, "--key-space must be at least 1")
	}
	if o.duration <= 0 && o.count == 0 || o.warmup < 0 {
		wrong = append(wrong, "--duration must be positive, and --warmup not negative")
	}
	for i, text := range o.endpoints {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "http" || u.Host == "" || strings.Trim(u.Path, "/") != "" {
			wrong = append(wrong, fmt.Sprintf("--endpoints has %q, but takes http://HOST:PORT: the load generator speaks plain HTTP over TCP; for a listener with TLS add one without, on loopback", text))
			continue
		}
		o.endpoints[i] = u.Host
	}
	if len(wrong) > 0 {
		return fmt.Errorf("%s", strings.Join(wrong, "\n"))
	}
	return nil
}

func (o *benchOptions) run(ctx context.Context, name string, stdout, stderr io.Writer) error {
	if o.to == "leader" {
		leader, err := findLeader(ctx, o.endpoints)
		if err != nil {
			return err
		}
		o.endpoints = []string{leader}
	}
	if o.prepare {
		fmt.Fprintf(stderr, "writing %d keys\n", o.keySpace)
		if err := o.prepareKeys(ctx); err != nil {
			return fmt.Errorf("write the keys: %w", err)
		}
	}
	l := o.load(name)
	scale := uint64(max(1, o.lines))
	before := uint64(0)
	l.Progress = func(s loadgen.Snapshot) {
		fmt.Fprintf(stderr, "%6.1fs %9d ops/s %6d errors\n", s.Elapsed.Seconds(), (s.Ops-before)*scale, s.Errors)
		before = s.Ops
	}
	r, err := l.Run(ctx)
	if err != nil {
		return fmt.Errorf("bench %s on %s: %w", name, strings.Join(o.endpoints, ", "), err)
	}
	return o.print(stdout, name, r)
}

// load is the work of all connections.
func (o *benchOptions) load(name string) *loadgen.Load {
	value := []byte(strings.Repeat("v", o.valueSize))
	l := &loadgen.Load{Workers: o.connections, Warmup: o.warmup, Duration: o.duration}
	if o.count > 0 {
		l.Duration, l.Warmup, l.Count = 0, 0, (o.count+uint64(max(1, o.lines))-1)/uint64(max(1, o.lines))
	}
	l.Open = func(worker int) (loadgen.Op, func(), error) {
		address := o.endpoints[worker%len(o.endpoints)]
		keys := loadgen.RandomKeys(o.keySpace, uint64(worker))
		if o.sequential {
			keys = loadgen.SequentialKeys(o.keySpace, uint64(worker), uint64(o.connections))
		}
		if name == "batch" {
			return o.batchOp(address, keys, value)
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

// batchOp sends a request of many puts and reads all answers.
func (o *benchOptions) batchOp(address string, keys *loadgen.Keys, value []byte) (loadgen.Op, func(), error) {
	transport := &http.Transport{MaxConnsPerHost: 1}
	client := &http.Client{Transport: transport}
	var body []byte
	return func(ctx context.Context) (string, error) {
		body = body[:0]
		for range o.lines {
			body = append(append(body, `{"put":{"key":"`...), keys.Next()...)
			body = append(append(append(body, `","value":"`...), value...), "\"}}\n"...)
		}
		return postBatch(ctx, client, "http://"+address+"/v1/batch", body, o.lines)
	}, transport.CloseIdleConnections, nil
}

// prepareKeys writes every key once.
func (o *benchOptions) prepareKeys(ctx context.Context) error {
	p := *o
	p.lines, p.sequential, p.connections = 1000, true, 1
	op, end, err := p.batchOp(o.endpoints[0], loadgen.SequentialKeys(o.keySpace, 0, 1), []byte(strings.Repeat("v", o.valueSize)))
	if err != nil {
		return err
	}
	defer end()
	for done := uint64(0); done < o.keySpace; done += uint64(p.lines) {
		code, err := op(ctx)
		if err == nil && code != "" {
			err = fmt.Errorf("the node answers %s", code)
		}
		if err != nil {
			return err
		}
	}
	return nil
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
	ops := r.Ops * uint64(max(1, o.lines))
	res := benchResult{Load: name, Connections: o.connections, Operations: ops, Seconds: r.Elapsed.Seconds(),
		Rate: float64(ops) / r.Elapsed.Seconds(), P50: us(r.Latency.Quantile(0.5)), P99: us(r.Latency.Quantile(0.99)),
		P999: us(r.Latency.Quantile(0.999)), Max: us(r.Latency.Max()), Errors: r.Errors}
	if o.output == "json" {
		return json.NewEncoder(w).Encode(res)
	}
	fmt.Fprintf(w, "%s on %d connections: %d operations in %.1f s, %.0f a second\n", name, o.connections, ops, res.Seconds, res.Rate)
	what := "latency"
	if o.lines > 0 {
		what = fmt.Sprintf("latency of %d lines", o.lines)
	}
	fmt.Fprintf(w, "%s: p50 %.0f us, p99 %.0f us, p99.9 %.0f us, max %.0f us\n", what, res.P50, res.P99, res.P999, res.Max)
	for _, code := range slices.Sorted(maps.Keys(r.Errors)) {
		fmt.Fprintf(w, "errors: %d of %s\n", r.Errors[code], code)
	}
	return nil
}
