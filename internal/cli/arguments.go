package cli

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
)

// UsageError is a mistake in the command line or the environment.
type UsageError struct{ err error }

// Error describes the mistake.
func (e UsageError) Error() string { return e.err.Error() }

// Unwrap returns what is behind the mistake.
func (e UsageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return UsageError{fmt.Errorf(format, args...)} }

// NoArguments is the check of a command without arguments. An argument of a
// command with subcommands was probably meant as one of them.
func NoArguments(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return nil
	case cmd.HasAvailableSubCommands():
		return unknownCommand(cmd, args[0])
	}
	return usagef("%s takes no arguments, but got %q", cmd.CommandPath(), args[0])
}

// OneArgument is the check of a command that works on one thing.
func OneArgument(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 {
			return nil
		}
		return usagef("%s takes one argument, the %s, but got %d", cmd.CommandPath(), what, len(args))
	}
}

// between is the check of a command with a varying number of arguments. Its use
// line says what they are.
func between(low, high int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if low <= len(args) && len(args) <= high {
			return nil
		}
		number := fmt.Sprint(low)
		switch {
		case low == 0:
			number = fmt.Sprint("at most ", high)
		case low+1 == high:
			number = fmt.Sprintf("%d or %d", low, high)
		case low < high:
			number = fmt.Sprintf("%d to %d", low, high)
		}
		return usagef("%s takes %s argument%s, but got %d: %s", cmd.CommandPath(), number, plural(high), len(args), cmd.UseLine())
	}
}

func plural(n int) string {
	if n == 1 {
		return ""
	}
	return "s"
}

// ChooseSubcommand is RunE of a command that only groups others.
func ChooseSubcommand(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return unknownCommand(cmd, args[0])
	}
	return usagef("%s needs a subcommand: %s", cmd.CommandPath(), strings.Join(subcommands(cmd), ", "))
}

// unknownCommand is the error about a subcommand that does not exist. It
// proposes the one that was probably meant.
func unknownCommand(cmd *cobra.Command, name string) error {
	cmd.SuggestionsMinimumDistance = 2 // of typing errors; cobra sets it only in its own check
	known := subcommands(cmd)
	remedy := "the commands are " + strings.Join(known, ", ")
	if len(known) == 1 {
		remedy = "the only command is " + known[0]
	}
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		remedy = fmt.Sprintf("did you mean %s?", strings.Join(near, " or "))
	}
	return usagef("unknown command %q for %q; %s", name, cmd.CommandPath(), remedy)
}

// subcommands returns the names that a user can give, without hidden ones.
func subcommands(cmd *cobra.Command) (names []string) {
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	return names
}

// exclusiveAnnotation has the sets of flags of which a command takes one at most.
const exclusiveAnnotation = "kvd_exclusive"

// exclusive says that at most one of the flags may be given. cobra's own check has
// neither a remedy nor the exit code of a usage error.
func exclusive(cmd *cobra.Command, flags ...string) {
	if cmd.Annotations == nil {
		cmd.Annotations = make(map[string]string)
	}
	cmd.Annotations[exclusiveAnnotation] += strings.Join(flags, " ") + "\n"
}

// checkExclusive refuses flags that contradict each other.
func checkExclusive(cmd *cobra.Command) error {
	for set := range strings.Lines(cmd.Annotations[exclusiveAnnotation]) {
		given := ""
		for flag := range strings.FieldsSeq(set) {
			switch {
			case !cmd.Flags().Changed(flag):
			case given != "":
				return usagef("--%s and --%s contradict each other; give only one of them", given, flag)
			default:
				given = flag
			}
		}
	}
	return nil
}

var (
	negative = regexp.MustCompile(`unknown shorthand flag: '[0-9]' in (-[0-9]+)`)
	invalid  = regexp.MustCompile(`^invalid argument "(.*)" for "(.*)" flag: (strconv|time)`)
)

// explainFlag puts the errors of the flag library into words, as far as it does not do
// so itself.
func explainFlag(cmd *cobra.Command, err error) error {
	if m := negative.FindStringSubmatch(err.Error()); m != nil {
		return usagef("%s looks like a flag; write a negative number after --, as in: %s KEY -- %s", m[1], cmd.CommandPath(), m[1])
	}
	if m := invalid.FindStringSubmatch(err.Error()); m != nil {
		form := "a whole number that fits"
		if m[3] == "time" {
			form = "a duration (for example, 30s)"
		}
		return usagef("%s: %q is not %s", m[2], m[1], form)
	}
	return cmd.Root().FlagErrorFunc()(cmd, err)
}
