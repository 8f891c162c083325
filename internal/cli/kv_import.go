package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/internal/transfer"
)

// importFlags are the flags of kvd kv import.
type importFlags struct {
	from          string
	prefix        string
	leased        bool
	dryRun        bool
	ca, cert, key string // for etcd
}

func importCommand(sh *shell) *cobra.Command {
	var m importFlags
	cmd := &cobra.Command{
		Use:   "import [FILE|-]",
		Short: "Read keys from an export, from etcd, or from Consul",
		Long: `Store the keys of an export of kvd, of an etcd that runs, or of a file that consul kv export has
written. What a FILE has is checked before anything is stored.

Only what differs is stored. So an import that was interrupted goes on when it is run again, and one
that is repeated later brings the cluster up to date. Keys that the source does not have stay.

At the end everything is compared: the number of keys and a hash over all of them must be the same
on both sides. Exits with 1 if they are not, and names a key that differs.

Keys that are bound to leases are left out, because the leases stay behind; with --leased they are
stored as permanent keys.`,
		Example: `  kvd kv import all.ndjson
  gunzip -c config.ndjson.gz | kvd kv import -
  kvd kv import --from etcd:http://10.0.0.9:2379 --prefix /config/
  consul kv export > consul.json && kvd kv import --from consul:consul.json`,
		Args: between(0, 1),
	}
	f := cmd.Flags()
	f.StringVar(&m.from, "from", "", "read from this `SOURCE` instead: etcd:URL or consul:FILE")
	f.StringVar(&m.prefix, "prefix", "", "only keys that begin with this `PREFIX`")
	f.BoolVar(&m.leased, "leased", false, "also keys that are bound to leases, as permanent keys")
	f.BoolVar(&m.dryRun, "dry-run", false, "only say what would be stored")
	f.StringVar(&m.ca, "from-cacert", "", "for etcd: trust the authority in this PEM `FILE`")
	f.StringVar(&m.cert, "from-cert", "", "for etcd: present the certificate in this PEM `FILE`")
	f.StringVar(&m.key, "from-key", "", "for etcd: use the key in this PEM `FILE` for --from-cert")
	cmd.RunE = sh.run(func(ctx context.Context, s *session, args []string) error {
		from, err := m.source(ctx, s, args)
		if errors.Is(err, transfer.ErrUnreachable) {
			return failf(exitDown, "%w", err)
		}
		if err != nil {
			return err
		}
		defer from.Close()
		return m.run(ctx, s, from)
	})
	return cmd
}

// source returns what the arguments name.
func (m *importFlags) source(ctx context.Context, s *session, args []string) (*transfer.Source, error) {
	kind, where, _ := strings.Cut(m.from, ":")
	switch {
	case m.from == "" && len(args) == 0:
		return nil, usagef("name the FILE to import, - for standard input, or another source with --from")
	case m.from == "":
		return opened(transfer.FromExport(s.env.Stdin, args[0]))
	case len(args) > 0:
		return nil, usagef("%q and --from both name a source; give only one of them", args[0])
	case kind == "etcd":
		return m.etcd(ctx, s, strings.TrimSuffix(where, "/"))
	case kind == "consul" && where != "":
		return opened(transfer.FromConsul(s.env.Stdin, where))
	case kind == "consul":
		return nil, usagef("--from consul: lacks the file, as in consul:FILE, or consul:- for standard input")
	}
	return nil, usagef("--from is %q, but must be etcd:URL or consul:FILE", m.from)
}

// opened makes a file that is not there a mistake in the command line.
func opened(from *transfer.Source, err error) (*transfer.Source, error) {
	if errors.Is(err, os.ErrNotExist) {
		err = UsageError{err}
	}
	return from, err
}

func (m *importFlags) etcd(ctx context.Context, s *session, where string) (*transfer.Source, error) {
	if !transfer.IsEtcdURL(where) {
		return nil, usagef("--from etcd: %q is not a client URL of etcd (for example, etcd:http://10.0.0.9:2379)", where)
	}
	conf, err := tlsConfig(m.ca, m.cert, m.key)
	if err != nil {
		return nil, usagef("for etcd: --from-%s", strings.TrimPrefix(err.Error(), "--"))
	}
	return transfer.FromEtcd(ctx, where, conf, m.prefix, s.timeout)
}

// run stores what differs, and compares everything at the end.
func (m *importFlags) run(ctx context.Context, s *session, from *transfer.Source) error {
	work := transfer.Import{Client: s.Client, Timeout: s.timeout, Prefix: m.prefix, Leased: m.leased, DryRun: m.dryRun,
		Meter: func(what string, total int64) transfer.Meter { return NewBar(s.env.Stderr, total, what, "keys") }}
	done, err := work.Store(ctx, from)
	if err != nil {
		return unfinishedImport(err, &done)
	}
	if !m.dryRun {
		if err := work.Verify(ctx, from, &done); err != nil {
			return err
		}
	}
	return m.report(s, &done)
}

// unfinishedImport says how far the import came. The reason names the key, if it is
// about a single one.
func unfinishedImport(err error, done *transfer.Imported) error {
	said := explain(err)
	text := said.Error()
	var one *transfer.KeyError
	if errors.As(err, &one) {
		text = "store " + printable(one.Key) + ": " + text
	}
	if done.Keys > 0 || ExitCode(said) != exitFailed {
		text += fmt.Sprintf("; keys compared so far: %d, and stored: %d; run the command again to go on", done.Keys, done.Written)
	}
	return &failure{ExitCode(said), text, err}
}

func (m *importFlags) report(s *session, done *transfer.Imported) error {
	switch s.formatOr(formatTable) {
	case formatJSON:
		return s.printJSON(done)
	case formatValue:
		return s.println(fmt.Sprint(done.Keys))
	}
	if done.Skipped > 0 {
		s.note("left out %d key%s bound to leases; --leased stores them as permanent keys", done.Skipped, plural(int(done.Skipped)))
	}
	if m.dryRun {
		return s.println(fmt.Sprintf("would store %d of %d keys", done.Written, done.Keys))
	}
	return s.println(fmt.Sprintf("imported %d key%s: %d stored, %d were there already; verified, sha256 %s",
		done.Keys, plural(int(done.Keys)), done.Written, done.Keys-done.Written, done.SHA256))
}
