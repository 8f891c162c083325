// Package audit writes the audit log: a line of JSON for each change, each refusal, and each
// administrative read, in a file of its own. docs/audit.md describes the fields.
//
// # How a line is recorded
//
// An API server (a face: HTTP or etcd's API) begins a Request and passes it on in the
// context. All commands pass through Replicator, which sits between both faces and the node:
// so a line of a batch, a transaction, and a request in a dialect are recorded like a put,
// and no route can forget to. What is not a command (membership changes, backups, reads of
// users) is recorded by the face at the end of the request, as are refusals. Lines are
// queued, and one goroutine writes them.
//
// # When a line cannot be written
//
// By default requests never wait for the file: lines that exceed the queue or cannot be
// written are counted, and once writes succeed again, a line gives the number of lost lines.
//
// If the log is strict, a line with the intent is written before anything is done, and the
// request waits until that write has returned. If it fails, the request is refused with 503
// and changes nothing. The line with the outcome follows. If the disk is full by then, only
// the intent is in the log: the change may have taken effect, and its author is known. The
// alternative, to write only the outcome and check for free space beforehand, was rejected:
// the space can be gone by the time of the write.
//
// # Invariants
//
//	U1  No line has a value, a password, a token, or a hash of one (TestNoSecrets). Keys
//	    appear as Options.Keys demands.
//	U2  A request never waits for the file, unless the log is strict; then for at most
//	    strictPatience.
//	U3  Queued lines take at most maxQueuedBytes.
//	U4  Lost lines are counted, and a line in the log says how many (TestLostLines).
//	U5  In a strict log, nothing takes effect whose intent was not written (TestStrict, and
//	    end to end on a full disk).
//	U6  After a line that a full disk cut off, the next line begins on a new line.
package audit
