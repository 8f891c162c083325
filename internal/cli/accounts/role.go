package accounts

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/internal/cli"
)

func roleCommand(sh *cli.Shell) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "role",
		Short: "List, add, change, and delete roles",
		Long: `List, add, change, and delete roles. A role has permissions to read or write keys and locks, and
capabilities, which do not concern keys:

  members   change the membership, transfer leadership
  settings  change the limits of the cluster
  backup    read everything, as a backup
  operate   compact, and see and change how nodes run
  auth      see and change users, roles, and tokens

The role root may do everything. The role anonymous, if you add it, holds the rights of requests
without credentials. Nobody can grant a right that they do not have.`,
		Example: `  kvd role add dashboard
  kvd role grant dashboard read --prefix app/
  kvd role grant deploy readwrite --lock deploy
  kvd role grant nightly --capability backup`,
	}
	cmd.AddCommand(roleListCommand(sh), roleShowCommand(sh), roleAddCommand(sh), roleChangeCommand(sh, true), roleChangeCommand(sh, false), roleDeleteCommand(sh))
	return cmd
}

// describe returns rights as lines for people.
func describe(permissions []client.Permission, capabilities []string) (lines []string) {
	for _, p := range permissions {
		space := "keys"
		if p.Locks {
			space = "locks"
		}
		lines = append(lines, fmt.Sprintf("%s %s: %s", p.Access, space, p.Names))
	}
	if len(capabilities) > 0 {
		lines = append(lines, "capabilities: "+strings.Join(capabilities, ", "))
	}
	return lines
}

func roleListCommand(sh *cli.Shell) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the roles and what they permit",
		Args:  cli.NoArguments,
		RunE: sh.Run(func(ctx context.Context, s *cli.Session, _ []string) error {
			return cli.PrintEach(ctx, s, s.Rights().Roles, cli.Listing[*client.Role]{
				Headings: []string{"ROLE", "PERMITS"},
				Value:    func(r *client.Role) string { return r.Name },
				Rows:     roleRows,
			})
		}),
	}
}

// roleRows returns a row for each permission, the first with the name.
func roleRows(r *client.Role) (rows [][]string) {
	lines := describe(r.Permissions, r.Capabilities)
	if len(lines) == 0 {
		lines = []string{"-"}
	}
	for _, line := range lines {
		rows = append(rows, []string{"", line})
	}
	rows[0][0] = cli.Printable(r.Name)
	return rows
}

func roleShowCommand(sh *cli.Shell) *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME",
		Short: "Show what a role permits",
		Args:  cli.OneArgument("name of the role"),
		RunE: run(sh, func(ctx context.Context, s *cli.Session, args []string) error {
			r, err := s.Rights().Role(ctx, args[0])
			if err != nil {
				return err
			}
			return printRole(s, r, "")
		}),
	}
}

// printRole prints a role; in the table format, the sentence comes first.
func printRole(s *cli.Session, r *client.Role, sentence string) error {
	lines := describe(r.Permissions, r.Capabilities)
	if len(lines) == 0 {
		lines = []string{"it permits nothing yet"}
	}
	if sentence != "" {
		lines = slices.Insert(lines, 0, sentence)
	}
	return s.Print(r, r.Name, strings.Join(lines, "\n"))
}

// taken returns the error for adding an entry that exists.
func taken(err error, what, name string) error {
	if errors.Is(err, client.ErrPreconditionFailed) {
		return cli.Failf(cli.ExitCondition, "%s %s already exists", what, cli.Printable(name))
	}
	return err
}

func roleAddCommand(sh *cli.Shell) *cobra.Command {
	return &cobra.Command{
		Use:   "add NAME",
		Short: "Add a role that permits nothing yet",
		Args:  cli.OneArgument("name of the role"),
		RunE: run(sh, func(ctx context.Context, s *cli.Session, args []string) error {
			r, err := s.Rights().PutRole(ctx, client.Role{Name: args[0], IfAbsent: true})
			if err != nil {
				return taken(err, "role", args[0])
			}
			return printRole(s, r, "added role "+cli.Printable(r.Name))
		}),
	}
}

// selection has the flags that select the keys or locks of a permission.
type selection struct {
	key, prefix, lock, lockPrefix string
	between                       []string
	everything, allLocks          bool
}

var selectionFlags = []string{"key", "prefix", "range", "all-keys", "lock", "lock-prefix", "all-locks"}

func (sel *selection) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&sel.key, "key", "", "this `KEY`")
	f.StringVar(&sel.prefix, "prefix", "", "the keys that begin with this `PREFIX`")
	f.StringSliceVar(&sel.between, "range", nil, "the keys from START on and before END, as `START,END`")
	f.BoolVar(&sel.everything, "all-keys", false, "all keys")
	f.StringVar(&sel.lock, "lock", "", "the lock of this `NAME`")
	f.StringVar(&sel.lockPrefix, "lock-prefix", "", "the locks whose names begin with this `PREFIX`")
	f.BoolVar(&sel.allLocks, "all-locks", false, "all locks")
	cli.Exclusive(cmd, selectionFlags...)
}

// names returns the selected names; ok is false if no flag is set.
func (sel *selection) names(cmd *cobra.Command) (locks bool, names client.Range, ok bool, err error) {
	changed := cmd.Flags().Changed
	for _, empty := range []struct{ flag, value string }{{"key", sel.key}, {"prefix", sel.prefix}, {"lock", sel.lock}, {"lock-prefix", sel.lockPrefix}} {
		if changed(empty.flag) && empty.value == "" {
			return false, names, false, cli.Usagef("--%s is empty; use --all-keys or --all-locks for everything", empty.flag)
		}
	}
	switch {
	case sel.key != "":
		return false, client.Key(sel.key), true, nil
	case sel.prefix != "":
		return false, client.Prefix(sel.prefix), true, nil
	case changed("range"):
		if len(sel.between) != 2 || sel.between[0] >= sel.between[1] {
			return false, names, false, cli.Usagef("--range must be START,END, with START before END")
		}
		return false, client.Between(sel.between[0], sel.between[1]), true, nil
	case sel.everything:
		return false, client.Prefix(""), true, nil
	case sel.lock != "":
		return true, client.Key(sel.lock), true, nil
	case sel.lockPrefix != "":
		return true, client.Prefix(sel.lockPrefix), true, nil
	case sel.allLocks:
		return true, client.Prefix(""), true, nil
	}
	return false, names, false, nil
}

var accesses = []string{string(client.Read), string(client.Write), string(client.ReadWrite)}

// permission returns the permission that the access and the flags of a command describe.
func (sel *selection) permission(cmd *cobra.Command, word string) (*client.Permission, error) {
	locks, names, ok, err := sel.names(cmd)
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, cli.Usagef("select keys or locks for %s with one of --%s", word, strings.Join(selectionFlags, ", --"))
	case !slices.Contains(accesses, word):
		return nil, cli.Usagef("%q is not an access; use read, write, or readwrite", word)
	}
	return &client.Permission{Access: client.Access(word), Locks: locks, Names: names}, nil
}

// roleChangeCommand grants or revokes permissions and capabilities.
func roleChangeCommand(sh *cli.Shell, grant bool) *cobra.Command {
	var sel selection
	var capabilities []string
	cmd := &cobra.Command{
		Use:   "grant NAME [ACCESS]",
		Short: "Add a permission or a capability to a role",
		Long: `Add to a role a permission with ACCESS (read, write, or readwrite) to the keys or locks that a flag
selects, or a capability. A permission for the same keys or locks is replaced.`,
		Example: `  kvd role grant team-a readwrite --prefix team-a/
  kvd role grant team-a readwrite --lock-prefix team-a/
  kvd role grant nightly --capability backup`,
		Args: cli.Between(1, 2),
	}
	if !grant {
		cmd.Use, cmd.Short = "revoke NAME", "Remove a permission or a capability from a role"
		cmd.Long = `Remove from a role its permission for exactly the keys or locks of a flag, or a capability.`
		cmd.Example = `  kvd role revoke team-a --prefix team-a/
  kvd role revoke nightly --capability backup`
		cmd.Args = cli.OneArgument("name of the role")
	}
	sel.flags(cmd)
	cmd.Flags().StringSliceVar(&capabilities, "capability", nil, "a `CAPABILITY`: members, settings, backup, operate, or auth")
	cmd.RunE = run(sh, func(ctx context.Context, s *cli.Session, args []string) error {
		locks, names, selected, err := sel.names(cmd)
		if err != nil {
			return err
		}
		if !selected && len(capabilities) == 0 {
			return cli.Usagef("nothing to change; use --capability or one of --%s", strings.Join(selectionFlags, ", --"))
		}
		var added *client.Permission
		if grant && (selected || len(args) == 2) {
			if len(args) < 2 {
				return cli.Usagef("the access is missing, as in: kvd role grant %s read --prefix app/", args[0])
			}
			if added, err = sel.permission(cmd, args[1]); err != nil {
				return err
			}
		}
		var r *client.Role
		err = edit(func() (err error) {
			if r, err = s.Rights().Role(ctx, args[0]); err != nil {
				return err
			}
			same := func(p client.Permission) bool { return p.Locks == locks && p.Names.Equal(names) }
			if selected {
				if !grant && !slices.ContainsFunc(r.Permissions, same) {
					return cli.Failf(cli.ExitNotFound, "role %s has no permission for exactly that; \"kvd role show\" lists them", cli.Printable(args[0]))
				}
				r.Permissions = slices.DeleteFunc(r.Permissions, same)
			}
			if added != nil {
				r.Permissions = append(r.Permissions, *added)
			}
			if r.Capabilities = without(r.Capabilities, capabilities); grant {
				r.Capabilities = with(r.Capabilities, capabilities)
			}
			r, err = s.Rights().PutRole(ctx, *r)
			return err
		})
		if err != nil {
			return err
		}
		return printRole(s, r, "role "+cli.Printable(r.Name)+" now permits:")
	})
	return cmd
}

func roleDeleteCommand(sh *cli.Shell) *cobra.Command {
	return deleteCommand(sh, "role", "Delete a role, and remove it from its users", client.Rights.DeleteRole)
}

// deleteCommand returns the command that deletes a role or user.
func deleteCommand(sh *cli.Shell, what, short string, remove func(client.Rights, context.Context, string) error) *cobra.Command {
	return &cobra.Command{
		Use:   "delete NAME",
		Short: short,
		Args:  cli.OneArgument("name of the " + what),
		RunE: run(sh, func(ctx context.Context, s *cli.Session, args []string) error {
			if err := remove(s.Rights(), ctx, args[0]); err != nil {
				return err
			}
			return s.Print(map[string]string{"name": args[0]}, args[0], "deleted "+what+" "+cli.Printable(args[0]))
		}),
	}
}
