package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"go.uber.org/zap/zapcore"

	"github.com/kvd-io/kvd/internal/logsink"
	"github.com/kvd-io/kvd/internal/node"
)

// recoverCommand turns a directory into a cluster of one member; see
// node.PrepareRecovery.
func recoverCommand(e environment) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "recover DIR",
		Short: "Turn one member's directory into a new cluster after quorum loss",
		Long: `Use this if a majority of a cluster's members is permanently lost. It turns the data directory
DIR of a stopped node into a cluster of one member with a new cluster id and all data that this
member has; then new members can be added. It explains the consequences and asks first. The old
files are kept in a subdirectory.

Choose the member whose log is the longest: compare "kvd doctor DIR" for all that are left.
Acknowledged writes that it never received are lost.

Exits 0 on success, 1 on failure or if not confirmed, 2 if there is no terminal to ask on and
--yes is not given, and 3 if the directory cannot be used. After a failure or a crash, either the
directory is unchanged, or running the command again completes the recovery.`,
		Args: oneArgument("data directory"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes && !logsink.IsTerminal(e.stdin) {
				return usageError{errors.New("kvd recover asks for confirmation, but standard input is not a terminal; to proceed without confirmation, add --yes")}
			}
			ask := func(id uint64) error { return confirm(e.stdin, cmd.OutOrStdout(), id) }
			if yes {
				ask = func(uint64) error { return nil }
			}
			return recoverDirectory(cmd.OutOrStdout(), e.stderr, args[0], ask)
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "proceed without asking")
	return cmd
}

// recoverDirectory prepares the recovery, explains it, asks, and carries it out.
// Nothing changes before the answer, unless an interrupted recovery of the same
// directory has passed its point of no return: that one is completed.
func recoverDirectory(out, stderr io.Writer, path string, ask func(id uint64) error) (err error) {
	log, sink := logsink.New(stderr, logsink.NewLevel(zapcore.WarnLevel), logsink.FormatConsole)
	defer sink.Close()
	r, finished, err := node.PrepareRecovery(log, path)
	if err != nil {
		return err
	}
	if finished != "" { // it was past its point of no return: there is nothing to ask
		_, err = fmt.Fprintf(out, "Completed an interrupted recovery of %s. The old files are in %s.\n", path, finished)
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

// consequences describes what the recovery will do and what is lost.
func consequences(r *node.Recovery) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("%s belongs to member %d (%s) of cluster %016x.", r.Dir, r.Member.ID, r.Member.Name, r.OldCluster)
	line("Its log ends at entry %d, term %d. The store is then at revision %d, with %s keys.", r.Index, r.Term, r.Revision, humanize.Comma(int64(r.Keys)))
	if r.TornTail != "" {
		line("The last write to the log did not reach the disk completely and is cut off: %s.", r.TornTail)
	}
	line("")
	line("It will become the only member of a new cluster, %016x:", r.NewCluster)
	line("  - Acknowledged writes that this member never received are LOST. This member cannot know how many:")
	line("    compare the directories of the other members (kvd doctor DIR) and use the one whose log is longest.")
	if r.Stale {
		line("  - The cluster has refused this directory as an older copy. A member that is left has more than it.")
	}
	// A damaged log must not make the difference wrap.
	if n := r.Index - min(r.Commit, r.Index); n > 0 {
		line("  - The last %d entries are not known to be committed. They are kept: some may have been acknowledged,", n)
		line("    and no client was told that the others failed.")
	}
	line("  - Revisions continue from %d. A client that has seen a higher one has seen a write that is lost.", r.Revision)
	if r.Member.Learner {
		line("  - This member was a learner; it will be a voter.")
	}
	if len(r.Lost) > 0 {
		line("  - These members are removed, and their ids never return:")
	}
	for _, m := range r.Lost {
		line("      %d (%s) %s", m.ID, m.Name, strings.Join(m.PeerURLs, ", "))
	}
	if len(r.Lost) > 0 {
		line("    NEVER start them again with their old data: if enough of them form a quorum, they continue as")
		line("    the old cluster next to the new one. Erase their directories.")
	}
	line("")
	line("The old files will be kept in %s.", r.Backup)
	return b.String()
}

// nextSteps describes what to do after the recovery.
func nextSteps(r *node.Recovery) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Recovered: %s is now a cluster of one member, %016x, at revision %d.\n", r.Dir, r.NewCluster, r.Revision)
	fmt.Fprintf(&b, "Start it with its previous settings. Then start new members with empty directories:\n  kvd --join %s --data-dir NEW ...\n",
		strings.Join(r.Member.PeerURLs, ","))
	fmt.Fprintf(&b, "Once the data is safe, remove %s.\n", r.Backup)
	return b.String()
}

// errNotConfirmed ends a recovery that a person did not confirm.
var errNotConfirmed = errors.New("not confirmed, nothing was changed")

// confirm asks a person to type the member's id. Unlike "yes", it cannot be
// typed out of habit or answered by a script for another member.
func confirm(in io.Reader, out io.Writer, id uint64) error {
	if _, err := fmt.Fprintf(out, "Type the id of the member, %d, to proceed: ", id); err != nil {
		return err
	}
	answer, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: read answer: %w", errNotConfirmed, err)
	}
	if answer = strings.TrimSpace(answer); answer != strconv.FormatUint(id, 10) {
		return fmt.Errorf("%w: the answer was %.40q, not %d", errNotConfirmed, answer, id)
	}
	return nil
}
