package guard

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/kvd-io/kvd/internal/kvstore/command"
	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/kvstore/rows"
	"github.com/kvd-io/kvd/internal/rights"
)

// Guard judges commands. Its methods but Tables belong to the goroutine that applies.
type Guard struct {
	// LeaseKeys calls fn with the keys of a lease until it returns false.
	LeaseKeys func(lease uint64, fn func(key []byte) (more bool)) error

	tables atomic.Pointer[rights.Tables]
	needs  []rights.Need // scratch
}

// Tables returns the users, roles and tokens as of what was applied. Any goroutine may
// call it.
func (g *Guard) Tables() *rights.Tables { return g.tables.Load() }

// Load reads the tables from the engine.
func (g *Guard) Load(eng engine.Engine) error {
	it, err := eng.Iter([]byte{layout.TableRights}, []byte{layout.TableRights + 1})
	if err != nil {
		return fmt.Errorf("read rights: %w", err)
	}
	defer it.Close()
	var stored []rights.Row
	for ok := it.First(); ok; ok = it.Next() {
		row, err := decodeRow(it.Key()[1:], it.Value())
		if err != nil {
			return err
		}
		stored = append(stored, row)
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read rights: %w", err)
	}
	tables, err := rights.Load(stored)
	if err != nil {
		return fmt.Errorf("read rights: %w", err)
	}
	g.tables.Store(tables)
	return nil
}

// decodeRow takes the version from the value of a row.
func decodeRow(key, value []byte) (rights.Row, error) {
	d, err := layout.OpenRecord("rights", value)
	if err != nil {
		return rights.Row{}, err
	}
	return rights.Row{Key: string(key), Value: append([]byte(nil), d.Rest()...)}, nil
}

// CheckRow refuses a row that this package would not have written. It is for rows from
// outside, in a body.
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
	tables := g.tables.Load()
	if !tables.Enabled() || own(c) {
		return false, nil
	}
	grants := tables.Grants(c.Origin.Principal)
	if grants.All() {
		return false, nil
	}
	g.needs = AppendNeeds(g.needs[:0], c)
	for _, n := range g.needs {
		if !grants.Allow(n) {
			r.Refuse(command.PermissionDenied, "%v", tables.Check(c.Origin.Principal, n))
			return true, nil
		}
	}
	for _, lease := range Leases(nil, c) {
		if refused, err := g.refuseLease(grants, lease); err != nil || refused {
			r.Refuse(command.PermissionDenied, "user %q may not write every key that is bound to lease %d; use a lease of your own", c.Origin.Principal, lease)
			return true, err
		}
	}
	return false, nil
}

// refuseLease does not tell which key the user may not write: it may not know of it.
func (g *Guard) refuseLease(grants *rights.Grants, lease uint64) (refused bool, err error) {
	err = g.LeaseKeys(lease, func(key []byte) (more bool) {
		refused = !grants.Allow(rights.Need{Access: rights.Write, Range: rights.Single(key)})
		return !refused
	})
	return refused, err
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

// Change runs OpRights: it adds the rows that differ to the overlay.
func (g *Guard) Change(c *command.Command, t *rows.Rows, r *command.Result) {
	after, changed, err := g.tables.Load().Apply(c.Rights)
	switch {
	case errors.Is(err, rights.ErrStale):
		r.Refuse(command.PreconditionFailed, "%v", err)
		return
	case err != nil:
		r.Refuse(command.Invalid, "%v", err)
		return
	}
	for _, row := range changed {
		if row.Value == nil {
			t.Delete(layout.TableRights, []byte(row.Key))
			continue
		}
		t.Set(layout.TableRights, []byte(row.Key), append([]byte{layout.RecordVersion}, row.Value...))
	}
	g.tables.Store(after) // nothing can refuse the command anymore
}
