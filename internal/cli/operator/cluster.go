package operator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/internal/cli"
)

// leaderCommand shows the leader, and hands the leadership over.
func leaderCommand(sh *cli.Shell) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "leader",
		Short: "Show which member leads, or hand the leadership over",
		Long:  `Show which member leads. With -o value, it prints its id.`,
		Example: `  kvd leader
  kvd leader transfer       # to the voter that is most up to date
  kvd leader transfer n2`,
		Args: cli.NoArguments,
	}
	cmd.RunE = sh.Run(func(ctx context.Context, s *cli.Session, _ []string) error {
		ctx, cancel := s.Limited(ctx)
		defer cancel()
		return printLeader(ctx, s)
	})
	transfer := &cobra.Command{
		Use:   "transfer [ID|NAME]",
		Short: "Transfer leadership to another member",
		Long: `Hand the leadership to a member, or without one to the voter that is most up to date. It ends when
that member leads.`,
		Args:              cli.Between(0, 1),
		ValidArgsFunction: completeMember(sh),
	}
	transfer.RunE = sh.Run(func(ctx context.Context, s *cli.Session, args []string) error {
		ctx, cancel := s.Limited(ctx)
		defer cancel()
		to, err := successor(ctx, s, args)
		if err != nil {
			return err
		}
		if err := s.TransferLeader(ctx, to); err != nil {
			return err
		}
		return printLeader(ctx, s)
	})
	cmd.AddCommand(transfer)
	return cmd
}

func printLeader(ctx context.Context, s *cli.Session) error {
	l, err := s.Leader(ctx)
	if err != nil {
		return err
	}
	switch s.FormatOr(cli.Table) {
	case cli.JSON:
		return s.PrintJSON(l)
	case cli.Value:
		return s.Println(strconv.FormatUint(l.ID, 10))
	}
	return s.Println(fmt.Sprintf("member %d (%s) leads in term %d at %s", l.ID, cli.Printable(l.Name), l.Term, strings.Join(l.ClientURLs, ",")))
}

// successor returns the member that is to lead: the one that was named, or the voter
// that has applied most.
func successor(ctx context.Context, s *cli.Session, args []string) (uint64, error) {
	if len(args) == 1 {
		return memberID(ctx, s, args[0])
	}
	c, err := s.Cluster(ctx)
	if err != nil {
		return 0, err
	}
	best := (*client.Status)(nil)
	for i := range c.Members {
		st := c.Members[i].Status
		if st != nil && st.ID != c.Leader && st.Role == "follower" && (best == nil || st.Applied > best.Applied) {
			best = st
		}
	}
	if best == nil {
		return 0, cli.Failf(cli.ExitFailed, "there is no other voter that answers; \"kvd member list\" lists the members")
	}
	return best.ID, nil
}

// statusCommand shows the nodes of --endpoints.
func statusCommand(sh *cli.Shell) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the state of the nodes in --endpoints",
		Long: `Show the state of each node in --endpoints, side by side, as it sees itself. Exits with 7 if one of
them does not answer; the others are shown all the same.

"kvd cluster" asks one node about all members.`,
		Example: `  kvd status --endpoints http://10.0.0.1:12380,http://10.0.0.2:12380`,
		Args:    cli.NoArguments,
	}
	cmd.RunE = sh.Run(func(ctx context.Context, s *cli.Session, _ []string) error {
		var rows []client.MemberStatus
		var failed []error
		for _, endpoint := range sh.Endpoints() {
			st, err := statusOf(ctx, s, sh, endpoint)
			if err != nil {
				failed = append(failed, cli.Explain(err))
				continue
			}
			rows = append(rows, client.MemberStatus{ID: st.ID, Name: st.Name, Status: st})
		}
		if err := printStatuses(s, rows); err != nil {
			return err
		}
		return errors.Join(failed...)
	})
	return cmd
}

// statusOf asks one endpoint.
func statusOf(ctx context.Context, s *cli.Session, sh *cli.Shell, endpoint string) (*client.Status, error) {
	c, err := sh.At(endpoint)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ctx, cancel := s.Limited(ctx)
	defer cancel()
	return c.Status(ctx)
}

// clusterCommand shows all members.
func clusterCommand(sh *cli.Shell) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cluster",
		Short: "Show all members side by side, and whether the cluster is healthy",
		Long: `Show the state of all members side by side, and whether their states agree. A cluster is healthy if
it has a leader, all voters answer, the state hashes agree, and no alarm is raised.

Exits with 1 if it is not healthy. With -o value, it prints only "healthy" or "unhealthy".`,
		Args: cli.NoArguments,
	}
	cmd.RunE = sh.Run(func(ctx context.Context, s *cli.Session, _ []string) error {
		ctx, cancel := s.Limited(ctx)
		defer cancel()
		c, err := s.Cluster(ctx)
		if err != nil {
			return err
		}
		if err := printCluster(s, c); err != nil {
			return err
		}
		if !c.Healthy {
			return cli.Failf(cli.ExitFailed, "the cluster is not healthy: %s", strings.Join(complaints(c), "; "))
		}
		return nil
	})
	return cmd
}

func printCluster(s *cli.Session, c *client.ClusterStatus) error {
	health := s.Color(text.FgGreen, "healthy")
	if !c.Healthy {
		health = s.Color(text.FgRed, "unhealthy")
	}
	switch s.FormatOr(cli.Table) {
	case cli.JSON:
		return s.PrintJSON(c)
	case cli.Value:
		return s.Println(health)
	}
	if err := s.Println(fmt.Sprintf("cluster %s is %s; %s\n", c.ClusterID, health, agreement(c))); err != nil {
		return err
	}
	return printStatuses(s, c.Members)
}

// agreement says whether the members have the same state.
func agreement(c *client.ClusterStatus) string {
	switch {
	case c.HashesAgree == nil && len(c.Members) == 1:
		return "its only member has nobody to compare its state with"
	case c.HashesAgree == nil:
		return "no two members had a log index in common to compare their states at"
	case *c.HashesAgree:
		return fmt.Sprintf("the members agree (%d comparison%s of state hashes)", c.HashesCompared, plural(c.HashesCompared))
	}
	return "THE STATES OF THE MEMBERS DIFFER"
}

// complaints says what is wrong with a cluster.
func complaints(c *client.ClusterStatus) (out []string) {
	if c.Leader == 0 {
		out = append(out, "there is no leader")
	}
	if c.HashesAgree != nil && !*c.HashesAgree {
		out = append(out, "the states of the members differ")
	}
	for i := range c.Members {
		m := &c.Members[i]
		if m.Status == nil {
			out = append(out, fmt.Sprintf("member %d does not answer (%s)", m.ID, m.Error))
			continue
		}
		for _, a := range m.Status.Alarms {
			out = append(out, fmt.Sprintf("member %d: %s", m.ID, a))
		}
	}
	return out
}

// statusFields are the rows of the table of statuses.
var statusFields = []struct {
	name string
	of   func(st *client.Status) string
}{
	{"role", func(st *client.Status) string { return st.Role }},
	{"leader", func(st *client.Status) string { return number(st.Leader) }},
	{"term", func(st *client.Status) string { return number(st.Term) }},
	{"commit", func(st *client.Status) string { return number(st.Commit) }},
	{"applied", func(st *client.Status) string { return number(st.Applied) }},
	{"lag", func(st *client.Status) string { return number(st.Lag) }},
	{"revision", func(st *client.Status) string { return number(st.Revision) }},
	{"history from", func(st *client.Status) string { return number(st.CompactRevision) }},
	{"keys", func(st *client.Status) string { return humanize.Comma(int64(st.Keys)) }},
	{"data", func(st *client.Status) string { return size(st.LogicalSizeBytes) + quotaShare(st) }},
	{"store", func(st *client.Status) string { return size(st.StoreSizeBytes) }},
	{"log", func(st *client.Status) string { return size(st.LogSizeBytes) }},
	{"snapshots", func(st *client.Status) string { return size(st.SnapshotSizeBytes) }},
	{"state hash", func(st *client.Status) string { return st.StateHash }},
	{"version", func(st *client.Status) string { return st.Version }},
	{"engine", func(st *client.Status) string { return st.Engine }},
	{"up for", func(st *client.Status) string { return st.Uptime }},
	{"alarms", func(st *client.Status) string { return orDash(strings.Join(alarmNames(st), ",")) }},
}

func number(n uint64) string { return strconv.FormatUint(n, 10) }

func size(bytes int64) string { return humanize.IBytes(uint64(max(0, bytes))) }

func orDash(word string) string {
	if word == "" {
		return "-"
	}
	return word
}

// quotaShare is how much of the quota is used, if there is one.
func quotaShare(st *client.Status) string {
	if st.QuotaBytes == 0 {
		return ""
	}
	return fmt.Sprintf(" (%.0f%% of quota)", 100*float64(st.LogicalSizeBytes)/float64(st.QuotaBytes))
}

// alarmNames returns the names of alarms without their explanations.
func alarmNames(st *client.Status) []string {
	names := []string{}
	for _, a := range st.Alarms {
		name, _, _ := strings.Cut(a, ":")
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// printStatuses prints statuses side by side.
func printStatuses(s *cli.Session, members []client.MemberStatus) error {
	if s.FormatOr(cli.Table) != cli.Table {
		return printEachStatus(s, members)
	}
	if len(members) == 0 {
		return nil
	}
	heading := []string{"member"}
	for i := range members {
		heading = append(heading, strings.TrimSpace(number(members[i].ID)+" "+cli.Printable(orDash(members[i].Name))))
	}
	var rows [][]string
	for _, f := range statusFields {
		row := []string{f.name}
		for i := range members {
			switch st := members[i].Status; {
			case st != nil:
				row = append(row, statusCell(s, f.name, f.of(st)))
			case f.name == "role":
				row = append(row, s.Color(text.FgRed, "no answer"))
			default:
				row = append(row, "")
			}
		}
		rows = append(rows, row)
	}
	return s.PrintTable(heading, rows)
}

// statusCell colors what an operator looks for.
func statusCell(s *cli.Session, field, value string) string {
	switch {
	case field == "role" && value == "leader":
		return s.Color(text.FgGreen, value)
	case field == "alarms" && value != "-":
		return s.Color(text.FgRed, value)
	}
	return value
}

func printEachStatus(s *cli.Session, members []client.MemberStatus) error {
	for i := range members {
		if s.FormatOr(cli.Table) == cli.Value {
			if err := s.Println(members[i].Status.Role); err != nil {
				return err
			}
			continue
		}
		if err := s.PrintJSON(members[i].Status); err != nil {
			return err
		}
	}
	return nil
}

func plural(n int) string {
	if n == 1 {
		return ""
	}
	return "s"
}
