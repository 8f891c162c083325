package kvstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
)

// scratch is memory that is reused from one Apply to the next.
type scratch struct {
	key       []byte        // an engine key being built
	value     []byte        // an engine value being built
	plain     []byte        // a key as the user wrote it
	found     []byte        // a value that was looked up
	touched   []uncommitted // writes since the last commit
	mutations []mutation    // of the current revision
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
	s.publish()
	return nil
}

// executor is the half of a store that belongs to the goroutine that applies: what
// it knows about the state without asking the engine, and the writes that it is
// collecting. It is ahead of what readers see by the entries being applied.
type executor struct {
	eng      engine.Engine
	timeline *timeline // of the store
	now      meta
	settings Settings
	// settingsGiven is false until any settings were applied.
	settingsGiven bool
	cache         *metaCache
	records       map[string][]byte // a copy of table r: membership and origins are small
	cleaned       uint64            // revision up to which history has been removed
	hasher        hasher
	writes        engine.WriteBatch
	scratch       scratch
	lookups       engine.Iterator // see committed; nil until the entries need one
	failed        error           // why no further call is possible
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
	if x.cleaned, err = readHistory(x.eng); err != nil {
		return err
	}
	x.cache.clear()
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
	x.scratch.value = appendMeta(x.scratch.value[:0], &x.now)
	x.writes.Set([]byte{tableMeta}, x.scratch.value)
	if err := x.writes.Commit(); err != nil {
		return fmt.Errorf("commit to engine: %w", err)
	}
	for _, t := range x.scratch.touched {
		t.meta.pending = 0
	}
	clear(x.scratch.touched)
	x.scratch.touched = x.scratch.touched[:0]
	x.cache.age()
	return nil
}

func (x *executor) applyEntry(e *Entry) error {
	// An empty store accepts any first index: a cluster's log does not begin at 1.
	if p := x.now.position; p.Index != 0 && e.Index != p.Index+1 || e.Index == 0 {
		return fmt.Errorf("cannot follow entry %d", p.Index)
	}
	for _, r := range e.Records {
		x.applyRecord(r)
	}
	var results []Result // one allocation for all of the entry
	if e.WantResults {
		results = make([]Result, len(e.Commands))
		e.Results = make([]any, len(e.Commands))
	}
	for i, b := range e.Commands {
		c, err := DecodeCommand(b)
		if err != nil {
			return err
		}
		r, err := x.execute(&c, e)
		if err != nil {
			return err
		}
		if e.WantResults {
			r.Revision = x.now.revision
			results[i] = r
			e.Results[i] = &results[i]
		}
	}
	x.now.position = Position{Index: e.Index, Term: e.Term}
	x.timeline.noteHash(e.Index, x.now.hash)
	return nil
}

// applyRecord stores or deletes a record of the replication layer.
func (x *executor) applyRecord(r Record) {
	if old, ok := x.records[string(r.Key)]; ok {
		x.now.hash -= x.hasher.record(r.Key, old)
	}
	x.scratch.key = recordKey(x.scratch.key[:0], r.Key)
	if r.Value == nil {
		x.writes.Delete(x.scratch.key)
		delete(x.records, string(r.Key))
		return
	}
	x.now.hash += x.hasher.record(r.Key, r.Value)
	x.writes.Set(x.scratch.key, r.Value)
	x.records[string(r.Key)] = bytes.Clone(r.Value)
}

// execute runs one command. The error is fatal; a fault of the command itself is an
// outcome in the result.
func (x *executor) execute(c *Command, e *Entry) (Result, error) {
	switch c.Op {
	case OpTick:
		return x.tick(c, e)
	case OpCompact:
		return x.compact(c, e), nil
	case OpSettings:
		return x.applySettings(c, e), nil
	case OpDeleteRange:
		return x.deleteRange(c)
	}
	if len(c.Key) == 0 {
		return refuse(Invalid, "the key is empty"), nil
	}
	// A limit that was lowered must not make a stored key undeletable.
	if n := int64(len(c.Key)); n > x.settings.MaxKeyBytes && c.Op != OpDelete {
		return refuse(TooLarge, "the key has %d bytes, but the limit is %d (max_key_bytes in the settings)", n, x.settings.MaxKeyBytes), nil
	}
	m, err := x.lookup(c.Key)
	if err != nil {
		return Result{}, err
	}
	if !holds(c.Conditions, m) {
		return refuseAt(m, PreconditionFailed, "a condition on the key does not hold"), nil
	}
	var r Result
	if c.ReturnPrevious {
		if r.Previous, err = x.previous(m); err != nil {
			return Result{}, err
		}
	}
	switch c.Op {
	case OpPut:
		return x.put(m, c.Value, 0, r), nil
	case OpAppend:
		return x.appendTo(m, c.Value, r)
	case OpIncr:
		return x.incr(m, c.Delta, r)
	default:
		return x.remove(m, r), nil
	}
}

func refuse(o Outcome, format string, args ...any) Result {
	return Result{Outcome: o, Detail: fmt.Sprintf(format, args...)}
}

// refuseAt refuses with the current revision of the key, which a client needs to
// decide whether to try again.
func refuseAt(m *keyMeta, o Outcome, detail string) Result {
	return Result{Outcome: o, Detail: detail, KV: KV{ModRevision: m.current()}}
}

// current returns the mod_revision of the key, or 0 if it is absent.
func (m *keyMeta) current() uint64 {
	if !m.exists {
		return 0
	}
	return m.mod
}

// holds reports whether all conditions hold (RFC 9110, section 13.1).
func holds(conditions []Condition, m *keyMeta) bool {
	for i := range conditions {
		if !conditions[i].holds(m) {
			return false
		}
	}
	return true
}

func (c *Condition) holds(m *keyMeta) bool {
	switch c.Kind {
	case IfMatch:
		return m.exists && (c.Any || slices.Contains(c.Revisions, m.mod))
	case IfNoneMatch:
		return !m.exists || !c.Any && !slices.Contains(c.Revisions, m.mod)
	default:
		return c.Revisions[0] == m.current()
	}
}

// uncommitted is a write that has not been committed yet.
type uncommitted struct {
	meta  *keyMeta
	value []byte
}

// value returns the current value of an existing key, including one that is not
// committed yet. It is valid until the next lookup.
func (x *executor) value(m *keyMeta) ([]byte, error) {
	if m.pending > 0 {
		return x.scratch.touched[m.pending-1].value, nil
	}
	v, _, _, err := x.newest([]byte(m.key))
	if err != nil {
		return nil, err
	}
	return v.value, nil
}

func (x *executor) previous(m *keyMeta) (*KV, error) {
	if !m.exists {
		return nil, nil
	}
	value, err := x.value(m)
	if err != nil {
		return nil, err
	}
	kv := m.kv()
	kv.Key, kv.Value = []byte(m.key), bytes.Clone(value)
	return &kv, nil
}

func (m *keyMeta) kv() KV {
	return KV{CreateRevision: m.create, ModRevision: m.mod, Version: m.version, Lease: m.lease}
}

func (m *keyMeta) logical() int64 {
	if !m.exists {
		return 0
	}
	return logicalBytes(len(m.key), int(m.size))
}

// logicalBytes returns what the quota counts for a key.
func logicalBytes(keyLen, valueLen int) int64 { return int64(keyLen+valueLen) + keyOverheadBytes }

// put writes a value in a revision of its own. A put that makes the value shorter
// passes even above the quota, which may have been lowered below what is stored:
// otherwise nothing but deletes could bring the store back under it.
func (x *executor) put(m *keyMeta, value []byte, lease uint64, r Result) Result {
	if n := int64(len(value)); n > x.settings.MaxValueBytes {
		return refuse(TooLarge, "the value would have %d bytes, but the limit is %d (max_value_bytes in the settings)", n, x.settings.MaxValueBytes)
	}
	grown := logicalBytes(len(m.key), len(value)) - m.logical()
	if q := x.settings.QuotaBytes; q > 0 && grown > 0 && x.now.logical+grown > q {
		if grown <= q { // otherwise the value is at fault, and no space would help
			x.refused = grown
		}
		return refuse(NoSpace, "the store holds %d bytes and the quota is %d: delete keys, or raise quota_bytes in the settings", x.now.logical, q)
	}
	x.now.revision++
	v := version{create: m.create, version: m.version + 1, lease: lease, value: value}
	r.Created = !m.exists
	if r.Created {
		v.create, v.version = x.now.revision, 1
	}
	x.write(m, &v)
	x.logRevision()
	r.KV = m.kv()
	return r
}

// write adds a new version of the key to the writes, the counters and the hash.
func (x *executor) write(m *keyMeta, v *version) {
	x.forget(m)
	key := append(x.scratch.plain[:0], m.key...)
	x.scratch.plain = key
	x.scratch.key = appendVersionKey(x.scratch.key[:0], key, x.now.revision)
	x.scratch.value = appendVersion(x.scratch.value[:0], v)
	x.writes.Set(x.scratch.key, x.scratch.value)
	if m.stored > 0 { // the previous version becomes history
		x.now.historyBytes += int64(m.stored)
		x.now.historyVersions++
	}
	m.exists, m.mod = !v.deleted, x.now.revision
	m.create, m.version, m.lease, m.size = v.create, v.version, v.lease, uint32(len(v.value))
	m.stored = uint32(len(x.scratch.key) + len(x.scratch.value))
	if v.deleted { // a deletion is history from the start: only reads of the past need it
		x.now.historyBytes += int64(m.stored)
		x.now.historyVersions++
		m.stored = 0
	}
	if m.exists {
		m.hash = x.hasher.key(key, m.mod, v)
		x.now.hash += m.hash
		x.now.logical += m.logical()
		x.now.keys++
	}
	x.scratch.touched = append(x.scratch.touched, uncommitted{m, v.value})
	m.pending = uint32(len(x.scratch.touched))
	x.scratch.mutations = append(x.scratch.mutations, mutation{key: m.key, deleted: v.deleted})
}

// forget takes the current version out of the counters and the hash.
func (x *executor) forget(m *keyMeta) {
	if m.exists {
		x.now.hash -= m.hash
		x.now.logical -= m.logical()
		x.now.keys--
	}
}

func (x *executor) remove(m *keyMeta, r Result) Result {
	if !m.exists {
		return r
	}
	x.now.revision++
	x.write(m, &version{deleted: true})
	x.logRevision()
	r.Deleted = 1
	r.KV.ModRevision = x.now.revision
	return r
}

func (x *executor) appendTo(m *keyMeta, tail []byte, r Result) (Result, error) {
	var value []byte
	if m.exists {
		old, err := x.value(m)
		if err != nil {
			return Result{}, err
		}
		value = slices.Concat(old, tail)
	} else {
		value = tail
	}
	return x.put(m, value, m.lease, r), nil
}

func (x *executor) incr(m *keyMeta, delta int64, r Result) (Result, error) {
	var n int64
	if m.exists {
		old, err := x.value(m)
		if err != nil {
			return Result{}, err
		}
		if n, err = strconv.ParseInt(string(old), 10, 64); err != nil {
			return refuseAt(m, NotANumber, "the value is not a decimal 64-bit integer"), nil
		}
	}
	if delta > 0 && n > math.MaxInt64-delta || delta < 0 && n < math.MinInt64-delta {
		return refuseAt(m, Overflow, "the sum does not fit in a 64-bit integer"), nil
	}
	value := strconv.AppendInt(nil, n+delta, 10)
	r = x.put(m, value, m.lease, r)
	if r.Outcome == OK {
		r.KV.Value = value
	}
	return r, nil
}

// tick advances replicated time by a step of the leader's monotonic clock, and
// remembers when the current revision was first seen. Only the leader of the
// entry's own term counts: the steps of two leaders would overlap.
//
// Replicated time is a sum of steps and never a wall clock. A leader whose wall
// clock was a year ahead, once, would put that year into the state for good, and
// nothing that is younger would ever age. Time stands still while there is no
// leader, so it may fall behind true time but never runs ahead of it.
func (x *executor) tick(c *Command, e *Entry) (Result, error) {
	if c.Term != e.Term {
		return Result{Outcome: Ignored}, nil
	}
	x.now.hash -= x.hasher.clock(x.now.clock)
	x.now.clock += min(max(c.ElapsedMillis, 0), MaxTickMillis)
	x.now.hash += x.hasher.clock(x.now.clock)
	added, thinned := x.timeline.add(sample{revision: x.now.revision, millis: x.now.clock})
	if added {
		x.writes.Set(timeKey(x.now.revision), binary.AppendVarint([]byte{recordVersion}, x.now.clock))
	}
	for _, t := range thinned {
		x.writes.Delete(timeKey(t.revision))
	}
	return Result{}, nil
}

// compact makes revisions before the given one unreadable. Maintain removes them
// later, so that the cost of a compaction does not hold up the entries after it.
func (x *executor) compact(c *Command, e *Entry) Result {
	switch {
	case c.Term != 0 && c.Term != e.Term:
		return Result{Outcome: Ignored}
	case c.Revision > x.now.revision:
		return refuse(FutureRevision, "revision %d does not exist yet; the newest revision is %d", c.Revision, x.now.revision)
	}
	x.now.compact = max(x.now.compact, c.Revision)
	return Result{CompactRevision: x.now.compact}
}
