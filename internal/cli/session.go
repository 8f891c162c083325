package cli

import (
	"context"
	"errors"
	"io"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
)

// Environment is everything outside the process that commands depend on.
type Environment struct {
	Environ []string // "NAME=value"
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	// DefaultEndpoint is where a node with default settings serves clients.
	DefaultEndpoint string
}

// The groups of commands in kvd's help.
const (
	groupData    = "data"
	groupCluster = "cluster"
	groupRights  = "rights"
)

// Groups returns the groups that the root command must know.
func Groups() []*cobra.Group {
	return []*cobra.Group{
		{ID: groupData, Title: "Commands for data"},
		{ID: groupCluster, Title: "Commands for clusters"},
		{ID: groupRights, Title: "Commands for users and rights"},
	}
}

// Commands returns the commands for users of a cluster.
func Commands(e Environment) []*cobra.Command {
	sh := &shell{env: e}
	return []*cobra.Command{
		sh.connected(groupData, kvCommand(sh)),
		sh.connected(groupData, compactCommand(sh)),
		sh.connected(groupData, exportGroup(sh)),
		sh.connected(groupCluster, settingsCommand(sh)),
	}
}

// shell builds commands that share an environment.
type shell struct {
	env  Environment
	conn connection
}

// connected makes a command at the top level one of a group, and gives it the flags
// of the connection.
func (sh *shell) connected(group string, cmd *cobra.Command) *cobra.Command {
	cmd.GroupID = group
	cmd.SetFlagErrorFunc(explainFlag)
	sh.conn.flags(cmd, sh.env.DefaultEndpoint)
	if cmd.HasSubCommands() && cmd.RunE == nil {
		cmd.RunE = ChooseSubcommand
	}
	if cmd.Long == "" {
		cmd.Long = cmd.Short + "."
	}
	cmd.Long += "\n\n" + exitCodesHelp()
	return cmd
}

// session is one run of a command.
type session struct {
	*client.Client
	env     Environment
	format  format
	timeout time.Duration
	cmd     *cobra.Command
}

// run turns a function into RunE of a command. Its first argument ends with the
// first signal; a second one ends the process at once.
func (sh *shell) run(f func(ctx context.Context, s *session, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := checkExclusive(cmd); err != nil {
			return err
		}
		s, err := sh.open(cmd)
		if err != nil {
			return err
		}
		defer s.Close()
		ctx, restore := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
		defer restore()
		defer context.AfterFunc(ctx, restore)()
		err = f(ctx, s, args)
		if ctx.Err() != nil && errors.Is(err, context.Canceled) && !errors.Is(err, client.ErrUnknownOutcome) {
			return failf(exitFailed, "interrupted")
		}
		return explain(err)
	}
}

// open makes a session of the flags and variables.
func (sh *shell) open(cmd *cobra.Command) (*session, error) {
	if err := FromEnvironment(cmd.Flags(), sh.env.Environ); err != nil {
		return nil, err
	}
	form, err := parseFormat(sh.conn.output)
	if err != nil {
		return nil, err
	}
	c, err := sh.conn.open(&sh.env)
	if err != nil {
		return nil, err
	}
	return &session{Client: c, env: sh.env, format: form, timeout: sh.conn.timeout, cmd: cmd}, nil
}

// environ returns the environment for a command that runs on the user's behalf. What
// the flags say about the connection is in it, so that a kvd in the command needs
// none.
func (s *session) environ(extra ...string) []string {
	out := slices.Clone(s.env.Environ)
	for _, v := range variables {
		if flag := s.cmd.Flags().Lookup(v.flag); flag != nil && flag.Changed && v.flag != "output" {
			out = append(out, v.variable+"="+strings.Trim(flag.Value.String(), "[]"))
		}
	}
	return append(out, extra...)
}

// limited returns a context for one request.
func (s *session) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s.timeout)
}
