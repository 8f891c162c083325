//go:build !linux

package e2e

import "syscall"

func processAttributes() *syscall.SysProcAttr { return nil }

// limitMemory is only known for Linux; the time limit stays.
func limitMemory(uint64) error { return nil }
