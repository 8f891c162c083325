package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/internal/kvstore"
)

// snapshotCommand works on backup files, without a node and its directory.
func snapshotCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "snapshot", Short: "Check backups from GET /v1/snapshot", RunE: chooseSubcommand}
	cmd.AddCommand(&cobra.Command{
		Use:   "verify FILE",
		Short: "Verify a backup from its first byte to its last",
		Long: `Verify the checksums, counts and state hash of a backup. Exits 0 if it is intact, 3 if it is
not, and 1 if it cannot be read.`,
		Args: oneArgument("backup"),
		RunE: func(cmd *cobra.Command, args []string) error {
			info, size, err := verifySnapshot(args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(),
				"%s is intact\nsize        %s\nrevision    %d (history from %d)\nkeys        %s\nrecords     %s\nlog index   %d, term %d\nstate hash  %016x\n",
				args[0], humanize.IBytes(size), info.Revision, info.CompactRevision, humanize.Comma(int64(info.Keys)), humanize.Comma(int64(info.Records)),
				info.Position.Index, info.Position.Term, info.StateHash)
			return err
		},
	})
	return cmd
}

// verifySnapshot reads a backup to its end.
func verifySnapshot(name string) (info kvstore.BodyInfo, size uint64, err error) {
	f, err := os.Open(name)
	if err != nil {
		return info, 0, fmt.Errorf("verify backup: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if st, err := f.Stat(); err == nil { // a pipe has no size
		size = uint64(max(0, st.Size()))
	}
	info, err = kvstore.VerifyBody(f)
	if err == nil {
		return info, size, nil
	}
	err = fmt.Errorf("verify backup %s: %w", name, err)
	var unknown *kvstore.UnknownVersionError
	if errors.Is(err, kvstore.ErrBody) || errors.As(err, &unknown) {
		err = refusal{err}
	}
	return info, size, err
}
