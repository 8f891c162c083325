package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/internal/transfer"
)

// kvCommand groups the commands for keys.
func kvCommand(sh *shell) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kv",
		Short: "Read, write, and watch keys",
		Long: `Read, write, and watch keys.

A VALUE is an argument, @FILE for the content of a file, or standard input if it is left out or -.
Nothing is added to it or taken from it.`,
		Example: `  kvd kv put color red
  kvd kv get color
  kvd kv list fruit/
  kvd kv put color blue --if-match 7        # only if nobody changed it since revision 7
  kvd kv put session/1 web3 --ttl 30s
  kvd kv watch config/ --prefix --exec ./reload.sh
  kvd kv get color -o json --endpoints http://10.0.0.1:12380,http://10.0.0.2:12380`,
	}
	cmd.AddCommand(getCommand(sh), putCommand(sh), delCommand(sh), listCommand(sh), watchCommand(sh), historyCommand(sh), appendCommand(sh), incrCommand(sh),
		editCommand(sh), txnCommand(sh), exportCommand(sh), importCommand(sh))
	return cmd
}

// writeFlags are the flags of commands that write a key.
type writeFlags struct {
	match    uint64
	absent   bool
	exists   bool
	ttl      time.Duration
	lease    int64
	previous bool
}

// conditions adds the flags of conditions.
func (w *writeFlags) conditions(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Uint64Var(&w.match, "if-match", 0, "only if the key is still at this `REVISION`")
	f.BoolVar(&w.exists, "if-exists", false, "only if the key exists")
	exclusive(cmd, "if-match", "if-exists")
}

// prev adds the flag of commands that can print what was there before.
func (w *writeFlags) prev(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&w.previous, "prev", false, "also print what the key was before")
}

// all adds the flags of commands that can create a key.
func (w *writeFlags) all(cmd *cobra.Command) {
	w.conditions(cmd)
	f := cmd.Flags()
	f.BoolVar(&w.absent, "if-absent", false, "only if the key does not exist")
	f.DurationVar(&w.ttl, "ttl", 0, "delete the key after this long")
	exclusive(cmd, "if-absent", "if-match", "if-exists")
	f.Int64Var(&w.lease, "lease", 0, "bind the key to the lease with this `ID`")
	exclusive(cmd, "ttl", "lease")
}

// options returns what the flags mean to the client.
func (w *writeFlags) options(cmd *cobra.Command) (out []client.WriteOption, err error) {
	changed := cmd.Flags().Changed
	if changed("if-match") {
		out = append(out, client.IfRevision(w.match))
	}
	if w.absent {
		out = append(out, client.IfRevision(0))
	}
	if w.exists {
		out = append(out, client.IfExists())
	}
	if w.previous {
		out = append(out, client.ReturnPrevious())
	}
	switch {
	case changed("ttl") && w.ttl <= 0:
		return nil, usagef("--ttl is %v, but must be above 0", w.ttl)
	case changed("ttl"):
		out = append(out, client.WithTTL(w.ttl))
	case changed("lease") && w.lease <= 0:
		return nil, usagef("--lease is %d, but ids of leases are above 0", w.lease)
	case changed("lease"):
		out = append(out, client.WithLease(w.lease))
	}
	return out, nil
}

func putCommand(sh *shell) *cobra.Command {
	var w writeFlags
	cmd := &cobra.Command{
		Use:   "put KEY [VALUE|@FILE|-]",
		Short: "Store a value",
		Long: `Store a value. Without --ttl and --lease the key is permanent, even if it was not before.

With -o value, it prints the new revision of the key, or with --prev the old value.
Exits with 5 if a condition does not hold.`,
		Example: `  kvd kv put color red
  kvd kv put config/nginx @nginx.conf
  date | kvd kv put now
  kvd kv put leader n1 --if-absent --ttl 30s`,
		Args:              between(1, 2),
		ValidArgsFunction: sh.completeKey,
	}
	runWrite(sh, cmd, &w, (*client.Client).Put)
	return cmd
}

// runWrite makes a command with the arguments KEY [VALUE] write the value.
func runWrite(sh *shell, cmd *cobra.Command, w *writeFlags,
	write func(*client.Client, context.Context, string, []byte, ...client.WriteOption) (*client.Written, error),
) {
	w.all(cmd)
	w.prev(cmd)
	cmd.RunE = sh.run(func(ctx context.Context, s *session, args []string) error {
		options, err := w.options(cmd)
		if err != nil {
			return err
		}
		value, err := s.value(args[1:])
		if err != nil {
			return err
		}
		ctx, cancel := s.limited(ctx)
		defer cancel()
		written, err := write(s.Client, ctx, args[0], value, options...)
		if err != nil {
			return err
		}
		return s.printWritten(args[0], written, w.previous)
	})
}

func delCommand(sh *shell) *cobra.Command {
	var w writeFlags
	var keys rangeFlags
	var all bool
	cmd := &cobra.Command{
		Use:   "del KEY",
		Short: "Delete a key, a prefix, or a range",
		Long: `Delete a key or, with --prefix or --end, all keys of a range in one revision (up to 100,000).

Deleting what does not exist is no failure; with -o value it prints how many keys were deleted.
With --if-match or --if-exists it exits with 5 if the condition does not hold.`,
		Example: `  kvd kv del color
  kvd kv del color --if-match 7
  kvd kv del cache/ --prefix
  kvd kv del log/2025 --end log/2026
  kvd kv del --all`,
		Aliases: []string{"delete", "rm"},
		Args:    between(0, 1),

		ValidArgsFunction: sh.completeKey,
	}
	w.conditions(cmd)
	w.prev(cmd)
	keys.flags(cmd)
	cmd.Flags().BoolVar(&all, "all", false, "every key, in place of KEY")
	exclusive(cmd, "all", "prefix", "end")
	for _, condition := range []string{"if-match", "if-exists", "prev"} {
		for _, many := range []string{"prefix", "end", "all"} {
			exclusive(cmd, many, condition)
		}
	}
	cmd.RunE = sh.run(func(ctx context.Context, s *session, args []string) error {
		options, err := w.options(cmd)
		if err != nil {
			return err
		}
		ctx, cancel := s.limited(ctx)
		defer cancel()
		key, selected, many, err := chosen(cmd, args, &keys, all)
		if err != nil {
			return err
		}
		var written *client.Written
		if many {
			written, err = s.DeleteRange(ctx, selected)
		} else {
			written, err = s.Delete(ctx, key, options...)
		}
		if err != nil {
			return err
		}
		return s.printDeleted(written, w.previous)
	})
	return cmd
}

// everything is the range of all keys. The cluster refuses to delete a range without
// bounds, because that is what a forgotten variable in a script looks like.
var everything = client.Between("\x00", "")

// chosen returns the key or the range that a deletion is for.
func chosen(cmd *cobra.Command, args []string, keys *rangeFlags, all bool) (key string, selected client.Range, many bool, err error) {
	switch {
	case all == (len(args) == 1):
		return "", selected, false, usagef("%s takes a KEY, or --all in place of it", cmd.CommandPath())
	case all:
		return "", everything, true, nil
	}
	selected, many = keys.of(cmd, args[0])
	if many && args[0] == "" {
		return "", selected, false, usagef("this would delete every key; if that is what you want, use --all")
	}
	return args[0], selected, many, nil
}

// printDeleted prints the result of a deletion.
func (s *session) printDeleted(w *client.Written, previous bool) error {
	switch s.formatOr(formatTable) {
	case formatJSON:
		doc := map[string]any{"deleted": w.Deleted, "revision": w.Revision}
		if w.Previous != nil {
			doc["previous"] = transfer.Document(w.Previous)
		}
		return s.printJSON(doc)
	case formatValue:
		if previous {
			return s.printPrevious(w.Previous)
		}
		return s.println(fmt.Sprint(w.Deleted))
	}
	err := s.println(fmt.Sprintf("deleted %d key%s at revision %d", w.Deleted, plural(int(w.Deleted)), w.Revision))
	if err == nil && w.Previous != nil {
		err = s.printPairs([]*client.KV{w.Previous}, false)
	}
	return err
}

// printWritten prints the result of a write.
func (s *session) printWritten(key string, w *client.Written, previous bool) error {
	switch s.formatOr(formatTable) {
	case formatJSON:
		return s.printJSON(writtenDocument(key, w))
	case formatValue:
		if previous {
			return s.printPrevious(w.Previous)
		}
		return s.println(fmt.Sprint(w.ModRevision))
	}
	verb := "updated"
	if w.Created || w.Version == 1 {
		verb = "created"
	}
	err := s.println(fmt.Sprintf("%s %s at revision %d (version %d)", verb, printable(key), w.ModRevision, w.Version))
	if err == nil && w.Previous != nil {
		err = s.printPairs([]*client.KV{w.Previous}, false)
	}
	return err
}

// printPrevious prints the value that a key had; nothing if it had none.
func (s *session) printPrevious(kv *client.KV) error {
	if kv == nil {
		return nil
	}
	return s.printValue(kv.Value)
}

// printValue prints a value as it is. On a terminal it ends the line, so that the
// prompt does not follow the value.
func (s *session) printValue(value []byte) error {
	if _, err := s.env.Stdout.Write(value); err != nil {
		return err
	}
	if isTerminal(s.env.Stdout) && !strings.HasSuffix(string(value), "\n") {
		return s.println("")
	}
	return nil
}

// writtenJSON is the result of a write as the HTTP interface has it.
type writtenJSON struct {
	Key            *string            `json:"key,omitempty"`
	KeyBase64      []byte             `json:"key_base64,omitempty"`
	Revision       uint64             `json:"revision"`
	CreateRevision uint64             `json:"create_revision"`
	ModRevision    uint64             `json:"mod_revision"`
	Version        uint64             `json:"version"`
	Lease          transfer.LeaseID   `json:"lease,omitempty"`
	Previous       *transfer.PairJSON `json:"previous,omitempty"`
}

func writtenDocument(key string, w *client.Written) *writtenJSON {
	doc := &writtenJSON{Revision: w.Revision, CreateRevision: w.CreateRevision, ModRevision: w.ModRevision, Version: w.Version, Lease: transfer.LeaseID(w.Lease)}
	doc.Key, doc.KeyBase64 = transfer.Bytes(key)
	if w.Previous != nil {
		doc.Previous = transfer.Document(w.Previous)
	}
	return doc
}
