package accounts

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/internal/cli"
)

// defaultLogin is how long a login lasts: a working day.
const defaultLogin = 12 * time.Hour

func loginCommand(sh *cli.Shell) *cobra.Command {
	var ttl time.Duration
	cmd := &cobra.Command{
		Use:   "login",
		Short: "Log in, and store a token for later commands",
		Long: `Log in with a user and password, from --user or a prompt, and store a token for the endpoints in a
file that only you can read ($XDG_CONFIG_HOME/kvd/logins.json). Later commands use the token until
it expires or until "kvd logout". --token, --token-file, --user, a certificate, and their variables
take precedence over it.`,
		Example: `  kvd login --user ann
  kvd login --endpoints https://kvd1:12380,https://kvd2:12380 --ttl 1h`,
		Args: cli.NoArguments,
	}
	cmd.Flags().DurationVar(&ttl, "ttl", defaultLogin, "how long the login lasts")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if ttl <= 0 {
			return cli.Usagef("--ttl is %v, but must be above 0", ttl)
		}
		return login(sh, cmd, ttl)
	}
	return cmd
}

// login exchanges a password for a token of the user. The login token itself would expire
// after minutes.
func login(sh *cli.Shell, cmd *cobra.Command, ttl time.Duration) error {
	nobody, err := sh.Anonymous(cmd)
	if err != nil {
		return err
	}
	defer nobody.Close()
	user, password, err := sh.Password()
	if err == nil && user == "" {
		user, password, err = askUser(sh.Environment())
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), sh.Timeout())
	defer cancel()
	first, err := nobody.Login(ctx, user, password)
	if err != nil {
		return cli.Explain(err)
	}
	known, err := sh.As(first.Token)
	if err != nil {
		return err
	}
	defer known.Close()
	host, _ := os.Hostname() // only a label: "" will do
	made, err := known.Rights().CreateToken(ctx, client.TokenRequest{Label: "kvd login on " + host, TTL: ttl})
	if err != nil {
		return cli.Explain(err)
	}
	logins, err := cli.OpenLogins(sh.Environment().Environ)
	if err != nil {
		return err
	}
	if err := logins.Set(sh.Endpoints(), &cli.SavedLogin{User: made.User, ID: made.ID, Token: made.Secret, Expires: made.Expires}); err != nil {
		return fmt.Errorf("store the login: %w", err)
	}
	fmt.Fprintf(sh.Environment().Stderr, "logged in as %s until %s\n", cli.Printable(user), moment(made.Expires))
	return nil
}

func askUser(e *cli.Environment) (user, password string, err error) {
	fmt.Fprint(e.Stderr, "User: ")
	line, err := bufio.NewReader(e.Stdin).ReadString('\n')
	if user = strings.TrimSpace(line); user == "" {
		return "", "", cli.Usagef("name the user with --user")
	}
	_ = err // a name that the end of the input cuts off is complete
	password, err = e.AskSecret("Password: ")
	return user, password, err
}

func logoutCommand(sh *cli.Shell) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "logout",
		Short: "End the login for the endpoints",
		Long:  `Revoke the token that "kvd login" has stored for the endpoints, and forget it.`,
		Args:  cli.NoArguments,
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		nobody, err := sh.Anonymous(cmd)
		if err != nil {
			return err
		}
		nobody.Close()
		logins, err := cli.OpenLogins(sh.Environment().Environ)
		if err != nil {
			return err
		}
		saved, ok := logins.Find(sh.Endpoints())
		if !ok {
			return cli.Failf(cli.ExitNotFound, "nobody is logged in at %s", strings.Join(sh.Endpoints(), ", "))
		}
		known, err := sh.As(saved.Token)
		if err != nil {
			return err
		}
		defer known.Close()
		ctx, cancel := context.WithTimeout(cmd.Context(), sh.Timeout())
		defer cancel()
		err = known.Rights().DeleteToken(ctx, saved.ID)
		if err != nil && !errors.Is(err, client.ErrUnauthenticated) && !errors.Is(err, client.ErrNotFound) {
			return cli.Explain(err) // the token may still be valid, so keep it
		}
		if err := logins.Set(sh.Endpoints(), nil); err != nil {
			return err
		}
		fmt.Fprintf(sh.Environment().Stderr, "logged out %s\n", cli.Printable(saved.User))
		return nil
	}
	return cmd
}
