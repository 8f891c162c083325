package logsink

import "os"

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
