package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// noArguments is the check of a command without arguments. An argument of the
// root command was probably meant as a subcommand.
func noArguments(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return nil
	case cmd.HasAvailableSubCommands():
		return unknownCommand(cmd, args[0])
	}
	return usageError{fmt.Errorf("%s takes no arguments, but got %q", cmd.CommandPath(), args[0])}
}

// oneArgument is the check of a command that works on one file.
func oneArgument(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 {
			return nil
		}
		return usageError{fmt.Errorf("%s takes one argument, the %s, but got %d", cmd.CommandPath(), what, len(args))}
	}
}

// chooseSubcommand is RunE of a command that only groups others.
func chooseSubcommand(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return unknownCommand(cmd, args[0])
	}
	return usageError{fmt.Errorf("%s needs a subcommand: %s", cmd.CommandPath(), strings.Join(subcommands(cmd), ", "))}
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
	return usageError{fmt.Errorf("unknown command %q for %q; %s", name, cmd.CommandPath(), remedy)}
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
