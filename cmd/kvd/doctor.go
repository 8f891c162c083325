package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/node"
)

// doctorCommand says offline what a starting node would say about a data
// directory.
func doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor DIR",
		Short: "Judge a data directory without changing it",
		Long: `Reads a data directory as a starting node would, and changes nothing. Exits 0
when a node would start on it, 3 when it would refuse to, 1 when the directory
cannot be read.`,
		Args: oneArgument("data directory"),
		RunE: func(cmd *cobra.Command, args []string) error {
			report, err := datadir.Examine(args[0])
			if err != nil {
				return fmt.Errorf("examine the directory: %w", err)
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

// isRefusal reports whether the error is a verdict against data, rather than a
// failure.
func isRefusal(err error) bool {
	var (
		verdict   refusal
		directory *datadir.RefusedError
	)
	return errors.As(err, &verdict) || errors.As(err, &directory) || errors.Is(err, node.ErrRefused)
}
