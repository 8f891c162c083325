package operator

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/internal/cli"
	"github.com/kvd-io/kvd/kvdtest"
)

// bench runs commands against endpoints.
type bench struct {
	t       *testing.T
	environ []string
	stdin   string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	return benchOf(t, kvdtest.New(t).Endpoint)
}

func benchOf(t *testing.T, endpoints ...string) *bench {
	return &bench{t: t, environ: []string{"PATH=/usr/bin:/bin", "KVD_ENDPOINTS=" + strings.Join(endpoints, ",")}}
}

// newClusterBench starts three nodes for the test.
func newClusterBench(t *testing.T) (*bench, kvdtest.Nodes) {
	t.Helper()
	nodes := kvdtest.Cluster(t, 3)
	return benchOf(t, nodes.Endpoints()...), nodes
}

// output can be read while it is written.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// result is how a command ended. The message of its error is in stderr, too.
type result struct {
	code           int
	stdout, stderr string
}

// background starts a command line, and returns its output and how it ends.
func (b *bench) background(ctx context.Context, args ...string) (*output, <-chan result) {
	out, ended := new(output), make(chan result, 1)
	go func() { ended <- b.runInto(ctx, out, args) }()
	return out, ended
}

func (b *bench) runInto(ctx context.Context, stdout *output, args []string) result {
	stderr := new(output)
	e := cli.Environment{Environ: b.environ, Stdin: strings.NewReader(b.stdin), Stdout: stdout, Stderr: stderr, DefaultEndpoint: "http://127.0.0.1:1"}
	root := &cobra.Command{Use: "kvd", SilenceErrors: true, SilenceUsage: true}
	root.AddGroup(cli.Groups()...)
	root.AddCommand(cli.Commands(e)...)
	root.AddCommand(Commands(e)...)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err != nil {
		fmt.Fprint(stderr, err)
	}
	return result{cli.ExitCode(err), stdout.String(), stderr.String()}
}

func (b *bench) run(args ...string) result { return b.runInto(b.t.Context(), new(output), args) }

// expect judges the exit code, and a part of the output or, of a failure, of the message.
func (b *bench) expect(code int, part string, args ...string) {
	b.t.Helper()
	r := b.run(args...)
	if got := r.stdout + r.stderr; r.code != code || !strings.Contains(got, part) {
		b.t.Errorf("kvd %q: exit code %d, want %d; want %q in:\n%s", args, r.code, code, part, got)
	}
}

// prints judges all of the output of a success.
func (b *bench) prints(want string, args ...string) {
	b.t.Helper()
	if r := b.run(args...); r.code != 0 || r.stdout != want {
		b.t.Errorf("kvd %q: exit code %d, printed\n%s%s\nwant\n%s", args, r.code, r.stdout, r.stderr, want)
	}
}

func words(text string) []string { return strings.Fields(text) }
