package main

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/dustin/go-humanize"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/budget"
)

// memoryShare is the part of the memory allowed to a control group that Go may
// use. The rest is for memory that Go does not count: the kernel's buffers and
// page tables, and the pages of files.
const memoryShare = 0.9

// processShare is the part of GOMEMLIMIT, without the executable, that Go may use.
const processShare = 0.95

// noMemoryLimit is more than any machine has. Version 1 of control groups
// reports such a number where no limit is set.
const noMemoryLimit = 1 << 60

// limitMemory tells Go's collector how much memory the control group of the
// container or unit allows. Otherwise the heap grows to twice the live data,
// whatever the group allows, and the kernel kills the node over garbage that
// was not collected yet. GOMEMLIMIT takes precedence, even if it is "off".
//
// Whoever sets GOMEMLIMIT thinks of the process, too. But Go counts neither the pages of
// the executable nor the stacks of threads, and goes beyond its limit for a moment rather
// than stop the process to collect. So Go gets a part of what the executable leaves.
func limitMemory(allowed memlimit.Provider, executable int64, log *zap.Logger) {
	if _, ok := os.LookupEnv("GOMEMLIMIT"); ok {
		if limit := debug.SetMemoryLimit(-1); limit < noMemoryLimit {
			debug.SetMemoryLimit(max(int64(float64(limit-executable)*processShare), limit/2))
		}
		return
	}
	bytes, err := allowed()
	switch {
	case errors.Is(err, memlimit.ErrNoLimit), errors.Is(err, memlimit.ErrNoCgroup), errors.Is(err, memlimit.ErrCgroupsNotSupported):
		return
	case err != nil:
		// An odd mount of the control groups is no reason not to serve.
		log.Warn("cannot read the memory limit of the control group; set GOMEMLIMIT instead", zap.Error(err))
		return
	case bytes >= noMemoryLimit:
		return
	}
	limit := int64(float64(bytes) * memoryShare)
	debug.SetMemoryLimit(limit)
	log.Info("memory limited by the control group; GOMEMLIMIT takes precedence",
		zap.String("allowed", humanize.IBytes(bytes)), zap.Uint64("allowed_bytes", bytes), zap.Int64("go_limit_bytes", limit))
}

// mappedFiles returns how much of files the process has mapped to read or to run them. At
// the start, that is the executable, nearly all of which is in use sooner or later. It is 0
// where the system does not tell.
func mappedFiles() int64 {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return 0
	}
	return mappedIn(string(maps))
}

// mappedIn adds up the mappings of files in the text of /proc/self/maps.
func mappedIn(maps string) (total int64) {
	for line := range strings.Lines(maps) {
		var from, to int64
		var mode, path string
		if n, _ := fmt.Sscanf(line, "%x-%x %s %s %s %s %s", &from, &to, &mode, new(string), new(string), new(string), &path); n == 7 && path[0] == '/' {
			total += to - from
		}
	}
	return total
}

// requestMemory returns the memory that requests share: what --request-memory gives, or
// by default a share of what Go may use, which limitMemory has settled by now.
func requestMemory(given int64) *budget.Budget {
	if given == 0 {
		given = budget.Default(debug.SetMemoryLimit(-1)) // a negative limit only asks
	}
	return budget.New(given)
}

const (
	// hotShare is the part of the memory that Go may use for the newest pairs of keys
	// that are being read: they only save time.
	hotShare = 16
	// maxHotBytes is enough for most; minHotBytes is where they stop to be of use.
	maxHotBytes = 64 << 20
	minHotBytes = 1 << 20
)

// hotMemory returns how much memory the store may use for pairs that are being read.
func hotMemory() int {
	return int(min(max(debug.SetMemoryLimit(-1)/hotShare, minHotBytes), maxHotBytes))
}

const (
	// cacheShare is the part of the memory that Go may use for the engine's block cache
	// and its memtables.
	cacheShare = 16
	// maxCacheBytes is the engine's default.
	maxCacheBytes = 64 << 20
	minCacheBytes = 16 << 20
)

// cacheMemory returns how much memory the engine may use for what it has read, and for what
// it is about to write.
func cacheMemory() int64 {
	return min(max(debug.SetMemoryLimit(-1)/cacheShare, minCacheBytes), maxCacheBytes)
}
