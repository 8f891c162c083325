// Package watchrpc is etcd's Watch service: many watches on one stream of gRPC, over a
// stream of package watch.
//
// # Algorithm
//
// A session is one call of Watch. Two goroutines serve it, however many watches it has.
// One receives requests into a short queue. The other owns everything else: it takes what
// the watch.Stream delivers, answers the requests in between, and sends.
//
// The events of a step are encoded, or found encoded by another session, and referred to
// by responses. Then the step is released, and only then are the responses sent: a client
// that does not read keeps its responses, and nothing that others wait for. What exceeds
// budget.Free is claimed before it is encoded, on a loan that gRPC returns when the last
// byte is written. If there is no room, the step is put back, and the session waits with
// nothing but its position.
//
// A watch that asks for progress gets the position of the stream, which is right for all
// watches on it once none is catching up. A request for the progress of the whole stream
// is noted with the revision of that moment and answered as soon as the stream has passed
// it; etcd gives no answer if a watch is behind, and its clients ask again, for whom a late
// answer is as good.
//
// # Invariants
//
//	G1  A watch is announced as created before its first event, at the revision that was
//	    visible when it was registered (TestCreatedComesFirst).
//	G2  The events of a revision are in one message, or in fragments with nothing between
//	    them; revisions ascend (TestRevisionsAreWhole, TestFragments).
//	G3  Nothing is sent for a watch after it was announced as canceled (TestCancel).
//	G4  Progress of the stream through N comes behind every event of its watches up to N
//	    (TestProgressOfStream).
//	G5  A watch is judged before it begins, and again before anything is sent that was
//	    written after a change of the rights. One that is not allowed anymore is canceled
//	    (TestWatchLosesItsRight).
//	G6  What a session holds beyond budget.Free is claimed, and all of it is returned, if
//	    need be with the connection (TestStalledClients, TestDeafClient).
//
// # Rejected
//
//   - A goroutine and a queue for each watch, as the model of one channel per watch
//     suggests. 10,000 of them would cost more than all the events, and a queue either
//     grows without bound or loses events.
//   - Sending without leaving the step: a client that hangs would keep one of the few places
//     that may read history from disk.
//   - Making the creation of a watch linearizable, as GET /v1/watch does. Clients of etcd
//     expect a watch to begin while there is no leader; those who care read first and start
//     at a revision.
package watchrpc
