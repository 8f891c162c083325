// Package accounts has the commands for users, roles, tokens, logins, and the import of
// users and roles from etcd. It builds on package cli.
//
// # How an edit is made
//
// A command that changes part of a user or a role, such as adding one permission, reads the
// entry and writes it back on condition that the rights have not changed since. If they
// have, it starts over (edit), so concurrent changes by two administrators both take effect.
//
// # Secrets
//
// A command prompts for a password, twice for a new one, or reads it from a file. It is
// never an argument, except in --user for scripts that have no other way. A new token is
// printed once. The token of kvd login is in a file that only the user can read
// (cli.Logins), and is sent only to the endpoints that it was made for.
package accounts

import (
	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/internal/cli"
)

// Commands returns the commands of this package.
func Commands(e cli.Environment) []*cobra.Command {
	sh := cli.NewShell(e)
	return []*cobra.Command{
		sh.ForRights(authCommand(sh)),
		sh.ForRights(loginCommand(sh)),
		sh.ForRights(logoutCommand(sh)),
		sh.ForRights(roleCommand(sh)),
		sh.ForRights(tokenCommand(sh)),
		sh.ForRights(userCommand(sh)),
	}
}
