// Package batch carries out streams of operations: POST /v1/batch.
//
// # Algorithm
//
// A stream is a pipeline of two goroutines. The reader parses lines into groups; the
// handler proposes a group as one log entry, waits until it is applied, and answers its
// lines. While one group is in the log, the next one is being filled, so a slow disk makes
// groups larger, and a fast one makes answers come sooner. Nothing else decides about
// their size: a group is handed over as soon as the handler wants one.
//
// Lines are independent of each other: one that fails does not stop the others. What ends
// the stream is a group that the cluster does not carry out, because after an unknown
// outcome no later line could be answered truthfully, and a line that is not JSON or too
// long, because nothing tells where the next one begins.
//
// # Invariants
//
// The comment on Stream has those of answers and memory (S1 to S5), the comment on reader
// those of reading (R1 to R4).
//
// # Rejected
//
//   - An answer for the whole body. A client would learn only at the end which line
//     failed, and a node would hold the results of all.
//   - A transaction for the whole body. It would have to fit into one log entry;
//     POST /v1/txn is for those who want atomicity.
package batch
