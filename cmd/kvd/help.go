package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kvd-io/kvd/internal/cli"
	"github.com/kvd-io/kvd/internal/settings"
)

const (
	// helpColumns is the width of the help: two terminals fit side by side on
	// most screens, and a wider one is hard to read.
	helpColumns = 100
	// helpTextColumn is where the text about a flag or command begins.
	helpTextColumn = 34
)

// helpAll is the flag of the root command that shows rare settings too.
const helpAll = "help-all"

// setHelp replaces cobra's help for the command and its subcommands. cobra's
// is one flat list of flags, as wide as its longest text; with forty settings
// that hides the three that a newcomer needs.
func setHelp(root *cobra.Command) {
	root.Flags().Bool(helpAll, false, "show all flags, including rarely used ones")
	root.Flags().BoolP("version", "v", false, "print the version")
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) {
		_ = writeHelp(cmd, wantsAll(cmd)) // nobody is reading if this fails
	})
}

// wantsAll reports whether rare settings are to be shown.
func wantsAll(cmd *cobra.Command) bool {
	all, err := cmd.Root().Flags().GetBool(helpAll)
	return err == nil && all
}

// writeHelp writes the help of a command, with rare settings if all is true.
func writeHelp(cmd *cobra.Command, all bool) error {
	var h helpText
	if cmd.Long != "" {
		h.line(strings.TrimSpace(cmd.Long))
	} else {
		h.line(cmd.Short)
	}
	h.section("Usage", func() {
		if cmd.HasAvailableSubCommands() && cmd.HasParent() {
			h.line("  " + cmd.CommandPath() + " COMMAND [flags]")
			return
		}
		h.line("  " + cmd.UseLine())
		if cmd.HasAvailableSubCommands() {
			h.line("  " + cmd.CommandPath() + " COMMAND [flags]")
		}
	})
	if cmd.Example != "" {
		h.section("Examples", func() { h.line(strings.TrimRight(cmd.Example, "\n")) })
	}
	for _, g := range cmd.Groups() {
		h.commands(g.Title, cmd, g.ID)
	}
	rest := "Commands"
	if len(cmd.Groups()) > 0 {
		rest = "Commands for nodes and their data"
	}
	h.commands(rest, cmd, "")
	h.flags(cmd, all)
	_, err := io.WriteString(cmd.OutOrStdout(), h.String())
	return err
}

// commands lists the subcommands of a group; "" has those of none.
func (h *helpText) commands(title string, cmd *cobra.Command, group string) {
	var found []*cobra.Command
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() && sub.GroupID == group {
			found = append(found, sub)
		}
	}
	if len(found) == 0 {
		return
	}
	h.section(title, func() {
		for _, sub := range found {
			h.item(sub.Name(), sub.Short)
		}
	})
}

// flags lists the command's own flags and, for the root command, the settings
// by group.
func (h *helpText) flags(cmd *cobra.Command, all bool) {
	groups := settings.Groups()
	takesSettings := settings.TakenBy(cmd.Flags())
	grouped := make(map[string]bool)
	if takesSettings { // otherwise a flag may have the name of a setting, as --name of kvd member add
		for _, g := range groups {
			for _, name := range append(g.Common, g.Rare...) {
				grouped[name] = true
			}
		}
	}
	var own, shared []*pflag.Flag
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		switch {
		case grouped[f.Name]:
		case f.Hidden:
		case len(f.Annotations[cli.SectionAnnotation]) > 0:
			shared = append(shared, f)
		default:
			own = append(own, f)
		}
	})
	if takesSettings && !cmd.HasParent() {
		hidden := 0
		for _, g := range groups {
			names := g.Common
			if all {
				names = append(names, g.Rare...)
			} else {
				hidden += len(g.Rare)
			}
			h.section(g.Title, func() {
				for _, name := range names {
					h.flag(cmd.LocalFlags().Lookup(name))
				}
			})
		}
		h.section("Help", func() { h.flagList(own) })
		if hidden > 0 {
			h.line(fmt.Sprintf("\n%d rarely used flags are hidden; \"kvd --%s\" shows them.", hidden, helpAll))
		}
		return
	}
	h.section("Flags", func() { h.flagList(own) })
	if len(shared) > 0 {
		h.section(shared[0].Annotations[cli.SectionAnnotation][0], func() { h.flagList(shared) })
	}
	if takesSettings {
		h.line("\nAll settings of a node are flags of this command too; see \"kvd --" + helpAll + "\".")
	}
}

// helpText is a help being written.
type helpText struct{ strings.Builder }

func (h *helpText) line(text string) { h.WriteString(text + "\n") }

// section writes a title and what body writes under it.
func (h *helpText) section(title string, body func()) {
	h.line("\n" + title + ":")
	body()
}

func (h *helpText) flagList(flags []*pflag.Flag) {
	for _, f := range flags {
		h.flag(f)
	}
}

// zeroValues are defaults that say nothing: the text tells what happens without the flag.
var zeroValues = []string{"", "false", "0", "0s", "[]"}

// flag writes a flag. A value in brackets may be left out.
func (h *helpText) flag(f *pflag.Flag) {
	kind, text := pflag.UnquoteUsage(f)
	if f.Name == "help" {
		text = "show this help" // cobra says "help for" and the command
	}
	left := "    --" + f.Name
	if f.Shorthand != "" {
		left = "-" + f.Shorthand + ", --" + f.Name
	}
	switch {
	case kind == "":
	case f.NoOptDefVal != "":
		left += " [" + kind + "]"
	default:
		left += " " + kind
	}
	if shown := f.DefValue; !slices.Contains(zeroValues, shown) {
		text += " (default " + strings.Trim(shown, "[]") + ")"
	}
	h.item(left, text)
}

// item writes a term and its text, wrapped, in two columns. A term too long
// for its column has a line of its own.
func (h *helpText) item(term, text string) {
	column := "  " + term
	if len(column)+2 > helpTextColumn {
		h.line(column)
		column = ""
	}
	for _, line := range wrap(text, helpColumns-helpTextColumn) {
		h.line(fmt.Sprintf("%-*s%s", helpTextColumn, column, line))
		column = ""
	}
}

// wrap breaks a text into lines of at most the given width. A word that is
// longer has a line of its own.
func wrap(text string, width int) (lines []string) {
	line := ""
	for word := range strings.FieldsSeq(text) {
		switch {
		case line == "":
			line = word
		case len(line)+1+len(word) > width:
			lines = append(lines, line)
			line = word
		default:
			line += " " + word
		}
	}
	return append(lines, line)
}
