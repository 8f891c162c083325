package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/internal/transfer"
)

// partialSuffix is of the file that an export is written to until it is complete.
const partialSuffix = ".partial"

// exportFlags are the flags of kvd kv export.
type exportFlags struct {
	prefix string
	read   readFlags
	resume bool
}

func exportCommand(sh *shell) *cobra.Command {
	var x exportFlags
	cmd := &cobra.Command{
		Use:   "export [FILE]",
		Short: "Write all keys to a file, as of one revision",
		Long: `Write all keys with their values and metadata, as of one revision, to a file or standard output:
a line of JSON for each key, between a first line that names the revision, and a last line with the
number of keys and their hash. kvd kv import reads it. Use kvd snapshot save for a backup that also
has settings, leases, and locks.

A FILE gets its name once it is complete; until then it is called FILE.partial. An export that was
interrupted goes on where it stopped with --resume, while its revision is not compacted.`,
		Example: `  kvd kv export all.ndjson
  kvd kv export --prefix config/ | gzip > config.ndjson.gz
  kvd kv export all.ndjson --resume`,
		Args: between(0, 1),
	}
	f := cmd.Flags()
	f.StringVar(&x.prefix, "prefix", "", "only keys that begin with this `PREFIX`")
	f.BoolVar(&x.resume, "resume", false, "go on with an export to FILE that was interrupted")
	x.read.flags(cmd)
	cmd.RunE = sh.run(func(ctx context.Context, s *session, args []string) error {
		options, err := x.read.options(cmd)
		if err != nil {
			return err
		}
		if !utf8.ValidString(x.prefix) {
			return usagef("--prefix %q is not text", x.prefix)
		}
		if len(args) == 0 || args[0] == "-" {
			if x.resume {
				return usagef("--resume needs the FILE of the export that was interrupted")
			}
			return x.toStdout(ctx, s, options)
		}
		return x.toFile(ctx, s, args[0], options)
	})
	return cmd
}

func (f *exportFlags) toStdout(ctx context.Context, s *session, options []client.ReadOption) error {
	x := transfer.NewExporter(s.env.Stdout)
	total, err := f.begin(ctx, s, x, options)
	if err == nil {
		err = s.export(ctx, x, total, options)
	}
	return errors.Join(err, x.Flush())
}

func (f *exportFlags) toFile(ctx context.Context, s *session, name string, options []client.ReadOption) error {
	if info, err := os.Stat(name); err == nil && info.IsDir() {
		return usagef("%s is a directory; name a file to write to", name)
	}
	file, err := f.openPartial(name + partialSuffix)
	if err != nil {
		return err
	}
	defer file.Close()
	x := transfer.NewExporter(file)
	total := int64(-1)
	if f.resume {
		err = x.Resume(file)
	} else {
		total, err = f.begin(ctx, s, x, options)
	}
	if err == nil {
		err = s.export(ctx, x, total, options)
	}
	if err = errors.Join(err, x.Flush()); err != nil {
		return unfinished(err, x, name)
	}
	if err := errors.Join(file.Sync(), file.Close(), os.Rename(file.Name(), name)); err != nil {
		return fmt.Errorf("finish the export: %w", err)
	}
	return s.printExported(x.Summary(), name)
}

// openPartial opens the file to write to. What an interrupted export has left is
// overwritten by nothing but the user's wish.
func (f *exportFlags) openPartial(name string) (*os.File, error) {
	flags := os.O_RDWR | os.O_CREATE | os.O_EXCL
	if f.resume {
		flags = os.O_RDWR
	}
	file, err := os.OpenFile(name, flags, 0o600) // values may be secrets
	switch {
	case errors.Is(err, os.ErrExist):
		return nil, failf(exitFailed, "%s is left of an export that was interrupted; go on with --resume, or remove it", name)
	case errors.Is(err, os.ErrNotExist) && f.resume:
		return nil, failf(exitFailed, "there is no %s to go on with; leave out --resume to begin", name)
	case err != nil:
		return nil, fmt.Errorf("export: %w", err)
	}
	return file, nil
}

// begin chooses the revision of the export, writes the first line, and returns the
// number of keys.
func (f *exportFlags) begin(ctx context.Context, s *session, x *transfer.Exporter, options []client.ReadOption) (int64, error) {
	ctx, cancel := s.limited(ctx)
	defer cancel()
	now := uint64(0)
	n, err := s.Count(ctx, client.Prefix(f.prefix), append(options, client.ReportRevision(&now))...)
	if err != nil {
		return 0, err
	}
	if f.read.revision != 0 {
		now = f.read.revision
	}
	return int64(n), x.Begin(now, f.prefix)
}

// export writes the pairs that are left, and the last line.
func (s *session) export(ctx context.Context, x *transfer.Exporter, total int64, options []client.ReadOption) error {
	bar := NewBar(s.env.Stderr, total, "exporting", "keys")
	defer bar.Done()
	w := s.watchdog(ctx)
	defer w.stop()
	// The revision comes last: it overrides the one of --rev, which it is if given.
	for kv, err := range s.List(w.ctx, x.Rest(), append(options, client.AtRevision(x.Revision()))...) {
		w.pause()
		if err == nil {
			err = x.Add(kv)
		}
		if err != nil {
			return w.explain(err)
		}
		bar.Add(1)
		w.resume()
	}
	return x.Finish()
}

// unfinished says how to go on after an error.
func unfinished(err error, x *transfer.Exporter, name string) error {
	said := explain(err)
	return &failure{ExitCode(said), fmt.Sprintf("%v; keys in %s so far: %d; go on with: kvd kv export %s --resume",
		said, name+partialSuffix, x.Summary().Count, shellQuote(name)), err}
}

// printExported says what was exported to a file.
func (s *session) printExported(end transfer.End, name string) error {
	switch s.formatOr(formatTable) {
	case formatJSON:
		return s.printJSON(end)
	case formatValue:
		return s.println(fmt.Sprint(end.Count))
	}
	return s.println(fmt.Sprintf("exported %d key%s of revision %d to %s (sha256 %s)", end.Count, plural(int(end.Count)), end.Revision, name, end.SHA256))
}
