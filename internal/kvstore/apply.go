package kvstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/kvd-io/kvd/internal/kvstore/changelog"
	"github.com/kvd-io/kvd/internal/kvstore/command"
	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/guard"
	"github.com/kvd-io/kvd/internal/kvstore/hot"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/kvstore/once"
	"github.com/kvd-io/kvd/internal/kvstore/rows"
	"github.com/kvd-io/kvd/internal/kvstore/statehash"
	"github.com/kvd-io/kvd/internal/kvstore/timeline"
	"github.com/kvd-io/kvd/internal/limits"
)

// scratch is memory that is reused from one Apply to the next.
type scratch struct {
	key     []byte // an engine key being built
	value   []byte // an engine value being built
	plain   []byte // a key as the user wrote it
	found   []byte // a value that was looked up
	command Command
	result  Result // of a command whose result nobody wants
}

// Apply executes the entries in order. All their effects become visible, and later
// durable, together.
//
// An error is fatal: nothing of the entries is visible, and all further calls return
// the error. Continuing would be worse than stopping, because this replica has lost
// a step that the others took.
func (s *Store) Apply(entries []Entry) error {
	if s.exec.failed != nil {
		return s.exec.failed
	}
	if len(entries) == 0 {
		return nil
	}
	if err := s.exec.apply(entries); err != nil {
		return s.exec.fail(err)
	}
	s.show()
	return nil
}

// executor is the half of a store that belongs to the goroutine that applies: what
// it knows about the state without asking the engine, and the writes that it is
// collecting. It is ahead of what readers see by the entries being applied.
type executor struct {
	eng      engine.Engine
	timeline *timeline.Timeline // of the store
	hot      *hot.Pairs         // of the store
	now      layout.Meta
	settings Settings
	// settingsGiven is false until any settings were applied.
	settingsGiven bool
	cache         *metaCache
	records       map[string][]byte // a copy of table r: membership and origins are small
	// changedRecords are those that applyRecords has to store; nil deletes.
	changedRecords map[string][]byte
	uncleaned      layout.Place // where Maintain goes on
	hasher         statehash.Hasher
	writes         engine.WriteBatch
	changes        []change // those that are not in the engine yet; see overlay
	overlay        overlay
	log            changelog.Logger
	budget         budget // of the current command
	rows           *rows.Rows
	idempotency    once.Index
	guard          guard.Guard
	leases         leases
	scratch        scratch
	lookups        engine.Iterator // see committed; nil until the entries need one
	failed         error           // why no further call is possible
	// observed is set if somebody wants the changes of each call, which are
	// collected in observations.
	observed     bool
	observations []Change
	// refused is how many bytes the last put that was refused for the quota would
	// have added; 0 if that put would fit by now. It is not replicated state: it
	// only raises an alarm.
	refused    int64
	onSettings func(before, after Settings, by Origin) // may be nil
}

// load reads what the executor keeps in memory from the engine.
func (x *executor) load() (err error) {
	if x.now, err = readMeta(x.eng); err != nil {
		return err
	}
	if x.settings, x.settingsGiven, err = readSettings(x.eng); err != nil {
		return err
	}
	if x.records, err = readRecords(x.eng); err != nil {
		return err
	}
	if x.uncleaned, err = readProgress(x.eng); err != nil {
		return err
	}
	if err := errors.Join(x.idempotency.Load(x.eng), x.guard.Load(x.eng)); err != nil {
		return err
	}
	if err := x.leases.load(x); err != nil {
		return err
	}
	x.cache.clear()
	x.rows.Reset()
	x.refused = 0
	return nil
}

// fail keeps the error for every later call and returns it.
func (x *executor) fail(err error) error {
	x.failed = err
	return err
}

func (x *executor) apply(entries []Entry) error {
	x.writes.Reset()
	for i := range entries {
		if err := x.applyEntry(&entries[i]); err != nil {
			return errors.Join(fmt.Errorf("entry %d: %w", entries[i].Index, err), x.closeLookups())
		}
	}
	if err := x.closeLookups(); err != nil {
		return fmt.Errorf("close lookups: %w", err)
	}
	return x.commit()
}

// commit writes the position and everything that was collected to the engine.
func (x *executor) commit() error {
	x.applyRecords()
	x.logChanges()
	if x.observed {
		x.noteChanges()
	}
	x.scratch.value = layout.AppendMeta(x.scratch.value[:0], &x.now)
	x.writes.Set([]byte{layout.TableMeta}, x.scratch.value)
	if err := x.writes.Commit(); err != nil {
		return fmt.Errorf("commit to engine: %w", err)
	}
	x.settle()
	x.cache.age()
	return nil
}

func (x *executor) applyEntry(e *Entry) error {
	// An empty store accepts any first index: a cluster's log does not begin at 1.
	if p := x.now.Position; p.Index != 0 && e.Index != p.Index+1 || e.Index == 0 {
		return fmt.Errorf("cannot follow entry %d", p.Index)
	}
	for _, r := range e.Records {
		x.changedRecords[string(r.Key)] = r.Value
	}
	var results []Result // one allocation for all of the entry
	if e.WantResults {
		results = make([]Result, len(e.Commands))
		e.Results = make([]any, len(e.Commands))
	}
	for i, b := range e.Commands {
		r := &x.scratch.result
		if e.WantResults {
			r = &results[i]
			e.Results[i] = r
		} else {
			*r = Result{}
		}
		if err := x.applyCommand(b, e, once.Place{Index: e.Index, Command: uint64(i)}, r); err != nil {
			return err
		}
	}
	x.now.Position = Position{Index: e.Index, Term: e.Term}
	if timeline.KeepsHash(e.Index) {
		x.applyRecords()
	}
	x.timeline.NoteHash(e.Index, x.now.Hash())
	return nil
}

// applyCommand decodes a command and runs it, at most once if it asks for that.
func (x *executor) applyCommand(b []byte, e *Entry, place once.Place, r *Result) error {
	c := &x.scratch.command
	*c = Command{}
	if err := c.Decode(b); err != nil {
		return err
	}
	if refused, err := x.guard.Refuse(c, r); err != nil || refused {
		r.Revision = x.now.Revision
		return err
	}
	if c.Idempotency != nil || c.Release != nil {
		return x.applyOnce(c, e, len(b), place, r)
	}
	return x.run(c, e, len(b), e.WantResults, r)
}

// run executes a command and makes its overlay the next revision, or drops it.
func (x *executor) run(c *Command, e *Entry, size int, want bool, r *Result) error {
	x.budget = budget{want: want, resultBytes: limits.MaxResultBytes}
	if err := take(r, x.execute(c, e, size, r)); err != nil {
		return err
	}
	if r.Outcome != OK {
		x.dropOverlay()
	} else if err := x.commitOverlay(); err != nil {
		return err
	}
	r.Revision = x.now.Revision
	return nil
}

// applyRecords stores and deletes the records of the replication layer that changed.
// Every entry changes the record of its origin, so only the last change before each commit
// and each hash that is kept is worth anything.
func (x *executor) applyRecords() {
	for key, value := range x.changedRecords {
		if old, ok := x.records[key]; ok {
			x.now.Rest -= x.hasher.Record([]byte(key), old)
		}
		x.scratch.key = layout.RecordKey(x.scratch.key[:0], key)
		if value == nil {
			x.writes.Delete(x.scratch.key)
			delete(x.records, key)
			continue
		}
		x.now.Rest += x.hasher.Record([]byte(key), value)
		x.writes.Set(x.scratch.key, value)
		x.records[key] = bytes.Clone(value)
	}
	clear(x.changedRecords)
}

// execute runs one command of a number of bytes. The error is fatal; a fault of the
// command itself is an outcome in the result.
func (x *executor) execute(c *Command, e *Entry, size int, r *Result) error {
	switch c.Op {
	case OpPut, OpDelete, OpAppend, OpIncr:
		x.budget.resultBytes = math.MaxInt // one pair of any size
		return x.keyOp(c, &x.budget, r)
	case OpDeleteRange:
		return x.deleteRange(c, &x.budget, r)
	case OpTxn:
		return x.txn(c, size, &x.budget, r)
	case OpTick:
		return x.tick(c, e, r)
	case OpCompact:
		x.compact(c, e, r)
	case OpSettings:
		x.applySettings(c, e, r)
	case OpLeaseGrant:
		return x.leases.grantOp(c, r)
	case OpLeaseRevoke:
		return x.leases.revokeOp(c, r)
	case OpLeaseExpire:
		return x.leases.expireOp(c, e, r)
	case OpLock:
		return x.leases.locks().lockOp(c, r)
	case OpUnlock:
		return x.leases.locks().unlockOp(c, r)
	case OpRights:
		x.guard.Change(c, x.rows, r)
	case OpForget:
	default:
		r.Refuse(Invalid, "operation %d cannot be executed by itself", c.Op)
	}
	return nil
}

// keyOp runs an operation on one key in the overlay.
func (x *executor) keyOp(c *Command, b *budget, r *Result) error {
	if len(c.Key) == 0 {
		r.Refuse(Invalid, "the key is empty")
		return nil
	}
	// A limit that was lowered must not make a stored key undeletable.
	if n := int64(len(c.Key)); n > x.settings.MaxKeyBytes && c.Op != OpDelete {
		r.Refuse(TooLarge, "the key has %d bytes, but the limit is %d (max_key_bytes in the settings)", n, x.settings.MaxKeyBytes)
		return nil
	}
	m, err := x.lookup(c.Key)
	if err != nil {
		return err
	}
	before := x.state(m)
	if !command.Hold(c.Conditions, before.current()) {
		refuseAt(r, before, PreconditionFailed, "a condition on the key does not hold")
		return nil
	}
	if c.ReturnPrevious {
		if err := x.notePrevious(m, b, r); err != nil {
			return err
		}
	}
	switch c.Op {
	case OpPut:
		return x.put(m, c, r)
	case OpAppend:
		return x.appendTo(m, c, r)
	case OpIncr:
		return x.incr(m, c, r)
	default:
		return x.remove(m, r)
	}
}

// refuseAt refuses with the current revision of the key, which a client needs to
// decide whether to try again.
func refuseAt(r *Result, s *keyState, o Outcome, detail string) {
	*r = Result{Outcome: o, Detail: detail, KV: KV{ModRevision: s.current()}}
}

// current returns the mod_revision of the key, or 0 if it is absent.
func (s *keyState) current() uint64 {
	if !s.exists {
		return 0
	}
	return s.mod
}

// value returns the current value of an existing key with the overlay. It is valid
// until the next lookup.
func (x *executor) value(m *keyMeta) ([]byte, error) {
	if at := max(m.draft, m.pending); at > 0 { // drafts come after everything that is pending
		return x.changes[at-1].value, nil
	}
	v, _, _, err := x.newest([]byte(m.key), math.MaxUint64)
	if err != nil {
		return nil, err
	}
	return v.Value, nil
}

// notePrevious sets the pair before the command if the key exists.
func (x *executor) notePrevious(m *keyMeta, b *budget, r *Result) error {
	s := x.state(m)
	if !s.exists {
		return nil
	}
	if err := b.add(len(m.key) + int(s.size)); err != nil || !b.want {
		return err
	}
	kv := s.kv()
	value, err := x.value(m)
	if err != nil {
		return err
	}
	kv.Key, kv.Value = []byte(m.key), bytes.Clone(value)
	r.Previous = &kv
	return nil
}

func (s *keyState) kv() KV {
	return KV{CreateRevision: s.create, ModRevision: s.mod, Version: s.version, Lease: s.lease, Attributes: s.attributes}
}

// put runs OpPut.
func (x *executor) put(m *keyMeta, c *Command, r *Result) error {
	before := x.state(m)
	value := c.Value
	absent := (c.KeepValue || c.KeepLease) && !before.exists
	var lease uint64
	if !absent || c.Lease != 0 { // a lease that is named is looked for first, as in etcd
		var err error
		if lease, err = x.leases.of(c, before, r); err != nil || r.Outcome != OK {
			return err
		}
	}
	if absent {
		r.Refuse(KeyNotFound, "the key does not exist, so it has no value or lease to keep")
		return nil
	}
	if c.KeepValue {
		old, err := x.value(m)
		if err != nil {
			return err
		}
		value = bytes.Clone(old)
	}
	if c.UnlessEqual && before.exists && before.lease == lease && int(before.size) == len(value) && equalAttributes(before.attributes, c.Attributes) {
		old, err := x.value(m)
		if err != nil {
			return err
		}
		if bytes.Equal(old, value) {
			r.KV = before.kv()
			return nil
		}
	}
	return x.set(m, value, lease, c.Attributes, r)
}

func equalAttributes(a, b *Attributes) bool {
	return a == b || a != nil && b != nil && *a == *b
}

// set gives the key a value, a lease and attributes. A put that makes the value shorter passes even
// above the quota, which may have been lowered below what is stored: otherwise nothing
// but deletes could bring the store back under it.
func (x *executor) set(m *keyMeta, value []byte, lease uint64, a *Attributes, r *Result) error {
	if n := int64(len(value)); n > x.settings.MaxValueBytes {
		r.Refuse(TooLarge, "the value would have %d bytes, but the limit is %d (max_value_bytes in the settings)", n, x.settings.MaxValueBytes)
		return nil
	}
	before := x.state(m)
	grown := layout.LogicalBytes(len(m.key), len(value)) - logicalSize(m.key, before)
	used := x.leases.used()
	if q := x.settings.QuotaBytes; q > 0 && grown > 0 && used+grown > q {
		if grown <= q { // otherwise the value is at fault, and no space would help
			x.refused = grown
		}
		r.Refuse(NoSpace, "the store holds %d bytes and the quota is %d: delete keys, or raise quota_bytes in the settings", used, q)
		return nil
	}
	v := layout.Version{Create: before.create, Version: before.version + 1, Lease: lease, Attributes: a, Value: value}
	r.Created = !before.exists
	if r.Created {
		v.Create, v.Version = x.next(), 1
	}
	if err := x.draft(m, &v); err != nil {
		return err
	}
	r.KV = x.state(m).kv()
	return nil
}

// remove runs OpDelete.
func (x *executor) remove(m *keyMeta, r *Result) error {
	if !x.state(m).exists {
		return nil
	}
	r.Deleted = 1
	r.KV.ModRevision = x.next()
	return x.draft(m, &layout.Version{Deleted: true})
}

// appendTo runs OpAppend.
func (x *executor) appendTo(m *keyMeta, c *Command, r *Result) error {
	before := x.state(m)
	lease, err := x.leases.of(c, before, r)
	if err != nil || r.Outcome != OK {
		return err
	}
	if !before.exists {
		return x.set(m, c.Value, lease, nil, r)
	}
	old, err := x.value(m)
	if err != nil {
		return err
	}
	return x.set(m, slices.Concat(old, c.Value), lease, before.attributes, r)
}

// incr runs OpIncr.
func (x *executor) incr(m *keyMeta, c *Command, r *Result) error {
	n, delta := int64(0), c.Delta
	before := x.state(m)
	if before.exists {
		old, err := x.value(m)
		if err != nil {
			return err
		}
		if n, err = strconv.ParseInt(string(old), 10, 64); err != nil {
			refuseAt(r, before, NotANumber, "the value is not a decimal 64-bit integer")
			return nil
		}
	}
	if delta > 0 && n > math.MaxInt64-delta || delta < 0 && n < math.MinInt64-delta {
		refuseAt(r, before, Overflow, "the sum does not fit in a 64-bit integer")
		return nil
	}
	lease, err := x.leases.of(c, before, r)
	if err != nil || r.Outcome != OK {
		return err
	}
	value := strconv.AppendInt(nil, n+delta, 10)
	if err := x.set(m, value, lease, before.attributes, r); err != nil {
		return err
	}
	if r.Outcome == OK {
		r.KV.Value = value
	}
	return nil
}

// tick advances replicated time by a step of the leader's monotonic clock, and
// remembers when the current revision was first seen. Only the leader of the
// entry's own term counts: the steps of two leaders would overlap.
//
// Replicated time is a sum of steps and never a wall clock. A leader whose wall
// clock was a year ahead, once, would put that year into the state for good, and
// nothing that is younger would ever age. Time stands still while there is no
// leader, so it may fall behind true time but never runs ahead of it.
func (x *executor) tick(c *Command, e *Entry, r *Result) error {
	if c.Term != e.Term {
		r.Outcome = Ignored
		return nil
	}
	x.setTimes(x.now.Clock+min(max(c.ElapsedMillis, 0), MaxTickMillis), x.now.Compact)
	added, thinned := x.timeline.Add(timeline.Sample{Revision: x.now.Revision, Millis: x.now.Clock})
	if added {
		x.writes.Set(layout.TimeKey(x.now.Revision), binary.AppendVarint([]byte{layout.RecordVersion}, x.now.Clock))
	}
	for _, t := range thinned {
		x.writes.Delete(layout.TimeKey(t.Revision))
	}
	r.More = x.idempotency.Age(x.settings.IdempotencyMillis, &x.now, x.writes)
	return nil
}

// setTimes sets replicated time and the compact revision, which are one term of the
// state hash.
func (x *executor) setTimes(clock int64, compact uint64) {
	x.now.Rest -= x.hasher.Times(x.now.Clock, x.now.Compact)
	x.now.Clock, x.now.Compact = clock, compact
	x.now.Rest += x.hasher.Times(clock, compact)
}

// compact makes revisions before the given one unreadable. Maintain removes them
// later, so that the cost of a compaction does not hold up the entries after it.
func (x *executor) compact(c *Command, e *Entry, r *Result) {
	switch {
	case c.Term != 0 && c.Term != e.Term:
		r.Outcome = Ignored
	case c.Revision > x.now.Revision:
		r.Refuse(FutureRevision, "revision %d does not exist yet; the newest revision is %d", c.Revision, x.now.Revision)
	case c.Revision <= x.now.Compact:
		r.Refuse(Compacted, "revision %d was compacted already; the oldest readable revision is %d", c.Revision, x.now.Compact)
		r.CompactRevision = x.now.Compact
	default:
		x.setTimes(x.now.Clock, c.Revision)
		r.CompactRevision = c.Revision
	}
}
