package cli

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/internal/transfer"
)

// rangeFlags turn the argument of a command, which is a key, into a range.
type rangeFlags struct {
	prefix bool
	end    string
}

func (r *rangeFlags) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&r.prefix, "prefix", false, "all keys that begin with KEY")
	cmd.Flags().StringVar(&r.end, "end", "", "all keys from KEY up to but not including `END`; '' means up to the last one")
	exclusive(cmd, "prefix", "end")
}

// of returns the range, and whether it is one rather than a single key.
func (r *rangeFlags) of(cmd *cobra.Command, key string) (client.Range, bool) {
	switch {
	case r.prefix:
		return client.Prefix(key), true
	case cmd.Flags().Changed("end"):
		return client.Between(key, r.end), true
	}
	return client.Key(key), false
}

// readFlags are the flags of commands that read.
type readFlags struct {
	revision uint64
	stale    bool
	maxStale time.Duration
}

func (r *readFlags) flags(cmd *cobra.Command) {
	cmd.Flags().Uint64Var(&r.revision, "rev", 0, "as it was at this `REVISION` of the store")
	cmd.Flags().BoolVar(&r.stale, "stale", false, "read what the node itself has, which may be old; this works without a quorum")
	cmd.Flags().DurationVar(&r.maxStale, "max-staleness", 0, "with --stale: refuse what may be older than this")
}

func (r *readFlags) options(cmd *cobra.Command) (out []client.ReadOption, err error) {
	if cmd.Flags().Changed("rev") {
		if r.revision == 0 {
			return nil, usagef("--rev is 0, but revisions begin at 1")
		}
		out = append(out, client.AtRevision(r.revision))
	}
	if cmd.Flags().Changed("max-staleness") && !r.stale {
		return nil, usagef("--max-staleness is only for reads with --stale")
	}
	if r.stale {
		out = append(out, client.Stale(r.maxStale))
	}
	return out, nil
}

// getCommand reads a key or, for those who come from etcdctl, a range like list.
func getCommand(sh *shell) *cobra.Command {
	var keys rangeFlags
	var read readFlags
	var list listFlags
	cmd := &cobra.Command{
		Use:   "get KEY",
		Short: "Print the value of a key",
		Long: `Print the value of a key, byte for byte. With -o table or -o json, also its revisions, version, and
lease. With --prefix or --end it prints all keys of a range, like kvd kv list.

Exits with 4 if the key does not exist.`,
		Example: `  kvd kv get color
  kvd kv get color --rev 7
  kvd kv get color -o json
  kvd kv get fruit/ --prefix --keys-only`,
		Args:              between(1, 1),
		ValidArgsFunction: sh.completeKey,
	}
	keys.flags(cmd)
	read.flags(cmd)
	list.flags(cmd)
	cmd.RunE = sh.run(func(ctx context.Context, s *session, args []string) error {
		options, err := read.options(cmd)
		if err != nil {
			return err
		}
		if selected, many := keys.of(cmd, args[0]); many {
			return list.run(ctx, s, selected, options)
		}
		if given := list.given(cmd); given != "" {
			return usagef("--%s is for ranges; add --prefix or --end, or use: kvd kv list", given)
		}
		ctx, cancel := s.limited(ctx)
		defer cancel()
		kv, err := s.Get(ctx, args[0], options...)
		if err != nil {
			return err
		}
		return s.printPair(kv)
	})
	return cmd
}

// printPair prints one pair.
func (s *session) printPair(kv *client.KV) error {
	switch s.formatOr(formatValue) {
	case formatJSON:
		return s.printJSON(transfer.Document(kv))
	case formatValue:
		if s.format == formatDefault && isTerminal(s.env.Stdout) && !harmless(kv.Value) {
			s.note("the value has control characters or is not text; -o value prints it byte for byte")
			return s.println(strconv.Quote(string(kv.Value)))
		}
		return s.printValue(kv.Value)
	}
	fields := [][2]string{
		{"key", printable(kv.Key)}, {"value", printable(string(kv.Value))}, {"size", fmt.Sprintf("%d bytes", len(kv.Value))},
		{"created at", fmt.Sprint("revision ", kv.CreateRevision)}, {"changed at", fmt.Sprint("revision ", kv.ModRevision)}, {"version", fmt.Sprint(kv.Version)},
	}
	if kv.Lease != 0 {
		fields = append(fields, [2]string{"lease", fmt.Sprint(kv.Lease)})
	}
	return s.printFields(fields)
}
