package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// onTerminal runs a command whose outputs are a terminal of 80 columns, and returns
// what appears on it.
func (b *bench) onTerminal(args ...string) string {
	b.t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		b.t.Skipf("NOT TESTED: this machine has no terminals: %v", err)
	}
	defer master.Close()
	fd := int(master.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80})
	}
	if err != nil {
		b.t.Skipf("NOT TESTED: this machine has no terminals: %v", err)
	}
	terminal, err := os.OpenFile(fmt.Sprint("/dev/pts/", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		b.t.Skipf("NOT TESTED: this machine has no terminals: %v", err)
	}
	shown := make(chan string, 1)
	go func() {
		text, _ := io.ReadAll(master) // ends with an error once nobody holds the other end
		shown <- string(text)
	}()
	root := &cobra.Command{Use: "kvd", SilenceErrors: true, SilenceUsage: true}
	root.AddGroup(Groups()...)
	root.AddCommand(Commands(Environment{Environ: b.environ, Stdin: strings.NewReader(""), Stdout: terminal, Stderr: terminal})...)
	root.SetArgs(args)
	if err := root.ExecuteContext(b.t.Context()); err != nil {
		b.t.Errorf("%v: %v", args, err)
	}
	_ = terminal.Close()
	return <-shown
}

// Bars, colors, and cut values are for people; NO_COLOR takes the colors away.
func TestTerminal(t *testing.T) {
	b := newBench(t).set("TERM=xterm")
	b.expect(exitOK, "", "kv", "put", "k", strings.Repeat("long ", 100))
	b.expect(exitOK, "", "kv", "put", "nasty", "\x1b[2Jgone")
	b.fill(300)
	file := t.TempDir() + "/all"
	for _, c := range []struct {
		args      string
		want, not string
	}{
		{"kv get k", "long \r\n", "\x1b"},
		{"kv get nasty", `"\x1b[2Jgone"`, "\x1b"},
		{"kv get nasty -o value", "\x1b[2Jgone\r\n", "byte for byte"},
		{"kv list k --limit 1", "long lon…", "\x1b"},
		{"kv history nasty", "\x1b[32mput", "\x1b[2J"},
		{"kv export " + file, "\rexporting ", "unreachable"},
		{"kv import " + file, "\rverifying ", "unreachable"},
	} {
		out := b.onTerminal(words(c.args)...)
		if !strings.Contains(out, c.want) || strings.Contains(out, c.not) {
			t.Errorf("%s shows\n%q\nwant %q and not %q", c.args, out, c.want, c.not)
		}
	}
	for _, environ := range []string{"NO_COLOR=1", "TERM=dumb"} {
		if out := b.set(environ).onTerminal(words("kv history nasty")...); strings.Contains(out, "\x1b") {
			t.Errorf("%s: %q", environ, out)
		}
	}
	if r := b.run(words("kv history nasty")...); strings.Contains(r.stdout, "\x1b") {
		t.Errorf("colors in a pipe: %q", r.stdout)
	}
	if r := b.run("kv", "export", file+"2"); r.stderr != "" {
		t.Errorf("a bar in a pipe: %q", r.stderr)
	}
}
