// Package once remembers what became of commands with an idempotency key. Such a command
// takes effect once, however often it is committed: its first result is recorded, in the
// write batch of its effects, and a repeat returns the record. Duplicates in flight need
// no more than that: the log puts them in an order, and the second one finds what the
// first one recorded.
//
// Recorded are the outcomes that the command itself decides. A refusal that passes by
// itself (NoSpace, Busy) is not, or a repeat could never succeed.
//
// Records age in replicated time, so that all replicas forget them at the same log
// position. They are in the state hash and in snapshots as rows of table i; the index in
// memory says which there are, so that a new key costs no lookup. Its queue is in the
// order of the clock, so that aging looks at nothing that stays.
//
// # Invariants
//
//   - The index is the same on every replica, also after a restart, because the refusal Busy
//     and the choice of the records to forget depend on it (kvstore's S9: TestRecordsSurvive,
//     TestAgeingInSteps).
//   - A record has the first result of its command, and another request with the same key is
//     refused (kvstore's TestRepeatHasTheFirstResult).
package once
