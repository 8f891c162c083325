package operator

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/internal/cli"
)

func topCommand(sh *cli.Shell) *cobra.Command {
	var once bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch the members at work: rates, latencies, lag",
		Long: `Show the members at work, redrawn every second until it is interrupted:

  REQ/S     requests of clients that the member answered per second
  P50, P99  how long half, and all but one in a hundred of them took; watches, batches, waits for
            locks, and probes do not count
  WRITE/S   commands that it applied per second, no matter which node received them
  LAG       log entries that it knows to be committed and has not applied
  BEHIND    log entries that it has not applied and the leader has committed

The figures come from /v1/cluster of one node and /metrics of each member, over the interval.
With --once, it prints one interval and exits.`,
		Example: `  kvd top
  kvd top --once -o json | jq .requests_per_second`,
		Args: cli.NoArguments,
	}
	cmd.Flags().BoolVar(&once, "once", false, "print one interval, and exit")
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "the time between two views")
	cmd.RunE = sh.Run(func(ctx context.Context, s *cli.Session, _ []string) error {
		if interval < 10*time.Millisecond {
			return cli.Usagef("--interval is %v, but must be at least 10ms", interval)
		}
		t := &top{s: s, sh: sh, nodes: make(map[string]*client.Client)}
		defer t.close()
		return t.run(ctx, interval, once)
	})
	return cmd
}

// top is a run of kvd top.
type top struct {
	s     *cli.Session
	sh    *cli.Shell
	nodes map[string]*client.Client // by endpoint
}

func (t *top) close() {
	for _, c := range t.nodes {
		c.Close()
	}
}

// view is what one look at the cluster shows.
type view struct {
	at      time.Time
	cluster *client.ClusterStatus
	figures map[uint64]*figures // by member; those that answered
}

// run shows one view after the other. While no node answers, it says so and goes on.
func (t *top) run(ctx context.Context, interval time.Duration, once bool) error {
	before, err := t.look(ctx)
	if err != nil {
		return err
	}
	for {
		if pause(ctx, interval) != nil {
			return nil
		}
		now, err := t.look(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && once:
			return err
		case err != nil:
			t.draw(cli.Explain(err).Error() + "\n")
			continue
		}
		if err := t.show(before, now); err != nil || once {
			return err
		}
		before = now
	}
}

// look asks all members.
func (t *top) look(ctx context.Context) (*view, error) {
	ctx, cancel := t.s.Limited(ctx)
	defer cancel()
	members, err := t.s.Members(ctx)
	if err != nil {
		return nil, err
	}
	v := &view{at: time.Now(), figures: make(map[uint64]*figures)}
	if v.cluster, err = t.s.Cluster(ctx); err != nil {
		return nil, err
	}
	var asked sync.WaitGroup
	found := make([]*figures, len(members))
	for i := range members {
		if c := t.node(&members[i]); c != nil {
			asked.Go(func() { found[i] = measure(ctx, c) })
		}
	}
	asked.Wait()
	for i, f := range found {
		if f != nil {
			v.figures[members[i].ID] = f
		}
	}
	return v, nil
}

// node returns a client of one member; nil if it is not known where it serves clients.
func (t *top) node(m *client.Member) *client.Client {
	if len(m.ClientURLs) == 0 {
		return nil
	}
	endpoint := m.ClientURLs[0]
	if t.nodes[endpoint] == nil {
		c, err := t.sh.At(endpoint)
		if err != nil {
			return nil
		}
		t.nodes[endpoint] = c
	}
	return t.nodes[endpoint]
}

// metricsTimeout is how long the figures of one member are waited for.
const metricsTimeout = 2 * time.Second

// measure returns the figures of a member; nil if it does not answer.
func measure(ctx context.Context, c *client.Client) *figures {
	ctx, cancel := context.WithTimeout(ctx, metricsTimeout)
	defer cancel()
	text, err := c.Metrics(ctx)
	if err != nil {
		return nil
	}
	return parseFigures(bytes.NewReader(text))
}

// figures are the metrics of a member that the view is made of. All but watches are
// counters.
type figures struct {
	requests, applied, watches float64
	// buckets counts requests that took at most as many seconds.
	buckets map[float64]float64
}

// parseFigures reads Prometheus' text format.
func parseFigures(r io.Reader) *figures {
	f := &figures{buckets: make(map[float64]float64)}
	for lines := bufio.NewScanner(r); lines.Scan(); {
		name, labels, value, ok := sample(lines.Text())
		switch {
		case !ok:
		case name == "kvd_apply_commands_total":
			f.applied += value
		case name == "kvd_watches":
			f.watches += value
		case name == "kvd_http_request_duration_seconds_bucket" && prompt(labels["route"]):
			if le, err := strconv.ParseFloat(labels["le"], 64); err == nil {
				f.buckets[le] += value
			}
		case name == "kvd_http_request_duration_seconds_count" && prompt(labels["route"]):
			f.requests += value
		}
	}
	return f
}

// sample reads a line of the text format. Labels of kvd have no escapes.
func sample(line string) (name string, labels map[string]string, value float64, ok bool) {
	at := strings.LastIndexByte(line, ' ')
	if at < 0 || line[0] == '#' {
		return "", nil, 0, false
	}
	value, err := strconv.ParseFloat(line[at+1:], 64)
	name, rest, _ := strings.Cut(line[:at], "{")
	labels = make(map[string]string)
	for pair := range strings.SplitSeq(strings.TrimSuffix(rest, "}"), ",") {
		label, quoted, _ := strings.Cut(pair, "=")
		labels[label] = strings.Trim(quoted, `"`)
	}
	return name, labels, value, err == nil
}

// prompt reports whether requests of a route are answered as soon as possible, so that
// their duration says something about the member.
func prompt(route string) bool {
	for _, other := range []string{"/v1/watch", "/v1/batch", "/v1/locks", "/v1/snapshot", "/v1/status", "/v1/cluster", "/v1/members"} {
		if strings.HasPrefix(route, other) {
			return false
		}
	}
	return strings.HasPrefix(route, "/v1/") || strings.HasPrefix(route, "/{key}")
}

// topRow is a member in a view, as -o json prints it.
type topRow struct {
	Member            uint64   `json:"member"`
	Name              string   `json:"name"`
	Role              string   `json:"role"`
	RequestsPerSecond float64  `json:"requests_per_second"`
	P50Seconds        *float64 `json:"p50_seconds"` // null if there was no request
	P99Seconds        *float64 `json:"p99_seconds"`
	WritesPerSecond   float64  `json:"writes_per_second"`
	Lag               uint64   `json:"lag"`
	Behind            uint64   `json:"behind"`
	Revision          uint64   `json:"revision"`
	Keys              uint64   `json:"keys"`
	StoreSizeBytes    int64    `json:"store_size_bytes"`
	LogSizeBytes      int64    `json:"log_size_bytes"`
	Watches           uint64   `json:"watches"`
	Alarms            []string `json:"alarms"`
}

// topRows compares two views. A member without a status has only its name.
func topRows(before, now *view) (rows []topRow) {
	_, commit := progressOf(now.cluster, 0)
	for i := range now.cluster.Members {
		m := &now.cluster.Members[i]
		r := topRow{Member: m.ID, Name: m.Name, Role: "no answer", Alarms: []string{}}
		if st := m.Status; st != nil {
			r.Role, r.Lag, r.Revision, r.Keys, r.Alarms = st.Role, st.Lag, st.Revision, st.Keys, alarmNames(st)
			r.StoreSizeBytes, r.LogSizeBytes = st.StoreSizeBytes, st.LogSizeBytes
			r.Behind = commit - min(commit, st.Applied)
		}
		old, new := before.figures[m.ID], now.figures[m.ID]
		if old != nil && new != nil && new.applied >= old.applied { // else it was restarted
			seconds := now.at.Sub(before.at).Seconds()
			r.RequestsPerSecond, r.WritesPerSecond = (new.requests-old.requests)/seconds, (new.applied-old.applied)/seconds
			r.P50Seconds, r.P99Seconds = quantile(old, new, 0.5), quantile(old, new, 0.99)
			r.Watches = uint64(new.watches)
		}
		rows = append(rows, r)
	}
	return rows
}

// quantile returns the duration below which the share q of the requests cli.Between two
// looks lay, as the upper end of its bucket; nil if there were none.
func quantile(old, new *figures, q float64) *float64 {
	total := new.requests - old.requests
	if total <= 0 {
		return nil
	}
	var bounds []float64
	for le := range new.buckets {
		bounds = append(bounds, le)
	}
	slices.Sort(bounds)
	for _, le := range bounds {
		if new.buckets[le]-old.buckets[le] >= q*total {
			if math.IsInf(le, 1) {
				break
			}
			return &le
		}
	}
	return nil
}

func (t *top) show(before, now *view) error {
	rows := topRows(before, now)
	if t.s.FormatOr(cli.Table) != cli.Table {
		for i := range rows {
			if err := t.s.PrintJSON(&rows[i]); err != nil {
				return err
			}
		}
		return nil
	}
	var frame bytes.Buffer
	screen := t.s.PrintingTo(&frame)
	if err := screen.Println(t.headline(now)); err != nil {
		return err
	}
	if err := screen.PrintTable(topHeadings, t.cells(rows)); err != nil {
		return err
	}
	return t.draw(frame.String())
}

func (t *top) headline(v *view) string {
	health := t.s.Color(text.FgGreen, "healthy")
	if !v.cluster.Healthy {
		health = t.s.Color(text.FgRed, "unhealthy: "+strings.Join(complaints(v.cluster), "; "))
	}
	leader := "no leader"
	if v.cluster.Leader != 0 {
		leader = fmt.Sprintf("member %d leads", v.cluster.Leader)
	}
	return fmt.Sprintf("%s  cluster %s, %s, %s\n", v.at.Format(time.TimeOnly), v.cluster.ClusterID, leader, health)
}

var topHeadings = []string{"MEMBER", "ROLE", "REQ/S", "P50", "P99", "WRITE/S", "LAG", "BEHIND", "REVISION", "KEYS", "STORE", "LOG", "WATCHES", "ALARMS"}

func (t *top) cells(rows []topRow) (out [][]string) {
	for i := range rows {
		r := &rows[i]
		role := r.Role
		switch role {
		case "leader":
			role = t.s.Color(text.FgGreen, role)
		case "no answer":
			role = t.s.Color(text.FgRed, role)
		}
		out = append(out, []string{
			number(r.Member) + " " + cli.Printable(orDash(r.Name)), role, rate(r.RequestsPerSecond), latency(r.P50Seconds), latency(r.P99Seconds), rate(r.WritesPerSecond),
			number(r.Lag), number(r.Behind), number(r.Revision), humanize.Comma(int64(r.Keys)), size(r.StoreSizeBytes), size(r.LogSizeBytes),
			number(r.Watches), orDash(strings.Join(r.Alarms, ",")),
		})
	}
	return out
}

func rate(perSecond float64) string {
	if perSecond < 10 {
		return strconv.FormatFloat(perSecond, 'f', 1, 64)
	}
	return humanize.Comma(int64(math.Round(perSecond)))
}

func latency(seconds *float64) string {
	if seconds == nil {
		return "-"
	}
	return "≤" + time.Duration(*seconds*float64(time.Second)).Round(10*time.Microsecond).String()
}

// draw prints a frame; on a terminal in place of the one before.
func (t *top) draw(frame string) error {
	if _, stdout, _ := t.s.Streams(); cli.IsTerminal(stdout) {
		const home, restOfLine, restOfScreen = "\x1b[H", "\x1b[K\n", "\x1b[J"
		frame = home + strings.ReplaceAll(strings.TrimSuffix(frame, "\n"), "\n", restOfLine) + restOfLine + restOfScreen
		_, err := io.WriteString(stdout, frame)
		return err
	}
	return t.s.Println(frame)
}
