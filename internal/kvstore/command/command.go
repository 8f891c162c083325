package command

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/kvd-io/kvd/internal/limits"
	"github.com/kvd-io/kvd/internal/rights"
)

// Limits that do not depend on settings.
const (
	// MaxKeyBytes is the longest key that the settings can allow.
	MaxKeyBytes = limits.MaxKeyBytes
	// MaxIdempotencyKeyBytes is the longest idempotency key.
	MaxIdempotencyKeyBytes = limits.MaxIdempotencyKeyBytes
	// MaxTxnDepth is how deep transactions may nest: the outermost has depth 1.
	MaxTxnDepth = 8
	// MaxTickMillis is the largest step of replicated time. A leader that was
	// suspended for a day must not age everything by a day at once.
	MaxTickMillis = 60_000
)

// Op says what a Command does. The numbers are part of the command format and
// never change their meaning.
type Op uint8

// The operations. OpGet, OpList and OpTxn inside OpTxn are operations of a
// transaction; OpGet and OpList are nothing else. kvd itself proposes OpTick and
// OpLeaseExpire, and proposes OpCompact and OpSettings for itself or for users.
const (
	OpPut         Op = 1
	OpDelete      Op = 2
	OpDeleteRange Op = 3
	OpAppend      Op = 4
	OpIncr        Op = 5
	OpTick        Op = 6
	OpCompact     Op = 7
	OpSettings    Op = 8
	OpGet         Op = 9
	OpList        Op = 10
	OpTxn         Op = 11
	OpLeaseGrant  Op = 12
	OpLeaseRevoke Op = 13
	OpLeaseExpire Op = 14
	OpLock        Op = 15 // asks for a lock, or for a place in its queue
	OpUnlock      Op = 16 // gives up a lock, or the place in its queue
	OpForget      Op = 17 // does nothing but forget Command.Release
	OpRights      Op = 18 // changes users, roles, or tokens
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

// Holds reports whether the condition holds for what has a revision, 0 if it does not
// exist (RFC 9110, section 13.1).
func (c *Condition) Holds(revision uint64) bool {
	matches := revision != 0 && (c.Any || slices.Contains(c.Revisions, revision))
	switch c.Kind {
	case IfMatch:
		return matches
	case IfNoneMatch:
		return !matches
	default:
		return c.Revisions[0] == revision
	}
}

// Hold reports whether all conditions hold.
func Hold(conditions []Condition, revision uint64) bool {
	for i := range conditions {
		if !conditions[i].Holds(revision) {
			return false
		}
	}
	return true
}

// Command is one operation on the store in its decoded form. The operations of a
// transaction are commands as well; of the fields below the line they use none.
type Command struct {
	Op Op
	// Key is the key, or the name of the lock for OpLock and OpUnlock.
	Key []byte
	// End bounds OpDeleteRange and OpList to keys in [Key, End). nil means no
	// upper bound.
	End []byte
	// Value is what OpPut stores, what OpAppend appends, and the text of the
	// holder for OpLock.
	Value []byte
	// Delta is what OpIncr adds.
	Delta      int64
	Conditions []Condition
	// ReturnPrevious asks for the pair before the command, or for the deleted
	// pairs of OpDeleteRange.
	ReturnPrevious bool
	// KeepValue and KeepLease make OpPut leave the value or the lease of a key as
	// it is. The key must exist.
	KeepValue, KeepLease bool
	// UnlessEqual makes OpPut of an equal value, under an equal lease, no change.
	UnlessEqual bool
	// Lease is the lease that OpPut binds the key to, that OpLeaseGrant creates
	// (0: the store chooses an id), that OpLeaseRevoke ends, or whose holder OpLock
	// and OpUnlock are about. OpPut without a lease unbinds the key.
	Lease uint64
	// TTLMillis is the time to live of OpLeaseGrant. OpPut, OpAppend, OpIncr and
	// OpLock with a TTLMillis above 0 and Lease 0 are bound to a new lease of their
	// own; Result.Lease has it.
	TTLMillis int64
	// Wait lets OpLock queue for a lock that another lease holds. Without it, such
	// an OpLock ends with LockHeld.
	Wait bool
	// OnlyWaiting makes OpUnlock leave the queue, but keep a lock that is held.
	OnlyWaiting bool
	// Read says what OpGet and OpList read; nil means the defaults.
	Read *Read
	// Txn is the transaction of OpTxn.
	Txn *Txn
	// Attributes are those that OpPut gives the key; nil removes them.
	Attributes *Attributes
	// Grant is what OpLeaseGrant says beside Lease and TTLMillis; nil means the
	// defaults. OpLock uses its LockDelayMillis, for a new lease of its own.
	Grant *LeaseOptions

	// Revision is the revision that OpCompact compacts to. Reads at older
	// revisions fail from then on.
	Revision uint64
	// Term is set by a leader that proposes OpTick, OpCompact, OpLeaseExpire or the
	// first OpSettings of a cluster on its own initiative. Such a command is ignored
	// unless Term is the term of its log entry: a deposed leader's command may
	// be forwarded and committed in a later term, where its clock and its view of
	// the history no longer count. 0 means that a user asked for OpCompact or
	// OpSettings.
	Term uint64
	// ElapsedMillis is the time since the leader's previous OpTick, by its
	// monotonic clock, for OpTick. What exceeds MaxTickMillis does not count.
	ElapsedMillis int64
	// Leases are those that OpLeaseExpire ends, if they were granted with a sequence
	// number up to Sequence. A later grant of the same id is another lease.
	Leases   []uint64
	Sequence uint64
	// Settings are the settings to change, for OpSettings. Its Conditions compare
	// with Settings.Tag.
	Settings *SettingsChange
	// Rights is the change of OpRights.
	Rights *rights.Change
	// Origin is who asked for the command.
	Origin Origin
	// Idempotency makes a repeat of the command return the result of the first
	// one. nil means that the command is executed each time.
	Idempotency *Idempotency
	// Release has the idempotency keys to forget, whatever the outcome.
	Release []string
}

// LockDelayMillis is the lock delay of the lease that OpLock makes, and 0 for others.
func (c *Command) LockDelayMillis() int64 {
	if c.Op != OpLock || c.Grant == nil {
		return 0
	}
	return c.Grant.LockDelayMillis
}

// RaiseTTL raises the times to live that are below the least one, in all operations of the
// command.
func (c *Command) RaiseTTL(least int64) {
	if c.TTLMillis > 0 {
		c.TTLMillis = max(c.TTLMillis, least)
	}
	if c.Txn == nil {
		return
	}
	for _, branch := range [][]Command{c.Txn.Then, c.Txn.Else} {
		for i := range branch {
			branch[i].RaiseTTL(least)
		}
	}
}

// Txn is a transaction: if every comparison holds, Then is executed, otherwise
// Else. Comparisons, those of nested transactions included, are judged against the
// state before the outermost transaction; operations run in order and see what the
// earlier ones did. All changes are one revision. If an operation cannot be carried
// out, the whole transaction changes nothing.
type Txn struct {
	If         []Compare
	Then, Else []Command
}

// Compare is one comparison of a transaction. For a range, every key in it must
// satisfy the comparison; a range without keys counts as an absent key. An absent
// key has 0 for every number, and no value: a comparison of its value is false,
// whatever the relation.
type Compare struct {
	Key []byte
	// Range is set to compare the keys in [Key, End); a nil End is open.
	Range    bool
	End      []byte
	Target   CompareTarget
	Relation Relation
	Number   uint64 // what to compare with, except for CompareValue; CompareExists: 0 or 1
	Value    []byte // what to compare with, for CompareValue
}

// CompareTarget is what a Compare looks at.
type CompareTarget uint8

// The targets of comparisons.
const (
	CompareModRevision    CompareTarget = 1
	CompareCreateRevision CompareTarget = 2
	CompareVersion        CompareTarget = 3
	CompareValue          CompareTarget = 4
	CompareLease          CompareTarget = 5
	CompareExists         CompareTarget = 6 // 1 if the key exists, otherwise 0
)

// Relation is how the target must relate to the operand of a Compare.
type Relation uint8

// The relations.
const (
	Equal    Relation = 1
	NotEqual Relation = 2
	Greater  Relation = 3
	Less     Relation = 4
)

// Read says how OpGet and OpList read. The zero value reads the newest revision in
// key order.
type Read struct {
	Revision  uint64 // 0 means the newest, with what the transaction wrote
	Limit     uint64 // 0 means no limit but the one on the size of a result
	Reverse   bool
	KeysOnly  bool
	CountOnly bool
	// SortBy orders the pairs before Limit cuts; SortByKey is the order of the walk.
	SortBy SortBy
	// Bounds on revisions, inclusive; 0 means none. They do not affect the count.
	MinModRevision, MaxModRevision       uint64
	MinCreateRevision, MaxCreateRevision uint64
}

// SortBy is what OpList sorts by; ties are in key order.
type SortBy uint8

// The orders of OpList.
const (
	SortByKey            SortBy = 0
	SortByVersion        SortBy = 1
	SortByCreateRevision SortBy = 2
	SortByModRevision    SortBy = 3
	SortByValue          SortBy = 4
)

// Origin is the request that a command came from. It is replicated, so that the
// log of every member can name it; it is empty if kvd itself made the command.
type Origin struct {
	RequestID string `json:"request_id,omitempty"`
	Client    string `json:"client,omitempty"` // its address
	// Principal is the user who asked, and AuthRevision the revision of the rights
	// by which the request was let in.
	Principal    string `json:"principal,omitempty"`
	AuthRevision uint64 `json:"auth_revision,omitempty"`
}

// Idempotency identifies a request that may be sent several times and must take
// effect once. Keys of different principals are different keys.
type Idempotency struct {
	Key string // 1 to MaxIdempotencyKeyBytes visible ASCII characters
	// Fingerprint is a hash of the request. A repeat with another fingerprint is
	// another request under the same key, and refused with IdempotencyMismatch.
	Fingerprint [16]byte
}

// Lease is a promise to end what is bound to it unless it is kept alive.
type Lease struct {
	ID        uint64 // 1 to 2^63-1
	TTLMillis int64  // 0 means that the lease has no end of its own
	LeaseOptions
}

// LeaseOptions are the properties of a lease that most leases do not need.
type LeaseOptions struct {
	Name  string
	AtEnd LeaseEnd
	// LockDelayMillis is how long a lock that the end of the lease released stays
	// closed.
	LockDelayMillis int64
}

// LeaseEnd is what happens to the keys of a lease when it ends.
type LeaseEnd uint8

// The ways in which a lease ends.
const (
	LeaseDeletes  LeaseEnd = 0 // its keys are deleted
	LeaseReleases LeaseEnd = 1 // its keys stay, without a lease
)

// LockTicket is a place in the queue of a lock. The first ticket of the queue holds
// the lock.
type LockTicket struct {
	Name []byte
	// Token orders all tickets of a cluster by the time of their request. As locks
	// are granted in that order, it serves as the fencing token of the holder: a
	// later holder has a greater one.
	Token uint64
	Lease uint64
	Held  bool
	Body  []byte // the text that the requester gave
}

// Settings are the limits that decide outcomes. They are replicated: if each
// replica went by its own flags, replicas with different flags would diverge.
type Settings struct {
	MaxKeyBytes   int64 `json:"max_key_bytes"`   // 1 to MaxKeyBytes; default 4096
	MaxValueBytes int64 `json:"max_value_bytes"` // 1 to limits.MaxValueBytes; default 1.5 MiB
	// QuotaBytes bounds the logical size: the sum over live keys of key, value
	// and a fixed overhead. 0 means unlimited. Default 8 GiB.
	QuotaBytes int64 `json:"quota_bytes"`
	// History is kept while it is younger than RetentionMillis (default ten
	// minutes) or among the last RetentionRevisions (default 10,000) revisions, but
	// never larger than a quarter of the quota.
	RetentionMillis    int64  `json:"retention_millis"`
	RetentionRevisions uint64 `json:"retention_revisions"`
	// MaxTxnOps bounds the operations of a transaction, those of both branches and
	// of nested transactions together, and likewise its comparisons. 1 to
	// limits.MaxTxnOps; default 512.
	MaxTxnOps int64 `json:"max_txn_ops"`
	// MaxTxnBytes bounds the encoded size of a transaction. 1 to
	// limits.MaxTxnBytes; default 4 MiB.
	MaxTxnBytes int64 `json:"max_txn_bytes"`
	// The results of commands with an idempotency key are remembered for
	// IdempotencyMillis of replicated time (default ten minutes). Once they take
	// IdempotencyBytes (default 64 MiB), commands with new keys are refused.
	IdempotencyMillis int64 `json:"idempotency_millis"`
	IdempotencyBytes  int64 `json:"idempotency_bytes"`
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

	Compacted           Outcome = 9  // OpCompact at or below the compact revision, or a read of a compacted revision
	KeyNotFound         Outcome = 10 // KeepValue or KeepLease of an absent key
	LeaseNotFound       Outcome = 11
	LeaseExists         Outcome = 12 // OpLeaseGrant of an id that is taken
	LockHeld            Outcome = 13 // OpLock without Wait; Result.Lock is the ticket of the holder
	LockNotFound        Outcome = 14 // OpUnlock of a lock that the lease neither holds nor waits for
	IdempotencyMismatch Outcome = 15 // the idempotency key belongs to another request
	DuplicateKey        Outcome = 16 // a transaction writes a key twice
	PermissionDenied    Outcome = 17 // the principal may not, or no longer
	Busy                Outcome = 18 // a replicated table is full; the same command works later
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
	Attributes     *Attributes // nil if all of them are 0; must not be changed
}

// Attributes are properties of a pair that few pairs have.
type Attributes struct {
	Flags     uint64 // any number that a client stores beside the value
	LockIndex uint64 // how often a lease has taken the key as a lock
	Holder    uint64 // the lease that holds the key as a lock
}

// Clone returns a copy that shares no memory with the pair.
func (kv *KV) Clone() KV {
	out := *kv
	out.Key, out.Value = bytes.Clone(kv.Key), bytes.Clone(kv.Value)
	return out
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
	// Pairs are the pairs that OpGet and OpList read, or that OpDeleteRange deleted
	// if ReturnPrevious was set, in the order asked for.
	Pairs []KV
	// Count is the number of keys in the range of OpList, whatever its limit; More
	// is true if the limit left any out.
	Count uint64
	More  bool
	// Succeeded is true if the comparisons of OpTxn held. Results has one result for
	// each operation of the branch taken.
	Succeeded bool
	Results   []Result
	// Lease is the lease that the command created, or the one of OpLeaseGrant.
	Lease *Lease
	// Lock is the ticket of OpLock; on LockHeld, the ticket of the holder.
	Lock *LockTicket
	// Replayed is true if the result is that of an earlier command with the same
	// idempotency key.
	Replayed bool
	// CompactRevision is the compact revision after OpCompact, which may be above
	// the one that was asked for.
	CompactRevision uint64
	// Settings are those after OpSettings.
	Settings *Settings
}

// Refuse makes the result that of a command that changes nothing.
func (r *Result) Refuse(o Outcome, format string, args ...any) {
	*r = Result{Outcome: o, Detail: fmt.Sprintf(format, args...)}
}

// Event is a change of a key. For a deletion, KV has only Key and ModRevision.
type Event struct {
	KV      KV
	Deleted bool
	// Previous is the pair before the change: nil if the key was absent, if it was
	// not asked for, or if that revision is compacted.
	Previous *KV
}

// Change is all events of one revision, in the order of the operations.
type Change struct {
	Revision uint64
	Events   []Event
}
