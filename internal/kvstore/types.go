package kvstore

import (
	"github.com/cockroachdb/pebble/v2"

	"github.com/kvd-io/kvd/internal/kvstore/command"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/kvstore/once"
	"github.com/kvd-io/kvd/internal/kvstore/walk"
	"github.com/kvd-io/kvd/internal/kvstore/wire"
	"github.com/kvd-io/kvd/internal/statemachine"
)

// MaxRangeDelete is the largest number of keys that one command may delete. It is one
// revision, and holds up everything that is applied after it.
const MaxRangeDelete = 100_000

// The language of the store is that of package command.
type (
	Op                  = command.Op
	Condition           = command.Condition
	ConditionKind       = command.ConditionKind
	Command             = command.Command
	Txn                 = command.Txn
	Compare             = command.Compare
	CompareTarget       = command.CompareTarget
	Relation            = command.Relation
	Read                = command.Read
	SortBy              = command.SortBy
	Origin              = command.Origin
	Idempotency         = command.Idempotency
	Lease               = command.Lease
	LeaseOptions        = command.LeaseOptions
	LeaseEnd            = command.LeaseEnd
	LockTicket          = command.LockTicket
	Settings            = command.Settings
	Outcome             = command.Outcome
	KV                  = command.KV
	Result              = command.Result
	Event               = command.Event
	Change              = command.Change
	Attributes          = command.Attributes
	SettingsChange      = command.SettingsChange
	UnknownVersionError = wire.UnknownVersionError
)

// Position is the place of an entry in the raft log, and Prefix selects the keys that
// begin with it.
type (
	Position = layout.Position
	Prefix   = layout.Prefix
)

// Remembered are figures about the results that are kept for repeated commands.
type Remembered = once.Remembered

// Range selects keys, and Item is what is read of one.
type (
	Range = walk.Range
	Item  = walk.Item
)

// Bound shortens a bound of a range that is longer than any key.
func Bound(key []byte) []byte { return layout.Bound(key) }

// Comparer orders the keys of the store in Pebble.
func Comparer() *pebble.Comparer { return layout.Comparer() }

// The constants of package command.
const (
	MaxKeyBytes            = command.MaxKeyBytes
	MaxIdempotencyKeyBytes = command.MaxIdempotencyKeyBytes
	MaxTxnDepth            = command.MaxTxnDepth
	MaxTickMillis          = command.MaxTickMillis
	OpPut                  = command.OpPut
	OpDelete               = command.OpDelete
	OpDeleteRange          = command.OpDeleteRange
	OpAppend               = command.OpAppend
	OpIncr                 = command.OpIncr
	OpTick                 = command.OpTick
	OpCompact              = command.OpCompact
	OpSettings             = command.OpSettings
	OpGet                  = command.OpGet
	OpList                 = command.OpList
	OpTxn                  = command.OpTxn
	OpLeaseGrant           = command.OpLeaseGrant
	OpLeaseRevoke          = command.OpLeaseRevoke
	OpLeaseExpire          = command.OpLeaseExpire
	OpLock                 = command.OpLock
	OpUnlock               = command.OpUnlock
	OpForget               = command.OpForget
	OpRights               = command.OpRights
	IfMatch                = command.IfMatch
	IfNoneMatch            = command.IfNoneMatch
	IfRevision             = command.IfRevision
	CompareModRevision     = command.CompareModRevision
	CompareCreateRevision  = command.CompareCreateRevision
	CompareVersion         = command.CompareVersion
	CompareValue           = command.CompareValue
	CompareLease           = command.CompareLease
	CompareExists          = command.CompareExists
	Equal                  = command.Equal
	NotEqual               = command.NotEqual
	Greater                = command.Greater
	Less                   = command.Less
	SortByKey              = command.SortByKey
	SortByVersion          = command.SortByVersion
	SortByCreateRevision   = command.SortByCreateRevision
	SortByModRevision      = command.SortByModRevision
	SortByValue            = command.SortByValue
	LeaseDeletes           = command.LeaseDeletes
	LeaseReleases          = command.LeaseReleases
	OK                     = command.OK
	PreconditionFailed     = command.PreconditionFailed
	TooLarge               = command.TooLarge
	NoSpace                = command.NoSpace
	NotANumber             = command.NotANumber
	Overflow               = command.Overflow
	FutureRevision         = command.FutureRevision
	Invalid                = command.Invalid
	Ignored                = command.Ignored
	Compacted              = command.Compacted
	KeyNotFound            = command.KeyNotFound
	LeaseNotFound          = command.LeaseNotFound
	LeaseExists            = command.LeaseExists
	LockHeld               = command.LockHeld
	LockNotFound           = command.LockNotFound
	IdempotencyMismatch    = command.IdempotencyMismatch
	DuplicateKey           = command.DuplicateKey
	PermissionDenied       = command.PermissionDenied
	Busy                   = command.Busy
)

// DefaultSettings returns the settings of a store in which none were ever set.
func DefaultSettings() Settings { return command.DefaultSettings() }

// EncodeCommand appends the replicated form of the command to dst.
func EncodeCommand(dst []byte, c *Command) []byte { return command.Encode(dst, c) }

// DecodeCommand decodes what EncodeCommand encoded, and refuses everything else.
func DecodeCommand(b []byte) (Command, error) { return command.Decode(b) }

// Record and Entry are what the replication layer hands to the store. Commands
// have the form that EncodeCommand gives; Apply fills Results with a *Result for
// each of them.
type (
	Record = statemachine.Record
	Entry  = statemachine.Entry
)
