// Package limits holds the bounds that several packages must agree on. A bound
// that two packages state separately drifts apart: one layer then accepts
// what the layer below it refuses.
//
// It imports nothing of this module, so every package may import it.
package limits

// MaxSafeInteger is the largest number in JSON: beyond it, readers that keep numbers
// as doubles lose digits. No id, revision or count may exceed it.
const MaxSafeInteger = 1<<53 - 1

// Members and their ids.
const (
	// MaxMemberID is the largest member id. It is far below those that raft
	// reserves for its local storage threads.
	MaxMemberID = MaxSafeInteger
	// MaxMembers bounds the membership. Raft's quorums become slow long before.
	MaxMembers = 64
)

// Bounds of the cluster settings. The flags that give their first values are
// checked against the same numbers.
const (
	// MaxValueBytes is the largest limit on values that the settings allow.
	MaxValueBytes = 64 << 20
	// MinQuotaBytes is the smallest quota other than none.
	MinQuotaBytes = 1 << 20
)

// The largest term and index that a message or a log record may claim. No
// real cluster comes near them; above them raft's arithmetic could overflow.
const (
	MaxTerm  = 1 << 62
	MaxIndex = 1 << 62
)

// ValidMemberID reports whether id can belong to a member. 0 is raft's "none".
func ValidMemberID(id uint64) bool { return id != 0 && id <= MaxMemberID }
