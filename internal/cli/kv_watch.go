package cli

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/internal/transfer"
)

// graceOfCommand is how long a command of --exec may take to end after SIGTERM.
const graceOfCommand = 10 * time.Second

// watchFlags are the flags of kvd kv watch.
type watchFlags struct {
	keys      rangeFlags
	from      uint64
	events    []string
	previous  bool
	limit     int
	exec      string
	keepGoing bool
}

func watchCommand(sh *shell) *cobra.Command {
	var w watchFlags
	cmd := &cobra.Command{
		Use:   "watch KEY",
		Short: "Print changes as they happen, or run a command for each",
		Long: `Print each change of a key, a prefix, or a range, until it is interrupted. When the connection or
the node is lost, it goes on at another one: no change is missing, and none comes twice.

With --exec, a shell runs CMD for each change, one at a time, with the new value as its standard
input and these variables:

  KVD_EVENT     put or delete
  KVD_KEY       the key (KVD_KEY_BASE64 instead, if a variable cannot hold it)
  KVD_REVISION  the revision of the change

KVD_ENDPOINTS and the like are set as well, so that CMD can use kvd without flags. If CMD fails, the
watch ends, and says from which revision to go on; with --keep-going it only says so.

A watch without --limit ends with an interrupt (Ctrl-C, SIGTERM), and exits with 0. If the changes
to begin with are compacted, it exits with 1.`,
		Example: `  kvd kv watch color
  kvd kv watch config/ --prefix --exec './reload.sh'
  kvd kv watch config/ --prefix --exec 'echo "$KVD_EVENT $KVD_KEY at $KVD_REVISION: $(cat)"'
  kvd kv watch queue/ --prefix --from 1200 --events put -o json`,
		Args:              between(1, 1),
		ValidArgsFunction: sh.completeKey,
	}
	w.keys.flags(cmd)
	f := cmd.Flags()
	f.Uint64Var(&w.from, "from", 0, "begin with the changes of this `REVISION`, instead of the next one")
	f.StringSliceVar(&w.events, "events", []string{"put", "delete"}, "only these `KINDS` of changes")
	f.BoolVar(&w.previous, "prev", false, "also print what the key was before")
	f.IntVar(&w.limit, "limit", 0, "end after this `NUMBER` of changes")
	f.StringVar(&w.exec, "exec", "", "run this shell `COMMAND` for each change")
	f.BoolVar(&w.keepGoing, "keep-going", false, "with --exec: go on after a command has failed")
	cmd.RunE = sh.run(func(ctx context.Context, s *session, args []string) error {
		options, err := w.options(cmd)
		if err != nil {
			return err
		}
		selected, _ := w.keys.of(cmd, args[0])
		handle := s.printEvent
		if w.exec != "" {
			handle = func(e *client.Event) error { return w.execute(ctx, s, e) }
		}
		return s.watch(ctx, selected, options, w.limit, handle)
	})
	return cmd
}

func (w *watchFlags) options(cmd *cobra.Command) (o client.WatchOptions, err error) {
	o.From, o.Previous = w.from, w.previous
	for _, kind := range w.events {
		if kind != "put" && kind != "delete" {
			return o, usagef("--events has %q, but the kinds are put and delete", kind)
		}
	}
	o.PutsOnly, o.DeletesOnly = !slices.Contains(w.events, "delete"), !slices.Contains(w.events, "put")
	switch {
	case o.PutsOnly && o.DeletesOnly:
		return o, usagef("--events is empty; leave it out to see all changes")
	case w.limit < 0:
		return o, usagef("--limit is %d, but must not be negative", w.limit)
	case cmd.Flags().Changed("from") && w.from == 0:
		return o, usagef("--from is 0, but revisions begin at 1")
	case w.keepGoing && w.exec == "":
		return o, usagef("--keep-going is only for watches with --exec")
	}
	return o, nil
}

// watch hands events to a function until that fails, the context ends, or there were
// as many as the limit, if it is not 0. Once a connection was made, its loss is not a
// failure: the client looks for another one.
func (s *session) watch(ctx context.Context, keys client.Range, o client.WatchOptions, limit int, handle func(*client.Event) error) error {
	begin := s.watchdog(ctx)
	defer begin.stop()
	o.Progress = func(uint64) { begin.pause() }
	for e, err := range s.Watch(begin.ctx, keys, o) {
		begin.pause()
		if err == nil {
			err = handle(e)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return begin.explain(err)
		}
		if limit--; limit == 0 {
			return nil
		}
	}
	return nil
}

// kind returns the name of an event's kind.
func kind(e *client.Event) string {
	if e.Deleted {
		return "delete"
	}
	return "put"
}

// printEvent prints one event on one line.
func (s *session) printEvent(e *client.Event) error {
	switch s.formatOr(formatTable) {
	case formatJSON:
		return s.printJSON(eventDocument(e))
	case formatValue:
		if e.Deleted {
			return nil
		}
		return s.println(string(e.KV.Value))
	}
	paint := text.FgGreen
	if e.Deleted {
		paint = text.FgRed
	}
	line := fmt.Sprintf("%-8d %s  %s", e.KV.ModRevision, s.color(paint, fmt.Sprintf("%-6s", kind(e))), printable(e.KV.Key))
	if !e.Deleted {
		line += "  " + printable(string(e.KV.Value))
	}
	if e.Previous != nil {
		line += "  (was " + printable(string(e.Previous.Value)) + ")"
	}
	return s.println(shorten(line, columns(s.env.Stdout)))
}

// eventJSON is an event as the HTTP interface has it. That of a deletion has no
// value.
type eventJSON struct {
	Type string `json:"type"`
	*transfer.PairJSON
	Previous *transfer.PairJSON `json:"previous,omitempty"`
	More     bool               `json:"more,omitempty"`
}

func eventDocument(e *client.Event) *eventJSON {
	doc := &eventJSON{Type: kind(e), PairJSON: transfer.Document(&e.KV), More: e.More}
	if e.Deleted {
		doc.PairJSON = &transfer.PairJSON{Key: doc.Key, KeyBase64: doc.KeyBase64, ModRevision: e.KV.ModRevision}
	}
	if e.Previous != nil {
		doc.Previous = transfer.Document(e.Previous)
	}
	return doc
}

// execute runs the command for an event.
func (w *watchFlags) execute(ctx context.Context, s *session, e *client.Event) error {
	cmd := exec.CommandContext(ctx, "sh", "-c", w.exec)
	cmd.Env = s.environ("KVD_EVENT="+kind(e), fmt.Sprint("KVD_REVISION=", e.KV.ModRevision), keyVariable(e.KV.Key))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(e.KV.Value), s.env.Stdout, s.env.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = graceOfCommand
	err := cmd.Run()
	switch {
	case err == nil, ctx.Err() != nil:
		return nil
	case w.keepGoing:
		s.note("the command failed for %s at revision %d: %v", printable(e.KV.Key), e.KV.ModRevision, err)
		return nil
	}
	return failf(exitFailed, "the command failed for %s at revision %d: %w; to try again and go on, watch with --from %d",
		printable(e.KV.Key), e.KV.ModRevision, err, e.KV.ModRevision)
}

// keyVariable returns the variable with the key of an event. A variable cannot have
// a zero byte.
func keyVariable(key string) string {
	if strings.IndexByte(key, 0) >= 0 {
		return "KVD_KEY_BASE64=" + base64.StdEncoding.EncodeToString([]byte(key))
	}
	return "KVD_KEY=" + key
}
