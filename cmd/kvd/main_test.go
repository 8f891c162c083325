package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/freeport"
	"github.com/kvd-io/kvd/internal/frontdoor"
	"github.com/kvd-io/kvd/internal/httpapi"
	"github.com/kvd-io/kvd/internal/logsink"
	"github.com/kvd-io/kvd/internal/node"
	"github.com/kvd-io/kvd/internal/settings"
)

// beKVD makes the test binary behave as kvd, so that none has to be built.
const beKVD = "RUN_TEST_BINARY_AS_KVD"

// panicInstead makes it panic as a node that serves would.
const panicInstead = "RUN_TEST_BINARY_TO_PANIC"

// patience bounds what the tests wait for.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv(panicInstead) != "" {
		crashBySignal()
		panic("as a test asks")
	}
	if os.Getenv(beKVD) != "" {
		main()
	}
	os.Exit(m.Run())
}

// command returns kvd as a process of its own, in an empty directory.
func command(t *testing.T, environ []string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Dir = t.TempDir()
	cmd.Env = append([]string{beKVD + "=1", "PATH=" + os.Getenv("PATH"), "HOME=" + cmd.Dir}, environ...)
	return cmd
}

func codeOf(t *testing.T, err error) int {
	t.Helper()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	t.Fatal(err)
	return -1
}

// freeURL returns a URL on a port that was free a moment ago.
func freeURL(t *testing.T) string {
	t.Helper()
	address, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	return "http://" + address
}

// ask has a handler answer a request without a body.
func ask(h http.Handler, method, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w
}

// starting is the health of a node that has not caught up yet.
type starting struct{ httpapi.Health }

func (starting) Checks(context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) { yield("started", errors.New("still starting")) }
}
func (starting) ClusterID() string { return "" }

// startingServer answers for a node that is starting.
func startingServer() http.Handler {
	return httpapi.NewStandby(httpapi.Options{Health: starting{}}, &api.Error{Code: api.Starting, Detail: "not yet"})
}

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{node.ErrRemoved, 0},
		{fmt.Errorf("node: %w", node.ErrRemoved), 0},
		{errors.New("disk on fire"), 1},
		{fmt.Errorf("x: %w", usageError{errors.New("bad flag")}), 2},
		{fmt.Errorf("x: %w", node.ErrConfig), 2},
		{fmt.Errorf("x: %w", node.ErrRefused), 3},
		{refusal{errors.New("torn")}, 3},
		{fmt.Errorf("start: %w", &datadir.RefusedError{File: "wal"}), 3},
	} {
		if got := exitCode(c.err); got != c.want {
			t.Errorf("%v: %d, want %d", c.err, got, c.want)
		}
	}
}

// TestConfigCheckAgreesWithAStart: what a start refuses because of the settings
// alone, kvd config check refuses with the same words.
func TestConfigCheckAgreesWithAStart(t *testing.T) {
	dir := t.TempDir()
	for _, args := range []string{
		"--listen-peer http://127.0.0.1:0",
		"--listen-peer http://127.0.0.1:12379/path",
		"--id 4 --cluster http://127.0.0.1:12379",
		"--id 9007199254740992 --join http://127.0.0.1:1",
		"--listen-client unix://" + dir + "/" + strings.Repeat("p", 120) + ".sock",
		"--listen-client https://127.0.0.1:12380 --tls-cert-file /nonexistent.pem --tls-key-file /nonexistent.key",
		"--cluster https://127.0.0.1:12379 --peer-cert-file /nonexistent.pem --peer-key-file /nonexistent.key --peer-ca-file /nonexistent.ca",
		"--engine lmdb",
		"--quota -1",
		"--max-value-bytes 1TiB",
	} {
		code, _, checked := kvd(append([]string{"config", "check"}, strings.Fields(args)...)...)
		if code != exitUsage {
			t.Errorf("kvd config check %s: exit code %d: %s", args, code, checked)
			continue
		}
		code, _, started := kvd(append(strings.Fields(args), "--data-dir", filepath.Join(dir, "data"))...)
		if code != exitUsage || firstError(started) != firstError(checked) {
			t.Errorf("kvd %s: exit code %d: %s\nbut config check says: %s", args, code, started, checked)
		}
	}
}

// firstError returns the first line of standard error that is not of the log.
func firstError(stderr string) string {
	for line := range strings.Lines(stderr) {
		if strings.HasPrefix(line, "kvd: ") {
			return line
		}
	}
	return ""
}

func TestCommandLines(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("no snapshot"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args, env string
		code      int
		want      []string // in the output
	}{
		{"config show --port 7000", "KVD_ENGINE=memory", 0, []string{"listen-client", "http://127.0.0.1:7000", "environment variable KVD_ENGINE"}},
		{"config show --output json --cluster-token hush", "", 0, []string{`"name":"cluster-token","value":"(secret)","origin":"flag --cluster-token"`}},
		{"config check --snapshot-count 3", "", 0, []string{"--snapshot-count has no effect", "valid"}},
		{"config check --quota many --wal-dir x", "", 2, []string{"many", "--wal-dir"}},
		{"config", "", 2, []string{"show", "check"}},
		{"--config-file " + file, "", 2, []string{file, "must consist of"}},
		{"bench", "", 2, []string{"batch, get, mixed, put"}},
		{"bench put --to nobody --connections 0 --endpoints https://x", "", 2, []string{"--to", "--connections is 0", "https://x"}},
		{"bench put --endpoints http://127.0.0.1:1", "", 1, []string{"find leader", "127.0.0.1:1"}},
		{"version", "", 0, []string{version}},
		{"version --output json", "", 0, []string{`"api_versions":["v1"]`}},
		{"version --output xml", "", 2, []string{"xml"}},
		{"--version", "", 0, []string{version}},
		{"--help", "", 0, []string{"--cluster", "KVD_DATA_DIR", "doctor", "healthcheck"}},
		{"completion bash", "", 0, []string{"complete"}},
		{"--nmae x", "", 2, []string{"nmae"}},
		{"surve", "", 2, []string{`unknown command "surve"`, "the commands are", "kvd --help"}},
		{"", "KVD_DATDIR=x", 2, []string{"KVD_DATDIR is not a setting"}},
		{"--id 2 --quota x", "KVD_FOO=1", 2, []string{"KVD_FOO", "--quota"}},
		{"--listen-client http://" + taken.Addr().String(), "", 1, []string{taken.Addr().String(), "flag --listen-client", "address already in use"}},
		{"", "KVD_LISTEN_CLIENT=http://" + taken.Addr().String(), 1, []string{"environment variable KVD_LISTEN_CLIENT", "address already in use"}},
		{"--port 0", "", 2, []string{"--port"}},
		{"doctor", "", 2, []string{"one argument", "kvd doctor --help"}},
		{"doctor " + filepath.Join(file, "none"), "", 1, []string{file}},
		{"snapshot verify", "", 2, []string{"one argument"}},
		{"snapshot verify " + file, "", 3, []string{file}},
		{"snapshot verify " + file + ".none", "", 1, []string{file}},
		{"snapshot inspect " + file, "", 3, []string{file}},
		{"snapshot inspect " + file + " --output xml", "", 2, []string{"xml"}},
		{"snapshot inspect " + file + " -o xml", "", 2, []string{"xml"}},
		{"snapshot save", "", 2, []string{"the file to write"}},
		{"snapshot save http://127.0.0.1:1", "", 2, []string{"the file to write"}},
		{"snapshot save 127.0.0.1:1 backup", "", 2, []string{`"127.0.0.1:1" is not a URL`}},
		{"snapshot save http://127.0.0.1:1 http://127.0.0.1:2 backup", "", 1, []string{"http://127.0.0.1:1", "http://127.0.0.1:2", "refused"}},
		{"snapshot save backup", "KVD_ENDPOINTS=http://127.0.0.1:1,http://127.0.0.1:2", 1, []string{"http://127.0.0.1:1", "http://127.0.0.1:2", "refused"}},
		{"snapshot save backup --endpoints http://127.0.0.1:1", "", 1, []string{"http://127.0.0.1:1", "refused"}},
		{"snapshot save http://127.0.0.1:1 backup --endpoints http://127.0.0.1:1", "", 2, []string{"contradict"}},
		{"snapshot save backup", "KVD_LISTEN_CLIENT=http://127.0.0.1:1", 1, []string{"http://127.0.0.1:1", "refused"}},
		{"snapshot restore", "", 2, []string{"one argument"}},
		{"snapshot restore " + file, "", 3, []string{file}},
		{"snapshot restore " + file + " --data-dir x --join http://127.0.0.1:1", "", 2, []string{"cannot --join"}},
		{"snapshot restore " + file + " --id 4 --cluster http://127.0.0.1:12379", "", 2, []string{"--id"}},
		{"healthcheck --endpoint " + freeURL(t), "", 1, []string{"refused"}},
		{"healthcheck", "KVD_LISTEN_CLIENT=nonsense", 2, []string{"nonsense"}},
	} {
		t.Run(c.args+" "+c.env, func(t *testing.T) {
			cmd := command(t, strings.Fields(c.env), strings.Fields(c.args)...)
			out, err := cmd.CombinedOutput()
			if code := codeOf(t, err); code != c.code {
				t.Errorf("exit code %d, want %d:\n%s", code, c.code, out)
			}
			for _, part := range c.want {
				if !bytes.Contains(out, []byte(part)) {
					t.Errorf("the output lacks %q:\n%s", part, out)
				}
			}
		})
	}
}

// daemonProcess is a single node as a process.
type daemonProcess struct {
	cmd    *exec.Cmd
	client string
	ended  chan error
}

// startNode starts a single node that writes its log to stderr.
func startNode(t *testing.T, stderr *os.File, more ...string) *daemonProcess {
	t.Helper()
	return startNodeIn(t, nil, stderr, more...)
}

// startNodeIn starts it with additional environment variables.
func startNodeIn(t *testing.T, environ []string, stderr *os.File, more ...string) *daemonProcess {
	t.Helper()
	p := &daemonProcess{client: freeURL(t), ended: make(chan error, 1)}
	p.cmd = command(t, environ, append(more, "--listen-client", p.client, "--listen-peer", freeURL(t), "--engine", "memory")...)
	p.cmd.Stderr = stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.ended <- p.cmd.Wait() }()
	t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Kill() // it has ended if this fails
		}
	})
	return p
}

// awaitReady asks until the node serves requests.
func (p *daemonProcess) awaitReady(t *testing.T) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	pace := time.NewTicker(20 * time.Millisecond)
	defer pace.Stop()
	for probe(&http.Client{Timeout: time.Second}, p.client+"/readyz") != nil {
		select {
		case err := <-p.ended:
			t.Fatalf("the node ended: %v", err)
		case <-deadline.C:
			t.Fatal("the node does not become ready")
		case <-pace.C:
		}
	}
}

// stop ends the node with SIGTERM and returns how long that took.
func (p *daemonProcess) stop(t *testing.T) time.Duration {
	t.Helper()
	begin := time.Now()
	p.signal(t, syscall.SIGTERM)
	select {
	case err := <-p.ended:
		if code := codeOf(t, err); code != 0 {
			t.Errorf("exit code %d", code)
		}
	case <-time.After(patience):
		t.Fatal("the node does not stop")
	}
	return time.Since(begin)
}

func (p *daemonProcess) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

func (p *daemonProcess) put(t *testing.T, key, value string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPut, p.client+"/v1/kv/"+key, strings.NewReader(value))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		t.Errorf("put: %s", resp.Status)
	}
}

// TestLifeOfANode: a node logs when it is ready, serves, survives SIGHUP, and
// stops cleanly.
func TestLifeOfANode(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := startNode(t, w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	logged := make(chan error, 1)
	go func() { _, err := io.Copy(&log, r); logged <- err }()
	p.awaitReady(t)
	p.put(t, "k", "v")
	p.signal(t, syscall.SIGHUP)
	p.put(t, "k", "w")
	cmd := command(t, []string{"KVD_LISTEN_CLIENT=" + p.client}, "healthcheck", "--ready")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("healthcheck: %v\n%s", err, out)
	}
	if took := p.stop(t); took > 10*time.Second {
		t.Errorf("stopping took %v", took)
	}
	if err := <-logged; err != nil {
		t.Fatal(err)
	}
	messages := make(map[string]map[string]any)
	for line := range strings.Lines(log.String()) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		messages[fields["msg"].(string)] = fields
	}
	if ready := messages["ready to serve client requests"]; ready == nil || fmt.Sprint(ready["client_urls"]) != "["+p.client+"]" {
		t.Errorf("the log does not say that the node is ready:\n%s", &log)
	}
	if messages["stopped"] == nil {
		t.Errorf("the log does not say that the node stopped:\n%s", &log)
	}
}

// TestFullPipeOnStandardError: a node whose log nobody reads still serves and
// stops, although the pipe is full.
func TestFullPipeOnStandardError(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := w.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 4<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the pipe takes everything: %v", err)
	}
	p := startNode(t, w)
	p.awaitReady(t)
	p.put(t, "k", "v")
	if took := p.stop(t); took > 10*time.Second {
		t.Errorf("stopping took %v", took)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestReaderOfTheLogGoesAway: a broken pipe must not end the node.
func TestReaderOfTheLogGoesAway(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := startNode(t, w)
	if err := errors.Join(r.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	p.awaitReady(t)
	p.put(t, "k", "v")
	p.stop(t)
}

func TestSecondSignalExitsAtOnce(t *testing.T) {
	codes := make(chan int, 1)
	_, sink := logsink.New(io.Discard, logsink.NewLevel(zap.InfoLevel), logsink.FormatJSON)
	defer sink.Close()
	d := &daemon{log: zap.NewNop(), sink: sink, exit: func(code int) { codes <- code }}
	signals := make(chan os.Signal, 2)
	end := d.exitOnSecond(signals)
	signals <- syscall.SIGHUP
	signals <- syscall.SIGINT
	if code := <-codes; code != 128+int(syscall.SIGINT) {
		t.Errorf("exit code %d", code)
	}
	end()
	if len(codes) > 0 {
		t.Error("SIGHUP counted as the second signal")
	}
}

// TestStopOfAStuckNode: a stop does not wait forever for a node whose loops hang.
func TestStopOfAStuckNode(t *testing.T) {
	d := &daemon{log: zap.NewNop()}
	ended := make(chan error, 1)
	ended <- fmt.Errorf("find a place: %w", context.Canceled)
	if err := d.wait(ended); err != nil {
		t.Errorf("a cancelled start is a regular stop, not %v", err)
	}
	ended <- node.ErrRemoved
	if err := d.wait(ended); !errors.Is(err, node.ErrRemoved) {
		t.Errorf("got %v", err)
	}
	if total := drainTimeout + farewellTime + finishTimeout + closeTimeout + 2*cutTimeout + frontdoor.SideCloseTimeout + 2*logsink.SyncTimeout; total >= 10*time.Second {
		t.Errorf("a stop may take %v; supervisors kill after ten seconds", total)
	}
}

func TestHealthcheckEndpoint(t *testing.T) {
	for _, c := range []struct{ env, want string }{
		{"", settings.DefaultClientURL},
		{"KVD_PORT=7000", "http://127.0.0.1:7000"},
		{"KVD_LISTEN_CLIENT=http://0.0.0.0:80 KVD_ID=9 KVD_UNKNOWN=x", "http://127.0.0.1:80"},
		{"KVD_LISTEN_CLIENT=http://[::]:80", "http://[::1]:80"},
		{"KVD_LISTEN_CLIENT=http://0.0.0.0:80 KVD_LISTEN_METRICS=http://0.0.0.0:81", "http://127.0.0.1:81"},
	} {
		if got, err := localEndpoint(strings.Fields(c.env), new(probeFiles)); got != c.want || err != nil {
			t.Errorf("%s: got %s, %v", c.env, got, err)
		}
	}
	sick := httptest.NewServer(startingServer())
	defer sick.Close()
	if err := probe(&http.Client{Timeout: patience}, sick.URL+"/livez"); err != nil {
		t.Error(err)
	}
	if err := probe(&http.Client{Timeout: patience}, sick.URL+"/readyz"); err == nil || !strings.Contains(err.Error(), "still starting") {
		t.Errorf("got %v", err)
	}
}
