package accounts

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/internal/cli"
)

// edit repeats a change until no other change of rights came in between. The function reads
// the entry, and writes it back on condition that its tag is still the same.
func edit(change func() error) error {
	for {
		if err := change(); !errors.Is(err, client.ErrPreconditionFailed) {
			return err
		}
	}
}

// run returns the RunE of a command whose requests together have the usual timeout.
func run(sh *cli.Shell, f func(ctx context.Context, s *cli.Session, args []string) error) func(*cobra.Command, []string) error {
	return sh.Run(func(ctx context.Context, s *cli.Session, args []string) error {
		ctx, cancel := s.Limited(ctx)
		defer cancel()
		return f(ctx, s, args)
	})
}

// words joins names for a table cell.
func words(names []string) string {
	shown := make([]string, len(names))
	for i, n := range names {
		shown[i] = cli.Printable(n)
	}
	if len(shown) == 0 {
		return "-"
	}
	return strings.Join(shown, ", ")
}

// with returns the names with others, sorted; without leaves them out.
func with(names, others []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(slices.Concat(names, others))))
}

func without(names, others []string) []string {
	return slices.DeleteFunc(append([]string{}, names...), func(n string) bool { return slices.Contains(others, n) })
}
