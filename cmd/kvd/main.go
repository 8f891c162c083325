package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/internal/cli"
	"github.com/kvd-io/kvd/internal/cli/accounts"
	"github.com/kvd-io/kvd/internal/cli/operator"
	"github.com/kvd-io/kvd/internal/logsink"
	"github.com/kvd-io/kvd/internal/node"
	"github.com/kvd-io/kvd/internal/settings"
)

// The exit codes of a node and of commands that look at data. Package cli has those
// of commands for users of a cluster; it does not use 3.
const (
	exitOK      = 0 // success; also a member that was removed from its cluster
	exitFailed  = 1
	exitUsage   = 2 // the command line, the environment or the settings are wrong
	exitRefused = 3 // it would be unsafe to use this data
)

func main() {
	os.Exit(run(environment{
		args: os.Args[1:], environ: os.Environ(),
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, exit: os.Exit,
	}))
}

// environment is everything outside the process that a run depends on, so that
// tests can run commands in theirs.
type environment struct {
	args    []string
	environ []string
	stdin   io.Reader
	stdout  io.Writer
	stderr  io.Writer
	// exit ends the process immediately, on a second signal.
	exit func(code int)
}

// run executes the command line and returns the exit code.
func run(e environment) int {
	cmd := rootCommand(e)
	cmd.SetArgs(settings.NormaliseArguments(e.args))
	cmd.SetOut(e.stdout)
	cmd.SetErr(e.stderr)
	executed, err := cmd.ExecuteContextC(context.Background())
	code := exitCode(err)
	var status cli.ExitStatus
	if code != exitOK && !errors.As(err, &status) {
		complain(e.stderr, err, code, executed.CommandPath())
	}
	return code
}

// complain reports why the command failed. If the reader of standard error is
// stuck, it gives up: the process would otherwise never exit.
func complain(stderr io.Writer, err error, code int, command string) {
	var text strings.Builder
	for line := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintf(&text, "kvd: %s\n", line)
	}
	if code == exitUsage {
		fmt.Fprintf(&text, "Run \"%s --help\" for usage.\n", command)
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		_, _ = io.WriteString(stderr, text.String()) // there is no better place to report it
	}()
	select {
	case <-written:
	case <-time.After(logsink.SyncTimeout):
	}
}

// usageError is a mistake in the command line, the environment or the settings.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// refusal is a verdict against data that was examined.
type refusal struct{ error }

func (e refusal) Unwrap() error { return e.error }

// exitCode maps errors to exit codes. It and cli.ExitCode, for the commands of that
// package, are the only places that do. A removed member exits with 0, because a
// restart would only end the same way, and supervisors restart on failure.
func exitCode(err error) int {
	var usage usageError
	switch {
	case err == nil, errors.Is(err, node.ErrRemoved):
		return exitOK
	case errors.As(err, &usage), errors.Is(err, node.ErrConfig):
		return exitUsage
	case isRefusal(err):
		return exitRefused
	}
	return cli.ExitCode(err)
}

// rootCommand builds the whole command line anew for each run, so that tests
// share no flags.
func rootCommand(e environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kvd",
		Short: "Replicated key-value store driven by curl",
		Long: `kvd serves as one member of a replicated key-value store. Without flags it is a cluster of one,
with clients on ` + settings.DefaultClientURL + ` and data in ./` + settings.DefaultDataRoot + `/1.

Each setting is a flag, an environment variable (KVD_DATA_DIR for --data-dir), or a line of
--config-file. A flag overrides a variable, and a variable overrides the file.`,
		Example: `  kvd
  kvd --id 1 --port 12380 \
      --cluster http://127.0.0.1:12379,http://127.0.0.1:22379,http://127.0.0.1:32379
  kvd --join http://127.0.0.1:12380 --listen-client http://127.0.0.1:42380 \
      --listen-peer http://127.0.0.1:42379 --data-dir kvd-data/new`,
		Args:          noArguments,
		Version:       buildVersion().Version,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if wantsAll(cmd) {
				return writeHelp(cmd, true)
			}
			s, err := settings.Load(cmd.Flags(), e.environ)
			if err != nil {
				return usageError{err}
			}
			return serve(s, e, func() (*settings.Settings, error) { return settings.Load(cmd.Flags(), e.environ) })
		},
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{settings.ExplainFlag(cmd.Flags(), err)}
	})
	settings.AddFlags(cmd.Flags())
	setHelp(cmd)
	cmd.AddCommand(versionCommand(), doctorCommand(), recoverCommand(e), snapshotCommand(e), certCommand(), healthcheckCommand(e), benchCommand(e), configCommand(e))
	cmd.AddGroup(cli.Groups()...)
	users := cli.Environment{Environ: e.environ, Stdin: e.stdin, Stdout: e.stdout, Stderr: e.stderr, DefaultEndpoint: settings.DefaultClientURL}
	cmd.AddCommand(cli.Commands(users)...)
	cmd.AddCommand(operator.Commands(users)...)
	cmd.AddCommand(accounts.Commands(users)...)
	refuseUnknownShells(cmd)
	return cmd
}

// refuseUnknownShells makes cobra's command for completion fail without the name of a shell
// that it knows, instead of printing its help: that would be stored as the script.
func refuseUnknownShells(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" {
			cmd.Args, cmd.RunE = nil, cli.ChooseSubcommand
		}
	}
}
