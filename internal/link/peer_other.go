//go:build !linux

package link

import (
	"errors"
	"net"
)

// peerUID is known on Linux only. Elsewhere nobody is root by the socket alone.
func peerUID(*net.UnixConn) (uid int, err error) { return 0, errors.ErrUnsupported }
