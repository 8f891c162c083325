package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/kvd-io/kvd/internal/kvstore/command"
	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/kvstore/rows"
	"github.com/kvd-io/kvd/internal/rights"
)

// Guard judges commands. Its methods but Tables and Changed belong to the goroutine that applies.
type Guard struct {
	// Rows are those that commands are applied to.
	Rows Rows
	// Observe, if not nil, is told of each change that was applied.
	Observe Observer

	current atomic.Pointer[period]
	needs   []rights.Need // scratch
}

// Observer is told what a change did, in words, the revision that it gave the tables, how
// many tokens it removed, and who asked for it.
type Observer = func(did []string, revision uint64, removed int, by command.Origin)

// period is the time in which the tables are the same.
type period struct {
	tables *rights.Tables
	over   chan struct{} // closed at its end
}

// Tables returns the users, roles and tokens as of what was applied. Any goroutine may
// call it.
func (g *Guard) Tables() *rights.Tables { return g.current.Load().tables }

// Changed returns a channel that is closed once Tables returns others than it does now. Any
// goroutine may call it.
func (g *Guard) Changed() <-chan struct{} { return g.current.Load().over }

// replace puts other tables in the place of the current ones.
func (g *Guard) replace(t *rights.Tables) {
	if before := g.current.Swap(&period{tables: t, over: make(chan struct{})}); before != nil {
		close(before.over)
	}
}

// Load reads the tables from the engine.
func (g *Guard) Load(eng engine.Engine) error {
	var stored []rights.Row
	for _, table := range []byte{layout.TableRights, layout.TableSecret} {
		var err error
		if stored, err = appendRows(stored, eng, table); err != nil {
			return fmt.Errorf("read rights: %w", err)
		}
	}
	tables, err := rights.Load(stored)
	if err != nil {
		return fmt.Errorf("read rights: %w", err)
	}
	g.replace(tables)
	return nil
}

func appendRows(dst []rights.Row, eng engine.Engine, table byte) ([]rights.Row, error) {
	it, err := eng.Iter([]byte{table}, []byte{table + 1})
	if err != nil {
		return nil, err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		row, err := decodeRow(it.Key(), it.Value())
		if err != nil {
			return nil, err
		}
		dst = append(dst, row)
	}
	return dst, it.Err()
}

// decodeRow takes the table from the key of a row, and the version from its value.
func decodeRow(key, value []byte) (rights.Row, error) {
	d, err := layout.OpenRecord("rights", value)
	if err != nil {
		return rights.Row{}, err
	}
	return rights.Row{Key: string(key[1:]), Value: append([]byte(nil), d.Rest()...), Secret: key[0] == layout.TableSecret}, nil
}

// Sealed returns the value of a row of secrets as backups have it: the version alone.
func Sealed(value []byte) []byte { return value[:min(1, len(value))] }

// CheckRow refuses a row that this package would not have written. It is for rows from
// outside, in a body. Its key begins with the table.
func CheckRow(key, value []byte) error {
	row, err := decodeRow(key, value)
	if err != nil {
		return err
	}
	return rights.CheckRow(row)
}

// Refuse refuses a command whose origin may not do what it does, and reports whether it
// has. The error is fatal.
func (g *Guard) Refuse(c *command.Command, r *command.Result) (refused bool, err error) {
	tables := g.Tables()
	if !tables.Enabled() || own(c) {
		return false, nil
	}
	grants := tables.Grants(c.Origin.Principal)
	if grants.All() {
		return false, nil
	}
	if c.Op == command.OpRights {
		err := tables.CheckChange(c.Origin.Principal, c.Rights)
		if err != nil {
			r.Refuse(command.PermissionDenied, "%v", err)
		}
		return err != nil, nil
	}
	g.needs = append(AppendNeeds(g.needs[:0], c), rights.Need{}) // nothing is for strangers
	for _, n := range g.needs {
		if !grants.Allow(n) {
			r.Refuse(command.PermissionDenied, "%v", tables.Check(c.Origin.Principal, n))
			return true, nil
		}
	}
	for _, lease := range Leases(nil, c) {
		if refused, err := g.refuseLease(grants, lease); err != nil || refused {
			r.Refuse(command.PermissionDenied, "user %q may not write everything that is bound to lease %d; use a lease of your own", c.Origin.Principal, lease)
			return true, err
		}
	}
	return false, nil
}

// refuseLease does not tell what the user may not write: it may not know of it.
func (g *Guard) refuseLease(grants *rights.Grants, lease uint64) (refused bool, err error) {
	err = EachBound(g.Rows, lease, func(space rights.Space, name []byte) (more bool) {
		refused = !grants.Allow(rights.Need{Access: rights.Write, Space: space, Range: rights.Single(name)})
		return !refused
	})
	return refused, err
}

// Rows calls fn with the rows of a table whose keys have a prefix, without the table, in
// order, until it returns false.
type Rows = func(table byte, prefix []byte, fn func(key, value []byte) (more bool)) error

// EachBound calls fn with what is bound to a lease, until it returns false: its keys, and
// the locks that it holds or waits for.
func EachBound(each Rows, lease uint64, fn func(space rights.Space, name []byte) (more bool)) error {
	prefix, more := binary.BigEndian.AppendUint64(nil, lease), true
	err := each(layout.TableLeaseKey, prefix, func(key, _ []byte) bool {
		more = fn(rights.Keys, key[len(prefix):])
		return more
	})
	if err != nil || !more {
		return err
	}
	return each(layout.TableLeaseLock, prefix, func(key, _ []byte) bool { return fn(rights.Locks, key[len(prefix):]) })
}

// own reports whether kvd itself proposed the command.
func own(c *command.Command) bool {
	switch c.Op {
	case command.OpTick, command.OpLeaseExpire:
		return true
	case command.OpCompact, command.OpSettings:
		return c.Term != 0
	}
	return false
}

// Change runs OpRights: it adds the rows that differ to the overlay. Its conditions are
// about the entry that changes, which has the revision of the rights as its own, or 0 if
// it does not exist.
func (g *Guard) Change(c *command.Command, t *rows.Rows, r *command.Result) {
	before := g.Tables()
	if now := before.EntryRevision(c.Rights); !command.Hold(c.Conditions, now) {
		r.Refuse(command.PreconditionFailed, "a condition on the entry does not hold")
		r.KV.ModRevision = now
		return
	}
	after, changed, err := before.Apply(c.Rights)
	switch {
	case errors.Is(err, rights.ErrStale):
		r.Refuse(command.PreconditionFailed, "%v", err)
		r.KV.ModRevision = before.Revision()
		return
	case errors.Is(err, rights.ErrNotFound):
		r.Refuse(command.KeyNotFound, "%v", err)
		return
	case err != nil:
		r.Refuse(command.Invalid, "%v", err)
		return
	}
	r.KV.ModRevision = after.Revision()
	r.Created = before.EntryRevision(c.Rights) == 0
	g.put(after, changed, t) // nothing can refuse the command anymore
	if g.Observe != nil {
		g.Observe(c.Rights.Actions(), after.Revision(), rights.TokensRemoved(changed), c.Origin)
	}
}

// Restored makes the tables those with which a cluster begins that is made from a backup.
func (g *Guard) Restored(raise uint64, t *rows.Rows) {
	after, changed := g.Tables().Restored(raise)
	g.put(after, changed, t)
}

// put puts tables in the place of the current ones, and the rows that differ into the
// overlay.
func (g *Guard) put(after *rights.Tables, changed []rights.Row, t *rows.Rows) {
	for _, row := range changed {
		table := byte(layout.TableRights)
		if row.Secret {
			table = layout.TableSecret
		}
		if row.Value == nil {
			t.Delete(table, []byte(row.Key))
			continue
		}
		t.Set(table, []byte(row.Key), append([]byte{layout.RecordVersion}, row.Value...))
	}
	g.replace(after)
}
