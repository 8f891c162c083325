package main

import (
	"io/fs"
	"math"
	"os"
	"path"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"go.uber.org/zap"
)

// memoryShare is what Go may take of the memory that a control group allows.
// The rest is for what Go does not count: the kernel's buffers and page tables.
const memoryShare = 0.9

// noMemoryLimit is above what any machine has; kernels write such numbers
// where there is no limit.
const noMemoryLimit = 1 << 60

// limitMemory tells Go's collector how much memory the control group of a
// container or unit allows, or the kernel would kill the node for garbage that
// was not due yet. GOMEMLIMIT has the last word.
func limitMemory(environ []string, log *zap.Logger) {
	if slices.ContainsFunc(environ, func(v string) bool { return strings.HasPrefix(v, "GOMEMLIMIT=") }) {
		return
	}
	allowed := cgroupMemory(os.DirFS("/"))
	if allowed >= noMemoryLimit {
		return
	}
	limit := int64(float64(allowed) * memoryShare)
	debug.SetMemoryLimit(limit)
	log.Info("memory is limited by the control group; GOMEMLIMIT sets another limit", zap.Int64("allowed_bytes", allowed), zap.Int64("go_limit_bytes", limit))
}

// cgroupMemory returns the least limit, in bytes, of this process's control
// group and those around it, of version 2 or 1; without any, noMemoryLimit or
// more. Inside a container only its own group can be seen, at the root.
func cgroupMemory(root fs.FS) int64 {
	groups, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return math.MaxInt64 // no Linux, or none of its control groups
	}
	least := int64(math.MaxInt64)
	for line := range strings.Lines(string(groups)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) < 3 {
			continue
		}
		switch controllers := strings.Split(parts[1], ","); {
		case parts[0] == "0":
			least = min(least, leastLimit(root, "sys/fs/cgroup", parts[2], "memory.max"))
		case slices.Contains(controllers, "memory"):
			least = min(least, leastLimit(root, "sys/fs/cgroup/memory", parts[2], "memory.limit_in_bytes"))
		}
	}
	return least
}

// leastLimit looks at a group and all those around it.
func leastLimit(root fs.FS, mount, group, file string) int64 {
	least := int64(math.MaxInt64)
	for group = path.Clean("/" + group); ; group = path.Dir(group) {
		text, err := fs.ReadFile(root, path.Join(mount, group, file))
		if err == nil {
			if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && n > 0 { // "max" is no number
				least = min(least, n)
			}
		}
		if group == "/" {
			return least
		}
	}
}
