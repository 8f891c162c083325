package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
)

func historyCommand(sh *shell) *cobra.Command {
	limit := 0
	cmd := &cobra.Command{
		Use:   "history KEY",
		Short: "Print the versions of a key",
		Long: `Print each change of a key that the history still has, the oldest first. A first line at an older
revision than the others is what the key was when the history begins. kvd kv get --rev prints the
value as it was at any revision in between.

Exits with 4 if the history has nothing about the key.`,
		Example: `  kvd kv history color
  kvd kv history color --limit 5 -o json`,
		Args:              between(1, 1),
		ValidArgsFunction: sh.completeKey,
	}
	cmd.Flags().IntVar(&limit, "limit", 0, "only the last `NUMBER` of changes")
	cmd.RunE = sh.run(func(ctx context.Context, s *session, args []string) error {
		if limit < 0 || limit > maxHistory {
			return usagef("--limit is %d, but must be from 0 to %d", limit, maxHistory)
		}
		return s.history(ctx, args[0], limit)
	})
	return cmd
}

// maxHistory bounds the changes that --limit keeps until the last one is known.
const maxHistory = 1000

// history prints the changes of a key. With a limit they are printed at the end.
func (s *session) history(ctx context.Context, key string, limit int) error {
	w := s.watchdog(ctx)
	defer w.stop()
	var last []*client.Event
	n := 0
	for e, err := range s.History(w.ctx, client.Key(key)) {
		w.pause()
		if err == nil && limit == 0 {
			err = s.printEvent(e)
		}
		if err != nil {
			return w.explain(err)
		}
		if n++; limit > 0 {
			last = append(last, e)
			last = last[max(0, len(last)-limit):]
		}
		w.resume()
	}
	w.pause()
	if n == 0 {
		return failf(exitNotFound, "the history has nothing about %s", printable(key))
	}
	var failed error
	for _, e := range last {
		failed = errors.Join(failed, s.printEvent(e))
	}
	return failed
}
