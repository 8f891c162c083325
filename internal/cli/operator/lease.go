package operator

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/internal/cli"
)

// leaseCommand groups the commands for leases.
func leaseCommand(sh *cli.Shell) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lease",
		Short: "Grant, list, show, keep alive, and revoke leases",
		Long: `Grant, list, show, keep alive, and revoke leases. When a lease ends, the keys that are bound to it
are deleted, and its locks are released.`,
		Example: `  id=$(kvd lease grant 30s -o value)
  kvd kv put worker/1 host7 --lease $id
  kvd lease keepalive $id &`,
	}
	cmd.AddCommand(leaseGrantCommand(sh), leaseListCommand(sh), leaseShowCommand(sh), leaseKeepaliveCommand(sh), leaseRevokeCommand(sh))
	return cmd
}

// leaseJSON is a lease as the HTTP interface has it.
type leaseJSON struct {
	ID        cli.LeaseID `json:"id"`
	TTL       string      `json:"ttl"`
	Name      string      `json:"name,omitempty"`
	LockDelay string      `json:"lock_delay,omitempty"`
	KeyCount  *uint64     `json:"key_count,omitempty"`
	LockCount *uint64     `json:"lock_count,omitempty"`
	Remaining string      `json:"remaining,omitempty"`
}

func leaseDocument(l *client.Lease, counts bool) *leaseJSON {
	doc := &leaseJSON{ID: cli.LeaseID(l.ID), TTL: l.TTL.String(), Name: l.Name}
	if counts {
		doc.KeyCount, doc.LockCount = &l.KeyCount, &l.LockCount
	}
	if l.LockDelay > 0 {
		doc.LockDelay = l.LockDelay.String()
	}
	if l.Remaining > 0 {
		doc.Remaining = l.Remaining.String()
	}
	return doc
}

// printLease prints a lease that was granted or renewed, with a sentence for people.
func printLease(s *cli.Session, l *client.Lease, sentence string) error {
	return s.Print(leaseDocument(l, false), strconv.FormatInt(l.ID, 10), sentence)
}

func leaseGrantCommand(sh *cli.Shell) *cobra.Command {
	var id int64
	var name string
	cmd := &cobra.Command{
		Use:   "grant TTL",
		Short: "Create a lease",
		Long: `Create a lease that ends after TTL (30s, 5m) unless it is kept alive. A TTL that would not survive
a change of leaders is raised; what is printed counts. With -o value, it prints the id.`,
		Args: cli.OneArgument("time to live"),
	}
	cmd.Flags().Int64Var(&id, "id", 0, "the `ID` of the lease; by default the cluster chooses")
	cmd.Flags().StringVar(&name, "name", "", "a `NAME` for people who look at it")
	cmd.RunE = sh.Run(func(ctx context.Context, s *cli.Session, args []string) error {
		ttl, err := parseTTL(args[0])
		if err != nil {
			return err
		}
		var options []client.GrantOption
		if cmd.Flags().Changed("id") {
			options = append(options, client.LeaseID(id))
		}
		if name != "" {
			options = append(options, client.LeaseName(name))
		}
		ctx, cancel := s.Limited(ctx)
		defer cancel()
		l, err := s.Grant(ctx, ttl, options...)
		if err != nil {
			return err
		}
		return printLease(s, l, fmt.Sprintf("granted lease %d for %v", l.ID, l.TTL))
	})
	return cmd
}

// parseTTL reads a duration, or a number of seconds as the HTTP interface does.
func parseTTL(word string) (time.Duration, error) {
	d, err := time.ParseDuration(word)
	if seconds, nan := strconv.ParseUint(word, 10, 31); nan == nil {
		d, err = time.Duration(seconds)*time.Second, nil
	}
	if err != nil || d <= 0 {
		return 0, cli.Usagef("%q is not a time to live, for example 30s or 5m", word)
	}
	return d, nil
}

func leaseListCommand(sh *cli.Shell) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the leases",
		Long:  `List the leases, however many there are. With -o value, it prints the ids.`,
		Args:  cli.NoArguments,
	}
	cmd.RunE = sh.Run(func(ctx context.Context, s *cli.Session, _ []string) error {
		return cli.PrintEach(ctx, s, s.Leases, cli.Listing[*client.Lease]{
			Headings: []string{"ID", "TTL", "KEYS", "LOCKS", "NAME"},
			Document: func(l *client.Lease) any { return leaseDocument(l, true) },
			Value:    func(l *client.Lease) string { return strconv.FormatInt(l.ID, 10) },
			Rows: func(l *client.Lease) [][]string {
				return [][]string{{strconv.FormatInt(l.ID, 10), l.TTL.String(), number(l.KeyCount), number(l.LockCount), cli.Printable(orDash(l.Name))}}
			},
		})
	})
	return cmd
}

// onLease returns RunE of a command that works on one lease.
func onLease(sh *cli.Shell, f func(ctx context.Context, s *cli.Session, id int64) error) func(*cobra.Command, []string) error {
	return sh.Run(func(ctx context.Context, s *cli.Session, args []string) error {
		id, err := strconv.ParseInt(args[0], 10, 64)
		if err != nil || id <= 0 {
			return cli.Usagef("%q is not the id of a lease, which is a number above 0", args[0])
		}
		return f(ctx, s, id)
	})
}

func leaseShowCommand(sh *cli.Shell) *cobra.Command {
	var keys bool
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "Show a lease, the time it has left, and its keys",
		Long: `Show a lease and the time that it has left. With --keys, print the keys that are bound to it
instead, one a line. With -o value, it prints the time left.`,
		Args: cli.OneArgument("id of the lease"),
	}
	cmd.Flags().BoolVar(&keys, "keys", false, "print its keys")
	cmd.RunE = onLease(sh, func(ctx context.Context, s *cli.Session, id int64) error {
		if keys {
			return printLeaseKeys(ctx, s, id)
		}
		ctx, cancel := s.Limited(ctx)
		defer cancel()
		l, err := s.LeaseInfo(ctx, id)
		if err != nil {
			return err
		}
		switch s.FormatOr(cli.Table) {
		case cli.JSON:
			return s.PrintJSON(leaseDocument(l, true))
		case cli.Value:
			return s.Println(l.Remaining.String())
		}
		return s.PrintFields([][2]string{
			{"lease", strconv.FormatInt(l.ID, 10)}, {"name", cli.Printable(orDash(l.Name))}, {"ttl", l.TTL.String()},
			{"remaining", l.Remaining.Round(time.Millisecond).String()}, {"keys", number(l.KeyCount)}, {"locks", number(l.LockCount)}})
	})
	return cmd
}

func printLeaseKeys(ctx context.Context, s *cli.Session, id int64) error {
	keys := func(ctx context.Context) iter.Seq2[string, error] { return s.LeaseKeys(ctx, id) }
	return cli.Each(ctx, s, keys, func(key string) error {
		switch s.FormatOr(cli.Table) {
		case cli.JSON:
			doc := make(map[string]any)
			cli.ByteField(doc, "key", key)
			return s.PrintJSON(doc)
		case cli.Value:
			return s.Println(key)
		}
		return s.Println(cli.Printable(key))
	})
}

func leaseKeepaliveCommand(sh *cli.Shell) *cobra.Command {
	var once bool
	cmd := &cobra.Command{
		Use:   "keepalive ID",
		Short: "Keep a lease alive until interrupted",
		Long: `Keep a lease alive, until it is interrupted, which exits with 0. If the lease has ended, it exits
with 4; if no node confirms it for its whole time to live, with 7: it may have ended then.`,
		Args: cli.OneArgument("id of the lease"),
	}
	cmd.Flags().BoolVar(&once, "once", false, "renew it once, and exit")
	cmd.RunE = onLease(sh, func(ctx context.Context, s *cli.Session, id int64) error {
		limited, cancel := s.Limited(ctx)
		defer cancel()
		l, err := s.KeepAliveOnce(limited, id)
		if err != nil {
			return err
		}
		if err := printLease(s, l, fmt.Sprintf("lease %d lives for %v", l.ID, l.TTL)); err != nil || once {
			return err
		}
		if err := s.KeepAlive(ctx, l); ctx.Err() == nil || !errors.Is(err, ctx.Err()) {
			return err
		}
		return nil
	})
	return cmd
}

func leaseRevokeCommand(sh *cli.Shell) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "revoke ID",
		Short: "End a lease, delete its keys, and release its locks",
		Args:  cli.OneArgument("id of the lease"),
	}
	cmd.RunE = onLease(sh, func(ctx context.Context, s *cli.Session, id int64) error {
		ctx, cancel := s.Limited(ctx)
		defer cancel()
		if err := s.Revoke(ctx, id); err != nil {
			return err
		}
		return printLease(s, &client.Lease{ID: id}, fmt.Sprintf("revoked lease %d", id))
	})
	return cmd
}
