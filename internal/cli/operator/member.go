package operator

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/internal/cli"
)

// memberCommand groups the commands for the membership.
func memberCommand(sh *cli.Shell) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "member",
		Short: "List, add, remove, promote, and move members",
		Example: `  kvd member list
  kvd member add http://10.0.0.4:12379 --name n4 --wait
  kvd member remove 3`,
	}
	cmd.AddCommand(memberListCommand(sh), memberAddCommand(sh), memberRemoveCommand(sh), memberPromoteCommand(sh), memberUpdateCommand(sh))
	return cmd
}

func memberListCommand(sh *cli.Shell) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the members",
		Long: `List the members, and whether the node that answers reaches them. Only the leader knows how far
others are behind. With -o value, it prints the ids.`,
		Args: cli.NoArguments,
	}
	cmd.RunE = sh.Run(func(ctx context.Context, s *cli.Session, _ []string) error {
		ctx, cancel := s.Limited(ctx)
		defer cancel()
		members, err := s.Members(ctx)
		if err != nil {
			return err
		}
		return printMembers(s, members)
	})
	return cmd
}

func printMembers(s *cli.Session, members []client.Member) error {
	var rows [][]string
	for i := range members {
		m := &members[i]
		switch s.FormatOr(cli.Table) {
		case cli.JSON:
			if err := s.PrintJSON(m); err != nil {
				return err
			}
		case cli.Value:
			if err := s.Println(strconv.FormatUint(m.ID, 10)); err != nil {
				return err
			}
		default:
			rows = append(rows, memberRow(s, m))
		}
	}
	if rows == nil {
		return nil
	}
	return s.PrintTable([]string{"ID", "NAME", "ROLE", "REACHED", "BEHIND", "PEER URLS", "CLIENT URLS"}, rows)
}

func memberRow(s *cli.Session, m *client.Member) []string {
	reached, behind := s.Color(text.FgGreen, "yes"), "-"
	if !m.Reachable {
		reached = s.Color(text.FgRed, "no")
	}
	if m.Behind != nil {
		behind = strconv.FormatUint(*m.Behind, 10)
	}
	return []string{strconv.FormatUint(m.ID, 10), cli.Printable(m.Name), m.Role, reached, behind, strings.Join(m.PeerURLs, ","), strings.Join(m.ClientURLs, ",")}
}

func memberAddCommand(sh *cli.Shell) *cobra.Command {
	var m client.NewMember
	var wait bool
	cmd := &cobra.Command{
		Use:   "add PEER-URL...",
		Short: "Add a member, and print the command that starts it",
		Long: `Add a member to the cluster, and print the command that starts it. It begins as a learner, which
does not vote, and becomes a voter once it has caught up; --learner keeps it a learner.

With --wait, the command ends when the new member is a voter, or with --learner when it has caught
up. Meanwhile it has to be started: do so elsewhere. On a terminal, a bar shows how far it is. An
interrupt ends only the waiting.

With -o value, it prints the id of the new member.`,
		Example: `  kvd member add http://10.0.0.4:12379
  kvd member add http://10.0.0.4:12379 --name n4 --wait`,
		Args: cli.Between(1, 8),
	}
	f := cmd.Flags()
	f.Uint64Var(&m.ID, "id", 0, "the `ID` of the new member; by default the cluster chooses one that was never used")
	f.StringVar(&m.Name, "name", "", "the `NAME` of the new member")
	f.StringSliceVar(&m.ClientURLs, "client-urls", nil, "the `URLS` at which it will serve clients; it announces them itself when it starts")
	f.BoolVar(&m.Learner, "learner", false, "keep it a learner")
	f.BoolVar(&wait, "wait", false, "wait until it has caught up")
	cmd.RunE = sh.Run(func(ctx context.Context, s *cli.Session, args []string) error {
		m.PeerURLs = args
		limited, cancel := s.Limited(ctx)
		defer cancel()
		added, err := s.AddMember(limited, m)
		if err != nil {
			return err
		}
		if err := printAdded(s, added); err != nil || !wait {
			return err
		}
		return awaitMember(ctx, s, added.ID, m.Learner)
	})
	return cmd
}

func printAdded(s *cli.Session, m *client.AddedMember) error {
	switch s.FormatOr(cli.Table) {
	case cli.JSON:
		return s.PrintJSON(m)
	case cli.Value:
		return s.Println(strconv.FormatUint(m.ID, 10))
	}
	return s.Println(fmt.Sprintf("added member %d as a learner; start it with:\n%s", m.ID, m.Command))
}

// waitInterval is how often the progress of a new member is looked at.
const waitInterval = 200 * time.Millisecond

// errMemberGone ends the wait for a member that was removed meanwhile.
var errMemberGone = cli.Failf(cli.ExitNotFound, "the member was removed while it was waited for")

// awaitMember waits until a new member is a voter, or a learner that has caught up.
// While no node answers, it goes on waiting: the change was made.
func awaitMember(ctx context.Context, s *cli.Session, id uint64, learner bool) error {
	_, _, stderr := s.Streams()
	bar := cli.NewBar(stderr, -1, fmt.Sprintf("member %d catches up", id), "entries")
	defer bar.Done()
	for {
		limited, cancel := s.Limited(ctx)
		done, err := memberIsReady(limited, s, id, learner, bar)
		cancel()
		switch {
		case errors.Is(err, errMemberGone):
			return err
		case done && err == nil:
			bar.Done()
			s.Note("member %d has caught up", id)
			return nil
		}
		if pause(ctx, waitInterval) != nil {
			return cli.Failf(cli.ExitFailed, "interrupted; member %d was added, and catches up by itself once it runs", id)
		}
	}
}

// memberIsReady shows how far a member is, and reports whether it is ready.
func memberIsReady(ctx context.Context, s *cli.Session, id uint64, learner bool, bar *cli.Bar) (bool, error) {
	members, err := s.Members(ctx)
	if err != nil {
		return false, err
	}
	var voter, found bool
	for i := range members {
		if members[i].ID == id {
			found, voter = true, !members[i].Learner
		}
	}
	if !found {
		return false, errMemberGone
	}
	cluster, err := s.Cluster(ctx)
	if err != nil {
		return false, err
	}
	applied, commit := progressOf(cluster, id)
	bar.Set(int64(applied), int64(max(commit, applied)))
	return voter || learner && commit > 0 && applied >= commit, nil
}

// progressOf returns the log index that a member has applied, 0 if it does not run, and
// the one that the leader has committed.
func progressOf(c *client.ClusterStatus, id uint64) (applied, commit uint64) {
	for i := range c.Members {
		st := c.Members[i].Status
		switch {
		case st == nil:
		case c.Members[i].ID == id:
			applied = st.Applied
		case st.ID == c.Leader:
			commit = st.Commit
		}
	}
	return applied, commit
}

// pause waits, unless the context ends.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// memberID reads the id of a member, or finds that of a name.
func memberID(ctx context.Context, s *cli.Session, word string) (uint64, error) {
	if id, err := strconv.ParseUint(word, 10, 64); err == nil {
		return id, nil
	}
	members, err := s.Members(ctx)
	if err != nil {
		return 0, err
	}
	var ids []uint64
	for i := range members {
		if members[i].Name == word {
			ids = append(ids, members[i].ID)
		}
	}
	switch len(ids) {
	case 0:
		return 0, cli.Failf(cli.ExitNotFound, "no member has the id or name %q; \"kvd member list\" lists them", word)
	case 1:
		return ids[0], nil
	}
	return 0, cli.Usagef("several members are named %q (%v); give an id", word, ids)
}

// onMember returns RunE of a command that changes one member.
func onMember(sh *cli.Shell, change func(ctx context.Context, s *cli.Session, id uint64) (string, error)) func(*cobra.Command, []string) error {
	return sh.Run(func(ctx context.Context, s *cli.Session, args []string) error {
		ctx, cancel := s.Limited(ctx)
		defer cancel()
		id, err := memberID(ctx, s, args[0])
		if err != nil {
			return err
		}
		done, err := change(ctx, s, id)
		if err != nil {
			return err
		}
		switch s.FormatOr(cli.Table) {
		case cli.JSON:
			return s.PrintJSON(map[string]any{"id": id})
		case cli.Value:
			return s.Println(strconv.FormatUint(id, 10))
		}
		return s.Println(fmt.Sprintf("member %d %s", id, done))
	})
}

func memberRemoveCommand(sh *cli.Shell) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "remove ID|NAME",
		Short: "Remove a member for good",
		Long: `Remove a member for good. Its process shuts down, and its id never returns. A change after which
the members that are alive would be no majority is refused.`,
		Aliases:           []string{"rm"},
		Args:              cli.OneArgument("id or name of the member"),
		ValidArgsFunction: completeMember(sh),
	}
	cmd.RunE = onMember(sh, func(ctx context.Context, s *cli.Session, id uint64) (string, error) {
		return "was removed", s.RemoveMember(ctx, id)
	})
	return cmd
}

func memberPromoteCommand(sh *cli.Shell) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "promote ID|NAME",
		Short:             "Promote a learner that has caught up to voter",
		Args:              cli.OneArgument("id or name of the member"),
		ValidArgsFunction: completeMember(sh),
	}
	cmd.RunE = onMember(sh, func(ctx context.Context, s *cli.Session, id uint64) (string, error) {
		return "is a voter", s.PromoteMember(ctx, id)
	})
	return cmd
}

func memberUpdateCommand(sh *cli.Shell) *cobra.Command {
	var peers, clients []string
	cmd := &cobra.Command{
		Use:   "update ID|NAME",
		Short: "Change the URLs of a member",
		Long: `Change the URLs of a member. What is not given stays. Change the URLs before the member listens at
them: the others look for it there at once.`,
		Example:           `  kvd member update 3 --peer-urls http://10.0.0.13:12379`,
		Args:              cli.OneArgument("id or name of the member"),
		ValidArgsFunction: completeMember(sh),
	}
	cmd.Flags().StringSliceVar(&peers, "peer-urls", nil, "the `URLS` at which other members reach it")
	cmd.Flags().StringSliceVar(&clients, "client-urls", nil, "the `URLS` at which it serves clients")
	change := onMember(sh, func(ctx context.Context, s *cli.Session, id uint64) (string, error) {
		_, err := s.UpdateMember(ctx, id, peers, clients)
		return "has new URLs", err
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if peers == nil && clients == nil {
			return cli.Usagef("kvd member update needs --peer-urls, --client-urls, or both")
		}
		return change(cmd, args)
	}
	return cmd
}

// completionTimeout is short: somebody waits with a finger on the Tab key.
const completionTimeout = time.Second

// completeMember completes the id of a member, with its name beside it.
func completeMember(sh *cli.Shell) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		s, err := sh.Open(cmd)
		if err != nil || len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer s.Close()
		ctx, cancel := context.WithTimeout(context.Background(), completionTimeout)
		defer cancel()
		members, _ := s.Members(ctx)
		var out []string
		for i := range members {
			out = append(out, cobra.CompletionWithDesc(strconv.FormatUint(members[i].ID, 10), members[i].Name+", "+members[i].Role))
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}
