// Package datadir owns the files that a member keeps next to its store: the
// raft log, the record of its snapshots, and its identity. It judges a directory
// before a node uses it, and refuses one that no longer proves the promises that
// its member made.
//
//	member.json           the identity: member, cluster, nonce, state
//	lock                  flock of the running process, with its pid
//	watermark             how far the log was synced, at most a second ago
//	wal/                  the log, in segments (etcd's format)
//	snap/                 .snap files (metadata) and .snap.db files (bodies)
//	store/                the engine's files; this package only copies them
//	recovery/, recovery.json, before-recovery-*/
//	                      of kvd recover: the copy, the plan, the old files
//
// # Opening
//
// Open locks the directory and reads member.json. OpenLog inspects the log
// (inspect), repairs a torn tail at most once, opens the WAL at the newest
// usable snapshot, and makes everything it read durable before raft acts on it.
// Examine ("kvd doctor") makes the same inspection and changes nothing, so the
// doctor and a start cannot disagree.
//
// # The boot guard
//
// A raft member promises three things: it never votes twice in a term, it
// never goes back to an older term, and it keeps every entry that it has
// acknowledged. A disk can break each of these promises without an I/O error,
// and etcd's WAL does not always notice: it takes a zeroed sector in the
// middle of the last segment for a torn tail and cuts off what follows; it
// takes a zeroed length word, and a missing or empty last segment, for the
// end of the log. A member that continues after such a loss can elect a leader
// that lacks committed entries.
//
// The guard (guardLog) therefore reads every byte of the log before the WAL is
// opened and reaches one of three verdicts: clean, torn or corrupt. A log is torn
// only if a crash during the last save explains the damage, and only a torn log
// is repaired. What remains of the torn save stays, except for the term: if the
// last entry's is above that of the hard state, the start raises it (RaiseTerm). A log that is clean or torn is then compared with the watermark
// (watermark.check), because a log that lost its end looks like a log that was
// never longer. Everything else is a RefusedError with file, offset and remedy;
// the process exits with code 3.
//
// # Invariants
//
//   - D1: No commit index is written before the entries it covers, and none
//     goes back. So an entry at or below a recorded commit is never written
//     again, and the guard may call that damage.
//   - D2: The record of a snapshot is followed at once by the hard state that
//     commits it. Both are durable before SaveSnapshot returns. A crash in
//     between leaves a record without effect.
//   - D3: The watermark never claims more than the log holds. It is lowered
//     before entries are overwritten.
//   - D4: The two newest snapshots stay, and the log from the older one on. One
//     of them may be damaged without a refusal.
//   - D5: A refused directory is not changed, so the evidence stays.
//   - D6: Small files are replaced atomically (replaceFile). A crash cannot
//     damage one, so damage in one is refused.
//   - D7: A crash during an offline recovery leaves either the old directory or
//     one that only the same recovery, run again, accepts (Replacement).
//   - D8: Whatever is written between two fsyncs is one save, and every save ends
//     with a hard state that carries the save's number. So the guard knows how
//     far the save reaches that a crash may have torn, in whatever order the
//     disk wrote its sectors, and that damage before it is not a crash's. There
//     are no records outside of a save: a commit index alone waits in memory.
//   - D9: A directory that was restored from a backup has all of the backup or does
//     not start, and begins no cluster with anything else (Plant).
//
// Tests that check them: D1 TestLogAgainstModel, TestLogCommitWaitsForItsEntries;
// D2 TestSnapshotCrashAtEachStep; D3 TestWatermarkFollowsEntriesTakenBack;
// D4 TestLogPurgeKeepsTwoSnapshotsAndTheLogFromTheOlder; D5 mustRefuse, in every
// test of a refusal; D6 TestIdentityIsReplacedAtOnce, TestIdentityEveryByte;
// D7 TestReplacementCrashAtEachStep; D8 TestGuardPowerLossInOneSave,
// TestGuardDamageInAnEarlierSave, TestLogEverySaveEndsWithItsNumber;
// D9 TestInterruptedRestore, TestSeedThatChanged. TestCorruptionMatrix damages every
// file in every way, and holds all of them.
//
// # Rejected
//
//   - Cutting a damaged log where the damage begins and fetching the rest from
//     the leader: until the fetch has ended the member votes with a log from
//     which acknowledged entries are missing.
//   - A watermark with each save: it costs two more fsyncs. With one a second,
//     the loss of whole records from the end of the log goes unnoticed if they
//     are less than a second old.
//   - The last synced index in the store: an engine in memory keeps none, and
//     Pebble's own loss after a crash would lower it together with the log.
//   - etcd's segments of 64 MiB: the log is released by whole segments, and a
//     start reads all of it several times.
package datadir
