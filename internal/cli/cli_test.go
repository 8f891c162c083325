package cli

import (
	"bytes"
	"context"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/kvdtest"
)

// result is how a command ended.
type result struct {
	code           int
	stdout, stderr string // the error of the command is part of stderr
}

// bench runs commands against endpoints.
type bench struct {
	t       *testing.T
	environ []string
	stdin   io.Reader
}

// newBench starts a node for the test.
func newBench(t *testing.T) *bench {
	t.Helper()
	return &bench{t: t, environ: []string{"KVD_ENDPOINTS=" + kvdtest.New(t).Endpoint}}
}

// with returns a bench whose commands read the text.
func (b *bench) with(stdin string) *bench {
	return &bench{t: b.t, environ: b.environ, stdin: strings.NewReader(stdin)}
}

// set returns a bench with more variables.
func (b *bench) set(environ ...string) *bench {
	return &bench{t: b.t, environ: append(b.environ[:len(b.environ):len(b.environ)], environ...), stdin: b.stdin}
}

// run runs a command line, as cmd/kvd does.
func (b *bench) run(args ...string) result {
	b.t.Helper()
	return b.runContext(b.t.Context(), args...)
}

func (b *bench) runContext(ctx context.Context, args ...string) result {
	return b.runInto(ctx, new(buffer), args...)
}

// buffer is an output that can be read while it is written.
type buffer struct {
	sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.Lock()
	defer b.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.Lock()
	defer b.Unlock()
	return b.text.String()
}

func (b *bench) runInto(ctx context.Context, stdout *buffer, args ...string) result {
	stderr := new(buffer)
	root := &cobra.Command{Use: "kvd", SilenceErrors: true, SilenceUsage: true}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return UsageError{err} })
	stdin := b.stdin
	if stdin == nil {
		stdin = strings.NewReader("")
	}
	root.AddGroup(Groups()...)
	root.AddCommand(Commands(Environment{Environ: b.environ, Stdin: stdin, Stdout: stdout, Stderr: stderr, DefaultEndpoint: "http://127.0.0.1:1"})...)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err != nil {
		io.WriteString(stderr, err.Error())
	}
	return result{ExitCode(err), stdout.String(), stderr.String()}
}

// expect runs a command line given as words, and judges its code and a part of what
// it printed: of the output if it succeeds, else of the message.
func (b *bench) expect(code int, want string, args ...string) result {
	b.t.Helper()
	r := b.run(args...)
	text := r.stdout
	if code != exitOK {
		text = r.stderr
	}
	if r.code != code || !strings.Contains(text, want) {
		b.t.Errorf("kvd %s\nexit code %d, want %d, and %q in:\n%s%s", strings.Join(args, " "), r.code, code, want, r.stdout, r.stderr)
	}
	return r
}

// prints expects a command line to succeed with exactly this output.
func (b *bench) prints(want string, args ...string) {
	b.t.Helper()
	if r := b.run(args...); r.code != exitOK || r.stdout != want {
		b.t.Errorf("kvd %s\nexit code %d, printed\n%s%s\nwant\n%s", strings.Join(args, " "), r.code, r.stdout, r.stderr, want)
	}
}

// silent is an address that nobody listens on.
const silent = "http://127.0.0.1:1"

func words(text string) []string { return strings.Fields(text) }

func TestPutGetDelete(t *testing.T) {
	b := newBench(t)
	b.prints("created color at revision 2 (version 1)\n", words("kv put color red")...)
	b.prints("red", words("kv get color")...)
	b.prints("updated color at revision 3 (version 2)\n", words("kv put color blue")...)
	b.prints("red", words("kv get color --rev 2")...)
	b.prints("4\n", words("kv put color green -o value")...)
	b.set("KVD_OUTPUT=value").prints("green", words("kv put color pink --prev")...)
	b.prints(`{"key":"color","value":"pink","create_revision":2,"mod_revision":5,"version":4,"lease":0}`+"\n", words("kv get color -o json")...)
	b.expect(exitOK, "changed at   revision 5", words("kv get color -o table")...)
	b.with("from\nstdin\n").prints("created text at revision 6 (version 1)\n", words("kv put text")...)
	b.prints("from\nstdin\n", words("kv get text")...)
	b.prints("deleted 1 key at revision 7\n", words("kv del text")...)
	b.prints("0\n", words("kv del text -o value")...)
	b.expect(exitNotFound, `key "text" does not exist`, words("kv get text")...)
}

// Each code of the table, once.
func TestExitCodes(t *testing.T) {
	b := newBench(t)
	b.expect(exitOK, "created", words("kv put k v --if-absent")...)
	b.expect(exitFailed, "revision", words("kv get k --rev 1000")...)
	b.expect(exitUsage, "takes 1 argument", words("kv get")...)
	b.expect(exitUsage, "--output is", words("kv get k -o yaml")...)
	b.expect(exitUsage, "--endpoints", words("kv get k --endpoints 127.0.0.1:1")...)
	b.expect(exitNotFound, "does not exist", words("kv get absent")...)
	b.expect(exitCondition, "at revision 2", words("kv put k v --if-absent")...)
	b.expect(exitDown, "cannot reach http://127.0.0.1:1: connection refused", "kv", "get", "k", "--endpoints", silent, "--timeout", "1s")
}

func TestUnixSocketThatIsNotThere(t *testing.T) {
	b := &bench{t: t}
	b.expect(exitDown, "cannot reach unix:///nowhere.sock: no such file", words("kv get k --endpoints unix:///nowhere.sock --timeout 1s")...)
}

// Another server than a node, and one that speaks TLS where the URL does not, or the other
// way round.
func TestNoNodeThere(t *testing.T) {
	t.Parallel()
	b := &bench{t: t, environ: []string{"KVD_TIMEOUT=4s"}}
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	// That it does not know the path says nothing about the key.
	b.expect(exitFailed, "the endpoint answers \"404 Not Found\": 404 page not found; check that --endpoints", "kv", "get", "k", "--endpoints", other.URL)
	var running sync.WaitGroup
	defer running.Wait()
	plain := strings.TrimPrefix(other.URL, "http://")
	running.Go(func() {
		b.expect(exitDown, "https://"+plain+" does not speak TLS; write http://"+plain, "kv", "get", "k", "--endpoints", "https://"+plain)
	})
	encrypted := httptest.NewUnstartedServer(http.NotFoundHandler())
	encrypted.Config.ErrorLog = log.New(io.Discard, "", 0)
	encrypted.StartTLS()
	defer encrypted.Close()
	b.expect(exitFailed, "Client sent an HTTP request to an HTTPS server.; check", "kv", "get", "k", "--endpoints", "http://"+encrypted.Listener.Addr().String())
	b.expect(exitFailed, "name the authority that signed it with --cacert", "kv", "put", "k", "v", "--endpoints", encrypted.URL)
}
