package kvstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
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
	if s.failed != nil {
		return s.failed
	}
	if len(entries) == 0 {
		return nil
	}
	if err := s.apply(entries); err != nil {
		s.failed = err
		return err
	}
	return nil
}

func (s *Store) apply(entries []Entry) error {
	s.writes.Reset()
	for i := range entries {
		if err := s.applyEntry(&entries[i]); err != nil {
			return errors.Join(fmt.Errorf("entry %d: %w", entries[i].Index, err), s.closeLookups())
		}
	}
	if err := s.closeLookups(); err != nil {
		return fmt.Errorf("end the look-ups: %w", err)
	}
	return s.commit()
}

// commit makes the batch and what belongs to it visible.
func (s *Store) commit() error {
	s.scratch.value = appendMeta(s.scratch.value[:0], &s.now)
	s.writes.Set([]byte{tableMeta}, s.scratch.value)
	if err := s.writes.Commit(); err != nil {
		return fmt.Errorf("commit to the engine: %w", err)
	}
	for _, t := range s.scratch.touched {
		t.meta.pending = 0
	}
	clear(s.scratch.touched)
	s.scratch.touched = s.scratch.touched[:0]
	s.cache.age()
	s.publish()
	return nil
}

func (s *Store) applyEntry(e *Entry) error {
	if p := s.now.position; p.Index != 0 && e.Index != p.Index+1 || e.Index == 0 {
		return fmt.Errorf("it follows entry %d", p.Index)
	}
	for _, r := range e.Records {
		s.applyRecord(r)
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
		r, err := s.execute(&c, e)
		if err != nil {
			return err
		}
		if e.WantResults {
			r.Revision = s.now.revision
			results[i] = r
			e.Results[i] = &results[i]
		}
	}
	s.now.position = Position{Index: e.Index, Term: e.Term}
	s.noteHash()
	return nil
}

// applyRecord stores a record of the replication layer.
func (s *Store) applyRecord(r Record) {
	if old, ok := s.records[string(r.Key)]; ok {
		s.now.hash -= s.hasher.record(r.Key, old)
	}
	s.scratch.key = recordKey(s.scratch.key[:0], r.Key)
	if r.Value == nil {
		s.writes.Delete(s.scratch.key)
		delete(s.records, string(r.Key))
		return
	}
	s.now.hash += s.hasher.record(r.Key, r.Value)
	s.writes.Set(s.scratch.key, r.Value)
	s.records[string(r.Key)] = bytes.Clone(r.Value)
}

// execute runs one command. The error is fatal; what the command itself did
// wrong is in the result.
func (s *Store) execute(c *Command, e *Entry) (Result, error) {
	switch c.Op {
	case OpTick:
		return s.tick(c, e)
	case OpCompact:
		return s.compact(c, e), nil
	case OpSettings:
		return s.applySettings(c, e), nil
	case OpDeleteRange:
		return s.deleteRange(c)
	}
	if len(c.Key) == 0 {
		return refuse(Invalid, "the key is empty"), nil
	}
	if n := int64(len(c.Key)); n > s.settings.MaxKeyBytes {
		return refuse(TooLarge, "the key has %d bytes, the limit is %d", n, s.settings.MaxKeyBytes), nil
	}
	m, err := s.lookup(c.Key)
	if err != nil {
		return Result{}, err
	}
	if !holds(c.Conditions, m) {
		return refuseAt(m, PreconditionFailed, "a condition on the key does not hold"), nil
	}
	var r Result
	if c.ReturnPrevious {
		if r.Previous, err = s.previous(m); err != nil {
			return Result{}, err
		}
	}
	switch c.Op {
	case OpPut:
		return s.put(m, c.Value, 0, r), nil
	case OpAppend:
		return s.appendTo(m, c.Value, r)
	case OpIncr:
		return s.incr(m, c.Delta, r)
	default:
		return s.remove(m, r), nil
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
func (s *Store) value(m *keyMeta) ([]byte, error) {
	if m.pending > 0 {
		return s.scratch.touched[m.pending-1].value, nil
	}
	v, _, _, err := s.newest([]byte(m.key))
	if err != nil {
		return nil, err
	}
	return v.value, nil
}

func (s *Store) previous(m *keyMeta) (*KV, error) {
	if !m.exists {
		return nil, nil
	}
	value, err := s.value(m)
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
func (s *Store) put(m *keyMeta, value []byte, lease uint64, r Result) Result {
	if n := int64(len(value)); n > s.settings.MaxValueBytes {
		return refuse(TooLarge, "the value would have %d bytes, the limit is %d (max_value_bytes of the settings)", n, s.settings.MaxValueBytes)
	}
	grown := logicalBytes(len(m.key), len(value)) - m.logical()
	if q := s.settings.QuotaBytes; q > 0 && grown > 0 && s.now.logical+grown > q {
		return refuse(NoSpace, "the store holds %d of its %d bytes: delete keys, or raise quota_bytes in the settings", s.now.logical, q)
	}
	s.now.revision++
	v := version{create: m.create, version: m.version + 1, lease: lease, value: value}
	r.Created = !m.exists
	if r.Created {
		v.create, v.version = s.now.revision, 1
	}
	s.write(m, &v)
	s.logRevision()
	r.KV = m.kv()
	return r
}

// write records a new version of the key in the batch and in the counters.
func (s *Store) write(m *keyMeta, v *version) {
	s.forget(m)
	key := append(s.scratch.plain[:0], m.key...)
	s.scratch.plain = key
	s.scratch.key = appendVersionKey(s.scratch.key[:0], key, s.now.revision)
	s.scratch.value = appendVersion(s.scratch.value[:0], v)
	s.writes.Set(s.scratch.key, s.scratch.value)
	if m.stored > 0 { // the version before becomes history
		s.now.historyBytes += int64(m.stored)
		s.now.historyVersions++
	}
	m.exists, m.mod = !v.deleted, s.now.revision
	m.create, m.version, m.lease, m.size = v.create, v.version, v.lease, uint32(len(v.value))
	m.stored = uint32(len(s.scratch.key) + len(s.scratch.value))
	if v.deleted { // a deletion is history from the start
		s.now.historyBytes += int64(m.stored)
		s.now.historyVersions++
		m.stored = 0
	}
	if m.exists {
		m.hash = s.hasher.key(key, m.mod, v)
		s.now.hash += m.hash
		s.now.logical += m.logical()
		s.now.keys++
	}
	s.scratch.touched = append(s.scratch.touched, uncommitted{m, v.value})
	m.pending = uint32(len(s.scratch.touched))
	s.scratch.mutations = append(s.scratch.mutations, mutation{key: m.key, deleted: v.deleted})
}

// forget takes the current version out of the counters.
func (s *Store) forget(m *keyMeta) {
	if m.exists {
		s.now.hash -= m.hash
		s.now.logical -= m.logical()
		s.now.keys--
	}
}

func (s *Store) remove(m *keyMeta, r Result) Result {
	if !m.exists {
		return r
	}
	s.now.revision++
	s.write(m, &version{deleted: true})
	s.logRevision()
	r.Deleted = 1
	r.KV.ModRevision = s.now.revision
	return r
}

func (s *Store) appendTo(m *keyMeta, tail []byte, r Result) (Result, error) {
	var value []byte
	if m.exists {
		old, err := s.value(m)
		if err != nil {
			return Result{}, err
		}
		value = slices.Concat(old, tail)
	} else {
		value = tail
	}
	return s.put(m, value, m.lease, r), nil
}

func (s *Store) incr(m *keyMeta, delta int64, r Result) (Result, error) {
	var n int64
	if m.exists {
		old, err := s.value(m)
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
	r = s.put(m, value, m.lease, r)
	if r.Outcome == OK {
		r.KV.Value = value
	}
	return r, nil
}

// tick moves replicated time on and remembers which revision it was at. Only
// the leader of the entry's own term may say what time it is.
func (s *Store) tick(c *Command, e *Entry) (Result, error) {
	if c.Term != e.Term {
		return Result{Outcome: Ignored}, nil
	}
	s.now.clock = max(s.now.clock, c.UnixMillis)
	b := binary.AppendVarint([]byte{recordVersion}, s.now.clock)
	s.writes.Set(timeKey(s.now.revision), b)
	s.addSample(sample{revision: s.now.revision, millis: s.now.clock})
	return Result{}, nil
}

// compact makes the history before a revision unreadable; Maintain removes it.
func (s *Store) compact(c *Command, e *Entry) Result {
	switch {
	case c.Term != 0 && c.Term != e.Term:
		return Result{Outcome: Ignored}
	case c.Revision > s.now.revision:
		return refuse(FutureRevision, "revision %d is not reached yet; the newest one is %d", c.Revision, s.now.revision)
	}
	s.now.compact = max(s.now.compact, c.Revision)
	return Result{}
}
