package operator

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/internal/cli"
)

// holdFlags are the flags of kvd lock and kvd elect.
type holdFlags struct {
	ttl, wait time.Duration
	text      string
}

func (h *holdFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.DurationVar(&h.ttl, "ttl", client.DefaultTTL, "how long it stays taken after this process was last heard of")
	f.DurationVar(&h.wait, "wait", 0, "give up after waiting this long, with 0s at once; by default it waits as long as it takes")
	f.StringVar(&h.text, "text", "", "a `TEXT` that says who holds it to those who ask; by default the host and the process id")
}

func (h *holdFlags) options(cmd *cobra.Command) (*client.LockOptions, error) {
	o := &client.LockOptions{TTL: h.ttl, Wait: h.wait, Text: h.text}
	switch {
	case h.ttl <= 0:
		return o, cli.Usagef("--ttl is %v, but must be above 0", h.ttl)
	case h.wait < 0:
		return o, cli.Usagef("--wait is %v, but must not be negative; 0s does not wait at all", h.wait)
	case h.wait == 0 && cmd.Flags().Changed("wait"):
		o.Wait = -1
	}
	if o.Text == "" {
		host, _ := os.Hostname() // "" is good enough for people
		o.Text = fmt.Sprintf("%s, process %d", host, os.Getpid())
	}
	return o, nil
}

// commandAfterName is the check of kvd lock and kvd elect.
func commandAfterName(cmd *cobra.Command, args []string) error {
	dash := cmd.ArgsLenAtDash()
	if dash == 1 || dash < 0 && len(args) == 1 {
		return nil
	}
	return cli.Usagef("%s takes a name, and a command after --: %s", cmd.CommandPath(), cmd.UseLine())
}

const holdHelp = `CMD runs with these variables, and with those that tell kvd how to reach the cluster:

  KVD_LOCK_NAME   NAME
  KVD_LOCK_TOKEN  a number that only grows from holder to holder: whatever the lock protects should
                  refuse a number below one that it has seen
  KVD_LOCK_LEASE  the lease that holds it

The status of CMD is the status of kvd (128 + N if signal N ended it). SIGTERM, SIGHUP, SIGUSR1, and
SIGUSR2 are passed on to CMD, SIGINT and SIGQUIT unless the terminal sends them to CMD anyway.

If no node confirms the lock for its TTL, or its lease has ended, CMD gets SIGTERM, and SIGKILL if
it still runs 10 s later, and kvd exits with 1.`

func lockCommand(sh *cli.Shell) *cobra.Command {
	var h holdFlags
	cmd := &cobra.Command{
		Use:   "lock NAME [flags] -- CMD...",
		Short: "Hold a lock while a command runs",
		Long: `Wait for a lock, hold it while CMD runs, and release it. Those who wait get it in the order in which
they asked. Without CMD, print the token, and hold the lock until interrupted.

` + holdHelp + `

Exits with 5 if the lock was not free within --wait.`,
		Example: `  kvd lock nightly-report -- ./report.sh
  kvd lock deploy --wait 0s -- make deploy || echo "somebody else deploys"`,
		Args: commandAfterName,
	}
	h.flags(cmd)
	cmd.RunE = sh.Run(func(ctx context.Context, s *cli.Session, args []string) error {
		o, err := h.options(cmd)
		if err != nil {
			return err
		}
		argv, err := commandOf(args)
		if err != nil {
			return err
		}
		return hold(ctx, s, args[0], o, argv, func() (*client.Lock, error) { return s.Lock(ctx, args[0], *o) })
	})
	return cmd
}

func electCommand(sh *cli.Shell) *cobra.Command {
	var h holdFlags
	var value string
	var watch bool
	cmd := &cobra.Command{
		Use:   "elect NAME [flags] -- CMD...",
		Short: "Run a command while this process is the leader",
		Long: `Wait until this process wins the election NAME, run CMD, and resign. While somebody leads, the key
NAME exists and has the leader's --value, so that anybody can read or watch who leads. Without CMD,
lead until interrupted. With --observe, print the value of each leader instead, and an empty line
while nobody leads.

` + holdHelp,
		Example: `  kvd elect scheduler --value 10.0.0.7:9000 -- ./scheduler
  kvd kv get scheduler
  kvd elect scheduler --observe`,
		Args: commandAfterName,
	}
	h.flags(cmd)
	cmd.Flags().StringVar(&value, "value", "", "the `VALUE` to proclaim; by default that of --text")
	cmd.Flags().BoolVar(&watch, "observe", false, "print who leads, now and from now on")
	cli.Exclusive(cmd, "observe", "value")
	cmd.RunE = sh.Run(func(ctx context.Context, s *cli.Session, args []string) error {
		if watch {
			return observe(ctx, s, args[0])
		}
		o, err := h.options(cmd)
		if err != nil {
			return err
		}
		argv, err := commandOf(args)
		if err != nil {
			return err
		}
		if value == "" {
			value = o.Text
		}
		return hold(ctx, s, args[0], o, argv, func() (*client.Lock, error) {
			office, err := s.Election(args[0]).Campaign(ctx, []byte(value), *o)
			if err != nil {
				return nil, err
			}
			return office.Lock, nil
		})
	})
	return cmd
}

// observe prints who leads until it is interrupted.
func observe(ctx context.Context, s *cli.Session, name string) error {
	for leader, err := range s.Election(name).Observe(ctx) {
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		if leader == nil {
			leader = new(client.Elected)
		}
		switch s.FormatOr(cli.Table) {
		case cli.JSON:
			doc := map[string]any{"since": leader.Since, "revision": leader.Revision, "lease": cli.LeaseID(leader.Lease)}
			cli.ByteField(doc, "value", string(leader.Value))
			err = s.PrintJSON(doc)
		case cli.Value:
			err = s.Println(string(leader.Value))
		default:
			word := ""
			if leader.Since != 0 {
				word = cli.Printable(string(leader.Value))
			}
			err = s.Println(word)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// The statuses of shells for commands that do not run.
const (
	statusNotExecutable = 126
	statusNotFound      = 127
	statusSignal        = 128
)

// commandOf returns the command with the path of its program; nil if there is none. It
// looks before the lock is taken, so that a misspelled command keeps nobody waiting.
func commandOf(args []string) ([]string, error) {
	argv := args[1:]
	if len(argv) == 0 {
		return nil, nil
	}
	path, err := exec.LookPath(argv[0])
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, cli.Failf(statusNotExecutable, "%w", err)
	case err != nil && !errors.Is(err, exec.ErrDot):
		return nil, cli.Failf(statusNotFound, "%w", err)
	}
	return append([]string{path}, argv[1:]...), nil
}

// hold takes the lock, runs the command while it is held, and releases it. The end of the
// lease does that in one step, with the key of an election.
func hold(ctx context.Context, s *cli.Session, name string, o *client.LockOptions, argv []string, take func() (*client.Lock, error)) (err error) {
	limited, cancel := s.Limited(ctx)
	o.Session, err = s.NewSession(limited, o.TTL) // waiting takes any time, but not reaching a node
	cancel()
	if err != nil {
		return err
	}
	defer func() {
		limited, cancel := s.Limited(context.WithoutCancel(ctx))
		defer cancel()
		if left := o.Session.Close(limited); left != nil && o.Session.Err() == nil {
			s.Note("the lock could not be released (%v); it is free in %v", left, o.Session.TTL())
		}
	}()
	lock, err := take()
	switch {
	case errors.Is(err, client.ErrLockHeld):
		return held(ctx, s, name)
	case err != nil:
		return err
	case argv == nil:
		return holdUntilInterrupted(ctx, s, lock)
	}
	return runHolding(s, lock, argv)
}

// held says who has the lock. The answer of the node names the parameter of a request
// in place of --wait, and not the text of the holder.
func held(ctx context.Context, s *cli.Session, name string) error {
	limited, cancel := s.Limited(ctx)
	defer cancel()
	l, err := s.LockInfo(limited, name)
	if err != nil { // it may be free by now
		return cli.Failf(cli.ExitCondition, "the lock %s was not free in time; wait longer with --wait, or try again", cli.Printable(name))
	}
	return cli.Failf(cli.ExitCondition, "lease %d holds the lock %s (%s), and %d wait for it; wait longer with --wait, or try again",
		l.Holder.Lease, cli.Printable(name), cli.Printable(l.Holder.Text), l.Waiting)
}

func holdUntilInterrupted(ctx context.Context, s *cli.Session, lock *client.Lock) error {
	var err error
	if s.FormatOr(cli.Value) == cli.JSON {
		doc := map[string]any{"token": lock.Token, "lease": cli.LeaseID(lock.Session().Lease())}
		cli.ByteField(doc, "name", lock.Name)
		err = s.PrintJSON(doc)
	} else {
		err = s.Println(number(lock.Token))
	}
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case <-lock.Lost():
		return lostLock(lock)
	}
}

func lostLock(lock *client.Lock) error {
	return cli.Failf(cli.ExitFailed, "the lock %s was lost: %w", cli.Printable(lock.Name), cli.Explain(lock.Session().Err()))
}

// passedOn are the signals for the command, beside those that a terminal sends to
// everybody in front of it.
var passedOn = []os.Signal{syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2}

// fromTerminal are the signals that a terminal sends to all processes in front of it.
var fromTerminal = []os.Signal{syscall.SIGINT, syscall.SIGQUIT}

// graceOfCommand is how long a command may take to end after SIGTERM.
const graceOfCommand = 10 * time.Second

// runHolding runs the command until it ends, or until the lock is lost.
func runHolding(s *cli.Session, lock *client.Lock, argv []string) error {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, append(fromTerminal, passedOn...)...)
	defer signal.Stop(signals)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.Streams()
	cmd.WaitDelay = graceOfCommand
	cmd.Env = s.Environ("KVD_LOCK_NAME="+strings.ReplaceAll(lock.Name, "\x00", "\\0"), fmt.Sprint("KVD_LOCK_TOKEN=", lock.Token),
		fmt.Sprint("KVD_LOCK_LEASE=", lock.Session().Lease()))
	// In front of a terminal, the command stays in this group, or the terminal would stop it
	// when it reads. Elsewhere, a group of its own makes signals reach what it has started, too.
	own := !inFront()
	cmd.SysProcAttr = commandAttributes(own)
	started, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		// The kernel takes the end of the thread that started the command for the end of
		// the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if started <- err; err == nil {
			ended <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return cli.Failf(statusNotExecutable, "run the command: %w", err)
	}
	r := &running{s: s, lock: lock, own: own, pid: cmd.Process.Pid}
	return r.attend(signals, ended)
}

// inFront reports whether this process is one of those that its terminal speaks to: they
// get what is typed, and the signals of keys. Where its streams go says nothing about that.
func inFront() bool {
	terminal, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return false // it has no terminal
	}
	defer terminal.Close()
	group, err := unix.IoctlGetInt(int(terminal.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// running is a command that runs while a lock is held.
type running struct {
	s    *cli.Session
	lock *client.Lock
	own  bool // the command has a process group of its own
	pid  int
}

// attend passes signals on until the command has ended.
func (r *running) attend(signals <-chan os.Signal, ended <-chan error) error {
	lost := r.lock.Lost()
	var kill <-chan time.Time
	for {
		select {
		case err := <-ended:
			if lost == nil {
				return lostLock(r.lock)
			}
			return exitStatus(err)
		case sig := <-signals:
			if r.own || !slices.Contains(fromTerminal, sig) {
				r.signal(sig.(syscall.Signal))
			}
		case <-lost:
			lost = nil
			r.s.Note("the lock %s may be lost (%v); ending the command", cli.Printable(r.lock.Name), cli.Explain(r.lock.Session().Err()))
			r.signal(syscall.SIGTERM)
			kill = time.After(graceOfCommand)
		case <-kill:
			r.signal(syscall.SIGKILL)
		}
	}
}

// signal sends a signal to the command, and to its group if it has its own. One that has
// ended meanwhile needs none.
func (r *running) signal(sig syscall.Signal) {
	if r.own {
		_ = syscall.Kill(-r.pid, sig)
		return
	}
	_ = syscall.Kill(r.pid, sig)
}

// exitStatus makes the end of a command that of kvd.
func exitStatus(err error) error {
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return nil // ErrWaitDelay: it succeeded, and a child of its own holds its output open
	case !errors.As(err, &exit):
		return cli.Failf(cli.ExitFailed, "run the command: %w", err)
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return cli.ExitStatus(statusSignal + int(status.Signal()))
	}
	return cli.ExitStatus(exit.ExitCode())
}
