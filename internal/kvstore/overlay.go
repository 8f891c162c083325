package kvstore

import (
	"fmt"

	"github.com/kvd-io/kvd/internal/kvstore/layout"
)

// change is what one command did to a key.
type change struct {
	meta *keyMeta
	// keyState is that after the change.
	keyState
	value []byte // the new one
	// replaced is the version that the change made history; its stored is 0 if there
	// was none. It is known once the change is committed.
	replaced replacedVersion
	// before is the position of the change of the same key before this one that is
	// not in the engine either, from 1, or 0.
	before uint32
}

// replacedVersion is a version that was the newest one of its key.
type replacedVersion struct {
	mod    uint64
	stored uint32 // bytes in the engine
}

// overlay is the revision that the current command is building. Each operation is
// judged and adds to it; what an operation reads, it reads through the overlay. When
// all operations have succeeded, commit makes the overlay the next revision. If one of
// them cannot be carried out, drop forgets it, and no trace is left (S8): the
// metadata of keys, the hash, the counters, and the writes for the engine are touched by
// commit alone (TestFailedTxnLeavesNoTrace).
//
// A key has at most one change in an overlay (S8), since a version is identified by
// key and revision. Operations that would write a key twice are refused; see claim.
//
// The changes of the overlay are the last ones of executor.changes, from first on.
// Those before are committed revisions whose writes are not in the engine yet. A key
// of either has its metadata in the cache, with the position of the change: that is how a
// later operation finds it, without a map. A put therefore costs one append to a slice.
//
// Rejected: changing metadata, hash and counters at once, with a log to undo it. It
// saves the pointer from metadata to change, but each further table would need its own
// way back, and one that is forgotten is found by a diverged replica.
type overlay struct {
	first   int   // position in executor.changes
	logical int64 // by how much the overlay changes meta.logical
	// puts, deletes and ranges are what the operations of a transaction have
	// written, or tried to. They are empty for a command of one operation.
	puts, deletes map[string]bool
	ranges        []Range
}

// drafts returns the changes of the overlay in the order of the operations.
func (x *executor) drafts() []change { return x.changes[x.overlay.first:] }

// next returns the revision that the overlay will have.
func (x *executor) next() uint64 { return x.now.Revision + 1 }

// seen returns the revision that an operation sees now: the next one as soon as
// something was written.
func (x *executor) seen() uint64 {
	if len(x.drafts()) > 0 {
		return x.next()
	}
	return x.now.Revision
}

// state returns the state of the key with the overlay. It is valid until the next draft.
func (x *executor) state(m *keyMeta) *keyState {
	if m.draft > 0 {
		return &x.changes[m.draft-1].keyState
	}
	return &m.keyState
}

// draft adds a new version of the key to the overlay. The key has none there yet (S8).
func (x *executor) draft(m *keyMeta, v *layout.Version) error {
	if m.draft > 0 {
		panic(fmt.Sprintf("kvstore: a second change of a key in revision %d", x.next()))
	}
	if m.lease != v.Lease {
		if err := x.leases.bind(m.key, m.lease, v.Lease); err != nil {
			return err
		}
	}
	x.changes = append(x.changes, change{meta: m, value: v.Value, before: m.pending, keyState: keyState{
		mod: x.next(), create: v.Create, version: v.Version, lease: v.Lease, attributes: v.Attributes, size: uint32(len(v.Value)), exists: !v.Deleted,
	}})
	m.draft = uint32(len(x.changes))
	x.overlay.logical += logicalSize(m.key, x.state(m)) - logicalSize(m.key, &m.keyState)
	return nil
}

// commitOverlay makes the overlay the next revision if it has changes, and starts
// an empty one.
func (x *executor) commitOverlay() error {
	o := &x.overlay
	if drafts := x.drafts(); len(drafts) > 0 {
		x.now.Revision++
		for i := range drafts {
			x.write(&drafts[i])
			drafts[i].meta.pending, drafts[i].meta.draft = uint32(o.first+i+1), 0
		}
		o.first = len(x.changes)
		o.logical = 0
	}
	x.leases.commit()
	return x.rows.Commit(&x.now, x.writes)
}

// dropOverlay forgets the overlay.
func (x *executor) dropOverlay() {
	o := &x.overlay
	for _, d := range x.drafts() {
		d.meta.draft = 0
	}
	clear(x.drafts())
	x.changes = x.changes[:o.first]
	o.logical = 0
	x.leases.drop()
	x.rows.Drop()
}

// write adds a change to the writes, the counters and the hash, and makes it the state
// of its key.
func (x *executor) write(d *change) {
	m := d.meta
	if m.exists {
		x.now.Pairs -= m.hash
		x.now.Logical -= logicalSize(m.key, &m.keyState)
		x.now.Keys--
	}
	v := layout.Version{Deleted: !d.exists, Create: d.create, Version: d.version, Lease: d.lease, Attributes: d.attributes, Value: d.value}
	key := append(x.scratch.plain[:0], m.key...)
	x.scratch.plain = key
	x.scratch.key = layout.AppendVersionKey(x.scratch.key[:0], key, d.mod)
	x.scratch.value = layout.AppendVersion(x.scratch.value[:0], d.mod, &v)
	x.writes.Set(x.scratch.key, x.scratch.value)
	if m.stored > 0 { // the previous version becomes history
		d.replaced = replacedVersion{m.mod, m.stored}
		x.now.HistoryBytes += int64(m.stored)
		x.now.HistoryVersions++
	}
	d.stored = uint32(len(x.scratch.key) + len(x.scratch.value))
	if v.Deleted { // a deletion is history from the start: only reads of the past need it
		x.now.HistoryBytes += int64(d.stored)
		x.now.HistoryVersions++
		d.stored = 0
	} else {
		d.hash = x.hasher.Key(key, d.mod, &v)
		x.now.Pairs += d.hash
		x.now.Logical += logicalSize(m.key, &d.keyState)
		x.now.Keys++
	}
	m.keyState = d.keyState
}

// logicalSize returns what the quota counts for a key.
func logicalSize(key string, s *keyState) int64 {
	if !s.exists {
		return 0
	}
	return layout.LogicalBytes(len(key), int(s.size))
}

// settle forgets the changes once their writes are in the engine.
func (x *executor) settle() {
	for i := range x.changes {
		x.changes[i].warm(x)
		x.changes[i].meta.pending = 0
	}
	clear(x.changes)
	if x.changes = x.changes[:0]; cap(x.changes) > keptChanges {
		x.changes = nil // after a large range delete
	}
	x.overlay.first = 0
	x.rows.Settle()
	x.idempotency.Settle()
}

// warm tells the newest pairs of the change.
func (d *change) warm(x *executor) {
	x.scratch.plain = append(x.scratch.plain[:0], d.meta.key...)
	if !d.exists {
		x.hot.Note(x.scratch.plain, d.mod, nil)
		return
	}
	kv := d.kv()
	kv.Value = d.value
	x.hot.Note(x.scratch.plain, d.mod, &kv)
}

// keptChanges bounds the memory that is kept for the changes of the next call.
const keptChanges = 16 << 10

// claimPut notes that the transaction writes a key, and claimDelete and claimRange that
// it deletes keys. They report false if that would write a key twice (S8). Deleting
// twice is no conflict, because the second time there is nothing to delete.
//
// They look at the operations and not at what is stored, so that a transaction is
// refused or not whatever keys exist: {"delete": prefix a} before {"put": "ab"} would
// otherwise work until somebody creates "ab".
func (o *overlay) claimPut(key []byte) bool {
	for _, r := range o.ranges {
		if inRange(key, r.Start, r.End) {
			return false
		}
	}
	if o.puts[string(key)] || o.deletes[string(key)] {
		return false
	}
	o.puts[string(key)] = true
	return true
}

func (o *overlay) claimDelete(key []byte) bool {
	o.deletes[string(key)] = true
	return !o.puts[string(key)]
}

func (o *overlay) claimRange(start, end []byte) bool {
	for key := range o.puts {
		if inRange([]byte(key), start, end) {
			return false
		}
	}
	o.ranges = append(o.ranges, Range{Start: start, End: end})
	return true
}

// clearClaims forgets what a transaction has claimed.
func (o *overlay) clearClaims() {
	if o.puts == nil {
		o.puts, o.deletes = make(map[string]bool), make(map[string]bool)
	}
	clear(o.puts)
	clear(o.deletes)
	o.ranges = o.ranges[:0]
}
