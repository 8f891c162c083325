package accounts

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/internal/cli"
)

// authInitCommand enables rights where they have never been, and says what to keep.
func authInitCommand(sh *cli.Shell) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Enable rights in one step, and print the password to keep",
		Long: `Enable rights in one step, with a user root who may do everything. The password is generated and
printed once, or taken from --password-file; no node can tell it later. If there is a user root
already, it gets this password. If rights are enabled already, nothing changes.

Passwords do not travel in the clear: use an https, loopback, or unix:///path endpoint.`,
		Example: `  kvd auth init
  kvd auth init --endpoints unix:///run/kvd/client.sock -o value > root.password`,
		Args: cli.NoArguments,
	}
	cmd.Flags().StringVar(&file, "password-file", "", "take the password from the first line of this `FILE`, or of standard input with -")
	cmd.RunE = sh.Run(func(ctx context.Context, s *cli.Session, _ []string) error {
		first := beginning{User: "root"}
		if file == "" {
			first.Password = rand.Text() // 128 bits at least
		}
		password := first.Password
		if file != "" {
			var err error
			if password, err = sh.Environment().ReadSecret(file); err != nil {
				return err
			}
		}
		ctx, cancel := s.Limited(ctx)
		defer cancel()
		state, err := begin(ctx, s, password)
		switch {
		case err == nil:
			first.AuthState = *state
			return first.print(sh, s)
		case first.Password != "" && errors.Is(err, client.ErrUnknownOutcome):
			// It may be in force, and nobody else knows it.
			fmt.Fprintf(sh.Environment().Stderr, "kvd: if rights are enabled now, the password of root is %s\n", first.Password)
		}
		return err
	})
	return cmd
}

// begin enables rights unless they are enabled already.
func begin(ctx context.Context, s *cli.Session, password string) (*client.AuthState, error) {
	before, err := s.Rights().State(ctx)
	if err != nil {
		return nil, err
	}
	if before.Enabled {
		return nil, cli.Failf(cli.ExitCondition, "rights are enabled already, at revision %d; nothing was changed. To set another password of root, use \"kvd user passwd root\", "+
			"as root, or over a unix socket of a node as the user it runs as", before.Revision)
	}
	state, err := s.Rights().EnableFrom(ctx, before, password)
	if err == nil {
		return state, nil
	}
	// If the first answer was lost, the repeat came from somebody without credentials, and
	// was refused because the first one took effect. The password tells whether it did.
	if _, denied := s.Login(ctx, "root", password); denied == nil {
		return s.Rights().State(ctx)
	}
	if errors.Is(err, client.ErrPreconditionFailed) {
		return nil, cli.Failf(cli.ExitCondition, "somebody else changed the rights at the same time; nothing was changed by this command: see \"kvd auth status\"")
	}
	return nil, err
}

// beginning is what there is to keep of the first step.
type beginning struct {
	client.AuthState
	User     string `json:"user"`
	Password string `json:"password,omitempty"` // empty if the user has chosen it
}

func (b *beginning) print(sh *cli.Shell, s *cli.Session) error {
	switch s.FormatOr(cli.Table) {
	case cli.JSON:
		return s.PrintJSON(b)
	case cli.Value:
		if b.Password == "" {
			return printState(s, &b.AuthState)
		}
		return s.Println(b.Password)
	}
	if err := printState(s, &b.AuthState); err != nil {
		return err
	}
	at := ""
	if all := strings.Join(sh.Endpoints(), ","); all != sh.Environment().DefaultEndpoint {
		at = " --endpoints " + all
	}
	if b.Password != "" {
		err := s.PrintFields([][2]string{{"user", b.User}, {"password", b.Password}})
		if err == nil {
			err = s.Println("Keep this password: it is shown only now.")
		}
		if err != nil {
			return err
		}
	}
	return s.Println("Requests without credentials are refused from now on. Next:\n" +
		"  kvd login" + at + " --user root   # for the commands that follow\n" +
		"  kvd role add NAME                 # then role grant, user add, token create; see docs/auth.md")
}
