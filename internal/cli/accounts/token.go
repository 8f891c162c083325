package accounts

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/internal/cli"
)

func tokenCommand(sh *cli.Shell) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "List, create, and revoke tokens",
		Long: `List, create, and revoke tokens. A token lets a program act as a user, with all rights of that user
and without its password, until it expires or is revoked.`,
		Example: `  kvd token create ci --label "build server" --ttl 720h
  KVD_TOKEN_FILE=/run/secrets/kvd kvd kv get app/version`,
	}
	cmd.AddCommand(tokenListCommand(sh), tokenCreateCommand(sh), tokenRevokeCommand(sh))
	return cmd
}

func tokenListCommand(sh *cli.Shell) *cobra.Command {
	return &cobra.Command{
		Use:   "list [USER]",
		Short: "List tokens, without their secrets",
		Long: `List the tokens of USER; by default those of all users, or without the capability auth your own.
LAST USED is the minute in which the node that answers last saw the token, since it started.`,
		Args: cli.Between(0, 1),
		RunE: sh.Run(func(ctx context.Context, s *cli.Session, args []string) error {
			user := ""
			if len(args) > 0 {
				user = args[0]
			}
			tokens := func(ctx context.Context) iter.Seq2[*client.Token, error] { return s.Rights().Tokens(ctx, user) }
			return cli.PrintEach(ctx, s, tokens, cli.Listing[*client.Token]{
				Headings: []string{"ID", "USER", "CREATED", "EXPIRES", "LAST USED", "LABEL"},
				Value:    func(k *client.Token) string { return k.ID },
				Rows: func(k *client.Token) [][]string {
					return [][]string{{k.ID, cli.Printable(k.User), moment(k.Created), moment(k.Expires), lastUse(k.LastUsed), cli.Printable(cmp.Or(k.Label, "-"))}}
				},
			})
		}),
	}
}

// moment formats a time for people; the zero time means never.
func moment(at time.Time) string {
	if at.IsZero() {
		return "never"
	}
	return at.Local().Format("2006-01-02 15:04:05")
}

// lastUse formats the minute of a use; the zero time means that the node knows of none.
func lastUse(at time.Time) string {
	if at.IsZero() {
		return "-"
	}
	return at.Local().Format("2006-01-02 15:04")
}

func tokenCreateCommand(sh *cli.Shell) *cobra.Command {
	var t client.TokenRequest
	cmd := &cobra.Command{
		Use:   "create [USER]",
		Short: "Create a token, and print its secret once",
		Long: `Create a token for a user, by default for yourself, and print its secret. It cannot be shown again.
Without --ttl, the token does not expire.

If you authenticate with a token, you cannot create tokens for your own user: log in with the
password instead.`,
		Example: `  kvd token create ci --label "build server" --ttl 720h -o value > token`,
		Args:    cli.Between(0, 1),
	}
	cmd.Flags().StringVar(&t.Label, "label", "", "a `TEXT` that says what the token is for")
	cmd.Flags().DurationVar(&t.TTL, "ttl", 0, "time until the token expires; by default, it does not")
	cmd.RunE = run(sh, func(ctx context.Context, s *cli.Session, args []string) error {
		if cmd.Flags().Changed("ttl") && t.TTL <= 0 {
			return cli.Usagef("--ttl is %v, but must be above 0; without it, the token does not expire", t.TTL)
		}
		if len(args) > 0 {
			t.User = args[0]
		}
		made, err := s.Rights().CreateToken(ctx, t)
		if err != nil {
			return err
		}
		switch s.FormatOr(cli.Table) {
		case cli.JSON:
			return s.PrintJSON(made)
		case cli.Value:
			return s.Println(made.Secret)
		}
		return s.PrintFields([][2]string{{"token", made.Secret}, {"id", made.ID}, {"user", cli.Printable(made.User)}, {"expires", moment(made.Expires)}})
	})
	return cmd
}

func tokenRevokeCommand(sh *cli.Shell) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID...",
		Short: "Revoke tokens",
		Long:  `Revoke tokens by the ids that "kvd token list" shows.`,
		Args:  cli.Between(1, 1000),
		RunE: run(sh, func(ctx context.Context, s *cli.Session, args []string) error {
			for _, id := range args {
				if err := s.Rights().DeleteToken(ctx, id); err != nil {
					return err
				}
				if err := s.Print(map[string]string{"id": id}, id, fmt.Sprintf("revoked token %s", cli.Printable(id))); err != nil {
					return err
				}
			}
			return nil
		}),
	}
}
