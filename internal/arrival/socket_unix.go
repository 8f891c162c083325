//go:build unix

package arrival

import (
	"errors"
	"os"
	"syscall"
)

// canRead says that sockets can be read here without package net.
const canRead = true

// readSocket reads what is there. The error is syscall.EAGAIN if nothing is.
func readSocket(fd uintptr, p []byte) (int, error) {
	for {
		n, err := syscall.Read(int(fd), p)
		switch {
		case err == nil:
			return n, nil
		case errors.Is(err, syscall.EINTR):
		case err == syscall.EAGAIN:
			return 0, syscall.EAGAIN
		default:
			return 0, os.NewSyscallError("read", err)
		}
	}
}
