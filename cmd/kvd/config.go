package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/kvd-io/kvd/internal/settings"
)

// configCommand examines the settings without starting a node. Its commands take
// the flags of a node, so that a command line can be tried unchanged.
func configCommand(e environment) *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Examine the settings without starting a node", RunE: chooseSubcommand}
	cmd.AddCommand(configShowCommand(e), configCheckCommand(e))
	return cmd
}

// configShowCommand prints all settings. It masks secrets, so that its output can
// be pasted into a bug report.
func configShowCommand(e environment) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Print each setting with its value and its origin",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := settings.Load(cmd.Flags(), e.environ)
			if err != nil {
				return usageError{err}
			}
			return printSettings(cmd, s, output)
		},
	}
	settings.AddFlags(cmd.Flags())
	cmd.Flags().StringVarP(&output, "output", "o", "text", "print as `FORMAT`: text, json, or yaml")
	return cmd
}

// printSettings writes the settings in one of three formats. Notes about
// settings without effect are comments in the text, and absent from the others:
// those are for programs, which compare values.
func printSettings(cmd *cobra.Command, s *settings.Settings, output string) error {
	out := cmd.OutOrStdout()
	switch output {
	case "json":
		return json.NewEncoder(out).Encode(s.All())
	case "yaml":
		return yaml.NewEncoder(out).Encode(s.All())
	case "text":
	default:
		return usageError{fmt.Errorf("--output is %q, but must be text, json, or yaml", output)}
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, v := range s.All() {
		fmt.Fprintf(w, "%s\t%s\t%s\n", v.Name, v.Value, v.Origin)
	}
	for _, note := range s.Notes {
		fmt.Fprintf(w, "# %s\n", note)
	}
	return w.Flush()
}

// configCheckCommand validates without starting a node, for scripts that replace
// a configuration file.
func configCheckCommand(e environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Validate the settings; exits 0 if they are valid and 2 if not",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := settings.Load(cmd.Flags(), e.environ)
			if err != nil {
				return usageError{err}
			}
			if err := checkStart(s); err != nil {
				return err
			}
			for _, note := range s.Notes {
				fmt.Fprintln(cmd.OutOrStdout(), note)
			}
			fmt.Fprintln(cmd.OutOrStdout(), "the settings are valid")
			return nil
		},
	}
	settings.AddFlags(cmd.Flags())
	return cmd
}
