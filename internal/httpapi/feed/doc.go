// Package feed sends the events of a watch over HTTP, as lines of JSON or as Server-Sent
// Events.
//
// # Algorithm
//
// A Feed runs in the goroutine of its request. It takes what a watch.Stream has, appends
// the encoded events to a buffer, and writes: one write for many events while the client
// lags, one for each while it keeps up. The events themselves were encoded once for all
// streams that want the same form. When there is nothing to send, it gives its buffer
// back and waits for the stream, or for the time of the next progress.
//
// What exceeds a chunk is claimed from the memory for requests before it is encoded. If
// there is no room, the events are put back to the stream before the claim waits: a Feed
// that waits holds its position and nothing else. After a piece of a large revision, the
// rest of it is put back as well.
//
// # Invariants
//
// The comment on Feed has them, F1 to F3: what a client may conclude from an id, from
// progress, and from an end.
//
// # Rejected
//
//   - A goroutine that writes, beside the one that reads the stream. It needs a queue
//     between the two, which a slow client fills; the position of the stream is a queue of
//     one number.
//   - WebSockets. Both forms work with curl, through proxies, and with EventSource, which
//     resumes by itself.
package feed
