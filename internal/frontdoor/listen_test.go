package frontdoor

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// deadSocket makes a socket file as a killed process leaves it behind.
func deadSocket(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Fatal(err)
	}
}

// TestSocketOfADeadProcess: the socket is replaced, its mode keeps other users
// out, and closing the listener removes it.
func TestSocketOfADeadProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kvd.sock")
	deadSocket(t, path)
	l, err := listen("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != fs.ModeSocket|socketMode {
		t.Errorf("%v %v", info, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// TestSocketOfALivingProcess: a socket in use stays with its process, and a
// file that is not a socket is left alone.
func TestSocketOfALivingProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kvd.sock")
	first, err := listen("unix://" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := first.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := listen("unix://" + path); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("two listen on one socket: %v", err)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the first one lost its socket: %v", err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	file := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen("unix://" + file); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a socket in the place of a file: %v", err)
	}
	if text, err := os.ReadFile(file); string(text) != "precious" {
		t.Errorf("the file holds %q, %v", text, err)
	}
}

// TestAllListenersOrNone: if one address is taken, the others are given back.
func TestAllListenersOrNone(t *testing.T) {
	free, taken := filepath.Join(t.TempDir(), "free.sock"), filepath.Join(t.TempDir(), "taken")
	if err := os.WriteFile(taken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenAll([]string{"unix://" + free, "unix://" + taken}, "a test", nil); err == nil {
		t.Fatal("no error")
	}
	if _, err := os.Lstat(free); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the free one is still taken: %v", err)
	}
}
