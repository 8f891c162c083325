package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
)

// maxValueBytes is the greatest value limit that a cluster can have. More is not
// even read.
const maxValueBytes = 64 << 20

// value returns the value that an argument stands for; none means standard input.
func (s *session) value(args []string) ([]byte, error) {
	if len(args) == 0 || args[0] == "-" {
		return s.input("the value")
	}
	name, isFile := strings.CutPrefix(args[0], "@")
	if !isFile {
		return []byte(args[0]), nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, usagef("%w; a value that begins with @ names a file, and standard input takes any value", err)
	}
	defer f.Close()
	return readValue(f, name)
}

// input reads standard input, and tells a person that it does.
func (s *session) input(what string) ([]byte, error) {
	if f, ok := s.env.Stdin.(*os.File); ok && isTerminal(f) {
		s.note("type %s, and end it with Ctrl-D", what)
	}
	return readValue(s.env.Stdin, "standard input")
}

func readValue(r io.Reader, name string) ([]byte, error) {
	value, err := io.ReadAll(io.LimitReader(r, maxValueBytes+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", name, err)
	case len(value) > maxValueBytes:
		return nil, usagef("%s has more than %d MiB, the most that a value can have", name, maxValueBytes>>20)
	}
	return value, nil
}
