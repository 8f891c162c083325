package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// newTerminal returns a terminal and the end at which its user sits.
func newTerminal(t *testing.T) (terminal, user *os.File) {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { user.Close() })
	if err := unix.IoctlSetPointerInt(int(user.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(user.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprint("/dev/pts/", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return terminal, user
}

// TestBannerOnATerminal: a node on a terminal shows the banner before its log,
// and its curl works. TestLifeOfANode shows that a node on a pipe has nothing
// but JSON.
func TestBannerOnATerminal(t *testing.T) {
	terminal, user := newTerminal(t)
	p := startNode(t, terminal)
	if err := terminal.Close(); err != nil {
		t.Fatal(err)
	}
	lines, curl := bufio.NewScanner(user), ""
	for lines.Scan() && !strings.Contains(lines.Text(), "ready to serve client requests") {
		if command, ok := strings.CutPrefix(strings.TrimSpace(lines.Text()), "try "); ok {
			curl = strings.TrimSpace(command)
		}
		if strings.Contains(lines.Text(), "INFO") && curl == "" {
			t.Errorf("the log begins before the banner: %s", lines.Text())
		}
	}
	if want := "curl " + p.client + "/greeting -XPUT -d hello"; curl != want {
		t.Fatalf("the banner proposes %q, want %q", curl, want)
	}
	if _, err := exec.LookPath("curl"); err == nil {
		args := strings.Fields(curl)
		if out, err := exec.Command(args[0], append(args[1:], "--silent", "--show-error", "--fail")...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", curl, err, out)
		}
	}
	p.stop(t)
}
