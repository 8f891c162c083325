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

// scratch is memory reused from one Apply to the next.
type scratch struct {
	key       []byte
	value     []byte
	plain     []byte        // a key as it is
	found     []byte        // a record that was looked up
	touched   []uncommitted // changes since the last commit
	mutations []mutation    // of the revision being made
}

// Apply executes the entries in order. All their effects become visible, and
// later durable, together. An error is fatal: the store must not be used any
// more, and nothing of the entries is visible.
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

// executor is the half of a store that belongs to the goroutine that applies:
// what it knows of the state without asking the engine, and the writes that it
// collects. Readers never look at it.
type executor struct {
	eng      engine.Engine
	timeline *timeline // the store's
	now      meta
	settings Settings
	// settingsGiven is false until any settings were applied.
	settingsGiven bool
	cache         *metaCache
	records       map[string][]byte // the table of records; it is small
	cleaned       uint64            // revision up to which history was removed
	hasher        hasher
	writes        engine.WriteBatch
	scratch       scratch
	lookups       engine.Iterator // for the writes being collected; nil until they need one
	failed        error
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
	return nil
}

// fail keeps the error that every later call returns.
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
		return fmt.Errorf("end the look-ups: %w", err)
	}
	return x.commit()
}

// commit makes the batch and what belongs to it visible.
func (x *executor) commit() error {
	x.scratch.value = appendMeta(x.scratch.value[:0], &x.now)
	x.writes.Set([]byte{tableMeta}, x.scratch.value)
	if err := x.writes.Commit(); err != nil {
		return fmt.Errorf("commit to the engine: %w", err)
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
	if p := x.now.position; p.Index != 0 && e.Index != p.Index+1 || e.Index == 0 {
		return fmt.Errorf("it follows entry %d", p.Index)
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

// applyRecord stores a record of the replication layer.
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

// execute runs one command. The error is fatal; what the command itself did
// wrong is in the result.
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
	if n := int64(len(c.Key)); n > x.settings.MaxKeyBytes {
		return refuse(TooLarge, "the key has %d bytes, the limit is %d", n, x.settings.MaxKeyBytes), nil
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

// refuseAt says at which revision the key is, so that the client can decide.
func refuseAt(m *keyMeta, o Outcome, detail string) Result {
	return Result{Outcome: o, Detail: detail, KV: KV{ModRevision: m.current()}}
}

// current is the key's mod_revision, 0 when it is absent.
func (m *keyMeta) current() uint64 {
	if !m.exists {
		return 0
	}
	return m.mod
}

// holds judges conditions (RFC 9110, section 13.1).
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

// uncommitted is a change of the batch that is being made.
type uncommitted struct {
	meta  *keyMeta
	value []byte
}

// value returns the current value of an existing key, also one that was
// changed in the batch being made. It is valid until the next lookup.
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

// logicalBytes is what the quota counts for a key.
func logicalBytes(keyLen, valueLen int) int64 { return int64(keyLen+valueLen) + keyOverheadBytes }

// put writes a value in a revision of its own.
func (x *executor) put(m *keyMeta, value []byte, lease uint64, r Result) Result {
	if n := int64(len(value)); n > x.settings.MaxValueBytes {
		return refuse(TooLarge, "the value would have %d bytes, the limit is %d (max_value_bytes of the settings)", n, x.settings.MaxValueBytes)
	}
	grown := logicalBytes(len(m.key), len(value)) - m.logical()
	if q := x.settings.QuotaBytes; q > 0 && grown > 0 && x.now.logical+grown > q {
		return refuse(NoSpace, "the store holds %d of its %d bytes: delete keys, or raise quota_bytes in the settings", x.now.logical, q)
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

// write records a new version of the key in the batch and in the counters.
func (x *executor) write(m *keyMeta, v *version) {
	x.forget(m)
	key := append(x.scratch.plain[:0], m.key...)
	x.scratch.plain = key
	x.scratch.key = appendVersionKey(x.scratch.key[:0], key, x.now.revision)
	x.scratch.value = appendVersion(x.scratch.value[:0], v)
	x.writes.Set(x.scratch.key, x.scratch.value)
	if m.stored > 0 { // the version before becomes history
		x.now.historyBytes += int64(m.stored)
		x.now.historyVersions++
	}
	m.exists, m.mod = !v.deleted, x.now.revision
	m.create, m.version, m.lease, m.size = v.create, v.version, v.lease, uint32(len(v.value))
	m.stored = uint32(len(x.scratch.key) + len(x.scratch.value))
	if v.deleted { // a deletion is history from the start
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

// forget takes the current version out of the counters.
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
			return refuseAt(m, NotANumber, "the value is not a decimal number of 64 bits"), nil
		}
	}
	if delta > 0 && n > math.MaxInt64-delta || delta < 0 && n < math.MinInt64-delta {
		return refuseAt(m, Overflow, "the sum would not fit into 64 bits"), nil
	}
	value := strconv.AppendInt(nil, n+delta, 10)
	r = x.put(m, value, m.lease, r)
	if r.Outcome == OK {
		r.KV.Value = value
	}
	return r, nil
}

// tick moves replicated time on and remembers which revision it was at. Only
// the leader of the entry's own term may say what time it is.
func (x *executor) tick(c *Command, e *Entry) (Result, error) {
	if c.Term != e.Term {
		return Result{Outcome: Ignored}, nil
	}
	x.now.clock = max(x.now.clock, c.UnixMillis)
	b := binary.AppendVarint([]byte{recordVersion}, x.now.clock)
	x.writes.Set(timeKey(x.now.revision), b)
	for _, thinned := range x.timeline.add(sample{revision: x.now.revision, millis: x.now.clock}) {
		x.writes.Delete(timeKey(thinned.revision))
	}
	return Result{}, nil
}

// compact makes the history before a revision unreadable; Maintain removes it.
func (x *executor) compact(c *Command, e *Entry) Result {
	switch {
	case c.Term != 0 && c.Term != e.Term:
		return Result{Outcome: Ignored}
	case c.Revision > x.now.revision:
		return refuse(FutureRevision, "revision %d is not reached yet; the newest one is %d", c.Revision, x.now.revision)
	}
	x.now.compact = max(x.now.compact, c.Revision)
	return Result{}
}
