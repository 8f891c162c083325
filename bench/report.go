package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// row is one line of the table. Targets are ratios kvd/etcd or, if Absolute is
// set, values of kvd alone in the row's unit.
type row struct {
	Name     string    `json:"name"`
	Unit     string    `json:"unit"`
	KVD      []float64 `json:"kvd"` // one value per round
	Etcd     []float64 `json:"etcd,omitempty"`
	AtLeast  float64   `json:"at_least,omitempty"` // 0: no target
	Goal     float64   `json:"goal,omitempty"`     // 0: none beyond AtLeast
	More     bool      `json:"more"`               // more is better
	Absolute bool      `json:"absolute,omitempty"`
	Remark   string    `json:"remark,omitempty"`
}

type report struct {
	rows     []*row
	failures []string // of whole measurements
	face     bool     // rows are of etcd's API
	baseline bool     // the other system is another kvd: the targets are for etcd
}

// row returns the row with that name, and creates it if necessary.
func (r *report) row(name, unit string, set func(*row)) *row {
	if r.face {
		name, set = facePrefix+name, faceTargets(name, set)
	}
	for _, w := range r.rows {
		if w.Name == name {
			return w
		}
	}
	w := &row{Name: name, Unit: unit}
	if set != nil {
		set(w)
	}
	if r.baseline && !w.Absolute {
		w.AtLeast, w.Goal = 0, 0
	}
	r.rows = append(r.rows, w)
	return w
}

// add records the value that one of the systems reached in a round.
func (w *row) add(system string, value float64) {
	if system == "kvd" {
		w.KVD = append(w.KVD, value)
	} else {
		w.Etcd = append(w.Etcd, value)
	}
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[len(sorted)/2]
}

// verdict compares the measured values with the targets.
func (w *row) verdict() string {
	if w.AtLeast == 0 {
		return ""
	}
	got := median(w.KVD)
	if !w.Absolute {
		got /= median(w.Etcd)
	}
	reached := func(target float64) bool { return w.More && got >= target || !w.More && got <= target }
	switch {
	case math.IsNaN(got):
		return "not measured"
	case w.Goal != 0 && reached(w.Goal):
		return "goal"
	case reached(w.AtLeast):
		return "yes"
	}
	return "**no**"
}

func (w *row) cells() []string {
	ratio, target, goal, suffix := "", "", "", " ×"
	if w.Absolute {
		suffix = ""
	}
	if len(w.Etcd) > 0 && len(w.KVD) > 0 {
		ratio = figure(median(w.KVD)/median(w.Etcd)) + " ×"
	}
	if w.AtLeast != 0 {
		target = figure(w.AtLeast) + suffix
	}
	if w.Goal != 0 {
		goal = figure(w.Goal) + suffix
	}
	name := w.Name + ", " + w.Unit
	if w.Remark != "" {
		name += " (" + w.Remark + ")"
	}
	return []string{name, figure(median(w.KVD)), figure(median(w.Etcd)), ratio, target, goal, w.verdict()}
}

// figure prints three significant digits.
func figure(v float64) string {
	switch {
	case math.IsNaN(v):
		return "–"
	case v == 0:
		return "0"
	case math.Abs(v) >= 100:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.*f", max(0, 2-int(math.Floor(math.Log10(math.Abs(v))))), v)
}

func (r *report) markdown(b *bench) string {
	var t strings.Builder
	other, version := "etcd", "etcd 3.7.3"
	if b.baseline != "" {
		other, version = "baseline", "baseline "+filepath.Base(b.baseline)
	}
	tree := revision()
	if b.kvdBinary != "" && filepath.Dir(b.kvdBinary) != b.dir {
		tree = filepath.Base(b.kvdBinary) // it was not built from this tree
	}
	fmt.Fprintf(&t, "Measured %s on %s, file system %s.\nkvd %s, %s; %d rounds of %v each, alternating, values of %d bytes, %d keys;\n`%s`.\nFigures are medians. The last column names the target that was met: *yes* stands for \"at least\".\n\n",
		time.Now().UTC().Format("2006-01-02 15:04 UTC"), machine(), fileSystem(b.dir), tree, version, b.rounds, b.round(), b.valueSize, b.keySpace,
		"cd bench && go run . "+strings.Join(os.Args[1:], " "))
	fmt.Fprintf(&t, "| what | kvd | %[1]s | kvd / %[1]s | at least | goal | reached |\n|---|---|---|---|---|---|---|\n", other)
	for _, w := range r.rows {
		fmt.Fprintf(&t, "| %s |\n", strings.Join(w.cells(), " | "))
	}
	if len(r.failures) > 0 {
		t.WriteString("\nMeasurements that failed; their rows are missing or incomplete:\n\n")
	}
	for _, f := range r.failures {
		fmt.Fprintf(&t, "- %s\n", strings.Join(strings.Fields(f), " "))
	}
	t.WriteString(notComparable)
	return t.String()
}

const notComparable = `
Differences between the two sides:

- kvd is driven over HTTP/1.1 with one connection per client, etcd over gRPC with its own client: one connection per client up to 256 clients, and 100
  connections for 1000 clients (etcd does worse with more). The gRPC client uses more CPU than the HTTP client, on the same cores as the servers.
- A watcher is one connection on both sides, and reads no more of an event than it needs: kvd's as a line of JSON, etcd's as a message of gRPC without its
  client library. So are keep-alives: etcd's go back and forth on one stream per connection.
- Events are counted from the first put until the last watcher has the last event. Their latency is that of 100 puts a second, from before the put.
- Locks are those of etcd's package concurrency (Mutex), and one request each to acquire and to release in kvd. Each client has a lease of its own.
- TLS is that of clients alone, with the same certificate. Members talk to each other without it.
- Bulk load compares kvd's stream of independent operations with etcd's transactions of 100 puts, each with the better of two numbers of connections.
- Rows of etcd's API have the same client on both sides, etcd's own, and the same protocol. kvd's nodes serve it with --listen-etcd.
- All nodes and the load generator share one machine and one disk. Where CPU is the limit, throughput reflects the CPU per operation.
- Error responses are not counted. A round with fewer than 100 operations is void.
`

func (r *report) writeJSON(path string) error {
	text, err := json.MarshalIndent(r.rows, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// replaceSection replaces the text between the markers of a document.
func replaceSection(path, text string) error {
	const begin, end = "<!-- bench:begin -->\n", "<!-- bench:end -->"
	doc, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, rest, ok := strings.Cut(string(doc), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no section between %q and %q", path, strings.TrimSpace(begin), end)
	}
	return os.WriteFile(path, []byte(head+begin+text+end+tail), 0o644)
}

func revision() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "of an unknown commit"
	}
	return strings.TrimSpace(string(out))
}

// fileSystem names the type of the file system that holds the path.
func fileSystem(path string) string {
	text, _ := os.ReadFile("/proc/mounts")
	best, kind := "", "unknown"
	for line := range strings.SplitSeq(string(text), "\n") {
		f := strings.Fields(line)
		if len(f) > 2 && strings.HasPrefix(path, f[1]) && len(f[1]) >= len(best) {
			best, kind = f[1], f[2]
		}
	}
	return kind
}
