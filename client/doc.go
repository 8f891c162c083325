// Package client is the Go client of kvd. It needs nothing but the standard library.
//
// A Client talks to any of several nodes, which all answer every request. It
// remembers the node that answered last, and turns to the next one when a node is
// down, stopping, overloaded, or without a leader. Every method takes a context
// first; while the context lasts, requests are repeated until they succeed or are
// refused for good.
//
//	c, err := client.New(client.Config{Endpoints: []string{"http://127.0.0.1:12380"}})
//	...
//	_, err = c.Put(ctx, "service/web/1", []byte("10.0.0.7:80"))
//	kv, err := c.Get(ctx, "service/web/1")
//	if errors.Is(err, client.ErrKeyNotFound) { ... }
//
// # Exactly once
//
// Each change carries an Idempotency-Key of its own, which the cluster remembers, so
// that a repeat has the effect and the answer of the first attempt. Once the answer
// has arrived, the next change tells the cluster to forget the key. If the context
// ends while the outcome of a change is open, the error is ErrUnknownOutcome.
//
// # Credentials
//
// If the cluster has rights enabled, Config needs credentials: a Token, a TokenFile that is
// read again when it changes, or a User with a Password, for whom the client logs in and
// stays logged in. A client certificate in Config.TLS or a Unix socket works without them.
// Missing or invalid credentials are ErrUnauthenticated, and missing rights are a
// *PermissionDeniedError.
//
// # Errors
//
// Each reason for which a node refuses a request has an error to compare with, for
// errors.Is; *Error has the node's words, and *PreconditionFailedError and
// *CompactedError the revision that matters. Two are about the way and not the request:
// ErrUnavailable means that no node could answer before the context ended, and that
// nothing was done; ErrUnknownOutcome means that nobody knows.
//
// # Keys
//
// Keys are strings of arbitrary bytes; they need not be valid UTF-8.
//
// # Streams
//
// List, Watch, and Batch are iterators. A list is a view of one revision, however long it
// takes. A watch resumes on another node where the last one ended, without a gap and
// without repeating an event, until its context ends or its revision is compacted. A
// batch sends what has no result again.
//
// # Sessions
//
// A Session is a lease that is kept alive in the background. Locks, leaderships, and
// ephemeral keys belong to one. When no node confirms it for its time to live, it is lost,
// and says so without waiting for an answer. Its holder may still be too late: a process
// can be suspended at any time, so what a lock protects should look at Lock.Token.
package client
