// Package ticket has the rows of locks: queues of tickets, each with a token and the lease of
// its client. What a lock is, and what happens to it, is the store's business.
//
//	o  name                 → Head
//	p  lease, name          → the token of the ticket
//	q  name, end, token     → Row
//
// The head could be found by a seek in table q. But a lock that is taken and released a
// million times leaves a million tombstones there, which the seek would have to step over.
// From the token of the last holder on there are none but those of waiters.
//
// The decoders refuse what the encoders would not have written (the store's TestForeignRows).
package ticket
