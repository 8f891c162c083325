// Package recipes is etcd's services Lock and Election. They do inside the server what
// etcd's client library does with its mutexes and elections, on the same keys, so that
// both kinds of clients meet.
//
// # Algorithm
//
// Who wants a lock, or an office, puts a key under its name: the name, a slash, and the
// lease in hexadecimal. The key with the lowest create revision holds the lock. Who comes
// later waits until the key before its own is deleted, then looks again: that key may have
// belonged to somebody who gave up. The lease deletes the key of a client that is gone.
//
// # Invariants
//
//	L1  A lock is given to the lowest create revision under its name, and to nobody else
//	    while that key exists.
//	L2  A client that gives up while it waits leaves no key behind.
//	L3  A wait begins to watch at the revision of the read that found the key, so the
//	    deletion in between is not missed.
//
// # Rejected
//
//   - kvd's own locks. Their queues are no keys, so clients with etcd's mutexes could not
//     see them.
//   - Waiting for the holder alone. All that wait would wake up with each release.
package recipes
