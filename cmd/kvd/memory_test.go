package main

import (
	"errors"
	"math"
	"os"
	"runtime/debug"
	"testing"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// TestMemoryLimit: Go may use nine tenths of what the control group allows, or most of what
// the executable leaves of GOMEMLIMIT; without a limit, nothing changes.
func TestMemoryLimit(t *testing.T) {
	const executable = 40 << 20
	fails := func(err error) memlimit.Provider { return func() (uint64, error) { return 0, err } }
	for _, c := range []struct {
		name    string
		environ string // GOMEMLIMIT; "" if it is not set
		before  int64  // the limit that it has set
		allowed memlimit.Provider
		want    int64
		lines   int // in the log
	}{
		{"a limit", "", math.MaxInt64, memlimit.Limit(1000 << 20), 900 << 20, 1},
		{"no limit", "", math.MaxInt64, fails(memlimit.ErrNoLimit), math.MaxInt64, 0},
		{"no limit, version 1", "", math.MaxInt64, memlimit.Limit(9223372036854771712), math.MaxInt64, 0},
		{"no control groups", "", math.MaxInt64, fails(memlimit.ErrCgroupsNotSupported), math.MaxInt64, 0},
		{"unreadable", "", math.MaxInt64, fails(errors.New("permission denied")), math.MaxInt64, 1},
		{"GOMEMLIMIT", "240MiB", 240 << 20, memlimit.Limit(1000 << 20), 190 << 20, 0},
		{"GOMEMLIMIT, little", "40MiB", 40 << 20, memlimit.Limit(1000 << 20), 20 << 20, 0},
		{"GOMEMLIMIT, off", "off", math.MaxInt64, memlimit.Limit(1000 << 20), math.MaxInt64, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			setOrUnset(t, "GOMEMLIMIT", c.environ)
			defer debug.SetMemoryLimit(debug.SetMemoryLimit(c.before))
			core, lines := observer.New(zapcore.DebugLevel)
			limitMemory(c.allowed, executable, zap.New(core))
			if now := debug.SetMemoryLimit(-1); now != c.want || lines.Len() != c.lines {
				t.Errorf("limit %d, want %d; log %v", now, c.want, lines.All())
			}
		})
	}
}

// TestHotMemory: what saves time takes a small part of a small machine.
func TestHotMemory(t *testing.T) {
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(-1))
	for limit, want := range map[int64]int{math.MaxInt64: 64 << 20, 4 << 30: 64 << 20, 256 << 20: 16 << 20, 1 << 20: 1 << 20} {
		debug.SetMemoryLimit(limit)
		if got := hotMemory(); got != want {
			t.Errorf("%d bytes of %d, want %d", got, limit, want)
		}
	}
}

// TestCacheMemory: the same for what the engine caches.
func TestCacheMemory(t *testing.T) {
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(-1))
	for limit, want := range map[int64]int64{math.MaxInt64: 64 << 20, 1 << 30: 64 << 20, 512 << 20: 32 << 20, 64 << 20: 16 << 20} {
		debug.SetMemoryLimit(limit)
		if got := cacheMemory(); got != want {
			t.Errorf("%d bytes of %d, want %d", got, limit, want)
		}
	}
}

// TestMappedFiles: what is mapped of files is counted, and nothing else.
func TestMappedFiles(t *testing.T) {
	const maps = `00400000-01384000 r-xp 00000000 fd:00 393297   /usr/local/bin/kvd
01384000-024a0000 r--p 00f84000 fd:00 393297   /usr/local/bin/kvd with a space
c000000000-c000400000 rw-p 00000000 00:00 0
7fff1000-7fff3000 r-xp 00000000 00:00 0        [vdso]
`
	if got, want := mappedIn(maps), int64(0x24a0000-0x400000); got != want {
		t.Errorf("%d bytes, want %d", got, want)
	}
	if _, err := os.Stat("/proc/self/maps"); err == nil && mappedFiles() < 1<<20 {
		t.Errorf("this process has mapped %d bytes of files", mappedFiles())
	}
}

// setOrUnset sets a variable, or unsets it if the value is empty.
func setOrUnset(t *testing.T, name, value string) {
	t.Helper()
	t.Setenv(name, value) // restores it after the test
	if value == "" {
		if err := os.Unsetenv(name); err != nil {
			t.Fatal(err)
		}
	}
}
