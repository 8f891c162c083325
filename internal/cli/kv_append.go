package cli

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
)

func appendCommand(sh *shell) *cobra.Command {
	var w writeFlags
	cmd := &cobra.Command{
		Use:   "append KEY [VALUE|@FILE|-]",
		Short: "Append to the value of a key",
		Long: `Append to the value of a key, and create the key if it does not exist. A lease of the key stays
unless another one is named.

With -o value, it prints the new revision of the key. Exits with 5 if a condition does not hold.`,
		Example: `  kvd kv append log 'it rained
'
  uptime | kvd kv append log`,
		Args:              between(1, 2),
		ValidArgsFunction: sh.completeKey,
	}
	runWrite(sh, cmd, &w, (*client.Client).Append)
	return cmd
}

func incrCommand(sh *shell) *cobra.Command {
	var w writeFlags
	cmd := &cobra.Command{
		Use:   "incr KEY [N]",
		Short: "Add to a number, and print the sum",
		Long: `Add N, by default 1, to a key whose value is a decimal number, and print the sum. A key that does
not exist counts as 0. A negative number comes after --.

Exits with 5 if the value is not a number, the sum does not fit in 64 bits, or a condition does not
hold.`,
		Example: `  kvd kv incr visits
  kvd kv incr stock/apples -- -5
  kvd kv incr requests/web1 --ttl 1m`,
		Args:              between(1, 2),
		ValidArgsFunction: sh.completeKey,
	}
	w.all(cmd)
	cmd.RunE = sh.run(func(ctx context.Context, s *session, args []string) error {
		options, err := w.options(cmd)
		if err != nil {
			return err
		}
		delta := int64(1)
		if len(args) == 2 {
			if delta, err = strconv.ParseInt(args[1], 10, 64); err != nil {
				return usagef("%q is not a whole number of 64 bits", args[1])
			}
		}
		ctx, cancel := s.limited(ctx)
		defer cancel()
		sum, err := s.Incr(ctx, args[0], delta, options...)
		if err != nil {
			return err
		}
		if s.format == formatJSON {
			doc := map[string]any{"value": strconv.FormatInt(sum, 10)}
			byteField(doc, "key", args[0])
			return s.printJSON(doc)
		}
		return s.println(fmt.Sprint(sum))
	})
	return cmd
}
