//go:build !linux

package e2e

import (
	"errors"
	"syscall"
	"testing"
)

func ownMounts() {}

func processAttributes() *syscall.SysProcAttr { return nil }

// limitMemory does nothing except on Linux; the time limit still applies.
func limitMemory(uint64) error { return nil }

func smallDisk(t *testing.T, _ string) string {
	t.Skip("NOT TESTED: file systems of a given size are mounted on Linux only")
	return ""
}

func mountDisk(*testing.T, string) (string, error) { return "", errors.ErrUnsupported }

func growDisk(*testing.T, string, string) {}

func resizeDisk(string, string) error { return nil }
