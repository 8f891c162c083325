package logsink

import (
	"errors"
	"io"
	"os"
	"syscall"
	"time"
)

// IsTerminal reports whether a person may be at the other end of the file. The
// null device is a character device like a terminal, but nobody is there:
// without that exception "kvd recover </dev/null" would ask it and take the
// missing answer for a no, instead of pointing at --yes.
func IsTerminal(f any) bool {
	file, ok := f.(*os.File)
	if !ok || file == nil {
		return false
	}
	st, err := file.Stat()
	if err != nil || st.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(st, null)
}

// HungUp reports whether the output was a terminal that is gone: closed, or its
// connection lost. Such a terminal still looks like one, but fails each write. A write
// that hangs, because somebody stopped the output, is no answer within the limit; its
// goroutine ends with the terminal.
func HungUp(out io.Writer, limit time.Duration) bool {
	if !IsTerminal(out) {
		return false
	}
	failed := make(chan error, 1)
	go func() {
		_, err := out.Write(nil)
		failed <- err
	}()
	select {
	case err := <-failed:
		return errors.Is(err, syscall.EIO)
	case <-time.After(limit):
		return false
	}
}
