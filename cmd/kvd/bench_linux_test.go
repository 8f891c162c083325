package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvd-io/kvd/internal/loadgen"
)

// TestBenchWithRights: every request of every load carries the credentials, which flags or
// variables say, and without any the error says what the node wants.
func TestBenchWithRights(t *testing.T) {
	n := startWithRights(t, t.TempDir())
	status, body := request(t, http.DefaultClient, "POST", n.client+"/v1/tokens", "root", firstPassword, `{}`)
	var made struct{ Secret string }
	if err := json.Unmarshal([]byte(body), &made); err != nil || status != http.StatusCreated {
		t.Fatalf("%d %s: %v", status, body, err)
	}
	user, token := "root:"+firstPassword, made.Secret
	for _, c := range []struct {
		environ, args []string
		code          int
		says          string
	}{
		{nil, []string{"put", "--user", user}, exitOK, ""},
		{nil, []string{"get", "--token", token}, exitOK, ""},
		{[]string{"KVD_TOKEN=" + token, "KVD_OUTPUT=table"}, []string{"mixed", "--to", "all"}, exitOK, ""},
		{[]string{"KVD_USER=" + user}, []string{"batch", "--lines", "10"}, exitOK, ""},
		{nil, []string{"put"}, exitFailed, "401 Unauthorized: "},
		{nil, []string{"put", "--user", "root:wrong"}, exitFailed, "401 Unauthorized: "},
		{nil, []string{"put", "--user", user, "--token", token}, exitUsage, "give only one"},
	} {
		var stdout, stderr bytes.Buffer
		environ := append(c.environ, "KVD_ENDPOINTS="+n.client)
		args := append(append([]string{"bench"}, c.args...), "--connections", "2", "--key-space", "20", "--count", "100")
		code := run(environment{args: args, environ: environ, stdout: &stdout, stderr: &stderr})
		if out := stdout.String() + stderr.String(); code != c.code || !strings.Contains(out, c.says) || strings.Contains(out, "errors:") {
			t.Errorf("%v: exit code %d: %s", c.args[0], code, out)
		}
	}
}

// TestBenchProgress: a bar on a terminal, which is gone at the end, and lines elsewhere.
func TestBenchProgress(t *testing.T) {
	snapshots := []loadgen.Snapshot{{}, {Ops: 250, Elapsed: time.Second}, {Ops: 500, Elapsed: 2 * time.Second}}
	run := func(o benchOptions, w io.Writer) {
		show, hide := o.progress(w)
		for _, s := range snapshots {
			show(s)
		}
		hide()
	}
	for name, o := range map[string]benchOptions{"time": {lines: 2, duration: 4 * time.Second}, "count": {lines: 2, count: 2000}} {
		terminal, user := newTerminal(t)
		if err := unix.IoctlSetWinsize(int(user.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
			t.Fatal(err)
		}
		shown := make(chan string, 1)
		go func() {
			text, _ := io.ReadAll(user) // ends with an error once nobody holds the other end
			shown <- string(text)
		}()
		run(o, terminal)
		if err := terminal.Close(); err != nil {
			t.Fatal(err)
		}
		if out := <-shown; !strings.Contains(out, "\rmeasuring ") || !strings.Contains(out, "/2000, ") || strings.Contains(out, "\n") {
			t.Errorf("by %s: %q", name, out)
		}
		// The bar is not drawn for each step, so these are looked at by themselves.
		for i, want := range []int64{500, 1000} {
			if done, total := o.place(snapshots[i+1]); done != want || total != 2000 {
				t.Errorf("by %s: %d of %d", name, done, total)
			}
		}
		var lines bytes.Buffer
		run(o, &lines)
		if out := lines.String(); !strings.Contains(out, "warming up\n") || !strings.Contains(out, "500 ops/s") || strings.Contains(out, "\r") {
			t.Errorf("by %s: %q", name, out)
		}
	}
}
