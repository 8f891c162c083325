// Package http1 serves small HTTP/1.1 requests with few system calls and allocations,
// and leaves all others to net/http.
//
// # Algorithm
//
// For a small request net/http costs more than everything else that a key-value store
// does: it has a second goroutine that watches the connection, a header map that is
// built and sorted anew, and two timers. This package handles what nearly all requests
// look like, and only that: an ordinary header, a short body of declared length, nothing
// unusual.
//
// The first request of a connection that is anything else (a long or chunked body, an
// Expect or Upgrade, HTTP/2, a mistake of any kind) hands the connection over to the http.Server behind this one, together with every byte that was
// read and not answered. The connection never comes back. So there is one
// implementation of HTTP that decides what is correct, and this one needs to handle only
// what it is certain about.
//
// One goroutine serves each connection. It reads a request into a buffer, calls the handler,
// and collects the answer; answers to pipelined requests go out in one write. Between two
// requests, and while it waits for the rest of a header, a connection has no buffers (desk).
//
// # Invariants
//
//	I1  What parse accepts, http.ReadRequest reads as the same request (FuzzParse).
//	I2  No request is answered here before all of it has been read. What has been read
//	    and not answered is handed over in full.
//	I3  A handler sees one request of a connection at a time, and keeps nothing of it
//	    but the strings of its header after it returns.
//	I4  Every answer has the status, header and body that net/http would send
//	    (TestAnswersAreNetHTTPs), but for the document in which a request that is not
//	    valid HTTP is refused (Server.Refusal).
//	I5  An answer that is not complete closes the connection. The complete ones before
//	    it are sent.
//
// # Limits
//
// A client that disconnects is noticed only when its answer is written, unless the handler
// asks for more because it is about to wait (response.Attend). An answer is collected as a
// whole, or sent as it is written if it is long and its length is declared. There is no
// Flush, except for the streams that the functions given to New select.
//
// # Rejected alternatives
//
// Another HTTP library instead of net/http would have to be trusted with every request
// that an attacker can make. Taking connections back from net/http after an unusual
// request is not possible: it reads ahead.
package http1
