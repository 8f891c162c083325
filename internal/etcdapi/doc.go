// Package etcdapi makes a node an etcd to the clients of etcd: the services of etcd 3.7
// over gRPC, on the same keys, revisions, and leases as package httpapi serves.
//
// # The path of a request
//
// A Port tells the connections of gRPC from those of HTTP/1 by their first bytes. The
// gRPC server decodes a request and calls Server.unary or Server.stream, which count it,
// give it a place and a deadline, and call the service. A service checks what etcd
// checks, turns the request into commands and reads of package kvstore, and the results
// into etcd's answers. The gateway for JSON makes the same calls without a connection,
// through Server.Call and Server.Stream.
//
// Nothing of etcd's server is used but the types of its messages: what a command does is
// decided where it is applied, by the rules of kvstore, as for every other face. The
// services reach the node through the small interfaces in ports.go.
//
// What the services have in common has a package: headers and errors (answer).
//
// # Invariants
//
//	G1  The revision of an answer to a write is that of exactly this write, and no answer
//	    names a revision that this node has not made visible.
//	G2  A write that was proposed is answered with its result, or with Unavailable
//	    "request timed out", never with a refusal.
//	G3  Everything a client makes the node wait for or hold has a bound: a place for each
//	    call that is being handled, a deadline, a limit on requests, and memory claimed
//	    from the budget that all faces share. A stream that waits for events or for a
//	    lock has no place.
//	G4  An answer is complete or an error: no range is cut for its size.
//	G5  Nothing that a client chooses appears in the log or, without a bound on its
//	    values, as the label of a metric.
//	G6  Without --listen-etcd no goroutine, connection, or buffer of gRPC exists.
//
// # Rejected alternatives
//
//   - Running etcd's own server code over another backend. It is one struct that knows
//     raft, storage, and authentication at once, and would bring etcd's apply path back.
//   - grpc-gateway for JSON: a second connection to ourselves for each request, or no
//     streams.
//   - http.Server for gRPC. It reads and writes each frame through three more layers, and
//     costs about twice the CPU of gRPC's own transport. Only clients of TLS that speak
//     both protocols on one connection get it; see Port.
package etcdapi
