package kvstore

import (
	"bytes"

	"github.com/kvd-io/kvd/internal/statemachine"
)

// Limits of the key space that do not depend on settings.
const (
	// MaxKeyBytes is the longest key that any setting allows.
	MaxKeyBytes = 4096
	// MaxRangeDelete is the most keys that one range delete may remove.
	MaxRangeDelete = 100_000
)

// Op names what a Command does. The numbers are part of the command format
// and never change their meaning.
type Op uint8

// The operations. Tick, Compact and Settings are proposed by kvd itself.
const (
	OpPut         Op = 1
	OpDelete      Op = 2
	OpDeleteRange Op = 3
	OpAppend      Op = 4
	OpIncr        Op = 5
	OpTick        Op = 6
	OpCompact     Op = 7
	OpSettings    Op = 8
)

// Condition is one precondition on the command's key, judged when the command
// is applied (RFC 9110, section 13.1). All of a command's conditions must
// hold.
type Condition struct {
	Kind ConditionKind
	// Any stands for "*".
	Any bool
	// Revisions is the list of strong entity tags, each a mod_revision; for
	// IfRevision it has one element, where 0 means that the key is absent.
	Revisions []uint64
}

// ConditionKind names the header or parameter a Condition came from.
type ConditionKind uint8

// The kinds of conditions.
const (
	IfMatch     ConditionKind = 1 // holds when the key exists with one of Revisions (or Any)
	IfNoneMatch ConditionKind = 2 // holds when the key is absent or has none of Revisions (or, with Any, is absent)
	IfRevision  ConditionKind = 3 // holds when mod_revision equals Revisions[0]; 0: absent
)

// Command is one change of the store in its decoded form.
type Command struct {
	Op  Op
	Key []byte
	// End bounds OpDeleteRange: keys in [Key, End); nil means no upper bound.
	End []byte
	// Value is what OpPut stores and OpAppend appends.
	Value []byte
	// Delta is what OpIncr adds.
	Delta      int64
	Conditions []Condition
	// ReturnPrevious asks for the pair as it was before.
	ReturnPrevious bool
	// Revision is the one that OpCompact compacts to (all reads at an older
	// one fail from then on).
	Revision uint64
	// Term is the term of the leader that proposed the command of its own
	// accord: OpTick, OpCompact, or the first OpSettings of a cluster. Such a
	// command does nothing unless it equals the term of its log entry. 0 on an
	// OpCompact or OpSettings that a user asked for.
	Term uint64
	// UnixMillis is the leader's clock, carried by OpTick.
	UnixMillis int64
	// Settings are the new settings that OpSettings sets.
	Settings *Settings
}

// Settings are the limits that decide outcomes. They are replicated, so that
// every replica decides alike.
type Settings struct {
	MaxKeyBytes   int64 `json:"max_key_bytes"`   // 1 to MaxKeyBytes; default 4096
	MaxValueBytes int64 `json:"max_value_bytes"` // default 1 MiB; at most 64 MiB
	// QuotaBytes bounds the logical size: the sum over live keys of key,
	// value and a fixed overhead. 0 means no quota. Default 8 GiB.
	QuotaBytes int64 `json:"quota_bytes"`
	// History is kept while it is younger than RetentionMillis (default ten
	// minutes) or among the last RetentionRevisions (default 10,000)
	// revisions, and never larger than a quarter of the quota.
	RetentionMillis    int64  `json:"retention_millis"`
	RetentionRevisions uint64 `json:"retention_revisions"`
}

// Outcome says how a Command ended when it was applied.
type Outcome uint8

// The outcomes. Everything but OK changed nothing.
const (
	OK                 Outcome = 0
	PreconditionFailed Outcome = 1 // a condition did not hold; Result.KV.ModRevision is the revision now (0: absent)
	TooLarge           Outcome = 2 // key, value or range over its limit
	NoSpace            Outcome = 3 // over the quota
	NotANumber         Outcome = 4 // OpIncr on a value that is no decimal int64
	Overflow           Outcome = 5 // OpIncr beyond int64
	FutureRevision     Outcome = 6 // OpCompact beyond the current revision
	Invalid            Outcome = 7 // well-formed nonsense, such as an empty key; the same on every replica
	Ignored            Outcome = 8 // a leader-only command of an old term
)

// KV is a key with its value and metadata. Revisions count changes of the
// whole store; Version counts the writes of this key since its creation.
type KV struct {
	Key            []byte
	Value          []byte
	CreateRevision uint64
	ModRevision    uint64
	Version        uint64
	Lease          uint64
}

// Result is what a Command came to.
type Result struct {
	Outcome Outcome
	// Detail explains an Outcome other than OK to a person.
	Detail string
	// Revision is the store's revision after the command.
	Revision uint64
	// KV describes the key after the command; its Value is set only by OpIncr.
	KV KV
	// Created is true when the command created the key.
	Created bool
	// Deleted counts the keys that were deleted.
	Deleted uint64
	// Previous is the pair before the command; nil when it was absent or not
	// asked for.
	Previous *KV
}

// Record and Entry are what the replication layer hands to the store. Commands
// have the form that EncodeCommand gives; Apply fills Results with a *Result for
// each of them.
type (
	Record = statemachine.Record
	Entry  = statemachine.Entry
)

// Position is a place in the replicated log.
type Position struct {
	Index uint64
	Term  uint64
}

// Prefix selects the keys that begin with it.
type Prefix []byte

// End returns the first key after all keys with the prefix, or nil if no key is
// greater than all of them: a Range that ends there is open.
func (p Prefix) End() []byte {
	for i := len(p) - 1; i >= 0; i-- {
		if p[i] < 0xFF {
			end := bytes.Clone(p[:i+1])
			end[i]++
			return end
		}
	}
	return nil
}

// Range selects keys at one revision.
type Range struct {
	// Start and End bound the keys: Start <= key < End; a nil End is open.
	Start, End []byte
	// Revision is the one to read at; 0 means the newest.
	Revision uint64
	// Reverse walks from the greatest key down.
	Reverse bool
	// KeysOnly leaves the values out.
	KeysOnly bool
	// Delimiter, where not empty, folds all keys that contain it after their
	// first GroupAfter bytes into one group each: the key up to and including
	// the first such delimiter.
	Delimiter  []byte
	GroupAfter int
}

// Item is one result of a range read: a pair, or the common prefix of a group.
type Item struct {
	KV    KV
	Group []byte // not nil: a group, and KV is empty
}
