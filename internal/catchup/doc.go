// Package catchup decides what a leader does so that a member that lags too far
// catches up: which snapshots are built and sent, how much log is kept meanwhile,
// and when clients have to write more slowly.
//
// # How it works
//
// A member that lacks more than the log in memory needs a snapshot: a body with the
// whole state, and after it the log from there on. Deliveries follows each one from
// the moment raft asks until the member has caught up. It is deterministic, without
// a goroutine, clock, or file, so that the simulator can run it against transfers
// that break, disks that are full, and members that are too slow; what is to be
// done it asks of Work. The comment on Deliveries gives the life of a delivery and
// the invariants, V1 to V4, and the one on round how the leader slows itself.
//
// # Rejected
//
// Building a body at an interval, whether or not somebody needs it: it costs a
// reading of the whole state each time, and is too old when it is needed.
//
// Keeping a fixed amount of log and hoping that it suffices: for any amount there
// is a state so large, or a member so slow, that the log after the body is gone
// before it arrives. The member then gets body after body.
//
// Telling raft of a failed transfer at once: it asks again at once, and a member
// that is down would be sent a gigabyte without pause.
//
// Giving up a member that is too slow: its operator added it, and the cluster may
// need it for its next quorum.
package catchup
