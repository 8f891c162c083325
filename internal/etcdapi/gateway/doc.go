// Package gateway is etcd's API for clients without gRPC: JSON over HTTP/1, the health
// checks, and the version.
//
// # The path of a request
//
// A POST to a path of the table is one call of a service. The gateway reads the body,
// calls the service in this process, exactly as if the call came from a connection of
// gRPC, and writes the answer in the JSON form of protocol buffers. The answers of a stream
// are lines with an object "result" or, at the end, "error". /v3beta/ is the same as /v3/.
//
// What clients of etcd rely on: names are those of rpc.proto, bytes are base64, numbers of
// 64 bits are strings, zero values are left out, unknown fields are ignored, an empty body
// is {}. Errors have the members "code" and "message", and in addition "error", which
// gateways of etcd up to 3.5 sent: Patroni and APISIX look for it first.
//
// # Invariants
//
//	J1  A call is answered once, as a whole, with the status that its code stands for. Once
//	    the first line of a stream is out, an error is its last line.
//	J2  What a client makes the gateway hold is claimed: bodies as they arrive, answers
//	    before they are encoded. A message of a stream may have up to budget.Free bytes.
//	J3  A client that neither sends nor reads is given up on (package pace).
//	J4  A page of another site cannot make a browser send what changes anything.
//
// # Rejected
//
//   - grpc-gateway. It needs a connection to ourselves, which costs a third more CPU for
//     each put, or does without streams; and it is a large dependency for a table of paths.
//   - WebSocket on /v3/watch, which etcd has. A client that can send while it receives has
//     gRPC; one that cannot has a stream for each watch.
package gateway
