package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
)

// exportFormat is the version of the form of exports.
const exportFormat = 1

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

// exportHead is the first line of an export.
type exportHead struct {
	Type     string `json:"type"` // "kvd-export"
	Format   int    `json:"format"`
	Revision uint64 `json:"revision"`
	Prefix   string `json:"prefix,omitempty"`
}

// exportEnd is the last line. Without it, an export is incomplete.
type exportEnd struct {
	Type     string `json:"type"` // "end"
	Count    uint64 `json:"count"`
	Revision uint64 `json:"revision"`
	SHA256   string `json:"sha256,omitempty"`
}

// exporter writes one export.
type exporter struct {
	s      *session
	head   exportHead
	out    *bufio.Writer
	enc    *json.Encoder
	digest *digest
	last   string // key; "" before the first
	bar    *Bar
}

func newExporter(s *session, out io.Writer) *exporter {
	x := &exporter{s: s, out: bufio.NewWriterSize(out, 1<<20), digest: newDigest()}
	x.enc = json.NewEncoder(x.out)
	x.enc.SetEscapeHTML(false)
	return x
}

func (f *exportFlags) toStdout(ctx context.Context, s *session, options []client.ReadOption) error {
	x := newExporter(s, s.env.Stdout)
	total, err := f.begin(ctx, x, options)
	if err == nil {
		err = x.run(ctx, total, options)
	}
	return errors.Join(err, x.out.Flush())
}

func (f *exportFlags) toFile(ctx context.Context, s *session, name string, options []client.ReadOption) error {
	file, err := f.openPartial(name + partialSuffix)
	if err != nil {
		return err
	}
	defer file.Close()
	x := newExporter(s, file)
	total := int64(-1)
	if f.resume {
		err = x.readBack(file)
	} else {
		total, err = f.begin(ctx, x, options)
	}
	if err == nil {
		err = x.run(ctx, total, options)
	}
	if err = errors.Join(err, x.out.Flush()); err != nil {
		return x.unfinished(err, name)
	}
	if err := errors.Join(file.Sync(), file.Close(), os.Rename(file.Name(), name)); err != nil {
		return fmt.Errorf("finish the export: %w", err)
	}
	return x.report(name)
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
func (f *exportFlags) begin(ctx context.Context, x *exporter, options []client.ReadOption) (int64, error) {
	ctx, cancel := x.s.limited(ctx)
	defer cancel()
	now := uint64(0)
	n, err := x.s.Count(ctx, client.Prefix(f.prefix), append(options, client.ReportRevision(&now))...)
	if err != nil {
		return 0, err
	}
	if f.read.revision != 0 {
		now = f.read.revision
	}
	x.head = exportHead{"kvd-export", exportFormat, now, f.prefix}
	return int64(n), x.enc.Encode(x.head)
}

// readBack reads what an interrupted export wrote, cuts off a line that is not
// complete, and leaves the file ready to append to.
func (x *exporter) readBack(file *os.File) error {
	r := newExportReader(file)
	end := int64(0)
	for {
		line, err := r.next()
		if err != nil {
			break // where the writing stopped; what is there before is whole
		}
		if line.SHA256 != "" {
			break // only the new name was missing; the line is written again
		}
		if end = r.offset(); line.Type == "" {
			x.digest.add(line.key(), []byte(line.value()))
			x.last = line.key()
		}
	}
	x.head = r.head
	if x.head.Format != exportFormat {
		return failf(exitFailed, "%s does not begin like an export; remove it, and leave out --resume", file.Name())
	}
	if err := file.Truncate(end); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	if _, err := file.Seek(end, io.SeekStart); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	_, err := x.out.WriteString("\n") // offsets end before it; empty lines do not matter
	return err
}

// run writes the pairs after the last one, and the last line.
func (x *exporter) run(ctx context.Context, total int64, options []client.ReadOption) error {
	x.bar = NewBar(x.s.env.Stderr, total, "exporting", "keys")
	defer x.bar.Done()
	w := x.s.watchdog(ctx)
	defer w.stop()
	keys := client.Prefix(x.head.Prefix)
	if x.last != "" {
		keys = client.Between(x.last+"\x00", after(x.head.Prefix))
	}
	// The revision comes last: it overrides the one of --rev, which it is if given.
	for kv, err := range x.s.List(w.ctx, keys, append(options, client.AtRevision(x.head.Revision))...) {
		w.pause()
		if err == nil {
			err = x.enc.Encode(document(kv))
		}
		if err != nil {
			return w.explain(err)
		}
		x.digest.add(kv.Key, kv.Value)
		x.bar.Add(1)
		w.resume()
	}
	return x.enc.Encode(exportEnd{"end", x.digest.pairs, x.head.Revision, x.digest.String()})
}

// unfinished says how to go on after an error.
func (x *exporter) unfinished(err error, name string) error {
	said := explain(err)
	return &failure{ExitCode(said), fmt.Sprintf("%v; %d keys are in %s; go on with: kvd kv export %s --resume",
		said, x.digest.pairs, name+partialSuffix, shellQuote(name)), err}
}

// report says what was exported to a file.
func (x *exporter) report(name string) error {
	switch x.s.formatOr(formatTable) {
	case formatJSON:
		return x.s.printJSON(exportEnd{"end", x.digest.pairs, x.head.Revision, x.digest.String()})
	case formatValue:
		return x.s.println(fmt.Sprint(x.digest.pairs))
	}
	return x.s.println(fmt.Sprintf("exported %d key%s of revision %d to %s (sha256 %s)", x.digest.pairs, plural(int(x.digest.pairs)), x.head.Revision, name, x.digest))
}
