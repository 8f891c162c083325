package operator

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/internal/cli"
)

// locksCommand is a command of its own: in kvd lock NAME, any word can be a name.
func locksCommand(sh *cli.Shell) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "locks",
		Short: "List the locks that are held, and by whom",
		Long: `List the locks that are held: the token and the lease of the holder, how many wait, and the text of
the holder. With -o value, it prints the names.`,
		Args: cli.NoArguments,
	}
	cmd.RunE = sh.Run(func(ctx context.Context, s *cli.Session, _ []string) error {
		return cli.PrintEach(ctx, s, s.Locks, cli.Listing[*client.LockInfo]{
			Headings: []string{"LOCK", "TOKEN", "LEASE", "WAITING", "HOLDER"},
			Document: lockDocument,
			Value:    func(l *client.LockInfo) string { return l.Name },
			Rows: func(l *client.LockInfo) [][]string {
				return [][]string{{cli.Printable(l.Name), number(l.Holder.Token), number(uint64(l.Holder.Lease)), number(uint64(l.Waiting)), cli.Printable(orDash(l.Holder.Text))}}
			},
		})
	})
	return cmd
}

// lockDocument is a lock as the HTTP interface has it.
func lockDocument(l *client.LockInfo) any {
	holder := map[string]any{"token": l.Holder.Token, "lease": cli.LeaseID(l.Holder.Lease)}
	cli.ByteField(holder, "text", l.Holder.Text)
	doc := map[string]any{"holder": holder, "waiting": l.Waiting}
	cli.ByteField(doc, "name", l.Name)
	return doc
}
