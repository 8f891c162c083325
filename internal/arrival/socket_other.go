//go:build !unix

package arrival

import "syscall"

const canRead = false

func readSocket(uintptr, []byte) (int, error) { return 0, syscall.EINVAL }
