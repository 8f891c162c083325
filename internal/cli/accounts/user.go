package accounts

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/internal/cli"
)

func userCommand(sh *cli.Shell) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "user",
		Short: "List, add, change, and delete users",
		Long: `List, add, change, and delete users. A user has the rights of all its roles. These commands need the
capability auth, except that you can always show your own user and change your own password.`,
		Example: `  kvd user add ann --role team-a
  kvd user grant ann backup
  kvd user passwd`,
	}
	cmd.AddCommand(userListCommand(sh), userShowCommand(sh), userAddCommand(sh), userPasswdCommand(sh), userRolesCommand(sh, true), userRolesCommand(sh, false), userDeleteCommand(sh))
	return cmd
}

func userListCommand(sh *cli.Shell) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the users with their roles",
		Args:  cli.NoArguments,
		RunE: sh.Run(func(ctx context.Context, s *cli.Session, _ []string) error {
			return cli.PrintEach(ctx, s, s.Rights().Users, cli.Listing[*client.User]{
				Headings: []string{"USER", "PASSWORD", "ROLES"},
				Value:    func(u *client.User) string { return u.Name },
				Rows: func(u *client.User) [][]string {
					return [][]string{{cli.Printable(u.Name), yes(u.HasPassword), words(u.Roles)}}
				},
			})
		}),
	}
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func userShowCommand(sh *cli.Shell) *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME",
		Short: "Show a user and what it may do",
		Args:  cli.OneArgument("name of the user"),
		RunE: run(sh, func(ctx context.Context, s *cli.Session, args []string) error {
			u, err := s.Rights().User(ctx, args[0])
			if err != nil {
				return err
			}
			if s.FormatOr(cli.Table) == cli.JSON {
				return s.PrintJSON(u)
			}
			fields := [][2]string{{"user", cli.Printable(u.Name)}, {"password", yes(u.HasPassword)}, {"roles", words(u.Roles)}}
			for _, name := range u.Roles {
				role, err := s.Rights().Role(ctx, name)
				if err != nil {
					continue // root has no entry, and others may be gone by now
				}
				for _, line := range describe(role.Permissions, role.Capabilities) {
					fields = append(fields, [2]string{"by " + cli.Printable(name), line})
				}
			}
			return s.PrintFields(fields)
		}),
	}
}

// newPassword has the flags from which a command gets a new password.
type newPassword struct {
	file string
	none bool
}

func (p *newPassword) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.file, "password-file", "", "read the password from the first line of this `FILE`, or of standard input with -")
	cmd.Flags().BoolVar(&p.none, "no-password", false, "set no password: the user has a token or a certificate")
	cli.Exclusive(cmd, "password-file", "no-password")
}

// get returns the password, and "" if there is to be none.
func (p *newPassword) get(e *cli.Environment, user string) (string, error) {
	switch {
	case p.none:
		return "", nil
	case p.file != "":
		return e.ReadSecret(p.file)
	}
	password, err := e.AskSecret(fmt.Sprintf("New password of %s: ", user))
	if err != nil {
		return "", fmt.Errorf("%w; use --password-file, or --no-password", err)
	}
	again, err := e.AskSecret("Repeat the password: ")
	if err == nil && again != password {
		err = cli.Usagef("the passwords differ")
	}
	return password, err
}

func userAddCommand(sh *cli.Shell) *cobra.Command {
	var p newPassword
	var roles []string
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Add a user",
		Long:  "Add a user. The command prompts for the password.",
		Example: `  kvd user add ann --role team-a --role backup
  kvd user add ci --no-password && kvd token create ci --ttl 720h`,
		Args: cli.OneArgument("name of the user"),
	}
	p.flags(cmd)
	cmd.Flags().StringArrayVar(&roles, "role", nil, "a `ROLE` of the user; may be repeated")
	cmd.RunE = sh.Run(func(ctx context.Context, s *cli.Session, args []string) error {
		password, err := p.get(sh.Environment(), args[0])
		if err != nil {
			return err
		}
		ctx, cancel := s.Limited(ctx)
		defer cancel()
		u, err := s.Rights().PutUser(ctx, args[0], client.UserChange{Roles: append([]string{}, roles...), Password: password, IfAbsent: true})
		if err != nil {
			return taken(err, "user", args[0])
		}
		return s.Print(u, u.Name, "added user "+cli.Printable(u.Name))
	})
	return cmd
}

func userPasswdCommand(sh *cli.Shell) *cobra.Command {
	var p newPassword
	cmd := &cobra.Command{
		Use:   "passwd [NAME]",
		Short: "Change a password, by default your own",
		Long: `Change a password, by default your own. Logins with the old password end; tokens stay valid. With
--no-password, the user can no longer log in with a password.`,
		Args: cli.Between(0, 1),
	}
	p.flags(cmd)
	cmd.RunE = sh.Run(func(ctx context.Context, s *cli.Session, args []string) error {
		name, err := nameOrOwn(ctx, s, args)
		if err != nil {
			return err
		}
		password, err := p.get(sh.Environment(), name)
		if err != nil {
			return err
		}
		ctx, cancel := s.Limited(ctx)
		defer cancel()
		u, err := s.Rights().PutUser(ctx, name, client.UserChange{Password: password, NoPassword: p.none})
		if err != nil {
			return err
		}
		return s.Print(u, u.Name, "changed the password of "+cli.Printable(u.Name))
	})
	return cmd
}

// nameOrOwn returns the name that was given, or that of the caller.
func nameOrOwn(ctx context.Context, s *cli.Session, args []string) (string, error) {
	if len(args) > 0 {
		return args[0], nil
	}
	ctx, cancel := s.Limited(ctx)
	defer cancel()
	who, err := s.WhoAmI(ctx)
	switch {
	case err != nil:
		return "", err
	case who.User == "":
		return "", cli.Usagef("you are not logged in; name the user")
	}
	return who.User, nil
}

// userRolesCommand grants or revokes roles.
func userRolesCommand(sh *cli.Shell, grant bool) *cobra.Command {
	use, short, past, change := "grant NAME ROLE...", "Grant roles to a user", "granted", with
	if !grant {
		use, short, past, change = "revoke NAME ROLE...", "Revoke roles from a user", "revoked", without
	}
	return &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cli.Between(2, 100),
		RunE: run(sh, func(ctx context.Context, s *cli.Session, args []string) error {
			var u *client.User
			err := edit(func() (err error) {
				if u, err = s.Rights().User(ctx, args[0]); err == nil {
					u, err = s.Rights().PutUser(ctx, args[0], client.UserChange{Roles: change(u.Roles, args[1:]), IfTag: u.Tag})
				}
				return err
			})
			if err != nil {
				return err
			}
			return s.Print(u, u.Name, fmt.Sprintf("%s %s; %s has: %s", past, words(args[1:]), cli.Printable(u.Name), words(u.Roles)))
		}),
	}
}

func userDeleteCommand(sh *cli.Shell) *cobra.Command {
	return deleteCommand(sh, "user", "Delete a user and its tokens", client.Rights.DeleteUser)
}
