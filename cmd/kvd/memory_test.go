package main

import (
	"math"
	"os"
	"runtime/debug"
	"testing"
	"testing/fstest"

	"go.uber.org/zap"
)

func TestCgroupMemory(t *testing.T) {
	const none = math.MaxInt64
	for _, c := range []struct {
		name  string
		files map[string]string
		want  int64
	}{
		{"no control groups", nil, none},
		{"version 2, in a container", map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1073741824\n"}, 1 << 30},
		{"version 2, no limit", map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, none},
		{"version 2, a unit in a smaller slice", map[string]string{
			"proc/self/cgroup": "0::/system.slice/kvd.service\n",
			"sys/fs/cgroup/system.slice/kvd.service/memory.max": "2147483648\n",
			"sys/fs/cgroup/system.slice/memory.max":             "1073741824\n",
		}, 1 << 30},
		{"version 2, outside of the namespace", map[string]string{"proc/self/cgroup": "0::/../../x\n", "sys/fs/cgroup/memory.max": "4096\n"}, 4096},
		{"version 1, in a container", map[string]string{
			"proc/self/cgroup":                           "4:cpu,memory:/docker/cb9d\n0::/docker/cb9d\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "268435456\n",
		}, 1 << 28},
		{"version 1, no limit", map[string]string{
			"proc/self/cgroup":                           "4:memory:/\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
		}, 9223372036854771712},
		{"nonsense", map[string]string{"proc/self/cgroup": "x\n0:\n0::/\n", "sys/fs/cgroup/memory.max": "-1\n"}, none},
	} {
		root := make(fstest.MapFS)
		for name, text := range c.files {
			root[name] = &fstest.MapFile{Data: []byte(text)}
		}
		if got := cgroupMemory(root); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

// TestGOMEMLIMITWins sets nothing where somebody else did.
func TestGOMEMLIMITWins(t *testing.T) {
	before := debug.SetMemoryLimit(1 << 40)
	defer debug.SetMemoryLimit(before)
	limitMemory([]string{"GOMEMLIMIT=off"}, zap.NewNop())
	if now := debug.SetMemoryLimit(-1); now != 1<<40 {
		t.Errorf("the limit was changed to %d", now)
	}
	limitMemory(nil, zap.NewNop())
	if allowed, now := cgroupMemory(os.DirFS("/")), debug.SetMemoryLimit(-1); allowed < noMemoryLimit && now != int64(float64(allowed)*memoryShare) {
		t.Errorf("of %d bytes Go may take %d", allowed, now)
	}
}
