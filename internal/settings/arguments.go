package settings

import "strings"

// NormaliseArguments rewrites the argument forms that Go's flag package and
// raftexample accept into those that pflag understands: a single dash before a long
// name (-id 1), and a value after --join or --listen-etcd without an equals sign. pflag takes -id
// for the short flags i and d, and never reads a value after a flag that can do
// without one.
func NormaliseArguments(args []string) []string {
	out := make([]string, 0, len(args))
	for i := 0; i < len(args); i++ {
		name, hasValue := flagName(args[i])
		bare, ok := bareValue(name)
		switch {
		case args[i] == "--":
			return append(out, args[i:]...)
		case !ok:
			out = append(out, args[i])
			continue
		}
		arg := "--" + strings.TrimLeft(args[i], "-")
		next := i+1 < len(args)
		switch {
		case hasValue || !next:
			out = append(out, arg)
		case bare == "":
			i++ // the value, even if it looks like a flag
			out = append(out, arg, args[i])
		case takes(name, args[i+1]):
			i++
			out = append(out, arg+"="+args[i])
		default:
			out = append(out, arg)
		}
	}
	return out
}

// bareValue returns what the flag's name alone stands for ("" if it needs a
// value), and whether there is such a flag.
func bareValue(name string) (bare string, ok bool) {
	if row := settingNamed(name); row != nil {
		return row.bare, true
	}
	if a := aliasNamed(name); a != nil {
		return a.bare, true
	}
	if i := ignoredNamed(name); i != nil {
		return i.bare, true
	}
	if refusedNamed(name) != nil {
		return "true", true
	}
	return "", false
}

// takes reports whether the argument after the bare flag is its value. The
// value of a switch is recognized by its form, since a subcommand may follow. A
// refused name may or may not have taken a value in etcd; any is swallowed, so
// that the error is about the flag and not about a stray argument.
func takes(name, next string) bool {
	switch {
	case name == "join" || refusedNamed(name) != nil:
		return !strings.HasPrefix(next, "-")
	case name == "listen-etcd":
		return strings.Contains(next, "://") // subcommands are words
	}
	_, err := parseSwitch(next)
	return err == nil
}

// flagName returns the name in "--name", "-name" or "--name=value", or "" if the
// argument is not a flag.
func flagName(arg string) (name string, hasValue bool) {
	if !strings.HasPrefix(arg, "-") {
		return "", false
	}
	name, _, hasValue = strings.Cut(arg, "=")
	return strings.TrimPrefix(strings.TrimPrefix(name, "-"), "-"), hasValue
}
