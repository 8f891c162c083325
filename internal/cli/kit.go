package cli

import (
	"context"
	"crypto/tls"
	"io"
	"iter"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/internal/transfer"
)

// This file is what commands in other packages are made of: the foundation of the
// commands here under exported names.

// The forms of output.
const (
	Table = formatTable
	JSON  = formatJSON
	Value = formatValue
)

// The exit codes that commands choose themselves.
const (
	ExitOK        = exitOK
	ExitFailed    = exitFailed
	ExitUsage     = exitUsage
	ExitNotFound  = exitNotFound
	ExitCondition = exitCondition
	ExitDown      = exitDown
)

// Shell builds commands that share an environment.
type Shell struct{ sh *shell }

// NewShell returns a Shell.
func NewShell(e Environment) *Shell { return &Shell{&shell{env: e}} }

// ForData and ForClusters put a command into a group, and give it the flags of the
// connection.
func (s *Shell) ForData(cmd *cobra.Command) *cobra.Command { return s.sh.connected(groupData, cmd) }

// ForClusters is ForData for the other group.
func (s *Shell) ForClusters(cmd *cobra.Command) *cobra.Command {
	return s.sh.connected(groupCluster, cmd)
}

// ForRights is ForData for the group of users and rights.
func (s *Shell) ForRights(cmd *cobra.Command) *cobra.Command { return s.sh.connected(groupRights, cmd) }

// Run turns a function into RunE of a command. Its context ends with the first signal.
func (s *Shell) Run(f func(ctx context.Context, s *Session, args []string) error) func(*cobra.Command, []string) error {
	return s.sh.run(func(ctx context.Context, inner *session, args []string) error {
		return f(ctx, &Session{inner.Client, inner}, args)
	})
}

// Open makes a client of the flags and variables, for the completion of arguments.
func (s *Shell) Open(cmd *cobra.Command) (*client.Client, error) {
	inner, err := s.sh.open(cmd)
	if err != nil {
		return nil, err
	}
	return inner.Client, nil
}

// Endpoints returns those that the user named.
func (s *Shell) Endpoints() []string { return s.sh.conn.endpoints }

// At returns a client for one endpoint, with the certificates that the user named.
func (s *Shell) At(endpoint string) (*client.Client, error) {
	conn := s.sh.conn
	conn.endpoints = []string{endpoint}
	return conn.open(&s.sh.env)
}

// Environment returns what the commands depend on.
func (s *Shell) Environment() *Environment { return &s.sh.env }

// Password returns the user and the password of --user, and asks for what is missing. Both
// are empty without that flag.
func (s *Shell) Password() (user, password string, err error) {
	if s.sh.conn.who.user == "" {
		return "", "", nil
	}
	return s.sh.conn.who.password(&s.sh.env)
}

// Anonymous returns a client without credentials but those of the connection.
func (s *Shell) Anonymous(cmd *cobra.Command) (*client.Client, error) {
	if err := FromEnvironment(cmd.Flags(), s.sh.env.Environ); err != nil {
		return nil, err
	}
	return s.As("")
}

// As returns a client with a token, or with none.
func (s *Shell) As(token string) (*client.Client, error) {
	conn := s.sh.conn
	conf, err := tlsConfig(conn.ca, conn.cert, conn.key)
	if err != nil {
		return nil, UsageError{err}
	}
	return conn.connect(client.Config{TLS: conf, Token: token})
}

// TLSConfig reads the files of certificates; nil means the authorities of the system.
func TLSConfig(ca, cert, key string) (*tls.Config, error) { return tlsConfig(ca, cert, key) }

// Timeout is how long a request may take.
func (s *Shell) Timeout() time.Duration { return s.sh.conn.timeout }

// Session is one run of a command.
type Session struct {
	*client.Client
	s *session
}

// FormatOr returns the format, or the command's own if the user named none.
func (s *Session) FormatOr(own format) format { return s.s.formatOr(own) }

// Limited returns a context for one request.
func (s *Session) Limited(ctx context.Context) (context.Context, context.CancelFunc) {
	return s.s.limited(ctx)
}

// Println prints a line of the result.
func (s *Session) Println(line string) error { return s.s.println(line) }

// PrintJSON prints one document on one line.
func (s *Session) PrintJSON(doc any) error { return s.s.printJSON(doc) }

// PrintTable prints rows under headings.
func (s *Session) PrintTable(headings []string, rows [][]string) error {
	return s.s.printTable(headings, rows)
}

// PrintFields prints names with values, one a line.
func (s *Session) PrintFields(fields [][2]string) error { return s.s.printFields(fields) }

// Color paints a word of a table, if there are colors.
func (s *Session) Color(c text.Color, word string) string { return s.s.color(c, word) }

// Note tells a person something beside the result.
func (s *Session) Note(format string, args ...any) { s.s.note(format, args...) }

// Environ returns the environment for a command that runs on the user's behalf.
func (s *Session) Environ(extra ...string) []string { return s.s.environ(extra...) }

// Streams returns the standard streams.
func (s *Session) Streams() (stdin io.Reader, stdout, stderr io.Writer) {
	return s.s.env.Stdin, s.s.env.Stdout, s.s.env.Stderr
}

// PrintingTo returns the session with another standard output. Colors stay as they are.
func (s *Session) PrintingTo(w io.Writer) *Session {
	inner := *s.s
	inner.env.Stdout = w
	return &Session{s.Client, &inner}
}

// Each calls f for each item of a listing, which may take any time as long as items
// come.
func Each[T any](ctx context.Context, s *Session, items func(context.Context) iter.Seq2[T, error], f func(T) error) error {
	w := s.s.watchdog(ctx)
	defer w.stop()
	for item, err := range items(w.ctx) {
		if err != nil {
			return w.explain(err)
		}
		w.pause()
		if err := f(item); err != nil {
			return err
		}
		w.resume()
	}
	return nil
}

// Print prints a result: the document as JSON, the value, or by default the sentence.
func (s *Session) Print(doc any, value, sentence string) error {
	switch s.FormatOr(Table) {
	case JSON:
		return s.PrintJSON(doc)
	case Value:
		return s.Println(value)
	}
	return s.Println(sentence)
}

// Listing says how the items of a list are printed in each format.
type Listing[T any] struct {
	Headings []string
	Document func(T) any // nil means the item itself
	Value    func(T) string
	Rows     func(T) [][]string // of the table; most items have one
}

// maxRows bounds the rows whose columns are aligned with each other: a longer table is
// printed in pieces while it is being read.
const maxRows = 500

// PrintEach prints the items of a list.
func PrintEach[T any](ctx context.Context, s *Session, items func(context.Context) iter.Seq2[T, error], l Listing[T]) error {
	var rows [][]string
	flush := func() error {
		if len(rows) == 0 {
			return nil
		}
		piece, headings := rows, l.Headings
		rows, l.Headings = nil, nil // the first piece has them
		return s.PrintTable(headings, piece)
	}
	err := Each(ctx, s, items, func(item T) error {
		switch s.FormatOr(Table) {
		case JSON:
			if l.Document == nil {
				return s.PrintJSON(item)
			}
			return s.PrintJSON(l.Document(item))
		case Value:
			return s.Println(l.Value(item))
		}
		if rows = append(rows, l.Rows(item)...); len(rows) < maxRows {
			return nil
		}
		return flush()
	})
	if err != nil {
		return err
	}
	return flush()
}

// LeaseID is a string in JSON where a number would lose digits.
type LeaseID = transfer.LeaseID

// Usagef describes a mistake in the command line.
func Usagef(format string, args ...any) error { return usagef(format, args...) }

// Failf describes an outcome with its exit code.
func Failf(code int, format string, args ...any) error { return failf(code, format, args...) }

// Explain puts an error of the client into words that name the remedy.
func Explain(err error) error { return explain(err) }

// Between is the check of a command with a varying number of arguments.
func Between(low, high int) cobra.PositionalArgs { return between(low, high) }

// Exclusive says that at most one of the flags may be given.
func Exclusive(cmd *cobra.Command, flags ...string) { exclusive(cmd, flags...) }

// Printable returns a byte string as a terminal may show it.
func Printable(b string) string { return printable(b) }

// ByteField adds a byte string to a document as the HTTP interface does.
func ByteField(doc map[string]any, name, value string) { byteField(doc, name, value) }

// IsTerminal reports whether w is a terminal, on which a person reads.
func IsTerminal(w io.Writer) bool { return isTerminal(w) }
