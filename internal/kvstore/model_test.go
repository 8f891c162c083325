package kvstore

import (
	"fmt"
	"maps"
	"math/big"
	"slices"
	"sort"
	"strings"

	"github.com/kvd-io/kvd/internal/kvstore/layout"
)

// model is the store in its simplest form: all versions of all keys in a map.
type model struct {
	keys     map[string][]modelVersion // ascending revisions
	revision uint64
	compact  uint64
	settings Settings
	given    bool
	leases   map[uint64]modelLease
	locks    map[string][]modelTicket
	seq      uint64 // of leases and tickets
	events   []Change
	// In a transaction all changes are one revision, and writes are those so far.
	inTxn  bool
	before uint64 // the revision before the transaction
	writes []modelWrite
}

// modelWrite is what an operation of a transaction wrote: a key, or a range of deleted
// keys.
type modelWrite struct {
	put    bool
	key    string
	end    []byte
	ranged bool
}

type modelVersion struct {
	KV
	deleted bool
}

func newModel() *model {
	return &model{keys: make(map[string][]modelVersion), leases: make(map[uint64]modelLease), locks: make(map[string][]modelTicket), revision: 1, compact: 1, settings: DefaultSettings()}
}

// at returns a key as of a revision, or nil if it is absent.
func (m *model) at(key string, revision uint64) *KV {
	versions := m.keys[key]
	for i := len(versions) - 1; i >= 0; i-- {
		if v := versions[i]; v.ModRevision <= revision {
			if v.deleted {
				return nil
			}
			return &v.KV
		}
	}
	return nil
}

func (m *model) now(key string) *KV { return m.at(key, m.revision) }

// live returns the keys that exist at a revision, in order.
func (m *model) live(revision uint64) []string {
	var out []string
	for key := range m.keys {
		if m.at(key, revision) != nil {
			out = append(out, key)
		}
	}
	sort.Strings(out)
	return out
}

// logical is what the quota counts.
func (m *model) logical() (n int64) {
	for _, key := range m.live(m.revision) {
		n += int64(len(key)+len(m.now(key).Value)) + 64
	}
	return n + m.leaseLogical()
}

// apply executes a command in an entry of a term.
func (m *model) apply(c *Command, term uint64) Result {
	r := m.execute(c, term)
	r.Revision = m.revision
	return r
}

// bump begins the revision of a change.
func (m *model) bump() {
	if !m.inTxn || m.revision == m.before {
		m.revision++
	}
}

func (m *model) execute(c *Command, term uint64) Result {
	switch c.Op {
	case OpTxn:
		return m.txn(c.Txn)
	case OpGet, OpList, OpForget:
		return Result{Outcome: Invalid, Detail: "-"}
	case OpLeaseGrant, OpLeaseRevoke, OpLeaseExpire, OpLock, OpUnlock:
		return m.leaseCommand(c, term)
	case OpTick:
		return ignoredUnless(c.Term == term)
	case OpCompact:
		return m.compactTo(c, term)
	case OpSettings:
		return m.applySettings(c, term)
	case OpDeleteRange:
		return m.deleteRange(c)
	}
	old := m.now(string(c.Key))
	switch {
	case len(c.Key) == 0:
		return Result{Outcome: Invalid, Detail: "-"}
	case int64(len(c.Key)) > m.settings.MaxKeyBytes && c.Op != OpDelete:
		return Result{Outcome: TooLarge, Detail: "-"}
	case !modelHolds(c.Conditions, old):
		return refusedAt(PreconditionFailed, old)
	}
	r := m.executeOnKey(c, old)
	if c.ReturnPrevious && r.Outcome == OK && old != nil {
		r.Previous = old
	}
	return r
}

func (m *model) executeOnKey(c *Command, old *KV) Result {
	switch c.Op {
	case OpPut:
		return m.opPut(c, old)
	case OpAppend:
		value := c.Value
		if old != nil {
			value = slices.Concat(old.Value, c.Value)
		}
		return m.bindAndPut(c, value, attributesOf(old), old)
	case OpIncr:
		return m.incr(c, old)
	}
	if old == nil {
		return Result{}
	}
	m.bump()
	m.bury(string(c.Key))
	return Result{Deleted: 1, KV: KV{ModRevision: m.revision}}
}

func ignoredUnless(ok bool) Result {
	if ok {
		return Result{}
	}
	return Result{Outcome: Ignored}
}

func refusedAt(o Outcome, kv *KV) Result {
	r := Result{Outcome: o, Detail: "-"}
	if kv != nil {
		r.KV.ModRevision = kv.ModRevision
	}
	return r
}

func modelHolds(conditions []Condition, kv *KV) bool {
	for _, c := range conditions {
		mod := uint64(0)
		if kv != nil {
			mod = kv.ModRevision
		}
		listed := kv != nil && (c.Any || slices.Contains(c.Revisions, mod))
		switch c.Kind {
		case IfMatch:
			if !listed {
				return false
			}
		case IfNoneMatch:
			if listed {
				return false
			}
		case IfRevision:
			if mod != c.Revisions[0] {
				return false
			}
		}
	}
	return true
}

func attributesOf(kv *KV) *Attributes {
	if kv == nil {
		return nil
	}
	return kv.Attributes
}

func attributesText(a *Attributes) string {
	if a == nil {
		return ""
	}
	return fmt.Sprint(*a)
}

func (m *model) opPut(c *Command, old *KV) Result {
	value := c.Value
	if c.Lease != 0 {
		if _, bound := m.leaseFor(c, old); bound.Outcome != OK {
			return bound
		}
	}
	switch {
	case (c.KeepLease || c.KeepValue) && old == nil:
		return Result{Outcome: KeyNotFound, Detail: "-"}
	case c.KeepValue:
		value = old.Value
	}
	if c.UnlessEqual && old != nil && string(old.Value) == string(value) && attributesText(old.Attributes) == attributesText(c.Attributes) && c.TTLMillis == 0 {
		lease, r := m.leaseFor(c, old)
		if r.Outcome == OK && lease == old.Lease {
			kv := *old
			kv.Key, kv.Value = nil, nil
			return Result{KV: kv}
		}
	}
	return m.bindAndPut(c, value, c.Attributes, old)
}

// bindAndPut puts a value under the lease that the command asks for. A refusal leaves no
// lease behind.
func (m *model) bindAndPut(c *Command, value []byte, a *Attributes, old *KV) Result {
	leases, seq := maps.Clone(m.leases), m.seq
	lease, bound := m.leaseFor(c, old)
	if bound.Outcome != OK {
		return bound
	}
	r := m.put(c.Key, value, lease, a, old)
	if r.Outcome != OK {
		m.leases, m.seq = leases, seq
		return r
	}
	r.Lease = bound.Lease
	return r
}

func (m *model) put(key, value []byte, lease uint64, a *Attributes, old *KV) Result {
	grown := int64(len(key)+len(value)) + 64
	if old != nil {
		grown = int64(len(value) - len(old.Value))
	}
	switch q := m.settings.QuotaBytes; {
	case int64(len(value)) > m.settings.MaxValueBytes:
		return Result{Outcome: TooLarge, Detail: "-"}
	case q > 0 && grown > 0 && m.logical()+grown > q:
		return Result{Outcome: NoSpace, Detail: "-"}
	}
	m.bump()
	kv := KV{Key: key, Value: value, CreateRevision: m.revision, ModRevision: m.revision, Version: 1, Lease: lease, Attributes: a}
	m.unbound(old, lease)
	if old != nil {
		kv.CreateRevision, kv.Version = old.CreateRevision, old.Version+1
	}
	m.keys[string(key)] = append(m.keys[string(key)], modelVersion{KV: kv})
	m.note(Event{KV: kv})
	kv.Key, kv.Value = nil, nil
	return Result{KV: kv, Created: old == nil}
}

func (m *model) incr(c *Command, old *KV) Result {
	sum := new(big.Int)
	if old != nil {
		if _, ok := sum.SetString(string(old.Value), 10); !ok || !sum.IsInt64() {
			return refusedAt(NotANumber, old)
		}
	}
	if sum.Add(sum, big.NewInt(c.Delta)); !sum.IsInt64() {
		return refusedAt(Overflow, old)
	}
	value := []byte(sum.String())
	r := m.bindAndPut(c, value, attributesOf(old), old)
	if r.Outcome == OK {
		r.KV.Value = value
	}
	return r
}

func (m *model) bury(key string) {
	m.unbound(m.now(key), 0)
	m.note(Event{Deleted: true, KV: KV{Key: []byte(key), ModRevision: m.revision}})
	m.keys[key] = append(m.keys[key], modelVersion{KV: KV{ModRevision: m.revision}, deleted: true})
}

// note adds an event to the change of the current revision.
func (m *model) note(e Event) {
	if n := len(m.events); n == 0 || m.events[n-1].Revision != m.revision {
		m.events = append(m.events, Change{Revision: m.revision})
	}
	last := &m.events[len(m.events)-1]
	last.Events = append(last.Events, e)
}

func (m *model) deleteRange(c *Command) Result {
	var doomed []string
	for _, key := range m.live(m.revision) {
		if inModelRange(key, c.Key, c.End) {
			doomed = append(doomed, key)
		}
	}
	if len(doomed) == 0 {
		return Result{}
	}
	m.bump()
	r := Result{Deleted: uint64(len(doomed)), KV: KV{ModRevision: m.revision}}
	for _, key := range doomed {
		if c.ReturnPrevious {
			r.Pairs = append(r.Pairs, *m.at(key, m.revision))
		}
		m.bury(key)
	}
	return r
}

func inModelRange(key string, start, end []byte) bool {
	return key >= string(start) && (end == nil || key < string(end))
}

func (m *model) compactTo(c *Command, term uint64) Result {
	switch {
	case c.Term != 0 && c.Term != term:
		return Result{Outcome: Ignored}
	case c.Revision > m.revision:
		return Result{Outcome: FutureRevision, Detail: "-"}
	}
	if c.Revision <= m.compact {
		return Result{Outcome: Compacted, Detail: "-", CompactRevision: m.compact}
	}
	m.compact = c.Revision
	return Result{CompactRevision: m.compact}
}

func (m *model) applySettings(c *Command, term uint64) Result {
	switch {
	case c.Term != 0 && (c.Term != term || m.given):
		return Result{Outcome: Ignored}
	case c.Settings.Validate() != nil:
		return Result{Outcome: Invalid, Detail: "-"}
	}
	m.settings, m.given = c.Settings.Applied(m.settings), true
	return Result{Settings: &m.settings}
}

// list returns the items of a range as text.
func (m *model) list(r Range) (out []string) {
	if r.Revision == 0 {
		r.Revision = m.revision
	}
	for _, key := range m.live(r.Revision) {
		if !inModelRange(key, r.Start, r.End) {
			continue
		}
		kv := *m.at(key, r.Revision)
		if r.KeysOnly {
			kv.Value = nil
		}
		text := kvText(&kv)
		if group, ok := modelGroup(key, r); ok {
			text = itemText(Item{Group: []byte(group)})
		}
		if len(out) == 0 || out[len(out)-1] != text {
			out = append(out, text)
		}
	}
	if r.Reverse {
		slices.Reverse(out)
	}
	return out
}

func modelGroup(key string, r Range) (string, bool) {
	if len(r.Delimiter) == 0 || len(key) < r.GroupAfter {
		return "", false
	}
	before, _, found := strings.Cut(key[r.GroupAfter:], string(r.Delimiter))
	return key[:r.GroupAfter] + before + string(r.Delimiter), found
}

// needed returns, as engine keys, the versions that reads at or after the compact
// revision need.
func (m *model) needed() map[string]bool {
	out := make(map[string]bool)
	for key, versions := range m.keys {
		for i, v := range versions {
			last := i+1 == len(versions) || versions[i+1].ModRevision > m.compact
			if v.ModRevision > m.compact || last && (!v.deleted || v.ModRevision == m.compact) {
				out[string(layout.AppendVersionKey(nil, []byte(key), v.ModRevision))] = true
			}
		}
	}
	return out
}
