// Command kvd is a replicated key-value daemon. Alone, or with the flags of
// package settings, it serves as one member of a cluster; its subcommands examine
// data and running nodes.
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

	"github.com/kvd-io/kvd/internal/logsink"
	"github.com/kvd-io/kvd/internal/node"
	"github.com/kvd-io/kvd/internal/settings"
)

// The exit codes.
const (
	exitOK      = 0 // a regular end, also of a member that was removed
	exitFailed  = 1
	exitUsage   = 2 // the command line, the environment or the settings are wrong
	exitRefused = 3 // for safety this data may not be used
)

func main() {
	os.Exit(run(environment{
		args: os.Args[1:], environ: os.Environ(),
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, exit: os.Exit,
	}))
}

// environment is all that a run of the command has of the world around it.
type environment struct {
	args    []string
	environ []string
	stdin   io.Reader
	stdout  io.Writer
	stderr  io.Writer
	// exit ends the process at once, for the second signal.
	exit func(code int)
}

// run executes the command line and returns the exit code.
func run(e environment) int {
	cmd := rootCommand(e)
	cmd.SetArgs(settings.NormaliseArguments(e.args))
	cmd.SetOut(e.stdout)
	cmd.SetErr(e.stderr)
	err := cmd.ExecuteContext(context.Background())
	code := exitCode(err)
	if code != exitOK {
		complain(e.stderr, err, code)
	}
	return code
}

// complain says why the command failed. It does not wait for a reader that is
// stuck, or the process would never end.
func complain(stderr io.Writer, err error, code int) {
	var text strings.Builder
	for line := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintf(&text, "kvd: %s\n", line)
	}
	if code == exitUsage {
		text.WriteString("Run \"kvd --help\" for all settings.\n")
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		_, _ = io.WriteString(stderr, text.String()) // there is no better place
	}()
	select {
	case <-written:
	case <-time.After(logsink.SyncTimeout):
	}
}

// usageError is a mistake in the command line or the settings.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// refusal is a verdict against the data that was examined.
type refusal struct{ error }

func (e refusal) Unwrap() error { return e.error }

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
	return exitFailed
}

func rootCommand(e environment) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kvd",
		Short: "A replicated key-value daemon that needs nothing but curl",
		Long: `kvd serves as one member of a replicated key-value store. Without any flag it
is a cluster of its own: clients on ` + settings.DefaultClientURL + `, data in ./` + settings.DefaultDataRoot + `/1.

Each setting is a flag, an environment variable (KVD_DATA_DIR for --data-dir),
or a line of --config-file. A flag overrides a variable, and a variable the file.`,
		Example: `  kvd
  kvd --id 1 --cluster http://127.0.0.1:12379,http://127.0.0.1:22379,http://127.0.0.1:32379 --port 12380
  kvd --join http://127.0.0.1:12380 --listen-client http://127.0.0.1:42380 --listen-peer http://127.0.0.1:42379 --data-dir kvd-data/new`,
		Args:          noArguments,
		Version:       buildVersion().Version,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := settings.Load(cmd.Flags(), e.environ)
			if err != nil {
				return usageError{err}
			}
			return serve(s, e, func() (*settings.Settings, error) { return settings.Load(cmd.Flags(), e.environ) })
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{settings.ExplainFlag(err)} })
	settings.AddFlags(cmd.Flags())
	cmd.AddCommand(versionCommand(), doctorCommand(), recoverCommand(e), snapshotCommand(), certCommand(), healthcheckCommand(e), benchCommand(), configCommand(e))
	return cmd
}

func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return usageError{fmt.Errorf("%q is no subcommand of %s and no flag", args[0], cmd.CommandPath())}
}

// oneArgument is the check of a subcommand that works on one file.
func oneArgument(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 {
			return nil
		}
		return usageError{fmt.Errorf("%s takes one argument, the %s, not %d", cmd.CommandPath(), what, len(args))}
	}
}
