package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"go.uber.org/zap/zapcore"

	"github.com/kvd-io/kvd/internal/logsink"
	"github.com/kvd-io/kvd/internal/node"
)

func recoverCommand(e environment) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "recover DIR",
		Short: "Make a cluster of one member of what a lost quorum left",
		Long: `For the case that most members of a cluster are lost for good. Of the data
directory DIR, whose node must have stopped, it makes a cluster of one member,
under a new cluster id, with all that this member had; new members can be added
then. It shows what that means and asks first. The old files stay in a
sub-directory.

Take the member whose log reaches furthest: compare "kvd doctor DIR" of those
that are left. Acknowledged writes that it never got are lost.

Exits 0 when done, 1 when it failed or was not wanted, 2 without a terminal to
ask on and without --yes, 3 when the directory can not be used. After a failure
or a crash the directory is as it was, or running it again finishes it.`,
		Args: oneArgument("data directory"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes && !logsink.IsTerminal(e.stdin) {
				return usageError{errors.New("kvd recover asks before it does anything, and there is no terminal to ask on; say --yes where no person is there to answer")}
			}
			ask := func(id uint64) error { return confirm(e.stdin, cmd.OutOrStdout(), id) }
			if yes {
				ask = func(uint64) error { return nil }
			}
			return recoverDirectory(cmd.OutOrStdout(), e.stderr, args[0], ask)
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do it without asking")
	return cmd
}

func recoverDirectory(out, stderr io.Writer, path string, ask func(id uint64) error) (err error) {
	log, sink := logsink.New(stderr, logsink.NewLevel(zapcore.WarnLevel), logsink.FormatConsole)
	defer sink.Close()
	r, finished, err := node.PrepareRecovery(log, path)
	if err != nil {
		return err
	}
	if finished != "" {
		_, err = fmt.Fprintf(out, "An interrupted recovery of %s is finished. The old files are in %s.\n", path, finished)
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if _, err := io.WriteString(out, consequences(r)); err != nil {
		return errors.Join(err, r.Abandon())
	}
	if err := ask(r.Member.ID); err != nil {
		return errors.Join(err, r.Abandon())
	}
	if err := r.Complete(); err != nil {
		return err
	}
	_, err = io.WriteString(out, nextSteps(r))
	return err
}

// consequences says what the recovery means.
func consequences(r *node.Recovery) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("%s is of member %d (%s) of cluster %016x.", r.Dir, r.Member.ID, r.Member.Name, r.OldCluster)
	line("Its log ends at entry %d, term %d; the store is then at revision %d, with %d keys.", r.Index, r.Term, r.Revision, r.Keys)
	if r.TornTail != "" {
		line("The last write to the log did not reach the disk whole, and is cut off: %s.", r.TornTail)
	}
	line("")
	line("It becomes the only member of a new cluster, %016x:", r.NewCluster)
	line("  - Writes that were acknowledged and that this member never got are LOST. Nobody can say here how many:")
	line("    look at the other members' directories (kvd doctor DIR), and take the one whose log ends furthest.")
	if n := r.Index - min(r.Commit, r.Index); n > 0 {
		line("  - The last %d entries were not known here to be committed. They are kept: some may have been", n)
		line("    acknowledged, and of the others no client was told that they had failed.")
	}
	line("  - Revisions go on from %d. A client that saw a higher one saw a write that is lost.", r.Revision)
	if r.Member.Learner {
		line("  - This member did not vote so far; it will.")
	}
	if len(r.Lost) > 0 {
		line("  - These members are gone, and their ids never return:")
	}
	for _, m := range r.Lost {
		line("      %d (%s) %s", m.ID, m.Name, strings.Join(m.PeerURLs, ", "))
	}
	if len(r.Lost) > 0 {
		line("    They must NEVER be started again with their old data: those of them that still make a quorum")
		line("    would go on as the old cluster, beside this one. Wipe their directories.")
	}
	line("")
	line("The old files are kept in %s.", r.Backup)
	return b.String()
}

// nextSteps says how to go on.
func nextSteps(r *node.Recovery) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Done: %s is a cluster of one member, %016x, at revision %d.\n", r.Dir, r.NewCluster, r.Revision)
	fmt.Fprintf(&b, "Start it with the settings that it had. Then start new members with empty directories and\n  kvd --join %s --data-dir NEW ...\n",
		strings.Join(r.Member.PeerURLs, ","))
	fmt.Fprintf(&b, "Once the data is safe, remove %s.\n", r.Backup)
	return b.String()
}

// errNotWanted is the end of a recovery that was not confirmed.
var errNotWanted = errors.New("nothing was changed")

// confirm has a person type the member's id, which cannot happen in passing.
func confirm(in io.Reader, out io.Writer, id uint64) error {
	if _, err := fmt.Fprintf(out, "Type the member's id, %d, to do this: ", id); err != nil {
		return err
	}
	answer, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: read the answer: %w", errNotWanted, err)
	}
	if answer = strings.TrimSpace(answer); answer != strconv.FormatUint(id, 10) {
		return fmt.Errorf("%w: the answer was %.40q, not %d", errNotWanted, answer, id)
	}
	return nil
}
