package main

import (
	"errors"
	"os"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/dustin/go-humanize"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/budget"
)

// memoryShare is the part of the memory allowed to a control group that Go may
// use. The rest is for memory that Go does not count: the kernel's buffers and
// page tables, and the pages of files.
const memoryShare = 0.9

// noMemoryLimit is more than any machine has. Version 1 of control groups
// reports such a number where no limit is set.
const noMemoryLimit = 1 << 60

// limitMemory tells Go's collector how much memory the control group of the
// container or unit allows. Otherwise the heap grows to twice the live data,
// whatever the group allows, and the kernel kills the node over garbage that
// was not collected yet. GOMEMLIMIT takes precedence, even if it is "off".
func limitMemory(allowed memlimit.Provider, log *zap.Logger) {
	if _, ok := os.LookupEnv("GOMEMLIMIT"); ok {
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
