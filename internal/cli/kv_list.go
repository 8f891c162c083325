package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/internal/transfer"
)

const (
	// maxTableRows and maxTableBytes bound the rows that are lined up with each
	// other: a longer table is printed in pieces.
	maxTableRows  = 500
	maxTableBytes = 4 << 20
	// minValueColumns is what a value gets however narrow the terminal is.
	minValueColumns = 16
	// maxPage is the largest page that the client asks for.
	maxPage = 1000
)

// listFlags are the flags of commands that print many keys.
type listFlags struct {
	keysOnly bool
	count    bool
	reverse  bool
	limit    int
}

func (l *listFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&l.keysOnly, "keys-only", false, "without values")
	f.BoolVar(&l.count, "count", false, "print only the number of keys")
	f.BoolVar(&l.reverse, "reverse", false, "in descending order")
	f.IntVar(&l.limit, "limit", 0, "at most this `NUMBER` of keys")
	exclusive(cmd, "count", "limit")
}

// given returns the name of a flag that was given, or "".
func (l *listFlags) given(cmd *cobra.Command) string {
	for _, name := range []string{"keys-only", "count", "reverse", "limit"} {
		if cmd.Flags().Changed(name) {
			return name
		}
	}
	return ""
}

func listCommand(sh *shell) *cobra.Command {
	var read readFlags
	var list listFlags
	var start, end string
	cmd := &cobra.Command{
		Use:   "list [PREFIX]",
		Short: "List the keys with a prefix, or all keys",
		Long: `List the keys with a prefix, or all keys, in byte order and as of one revision. However many there
are, they are printed as they arrive.

With -o json, each line is a document. With -o value, each line is a value, or with --keys-only a
key.`,
		Example: `  kvd kv list fruit/
  kvd kv list --count
  kvd kv list fruit/ --keys-only -o value
  kvd kv list --start a --end m -o json`,
		Aliases: []string{"ls"},
		Args:    between(0, 1),

		ValidArgsFunction: sh.completeKey,
	}
	read.flags(cmd)
	list.flags(cmd)
	cmd.Flags().StringVar(&start, "start", "", "begin at this `KEY`, instead of a prefix")
	cmd.Flags().StringVar(&end, "end", "", "end before this `KEY`, instead of a prefix")
	cmd.RunE = sh.run(func(ctx context.Context, s *session, args []string) error {
		options, err := read.options(cmd)
		if err != nil {
			return err
		}
		bounded := cmd.Flags().Changed("start") || cmd.Flags().Changed("end")
		switch {
		case bounded && len(args) > 0:
			return usagef("a prefix and --start or --end both choose the keys; give only one of them")
		case bounded:
			return list.run(ctx, s, client.Between(start, end), options)
		case len(args) > 0:
			return list.run(ctx, s, client.Prefix(args[0]), options)
		}
		return list.run(ctx, s, client.Prefix(""), options)
	})
	return cmd
}

// run prints what the range has.
func (l *listFlags) run(ctx context.Context, s *session, keys client.Range, options []client.ReadOption) error {
	if l.limit < 0 {
		return usagef("--limit is %d, but must not be negative", l.limit)
	}
	if l.count {
		return s.printCount(ctx, keys, options)
	}
	if l.keysOnly {
		options = append(options, client.KeysOnly())
	}
	if l.reverse {
		options = append(options, client.Reverse())
	}
	if l.limit > 0 {
		options = append(options, client.Limit(min(l.limit, maxPage)))
	}
	w := s.watchdog(ctx)
	defer w.stop()
	p := pairPrinter{s: s, keysOnly: l.keysOnly}
	n := 0
	for kv, err := range s.List(w.ctx, keys, options...) {
		w.pause()
		if err == nil {
			err = p.add(kv)
		}
		if err != nil {
			return w.explain(err)
		}
		if n++; n == l.limit {
			break
		}
		w.resume()
	}
	w.pause()
	return p.flush()
}

func (s *session) printCount(ctx context.Context, keys client.Range, options []client.ReadOption) error {
	ctx, cancel := s.limited(ctx)
	defer cancel()
	n, err := s.Count(ctx, keys, options...)
	if err != nil {
		return err
	}
	if s.format == formatJSON {
		return s.printJSON(map[string]any{"count": n})
	}
	return s.println(fmt.Sprint(n))
}

// pairPrinter prints pairs as they come. Only a table is held back, by a bounded
// number of rows.
type pairPrinter struct {
	s        *session
	keysOnly bool
	rows     []*client.KV
	bytes    int
}

func (p *pairPrinter) add(kv *client.KV) error {
	switch p.s.formatOr(formatTable) {
	case formatJSON:
		if p.keysOnly {
			return p.s.printJSON(transfer.KeyDocument(kv))
		}
		return p.s.printJSON(transfer.Document(kv))
	case formatValue:
		if p.keysOnly {
			return p.s.println(kv.Key)
		}
		return p.s.println(string(kv.Value))
	}
	p.rows = append(p.rows, kv)
	if p.bytes += len(kv.Key) + len(kv.Value); len(p.rows) < maxTableRows && p.bytes < maxTableBytes {
		return nil
	}
	return p.flush()
}

// flush prints the rows that were held back.
func (p *pairPrinter) flush() error {
	if len(p.rows) == 0 {
		return nil
	}
	err := p.s.printPairs(p.rows, p.keysOnly)
	p.rows, p.bytes = p.rows[:0], 0
	return err
}

// printPairs prints a table of pairs. On a terminal, values are cut to its width.
func (s *session) printPairs(kvs []*client.KV, keysOnly bool) error {
	headings := []string{"KEY", "VALUE", "REVISION", "VERSION", "LEASE"}
	rows := make([][]string, len(kvs))
	width := s.valueColumns(kvs)
	for i, kv := range kvs {
		rows[i] = []string{printable(kv.Key), shorten(printable(string(kv.Value)), width), fmt.Sprint(kv.ModRevision), fmt.Sprint(kv.Version), leaseText(kv.Lease)}
	}
	if keysOnly {
		headings = drop(headings, 1)
		for i := range rows {
			rows[i] = drop(rows[i], 1)
		}
	}
	return s.printTable(headings, rows)
}

func drop(cells []string, at int) []string { return append(cells[:at:at], cells[at+1:]...) }

func leaseText(lease int64) string {
	if lease == 0 {
		return "-"
	}
	return fmt.Sprint(lease)
}

// valueColumns returns the columns that are left for values, 0 for any number.
func (s *session) valueColumns(kvs []*client.KV) int {
	width := columns(s.env.Stdout)
	if width == 0 {
		return 0
	}
	longest := 0
	for _, kv := range kvs {
		longest = max(longest, len(printable(kv.Key)))
	}
	const others = 45 // the three numbers with their gaps
	return max(minValueColumns, width-longest-others)
}
