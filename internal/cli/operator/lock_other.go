//go:build !linux

package operator

import "syscall"

// commandAttributes puts a command into a process group of its own if wanted. Only Linux
// can end it if this process dies.
func commandAttributes(group bool) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: group}
}
