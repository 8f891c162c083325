package kvstore

import (
	"bytes"

	"github.com/kvd-io/kvd/internal/limits"
	"github.com/kvd-io/kvd/internal/statemachine"
)

// Limits that do not depend on settings.
const (
	// MaxKeyBytes is the longest key that the settings can allow.
	MaxKeyBytes = limits.MaxKeyBytes
	// MaxRangeDelete is the largest number of keys that one range delete may
	// remove. A range delete is one revision, and holds up everything that is
	// applied after it.
	MaxRangeDelete = 100_000
	// MaxTickMillis is the largest step of replicated time. A leader that was
	// suspended for a day must not age everything by a day at once.
	MaxTickMillis = 60_000
)

// Op says what a Command does. The numbers are part of the command format and
// never change their meaning.
type Op uint8

// The operations. Users send the first five; kvd itself proposes OpTick, and
// proposes OpCompact and OpSettings for itself or for users.
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

// Condition is a precondition on the key of a command, evaluated when the command
// is applied (RFC 9110, section 13.1). All conditions of a command must hold.
type Condition struct {
	Kind ConditionKind
	// Any stands for "*".
	Any bool
	// Revisions are the strong entity tags of the list, each a mod_revision.
	// IfRevision has exactly one, where 0 means that the key is absent.
	Revisions []uint64
}

// ConditionKind is the header or parameter that a Condition came from.
type ConditionKind uint8

// The kinds of conditions.
const (
	IfMatch     ConditionKind = 1 // holds if the key exists, with one of Revisions unless Any is set
	IfNoneMatch ConditionKind = 2 // holds if the key is absent or, unless Any is set, has none of Revisions
	IfRevision  ConditionKind = 3 // holds if the mod_revision of the key is Revisions[0]; 0 means absent
)

// Command is one operation on the store in its decoded form.
type Command struct {
	Op  Op
	Key []byte
	// End bounds OpDeleteRange to keys in [Key, End). nil means no upper bound.
	End []byte
	// Value is what OpPut stores and OpAppend appends.
	Value []byte
	// Delta is what OpIncr adds.
	Delta      int64
	Conditions []Condition
	// ReturnPrevious asks for the pair before the command.
	ReturnPrevious bool
	// Revision is the revision that OpCompact compacts to. Reads at older
	// revisions fail from then on.
	Revision uint64
	// Term is set by a leader that proposes OpTick, OpCompact or the first
	// OpSettings of a cluster on its own initiative. Such a command is ignored
	// unless Term is the term of its log entry: a deposed leader's command may
	// be forwarded and committed in a later term, where its clock and its view of
	// the history no longer count. 0 means that a user asked for OpCompact or
	// OpSettings.
	Term uint64
	// ElapsedMillis is the time since the leader's previous OpTick, by its
	// monotonic clock, for OpTick. What exceeds MaxTickMillis does not count.
	ElapsedMillis int64
	// Settings are the settings to change, for OpSettings. Its Conditions compare
	// with Settings.Tag.
	Settings *SettingsChange
	// Origin is who asked for OpSettings.
	Origin Origin
}

// Origin is the request that a command came from. It is replicated, so that the
// log of every member can name it; it is empty if kvd itself made the command.
type Origin struct {
	RequestID string `json:"request_id,omitempty"`
	Client    string `json:"client,omitempty"` // its address
}

// Settings are the limits that decide outcomes. They are replicated: if each
// replica went by its own flags, replicas with different flags would diverge.
type Settings struct {
	MaxKeyBytes   int64 `json:"max_key_bytes"`   // 1 to MaxKeyBytes; default 4096
	MaxValueBytes int64 `json:"max_value_bytes"` // 1 to limits.MaxValueBytes; default 1 MiB
	// QuotaBytes bounds the logical size: the sum over live keys of key, value
	// and a fixed overhead. 0 means unlimited. Default 8 GiB.
	QuotaBytes int64 `json:"quota_bytes"`
	// History is kept while it is younger than RetentionMillis (default ten
	// minutes) or among the last RetentionRevisions (default 10,000) revisions, but
	// never larger than a quarter of the quota.
	RetentionMillis    int64  `json:"retention_millis"`
	RetentionRevisions uint64 `json:"retention_revisions"`
}

// Outcome says how a Command ended when it was applied.
type Outcome uint8

// The outcomes. A command with an outcome other than OK changed nothing.
const (
	OK                 Outcome = 0
	PreconditionFailed Outcome = 1 // a condition did not hold; Result.KV.ModRevision is the current revision of the key (0 if absent)
	TooLarge           Outcome = 2 // key, value or range above its limit
	NoSpace            Outcome = 3 // above the quota
	NotANumber         Outcome = 4 // OpIncr on a value that is not a decimal int64
	Overflow           Outcome = 5 // OpIncr beyond int64
	FutureRevision     Outcome = 6 // OpCompact beyond the current revision
	Invalid            Outcome = 7 // well-formed nonsense, for example an empty key
	Ignored            Outcome = 8 // a command of a leader in another term
)

// KV is a key with its value and metadata. Revisions count changes of the whole
// store; Version counts the writes of this key since its creation.
type KV struct {
	Key            []byte
	Value          []byte
	CreateRevision uint64
	ModRevision    uint64
	Version        uint64
	Lease          uint64
}

// Result is the result of a Command.
type Result struct {
	Outcome Outcome
	// Detail explains an Outcome other than OK to a person.
	Detail string
	// Revision is the revision of the store after the command.
	Revision uint64
	// KV describes the key after the command, without the key itself. Only OpIncr
	// sets its Value.
	KV KV
	// Created is true if the command created the key.
	Created bool
	// Deleted is the number of deleted keys.
	Deleted uint64
	// Previous is the pair before the command, or nil if the key was absent or
	// Previous was not asked for.
	Previous *KV
	// CompactRevision is the compact revision after OpCompact, which may be above
	// the one that was asked for.
	CompactRevision uint64
	// Settings are those after OpSettings.
	Settings *Settings
}

// Record and Entry are what the replication layer hands to the store. Commands
// have the form that EncodeCommand gives; Apply fills Results with a *Result for
// each of them.
type (
	Record = statemachine.Record
	Entry  = statemachine.Entry
)

// Position is the place of an entry in the raft log.
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
	// Start and End bound the keys: Start <= key < End. A nil End is open.
	Start, End []byte
	// Revision is the revision to read at. 0 means the newest.
	Revision uint64
	// Reverse walks from the greatest key down.
	Reverse bool
	// KeysOnly leaves the values out.
	KeysOnly bool
	// A Delimiter folds keys into groups, as a directory listing does: keys that
	// contain it after their first GroupAfter bytes and agree up to and including
	// its first occurrence there become one Item. An empty Delimiter folds nothing.
	Delimiter  []byte
	GroupAfter int
}

// Item is one result of a range read: a pair, or the common prefix of a group.
type Item struct {
	KV    KV
	Group []byte // not nil if the item is a group; KV is empty then
}
