package link

import (
	"errors"
	"net"
	"syscall"
)

// peerUID returns the user of the process at the other end, as of when it connected.
func peerUID(c *net.UnixConn) (uid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var wrong error
	err = raw.Control(func(fd uintptr) {
		var cred *syscall.Ucred
		if cred, wrong = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); wrong == nil {
			uid = int(cred.Uid)
		}
	})
	return uid, errors.Join(err, wrong)
}
