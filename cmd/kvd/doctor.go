package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/node"
)

// doctorCommand judges a data directory offline, as a starting node would.
func doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor DIR",
		Short: "Check a data directory without changing it",
		Long: `Read a data directory as a starting node would, without changing anything. Exits 0 if a node
would start on it, 3 if a node would refuse it, and 1 if it cannot be read.`,
		Args: oneArgument("data directory"),
		RunE: func(cmd *cobra.Command, args []string) error {
			report, err := node.Examine(args[0])
			if err != nil {
				return fmt.Errorf("check data directory: %w", err)
			}
			if _, err := fmt.Fprint(cmd.OutOrStdout(), report); err != nil {
				return err
			}
			if report.Refused != nil {
				return refusal{report.Refused}
			}
			return nil
		},
	}
}

// isRefusal reports whether the error is a verdict against data, not a failure
// to read it.
func isRefusal(err error) bool {
	var (
		verdict   refusal
		directory *datadir.RefusedError
	)
	return errors.As(err, &verdict) || errors.As(err, &directory) || errors.Is(err, node.ErrRefused)
}
