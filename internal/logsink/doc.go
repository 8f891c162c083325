// Package logsink is the log of the process: how lines are encoded, which
// levels are logged, and how lines reach standard error without ever making
// the node wait for its reader.
//
// # Why a sink of its own
//
// A zap core holds a lock while it writes. With a full pipe on standard error,
// for example a paused terminal or a log collector that hangs, the first
// goroutine that logs would wait in the kernel, and every other one behind it,
// the consensus loop included: the node would lose its leadership because
// nobody reads its log. So Sink.Write only queues, and one goroutine writes
// the queue out.
//
// # Invariants
//
//   - I1: Write never waits for the reader and never fails.
//   - I2: Lines that wait take at most maxQueuedBytes.
//   - I3: Lines keep their order, and none is torn.
//   - I4: A line that does not fit, or that standard error does not take, is
//     counted, and as soon as lines get through again a notice in the log says
//     how many were lost.
//   - I5: Flush, Sync and Close wait for a bounded time, so that a process with
//     a stuck reader can still exit.
//
// # Rejected
//
//   - zap's BufferedWriteSyncer: when its buffer is full, it writes in the
//     caller (against I1).
//   - A non-blocking descriptor: the flag belongs to the open file, which the
//     shell and other processes share.
//   - Dropping the oldest lines: what happened first usually explains the rest.
package logsink
