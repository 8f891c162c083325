//go:build !linux

package e2e

import "syscall"

func ownMounts() {}

func processAttributes() *syscall.SysProcAttr { return nil }

// limitMemory does nothing except on Linux; the time limit still applies.
func limitMemory(uint64) error { return nil }
