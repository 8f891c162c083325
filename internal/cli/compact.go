package cli

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
)

func compactCommand(sh *shell) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "compact REVISION",
		Short: "Discard history before a revision",
		Long: `Discard the history before a revision, which becomes the oldest one that can be read. Keys as they
are now are not affected. kvd does this by itself for history that is old enough ("kvd settings"
shows retention_millis and retention_revisions), so that this is rarely needed.

It cannot be undone. With -o value, it prints the oldest readable revision.`,
		Example: `  kvd compact 1200`,
		Args:    OneArgument("revision"),
	}
	cmd.RunE = sh.run(func(ctx context.Context, s *session, args []string) error {
		revision, err := strconv.ParseUint(args[0], 10, 63)
		if err != nil || revision == 0 {
			return usagef("%q is not a revision, which is a number from 1", args[0])
		}
		ctx, cancel := s.limited(ctx)
		defer cancel()
		oldest, err := s.Compact(ctx, revision)
		if err != nil {
			return err
		}
		switch s.formatOr(formatTable) {
		case formatJSON:
			return s.printJSON(map[string]any{"compact_revision": oldest})
		case formatValue:
			return s.println(fmt.Sprint(oldest))
		}
		return s.println(fmt.Sprintf("the oldest readable revision is %d", oldest))
	})
	return cmd
}
