// Package guard keeps the users, roles and tokens of a store (package rights), and judges
// each command by them when it is applied. The door has judged the request before; but a
// user may have lost a right while the command was on its way, and only the order of the
// log says which came first.
//
// The tables are rows of table a, so they are in the state hash and in snapshots. The keys
// that sign logins are rows of table b: each is named by its hash, which alone is in the
// state hash, so that a backup can have all rows but no secret (Sealed). The tables are
// held in memory as a whole (rights.MaxBytes), immutable, and replaced by a change.
//
// # Invariants
//
//   - A command that is applied after a change is judged by it, on every replica
//     (kvstore's TestQueuedWriteOfARevokedUser, TestGuardSurvives).
//   - Needs names everything that a command reads or writes, in both branches of a
//     transaction (TestNeeds has every operation).
//   - What kvd itself proposes (time, expiry, compaction by age) needs nothing: it carries
//     the term of its leader, which no request does.
package guard
