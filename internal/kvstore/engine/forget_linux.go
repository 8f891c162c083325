package engine

import "golang.org/x/sys/unix"

// forgetPages drops a file from the page cache, so that the next read goes to the disk. The
// file is only read, so its pages are clean. After an error, the cache may still answer.
func forgetPages(fd uintptr) { _ = unix.Fadvise(int(fd), 0, 0, unix.FADV_DONTNEED) }
