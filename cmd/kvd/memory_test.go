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

// TestMemoryLimit: Go may use nine tenths of what the control group allows;
// without a limit, and if GOMEMLIMIT is set, nothing changes.
func TestMemoryLimit(t *testing.T) {
	const before = 1 << 40
	fails := func(err error) memlimit.Provider { return func() (uint64, error) { return 0, err } }
	for _, c := range []struct {
		name    string
		environ string // GOMEMLIMIT; "" if it is not set
		allowed memlimit.Provider
		want    int64
		lines   int // in the log
	}{
		{"a limit", "", memlimit.Limit(1000 << 20), 900 << 20, 1},
		{"no limit", "", fails(memlimit.ErrNoLimit), before, 0},
		{"no limit, version 1", "", memlimit.Limit(9223372036854771712), before, 0},
		{"no control groups", "", fails(memlimit.ErrCgroupsNotSupported), before, 0},
		{"unreadable", "", fails(errors.New("permission denied")), before, 1},
		{"GOMEMLIMIT", "off", memlimit.Limit(1000 << 20), before, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			setOrUnset(t, "GOMEMLIMIT", c.environ)
			defer debug.SetMemoryLimit(debug.SetMemoryLimit(before))
			core, lines := observer.New(zapcore.DebugLevel)
			limitMemory(c.allowed, zap.New(core))
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
