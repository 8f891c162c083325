// Package limits holds the bounds that several packages must agree on. A bound
// that two packages state separately drifts apart: one layer then accepts
// what the layer below it refuses.
//
// It imports nothing of this module, so every package may import it.
//
// The bounds on the way of a write follow from one another. They are held by
// kvstore's TestLargestCommand, raftnode's TestLargestBatch, peers'
// TestLargestMessage and datadir's TestLargestRecord.
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
	// MaxKeyBytes is the largest limit on keys that the settings allow.
	MaxKeyBytes = 4096
	// MaxValueBytes is the largest limit on values that the settings allow.
	MaxValueBytes = 64 << 20
	// MinQuotaBytes is the smallest quota other than none.
	MinQuotaBytes = 1 << 20
	// MinIdempotencyBytes and MaxIdempotencyBytes bound the limit on what a cluster
	// remembers about earlier requests. Each node keeps an index of it in memory.
	MinIdempotencyBytes = 1 << 20
	MaxIdempotencyBytes = 1 << 30
)

// MinRequestMemory is the smallest memory for the requests of clients: its larger part
// has room for a value of the default limit, raw and encoded.
const MinRequestMemory = 4 << 20

// Conditions of one command. All of them become part of the log.
const (
	// MaxConditions bounds the conditions of a command: If-Match, If-None-Match
	// and if_revision need three.
	MaxConditions = 8
	// MaxTags bounds the entity tags of one condition.
	MaxTags = 256
)

// Transactions and the envelope of a command.
const (
	// MaxTxnOps is the largest limit on the operations of a transaction that the
	// settings allow.
	MaxTxnOps = 4096
	// MaxTxnBytes is the largest limit on the encoded size of a transaction that the
	// settings allow.
	MaxTxnBytes = MaxValueBytes
	// MaxResultBytes bounds the pairs in the result of one command. A command whose
	// result would be larger changes nothing: its answer could not be delivered.
	MaxResultBytes = 8 << 20
	// MaxOriginBytes bounds each text of a command's origin: request id, address,
	// principal.
	MaxOriginBytes = 256
	// MaxIdempotencyKeyBytes is the longest idempotency key, and MaxReleases bounds
	// how many of them one command releases.
	MaxIdempotencyKeyBytes = 128
	MaxReleases            = 256
)

// The way of a write, from the largest key and value down to the wire and the
// disk. Each bound is the sum of what the layer above may hand down and of what
// this layer adds, so a write that one layer accepts fits all layers below it.
// An entry that the followers refuse would be worse than a refusal: it is in the
// leader's log, is sent again forever, and nothing behind it commits.
//
// The tests that package documentation names encode the largest of each and
// hold it against the bound.
const (
	// MaxCommandBytes is the largest encoded command: version, operation, flags and
	// options, envelope, key and end of a range with their lengths, conditions, lease
	// and its time, value. A transaction is counted as a whole, and is smaller.
	MaxCommandBytes = 4 + envelopeBytes + 2*(varintBytes+MaxKeyBytes) + conditionsBytes + 2*varintBytes + MaxValueBytes
	// envelopeBytes: flags, origin, idempotency key with its fingerprint, releases.
	envelopeBytes = 1 + 3*(2+MaxOriginBytes) + varintBytes + 2 + MaxIdempotencyKeyBytes + 16 + 2 + MaxReleases*(2+MaxIdempotencyKeyBytes)
	// conditionsBytes: kind, "any", and the revisions of each condition.
	conditionsBytes = varintBytes + MaxConditions*(2+varintBytes+MaxTags*varintBytes)

	// MaxBatchBytes is where a batch of small proposals, and a group of a stream
	// of operations, is full.
	MaxBatchBytes = 512 << 10
	// MaxGroupCommands is the largest number of commands in a proposal.
	MaxGroupCommands = 4096
	// MaxProposalBytes is the largest proposal: a group is full only once its
	// last command has been added.
	MaxProposalBytes = MaxBatchBytes + MaxCommandBytes

	// MaxEntryBytes is the largest payload of a log entry. A batch has one
	// proposal of any size, or several of MaxBatchBytes together.
	MaxEntryBytes = MaxProposalBytes + batchFrameBytes
	// batchFrameBytes: the frame of a payload, the batch's id and count, and the
	// length of each command. The shortest command has 4 bytes.
	batchFrameBytes = 6 + 4*varintBytes + 5*max(MaxBatchBytes/4, MaxGroupCommands)

	// MaxMessageBytes is the largest raft message: one entry of any size, or
	// several of MaxAppendBytes together, with the fields of message and entries.
	MaxMessageBytes = max(MaxEntryBytes, MaxAppendBytes) + messageFrameBytes
	// MaxAppendBytes is where an append message of small entries is full.
	MaxAppendBytes    = 1 << 20
	messageFrameBytes = 1 << 20

	// MaxUncommittedBytes bounds the tail of a leader's log. The largest entry
	// fits beside the small ones of other members: raft refuses an entry that
	// does not fit, and one that needed an empty tail might wait forever.
	MaxUncommittedBytes = MaxEntryBytes + 16<<20
	// MaxQueueBytes bounds the commands that wait to be packed, likewise.
	MaxQueueBytes = MaxProposalBytes + 16<<20

	varintBytes = 10 // binary.MaxVarintLen64
)

// The largest term and index that a message or a log record may claim. No
// real cluster comes near them; above them raft's arithmetic could overflow.
const (
	MaxTerm  = 1 << 62
	MaxIndex = 1 << 62
)

// ValidMemberID reports whether id can belong to a member. 0 is raft's "none".
func ValidMemberID(id uint64) bool { return id != 0 && id <= MaxMemberID }
