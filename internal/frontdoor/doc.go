// Package frontdoor is where requests enter the process: the listeners for
// clients with their limit on connections, the gate that answers while the
// node behind it does not serve, and the listener for metrics and probes.
//
// # How a connection comes in
//
// Listen binds every address of --listen-client before the node opens its
// data, so that a port in use is the first thing reported and costs nothing.
// An accepted connection takes a place under --max-connections
// (connectionLimit), passes through TLS if its URL asks for it, and is read by
// http1, which hands all but small requests to net/http. Each request then
// meets the limit's guard, the gate, and the httpapi.Server behind the gate.
//
// A Door goes through these states, in this order and driven by one
// goroutine, which owns it:
//
//	Listen    ports are bound; connections wait in the kernel's queue
//	Serve     probes, metrics and the version are answered, the rest is 503 starting
//	Open      requests reach the node
//	SendAway  listeners are closed, and each answer is the last of its connection
//	Finish    wait for requests in progress
//	Shut      503 stopping: the node behind the gate has ended
//	Cut       connections that are left are closed
//
// # Invariants
//
//   - I1: All addresses are bound, or none is.
//   - I2: An accepted connection holds exactly one place and gives it back
//     exactly once, however often it is closed.
//   - I3: Probes are answered from Serve on, also when every place is taken. A
//     supervisor that gets no answer kills the process, and a node that is
//     merely busy must survive that.
//   - I4: Whether the node serves or not, an answer is made by httpapi, so that
//     clients parse one kind of problem document, probe and version.
//   - I5: The side door is closed after everything else, so that probes see
//     the node leave.
//
// # Rejected
//
//   - golang.org/x/net/netutil.LimitListener does not accept beyond its limit:
//     the kernel's queue fills, and probes time out behind idle clients (I3).
//   - Opening the listeners once the node is ready: until then a client cannot
//     tell a starting node from a dead one, and a taken port shows up only
//     after minutes of recovery.
//   - A separate port for probes only: it says nothing about whether clients
//     can connect. --listen-metrics exists for networks that must not reach
//     the data, and the same probes are served on both.
package frontdoor
