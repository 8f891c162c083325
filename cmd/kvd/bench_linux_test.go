package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kvd-io/kvd/internal/loadgen"
)

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
