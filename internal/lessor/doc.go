// Package lessor keeps the time of leases. The replicated state knows which leases
// exist and what is bound to them; it has no clock. When a lease ends is up to the
// leader: its Lessor holds a deadline for each lease, and proposes their end.
//
// # The life of a lease
//
//  1. Granted by a log entry. The leader's state machine reports it (Changed), and
//     the Lessor sets the deadline to now plus the TTL.
//  2. Kept alive without a log entry. Each node collects the requests of its
//     clients (Batcher) and sends them to the leader in one call. The leader moves
//     the deadlines, then proves by one ReadIndex for all of them that it still
//     leads, and only then answers (Serve).
//  3. Ended by a log entry: revoked by a client, or expired. Expiry is proposed in
//     batches. From that moment on the lease cannot be extended: the entry may be
//     on its way.
//
// A new leader knows no deadlines. It reads the table of leases in the background
// and gives each its full TTL, counted from when it took office.
//
// # Invariants
//
//	T1  No lease ends before its TTL has passed since the last keep-alive that was
//	    answered, no matter who led meanwhile. An answer needs a proof of leadership that
//	    began after the deadline was moved (Serve): the next leader took office
//	    after the proof, and counts from there (TestKeepAliveNeedsProof,
//	    TestNewLeaderGivesFullTTL).
//	T2  What a deposed leader proposes ends nothing: the proposal carries its term,
//	    and the state machine ignores it in another one.
//	T3  A lease whose expiry was proposed is not extended, even if the proposal got
//	    lost; it is proposed again (TestNoExtensionAfterExpiry).
//	T4  An expiry means the grant that it was proposed for, and no later one of the
//	    same id: a client may revoke a lease and grant its id anew while the
//	    expiry is on its way (Lease.Seq).
//	T5  Time in which this process could not run is not time in which it would
//	    have heard keep-alives: it does not count (stopwatch).
//	T6  An answer knows every grant and every end that was committed before the
//	    question: it is made up after the proof (TestEndSeenElsewhereFirst,
//	    TestGrantSeenElsewhereFirst). What it promises counts from the question
//	    (TestNoPromiseOfADeposedLeader).
//
// # Rejected
//
//   - Remaining times in the log, as checkpoints. They cost entries all the time to
//     shorten the life of leases after a fail-over.
//   - A keep-alive as a log entry. It would cost a disk write on every member, for
//     what only the leader needs to know.
//   - An answer on the strength of a leader lease, without ReadIndex. It would rely
//     on clocks of several machines running at the same speed.
//   - A timer for each lease. A heap costs nothing until its root is due.
package lessor
