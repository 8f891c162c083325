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

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/internal/cli"
	"github.com/kvd-io/kvd/internal/loadgen"
)

// benchOptions describe the load.
type benchOptions struct {
	endpoints   []string      // client URLs; HOST:PORT after check
	credentials string        // the header Authorization; "" for none
	to          string        // "leader" or "all"
	connections int           // each has one request in progress
	valueSize   int           // bytes
	keySpace    uint64        // number of keys, at least 1
	sequential  bool          // instead of at random
	warmup      time.Duration // before anything counts
	duration    time.Duration // that counts; 0 with count
	count       uint64        // operations; 0 means that duration ends the load
	consistency string        // of gets: "linearizable" or "stale"
	reads       int           // percent of the operations that are gets
	lines       int           // operations per request; 1 unless batched
	noPrepare   bool          // gets may find no key
	output      string        // "text" or "json"
}

// Limits of a load, so that a typing error does not exhaust the machine.
const (
	maxBenchConnections = 20_000
	maxBenchValue       = 64 << 20
	maxBenchLines       = 100_000
	maxBenchMemory      = 1 << 30 // of all connections' values
)

// benchCommand measures a running cluster.
func benchCommand(e environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure a running cluster with a closed loop of clients",
		Long: `Measure a running cluster. Each connection sends its next request when it has the response to
the previous one. Error responses are counted separately, not as operations. The load itself
needs CPU: on the machine of a node it takes CPU from that node.

In "kvd bench batch", a request with a failing line counts as one error, and none of its lines
count. A load with --count gives up if nothing succeeds for 10s.

The load writes the keys key-00000000, key-00000001, and so on. Do not run it on a cluster whose
own keys have such names. With rights enabled, it takes a user that may read and write them; each
request carries the token, or the name and password, that the flags or the variables say.`,
		Example: `  kvd bench put --connections 64 --duration 10s
  KVD_TOKEN_FILE=bench.token kvd bench mixed
  kvd bench get --consistency stale --to all \
      --endpoints http://10.0.0.1:12380,http://10.0.0.2:12380
  kvd bench batch --connections 4 --count 1000000 --sequential`,
		RunE: chooseSubcommand,
	}
	for _, load := range []struct{ name, short string }{
		{"put", "Measure puts"},
		{"get", "Measure gets, after writing the keys"},
		{"mixed", "Measure a mix of gets and puts, after writing the keys"},
		{"batch", "Measure puts with POST /v1/batch; each line is an operation"},
	} {
		cmd.AddCommand(loadCommand(e, load.name, load.short))
	}
	return cmd
}

// loadCommand returns the subcommand of one kind of load, with the flags that
// make sense for it.
func loadCommand(e environment, name, short string) *cobra.Command {
	var o benchOptions
	var who cli.Credentials
	cmd := &cobra.Command{Use: name, Short: short, Args: noArguments, RunE: func(cmd *cobra.Command, _ []string) error {
		if cmd.Flags().Changed("count") {
			if cmd.Flags().Changed("duration") {
				return usageError{errors.New("--count and --duration both set the end of the load; give only one of them")}
			}
			o.endByCount(cmd.Flags().Changed("warmup"))
		}
		// The formats of KVD_OUTPUT are those of the commands for users.
		if err := cli.FromEnvironment(cmd.Flags(), e.environ, "output"); err != nil {
			return usageError{err}
		}
		urls := slices.Clone(o.endpoints)
		err := o.check()
		if err != nil {
			return usageError{err}
		}
		if o.credentials, err = who.Header(&cli.Environment{Environ: e.environ, Stdin: e.stdin, Stderr: e.stderr}, urls); err != nil {
			return err
		}
		ctx, restore := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
		defer restore()
		defer context.AfterFunc(ctx, restore)() // a second signal ends the process immediately
		return o.run(ctx, name, cmd.OutOrStdout(), cmd.ErrOrStderr())
	}}
	f := cmd.Flags()
	o.consistency = "linearizable"
	f.StringSliceVar(&o.endpoints, "endpoints", []string{"http://127.0.0.1:12380"}, "send to the nodes with these client `URLS` (KVD_ENDPOINTS)")
	who.Flags(f)
	f.StringVar(&o.to, "to", "leader", "send to `TARGET`: leader, or all endpoints in turn")
	f.IntVar(&o.connections, "connections", 64, "open this `NUMBER` of connections; each waits for its responses")
	f.IntVar(&o.valueSize, "value-size", 256, "write values of this many `BYTES`")
	f.Uint64Var(&o.keySpace, "key-space", 100_000, "choose from this `NUMBER` of keys")
	f.BoolVar(&o.sequential, "sequential", false, "take keys in sequence instead of at random")
	f.DurationVar(&o.warmup, "warmup", time.Second, "run this long before anything counts; with --count, no warmup unless it is set")
	f.DurationVar(&o.duration, "duration", 10*time.Second, "measure for this long")
	f.Uint64Var(&o.count, "count", 0, "stop after this `NUMBER` of operations instead of after --duration")
	f.StringVarP(&o.output, "output", "o", "text", "print as `FORMAT`: text or json")
	o.noPrepare = name == "put" || name == "batch"
	if name == "get" || name == "mixed" {
		f.StringVar(&o.consistency, "consistency", "linearizable", "read with this `CONSISTENCY`: linearizable or stale")
		f.BoolVar(&o.noPrepare, "no-prepare", false, "do not write the keys first; reads of missing keys are errors")
	}
	o.reads = map[string]int{"get": 100, "mixed": 90}[name]
	if name == "mixed" {
		f.IntVar(&o.reads, "reads", 90, "make this `PERCENT` of the operations gets")
	}
	if o.lines = 1; name == "batch" {
		f.IntVar(&o.lines, "lines", 1000, "send this `NUMBER` of operations per request")
	}
	return cmd
}

// endByCount makes --count end the load. Without a warmup, exactly that many
// operations are made.
func (o *benchOptions) endByCount(warm bool) {
	o.duration = 0
	if !warm {
		o.warmup = 0
	}
}

// check validates the options and reports all problems at once.
func (o *benchOptions) check() error {
	var wrong []string
	refuse := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	within := func(flag string, value, low, high int) {
		if value < low || value > high {
			refuse("--%s is %d, but must be between %d and %d", flag, value, low, high)
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
		refuse("--connections times --value-size exceeds %s, which the connections would hold at once; use fewer or smaller values", humanize.IBytes(maxBenchMemory))
	}
	if o.keySpace == 0 {
		refuse("--key-space must be at least 1")
	}
	if o.duration <= 0 && o.count == 0 || o.warmup < 0 {
		refuse("--duration or --count must be positive, and --warmup must not be negative")
	}
	if len(o.endpoints) == 0 {
		refuse("--endpoints is empty; give the http://HOST:PORT of one or more nodes")
	}
	for i, text := range o.endpoints {
		var why string
		if o.endpoints[i], why = hostPort(text); why != "" {
			refuse("--endpoints: %q is not http://HOST:PORT%s", text, why)
		}
	}
	if len(wrong) > 0 {
		return errors.New(strings.Join(wrong, "\n"))
	}
	return nil
}

// hostPort returns the address in a URL, or why the load generator cannot use
// it.
func hostPort(text string) (address, why string) {
	u, err := url.Parse(text)
	switch {
	case err == nil && (u.Scheme == "https" || u.Scheme == "unix"):
		return text, "; the load generator speaks plain HTTP over TCP only: add such an address on loopback to the node's --listen-client"
	case err != nil || u.Scheme != "http" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || strings.Trim(u.Path, "/") != "":
		return text, " (for example, http://127.0.0.1:12380)"
	case u.Port() == "":
		return net.JoinHostPort(u.Hostname(), "80"), ""
	}
	return u.Host, ""
}

// run prepares the keys, runs the load and prints what was measured, also after
// an error: an interrupted run of ten minutes is worth its figures.
func (o *benchOptions) run(ctx context.Context, name string, stdout, stderr io.Writer) error {
	if o.to == "leader" {
		leader, err := o.findLeader(ctx)
		if err != nil {
			return err
		}
		o.endpoints = []string{leader}
	}
	if !o.noPrepare && o.reads > 0 {
		fmt.Fprintf(stderr, "writing %d keys\n", o.keySpace)
		if err := o.prepareKeys(ctx); err != nil {
			return fmt.Errorf("write keys: %w", err)
		}
	}
	l := o.load(name)
	show, hide := o.progress(stderr)
	l.Progress = show
	r, err := l.Run(ctx)
	hide()
	if r.Ops > 0 || len(r.Errors) > 0 { // otherwise there are no figures, only the error
		if printing := o.print(stdout, name, r); printing != nil {
			return printing
		}
	}
	if err = verdict(r, err); err != nil {
		return fmt.Errorf("bench %s on %s: %w", name, strings.Join(o.endpoints, ", "), err)
	}
	return nil
}

// verdict returns why a load is a failure although it ran: scripts that compare
// results must not take an interrupted or an empty one for a measurement.
func verdict(r *loadgen.Result, err error) error {
	switch {
	case errors.Is(err, context.Canceled):
		return errors.New("interrupted; the figures cover the time until then")
	case err == nil && r.Ops == 0:
		return errors.New("no operation succeeded while measuring")
	}
	return err
}

// progress returns a function that shows how far the load is, and one that takes away what
// must not stay: on a terminal there is a bar, elsewhere lines with the rate since the last.
func (o *benchOptions) progress(w io.Writer) (show func(loadgen.Snapshot), hide func()) {
	if cli.IsTerminal(w) {
		bar := cli.NewBar(w, -1, "measuring", "ops")
		return func(s loadgen.Snapshot) {
			if s.Ops > 0 && s.Elapsed >= time.Second/2 { // otherwise it is warming up
				bar.Set(o.place(s))
			}
		}, bar.Done
	}
	var last loadgen.Snapshot
	show = func(s loadgen.Snapshot) {
		if s.Elapsed < time.Second/2 {
			fmt.Fprintln(w, "warming up")
			return
		}
		rate := float64((s.Ops-last.Ops)*uint64(o.lines)) / (s.Elapsed - last.Elapsed).Seconds()
		fmt.Fprintf(w, "%6.1fs %9.0f ops/s %6d errors\n", s.Elapsed.Seconds(), rate, s.Errors)
		last = s
	}
	return show, func() {}
}

// place returns how many operations are done, of how many. A load that ends with the time
// has as many to come as it would carry out at the rate so far: then the bar is full when
// the time is over.
func (o *benchOptions) place(s loadgen.Snapshot) (done, total int64) {
	ops, all := s.Ops*uint64(o.lines), o.count
	if all == 0 {
		all = uint64(float64(ops) * o.duration.Seconds() / s.Elapsed.Seconds())
	}
	return int64(ops), int64(max(ops, all))
}

// load is the work of all connections.
func (o *benchOptions) load(name string) *loadgen.Load {
	value := bytes.Repeat([]byte("v"), o.valueSize)
	lines := uint64(o.lines)
	// Rounded up: fewer operations than --count would look like a load cut short.
	l := &loadgen.Load{Workers: o.connections, Warmup: o.warmup, Duration: o.duration, Count: (o.count + lines - 1) / lines}
	// What Open returns belongs to one worker, its keys included; they share only
	// the value, which nobody changes.
	l.Open = func(worker int) (loadgen.Op, func(), error) {
		address := o.endpoints[worker%len(o.endpoints)]
		keys := loadgen.RandomKeys(o.keySpace, uint64(worker))
		if o.sequential {
			keys = loadgen.SequentialKeys(o.keySpace, uint64(worker), uint64(o.connections))
		}
		if name == "batch" {
			b := o.newBatcher(address, keys, value)
			return func(ctx context.Context) (string, error) { return b.post(ctx, o.lines) }, b.close, nil
		}
		conn, err := loadgen.Dial(address)
		if err != nil {
			return nil, nil, err
		}
		conn.Authorize(o.credentials)
		return o.keyOp(conn, keys, value), conn.Close, nil
	}
	return l
}

// keyOp gets or puts one key, in the proportion of --reads.
func (o *benchOptions) keyOp(conn *loadgen.HTTP, keys *loadgen.Keys, value []byte) loadgen.Op {
	stale, turn := o.consistency == "stale", 0
	return func(context.Context) (string, error) {
		turn = (turn + 37) % 100 // 37 and 100 are coprime: gets are spread evenly among puts
		if turn < o.reads {
			return conn.Get(keys.Next(), stale)
		}
		return conn.Put(keys.Next(), value)
	}
}

// findLeader asks the endpoints for the address of the leader.
func (o *benchOptions) findLeader(ctx context.Context) (string, error) {
	var last error
	for _, address := range o.endpoints {
		var answer struct {
			ID         uint64   `json:"id"`
			ClientURLs []string `json:"client_urls"`
		}
		if last = o.askJSON(ctx, "http://"+address+"/v1/leader", &answer); last != nil {
			continue
		}
		for _, text := range answer.ClientURLs {
			if u, err := url.Parse(text); err == nil && u.Scheme == "http" {
				return u.Host, nil
			}
		}
		last = fmt.Errorf("the leader, member %d, advertises no plain HTTP address; use --to all with its address", answer.ID)
	}
	return "", fmt.Errorf("find leader: %w", last)
}

// askJSON gets a small JSON document. Its own timeout keeps a node that hangs from
// hiding the others: the endpoints are asked one after the other.
func (o *benchOptions) askJSON(ctx context.Context, from string, v any) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return err
	}
	if o.credentials != "" {
		req.Header.Set("Authorization", o.credentials)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var problem struct{ Detail string }
		_ = json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&problem) // the status says enough
		return errors.New(strings.TrimSuffix(fmt.Sprintf("%s returned %s: %s", from, resp.Status, problem.Detail), ": "))
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

// print writes the result. Rates and counts are in operations, latencies in
// requests: a batch has one latency for all of its lines.
func (o *benchOptions) print(w io.Writer, name string, r *loadgen.Result) error {
	us := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
	ops := r.Ops * uint64(o.lines)
	res := benchResult{Load: name, Connections: o.connections, Operations: ops, Seconds: r.Elapsed.Seconds(),
		Rate: float64(ops) / max(r.Elapsed, 1).Seconds(), P50: us(r.Latency.Quantile(0.5)), P99: us(r.Latency.Quantile(0.99)),
		P999: us(r.Latency.Quantile(0.999)), Max: us(r.Latency.Max()), Errors: r.Errors}
	if o.output == "json" {
		return json.NewEncoder(w).Encode(res)
	}
	fmt.Fprintf(w, "%s on %d connections: %d operations in %.1f s, %.0f per second\n", name, o.connections, ops, res.Seconds, res.Rate)
	what := "latency"
	if name == "batch" {
		what = fmt.Sprintf("latency of %d lines", o.lines)
	}
	if ops > 0 {
		fmt.Fprintf(w, "%s: p50 %.0f us, p99 %.0f us, p99.9 %.0f us, max %.0f us\n", what, res.P50, res.P99, res.P999, res.Max)
	}
	for _, code := range slices.Sorted(maps.Keys(r.Errors)) {
		fmt.Fprintf(w, "errors: %s: %d\n", code, r.Errors[code])
	}
	return nil
}
