package audit

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/kvstore/guard"
	"github.com/kvd-io/kvd/internal/rights"
)

// Cluster applies commands. A node implements it.
type Cluster interface {
	Do(ctx context.Context, cmd *kvstore.Command, note func(stage string, took time.Duration)) (kvstore.Result, error)
	Encode(dst []byte, cmd *kvstore.Command) []byte
	DoGroup(ctx context.Context, commands [][]byte, note func(stage string, took time.Duration)) ([]*kvstore.Result, error)
	Barrier(ctx context.Context, note func(stage string, took time.Duration)) error
	CheckStaleness(limit time.Duration) error
}

// Replicator records the commands that pass through it. The context says for which
// Request they are.
type Replicator struct {
	Cluster
	Log *Log
}

// Do implements Cluster.
func (p Replicator) Do(ctx context.Context, cmd *kvstore.Command, note func(stage string, took time.Duration)) (kvstore.Result, error) {
	ln, ok := p.describe(ctx, cmd)
	if !ok {
		return p.Cluster.Do(ctx, cmd, note)
	}
	if err := p.intend(ctx, &ln); err != nil {
		return kvstore.Result{}, err
	}
	res, err := p.Cluster.Do(ctx, cmd, note)
	p.record(&ln, cmd.Txn != nil, &res, err)
	return res, err
}

// DoGroup implements Cluster.
func (p Replicator) DoGroup(ctx context.Context, commands [][]byte, note func(stage string, took time.Duration)) ([]*kvstore.Result, error) {
	lines, txn := make([]*line, len(commands)), make([]bool, len(commands))
	for i, b := range commands {
		cmd, err := kvstore.DecodeCommand(b)
		if err != nil {
			return nil, fmt.Errorf("record a command: %w", err)
		}
		if ln, ok := p.describe(ctx, &cmd); ok {
			lines[i], txn[i] = &ln, cmd.Txn != nil
		}
	}
	if err := p.intend(ctx, lines...); err != nil {
		return nil, err
	}
	results, err := p.Cluster.DoGroup(ctx, commands, note)
	for i, ln := range lines {
		if ln == nil {
			continue
		}
		if err != nil {
			p.record(ln, txn[i], nil, err)
			continue
		}
		p.record(ln, txn[i], results[i], nil)
	}
	return results, err
}

// intend writes the intents, if the log is strict, and waits until they are written. An
// administrative request has said before what it intends.
func (p Replicator) intend(ctx context.Context, lines ...*line) error {
	if r := FromContext(ctx); !p.Log.opts.Strict || r != nil && r.intended.Load() {
		return nil
	}
	var encoded [][]byte
	for _, ln := range lines {
		if ln != nil {
			intent := *ln
			intent.Outcome = outcomeIntent
			encoded = append(encoded, p.Log.encode(&intent))
		}
	}
	if err := p.Log.sink.putAll(ctx, encoded); err != nil {
		return unrecorded(err)
	}
	return nil
}

// record writes the line with the outcome of a command.
func (p Replicator) record(ln *line, txn bool, res *kvstore.Result, err error) {
	switch ln.Outcome, _, _ = outcomeOf(err); {
	case err != nil:
		if ln.Outcome == string(api.Overloaded) && !p.Log.opts.Strict {
			return // nothing was changed, and the client retries
		}
	default:
		ln.Outcome, ln.Revision, ln.Replayed = outcomes[res.Outcome], res.Revision, res.Replayed
		if ln.Lease == 0 && res.Lease != nil {
			ln.Lease = res.Lease.ID
		}
		if txn && res.Outcome == kvstore.OK {
			ln.Branch = "else"
			if res.Succeeded {
				ln.Branch = "then"
			}
		}
	}
	_ = p.Log.sink.put(p.Log.encode(ln), nil) // what is lost is counted
}

// describe returns the line of a command, without its outcome, and false for a command
// that changes nothing.
func (p Replicator) describe(ctx context.Context, cmd *kvstore.Command) (line, bool) {
	var spans []span
	for _, n := range guard.AppendNeeds(nil, cmd) {
		if n.Access&rights.Write != 0 {
			spans = append(spans, span{n.Space, n.Range})
		}
	}
	if cmd.Op == kvstore.OpTxn && len(spans) == 0 || cmd.Op == kvstore.OpForget {
		return line{}, false
	}
	ln := line{Operation: "kvd", Proof: "none"}
	if r := FromContext(ctx); r != nil {
		r.recorded.Store(true)
		ln = r.line()
	}
	ln.Action, ln.Lease = actions[cmd.Op], cmd.Lease
	ln.Keys, ln.KeysOmitted = p.Log.names(spans)
	if cmd.Rights != nil {
		ln.Target = clip(strings.Join(cmd.Rights.Actions(), "; "))
	}
	return ln, true
}

// actions has the names of commands in the log.
var actions = map[kvstore.Op]string{
	kvstore.OpPut: "put", kvstore.OpDelete: "delete", kvstore.OpDeleteRange: "delete_range", kvstore.OpAppend: "append", kvstore.OpIncr: "incr",
	kvstore.OpCompact: "compact", kvstore.OpSettings: "settings", kvstore.OpTxn: "txn", kvstore.OpLeaseGrant: "lease_grant",
	kvstore.OpLeaseRevoke: "lease_revoke", kvstore.OpLock: "lock", kvstore.OpUnlock: "unlock", kvstore.OpRights: "rights",
}

// outcomes are the words for outcomes of commands: where there is one, the code of the
// error that clients get.
var outcomes = map[kvstore.Outcome]string{
	kvstore.OK: outcomeOK, kvstore.PreconditionFailed: string(api.PreconditionFailed), kvstore.TooLarge: string(api.TooLarge),
	kvstore.NoSpace: string(api.NoSpace), kvstore.NotANumber: "not_a_number", kvstore.Overflow: "overflow",
	kvstore.FutureRevision: string(api.FutureRevision), kvstore.Invalid: string(api.BadRequest), kvstore.Ignored: "ignored",
	kvstore.Compacted: string(api.RevisionCompacted), kvstore.KeyNotFound: string(api.KeyNotFound),
	kvstore.LeaseNotFound: string(api.LeaseNotFound), kvstore.LeaseExists: string(api.LeaseExists),
	kvstore.LockHeld: string(api.LockHeld), kvstore.LockNotFound: string(api.LockNotFound),
	kvstore.IdempotencyMismatch: string(api.IdempotencyMismatch), kvstore.DuplicateKey: "duplicate_key",
	kvstore.PermissionDenied: string(api.PermissionDenied), kvstore.Busy: string(api.Overloaded),
}
