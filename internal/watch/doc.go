// Package watch is the hub between the goroutine that applies changes and everybody
// who watches keys. It knows revisions and ranges, but no protocol: HTTP streams, long
// polls and other faces stand on the same Stream.
//
// # Algorithm
//
// The store calls Hub.Applied with the changes of a batch before readers see them.
// Under one lock the hub makes them visible, puts them into the window, looks up which
// watches they concern, and signals the streams of those.
//
// The window has the most recent changes, bounded in bytes and shared by all streams.
// An event is encoded once for each form that anybody wants (Form); the streams only
// copy the bytes.
//
// A stream has no queue. It remembers a position, the first revision that it has not
// examined, and reads from there at its own pace: from the window, or in bounded steps
// from the change log on disk (Source.Changes) if the window has moved past it. A
// stream that has examined everything is idle. It then needs no position at all: the
// first change that concerns it leaves one in Stream.pending. So changes that concern
// nobody cost an idle stream nothing, and it never falls behind because of them.
//
// A stream may have many watches. Its live watches share the position, so their events
// come in the order of revisions over all of them. A watch that is added with an older
// position lags: it catches up on its own, and joins where the others are.
//
// # Waiting
//
// Applied holds the lock for writing, for as long as its batch takes to look up. Streams
// hold it for reading while they copy a bounded number of pointers. They match, encode
// and read from disk without it. So the goroutine that applies waits for no watcher,
// however many there are and however slow they read.
//
// # Invariants
//
//	W1  A stream gets the events of each of its watches in the order of revisions,
//	    none missing and none twice, and those of one revision together
//	    (TestRandomHistories, whose controls plant a gap, a repeat and a split).
//	W2  No event is delivered before readers see its revision
//	    (TestEventsAreVisible).
//	W3  Registering and the visible revision have one lock: a watch from revision+1 gets
//	    the very next change (TestRegisterWhileApplying).
//	W4  Progress through N means that everything up to N was delivered before
//	    (TestRandomHistories).
//	W5  The window holds at most Options.WindowBytes, encoded forms included
//	    (TestWindowIsBounded).
//	W6  What a change costs depends on the watches that it concerns, not on their number
//	    (BenchmarkApplied).
//	W7  At most diskReaders streams hold a portion from disk. All others wait with nothing
//	    but their positions (TestFewHoldWhatTheyRead).
//
// # Rejected
//
//   - A channel with events for each watch. The goroutine that applies would have to
//     wait for a slow one, drop its events, or queue them without bound.
//   - A position for idle streams, too. Each would have to be moved with every change, or
//     would fall out of the window by standing still.
//   - Only the changes that concern somebody in the window. It would be smaller, but of
//     no use to a client that comes back: after the loss of a node, all its clients would
//     read the same revisions from the disk of another one, each for itself.
//
// Read it in this order: hub.go, stream.go, index.go, window.go, event.go.
package watch
