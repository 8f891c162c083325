package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/internal/kvstore"
)

func snapshotCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Work on backups as GET /v1/snapshot gives them",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("kvd snapshot needs a subcommand: verify")}
			}
			return usageError{fmt.Errorf("%q is no subcommand of kvd snapshot; there is: verify", args[0])}
		},
		RunE: func(*cobra.Command, []string) error { return nil }, // Args has the last word
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "verify FILE",
		Short: "Check a backup from its first byte to its last",
		Long: `Reads a backup and checks its checksums, its counts and its state hash. Exits 0
when it is whole, 3 when it is not, 1 when it cannot be read.`,
		Args: oneArgument("backup"),
		RunE: func(cmd *cobra.Command, args []string) error {
			info, err := verifySnapshot(args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is whole\nrevision    %d (history from %d)\nkeys        %d\nrecords     %d\nlog index   %d, term %d\nstate hash  %016x\n",
				args[0], info.Revision, info.CompactRevision, info.Keys, info.Records, info.Position.Index, info.Position.Term, info.StateHash)
			return err
		},
	})
	return cmd
}

func verifySnapshot(name string) (kvstore.BodyInfo, error) {
	f, err := os.Open(name)
	if err != nil {
		return kvstore.BodyInfo{}, fmt.Errorf("verify the backup: %w", err)
	}
	info, err := kvstore.VerifyBody(f)
	var unknown *kvstore.UnknownVersionError
	switch {
	case errors.Is(err, kvstore.ErrBody), errors.As(err, &unknown):
		err = refusal{fmt.Errorf("verify %s: %w", name, err)}
	case err != nil:
		err = fmt.Errorf("verify %s: %w", name, err)
	}
	return info, errors.Join(err, f.Close())
}
