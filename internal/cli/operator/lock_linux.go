package operator

import "syscall"

// commandAttributes puts a command into a process group of its own if wanted, and ends it
// if this process dies before it: nobody would notice that the lock is lost.
func commandAttributes(group bool) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: group, Pdeathsig: syscall.SIGTERM}
}
