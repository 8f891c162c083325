package accounts

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/internal/cli"
)

func authCommand(sh *cli.Shell) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "auth",
		Short: "Enable and disable rights, and show who may do what",
		Long: `Enable and disable rights, and show who may do what. While rights are disabled, every client may do
everything. docs/auth.md explains the model.`,
		Example: `  kvd auth init
  kvd auth whoami
  kvd auth check write --user-name ann --key app/version`,
	}
	cmd.AddCommand(authStatusCommand(sh), authInitCommand(sh), authEnableCommand(sh), authDisableCommand(sh), authWhoAmICommand(sh), authCheckCommand(sh), authImportCommand(sh))
	return cmd
}

func printState(s *cli.Session, state *client.AuthState) error {
	word := "disabled"
	if state.Enabled {
		word = "enabled"
	}
	return s.Print(state, word, "rights are "+word+", revision "+strconv.FormatUint(state.Revision, 10))
}

func authStatusCommand(sh *cli.Shell) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show whether rights are enabled",
		Args:  cli.NoArguments,
		RunE: run(sh, func(ctx context.Context, s *cli.Session, _ []string) error {
			state, err := s.Rights().State(ctx)
			if err != nil {
				return err
			}
			return printState(s, state)
		}),
	}
}

func authEnableCommand(sh *cli.Shell) *cobra.Command {
	var p newPassword
	cmd := &cobra.Command{
		Use:   "enable",
		Short: "Enable rights, and create the user root",
		Long: `Enable rights and create the user root, who may do everything, in one step. The command prompts for
root's password. From then on, requests without credentials have the rights of the role anonymous,
or none if it does not exist. With --no-password, the user root must exist and is not changed.

On a Unix socket, a process that runs as the same user as the node is root without a password. Use
that to set a new password if root's is lost.`,
		Args: cli.NoArguments,
	}
	p.flags(cmd)
	cmd.RunE = sh.Run(func(ctx context.Context, s *cli.Session, _ []string) error {
		password, err := p.get(sh.Environment(), "root")
		if err != nil {
			return err
		}
		ctx, cancel := s.Limited(ctx)
		defer cancel()
		state, err := s.Rights().Enable(ctx, password)
		if err != nil {
			return err
		}
		return printState(s, state)
	})
	return cmd
}

func authDisableCommand(sh *cli.Shell) *cobra.Command {
	return &cobra.Command{
		Use:   "disable",
		Short: "Disable rights, so that every client may do everything",
		Long:  "Disable rights, so that every client may do everything. Users, roles, and tokens are kept.",
		Args:  cli.NoArguments,
		RunE: run(sh, func(ctx context.Context, s *cli.Session, _ []string) error {
			state, err := s.Rights().Disable(ctx)
			if err != nil {
				return err
			}
			return printState(s, state)
		}),
	}
}

func authWhoAmICommand(sh *cli.Shell) *cobra.Command {
	return &cobra.Command{
		Use:   "whoami",
		Short: "Show who you are and what you may do",
		Args:  cli.NoArguments,
		RunE: run(sh, func(ctx context.Context, s *cli.Session, _ []string) error {
			who, err := s.WhoAmI(ctx)
			if err != nil {
				return err
			}
			switch s.FormatOr(cli.Table) {
			case cli.JSON:
				return s.PrintJSON(who)
			case cli.Value:
				return s.Println(who.User)
			}
			name := cli.Printable(who.User)
			if who.User == "" {
				name = "nobody"
			}
			fields := [][2]string{{"user", name}, {"proved by", proofs[who.Proof]}, {"roles", words(who.Roles)}}
			if !who.Expires.IsZero() {
				fields = append(fields, [2]string{"until", moment(who.Expires)})
			}
			if who.Root {
				return s.PrintFields(append(fields, [2]string{"may", "do everything"}))
			}
			for _, line := range describe(who.Permissions, who.Capabilities) {
				fields = append(fields, [2]string{"may", line})
			}
			return s.PrintFields(fields)
		}),
	}
}

// proofs describes how a caller authenticated.
var proofs = map[string]string{
	"none": "nothing", "token": "a token", "password": "a password", "login": "a login with a password", "jwt": "a JSON Web Token",
	"certificate": "a client certificate", "socket": "the unix socket", "off": "nothing: rights are disabled",
}

func authCheckCommand(sh *cli.Shell) *cobra.Command {
	var sel selection
	var user, capability string
	cmd := &cobra.Command{
		Use:   "check [ACCESS]",
		Short: "Check whether a user may do something",
		Long: `Check whether you or another user may do something, and if not, why. Give an ACCESS (read, write, or
readwrite) and a flag that selects keys or locks, or a capability.

Exits with 0 if it is allowed, and with 5 if it is not.`,
		Example: `  kvd auth check read --prefix app/
  kvd auth check --user-name ann --capability backup`,
		Args: cli.Between(0, 1),
	}
	sel.flags(cmd)
	cmd.Flags().StringVar(&user, "user-name", "", "check this `USER` instead of yourself")
	cmd.Flags().StringVar(&capability, "capability", "", "check a `CAPABILITY`: members, settings, backup, operate, or auth")
	cmd.RunE = run(sh, func(ctx context.Context, s *cli.Session, args []string) error {
		q := client.Question{User: user, Capability: capability}
		var err error
		switch {
		case len(args) == 1 && capability != "":
			return cli.Usagef("give either an access or --capability, not both")
		case len(args) == 1:
			if q.Permission, err = sel.permission(cmd, args[0]); err != nil {
				return err
			}
		case capability == "":
			return cli.Usagef("give an access, as in \"read --prefix app/\", or --capability")
		}
		v, err := s.Check(ctx, q)
		if err != nil {
			return err
		}
		switch s.FormatOr(cli.Table) {
		case cli.JSON:
			err = s.PrintJSON(v)
		case cli.Value:
			err = s.Println(yes(v.Allowed))
		default:
			if v.Allowed {
				err = s.Println("allowed")
			}
		}
		if err == nil && !v.Allowed {
			err = cli.Failf(cli.ExitCondition, "not allowed: %s", v.Reason)
		}
		return err
	})
	return cmd
}
