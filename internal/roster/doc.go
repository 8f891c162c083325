// Package roster is the replicated membership: who the members of a cluster are,
// which process speaks for each of them, which batches of commands run, and which
// changes of the membership are legal. It also has the form of all entries that
// kvd puts into the raft log, since each of them passes through it.
//
// # How it works
//
// A committed entry carries a payload, framed and checksummed, of one of three
// kinds: a batch of commands, the start of a process, or a change of the
// membership. Roster.Apply opens it, decides, and returns a Verdict: the commands
// that are to run, the configuration change that raft has to learn, and the
// records in which the decision is stored. The state machine writes the records in
// the same atomic write as the effects of the commands, so after a crash both are
// of one index. Load brings the roster back from them.
//
// Other goroutines, the operators' API, and raft's snapshots see the Membership, an
// immutable picture. Membership.Check judges a change twice: before it is proposed,
// so that the requester gets the reason at once, and when it is applied, since
// others may have been applied in between.
//
// The comment on Roster gives the invariants, I1 to I5.
//
// # What must not change
//
// Replicas of different versions apply the same entries. A change of what Apply
// decides, or of the bytes in testdata, makes them diverge, unless it depends on
// something in the log, such as the version in the frame.
//
// # Rejected
//
// Deciding on the proposing node which copies of a batch are superfluous: only the
// log knows the order in which they commit. Remembering the ids of all batches
// that ran: one number for each member does, since a process numbers its batches.
// Letting ids return after a removal: a late message to the old member would reach
// the new one. Leaving the membership to raft's configuration: it has no names,
// addresses, or nonces, and forgets who was removed.
package roster
