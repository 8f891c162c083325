package sidebyside

import (
	"fmt"
	"os"
	"strings"
)

// step is a command or a request, with the recorded answer.
type step struct {
	section string
	number  int // within the section
	command string
	answer  string
}

func (s *step) name() string { return fmt.Sprintf("%s-%02d", s.section, s.number) }

// parse reads a script.
func parse(text string) (steps []step, err error) {
	section, number := "", 0
	for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "== "):
			section, number = strings.TrimPrefix(line, "== "), 0
		case strings.HasPrefix(line, "\t"):
			if len(steps) == 0 {
				return nil, fmt.Errorf("line %d: an answer without a command", i+1)
			}
			steps[len(steps)-1].answer += line[1:] + "\n"
		case section == "":
			return nil, fmt.Errorf("line %d: a command without a section", i+1)
		default:
			number++
			steps = append(steps, step{section: section, number: number, command: line})
		}
	}
	return steps, nil
}

// record writes a script again, with other answers.
func record(file, text string, answers []string) error {
	var out strings.Builder
	n := 0
	for line := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		if strings.HasPrefix(line, "\t") {
			continue
		}
		out.WriteString(line + "\n")
		if line == "" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, "== ") {
			continue
		}
		for a := range strings.Lines(answers[n]) {
			out.WriteString("\t" + a)
		}
		n++
	}
	return os.WriteFile(file, []byte(out.String()), 0o644)
}
