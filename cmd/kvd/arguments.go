package main

import "github.com/kvd-io/kvd/internal/cli"

// The checks of arguments are those of package cli, so that all commands report
// mistakes alike.
var (
	noArguments      = cli.NoArguments
	oneArgument      = cli.OneArgument
	chooseSubcommand = cli.ChooseSubcommand
)
