// Package loadgen drives a key-value service with a closed loop of clients and
// measures what they get: each client sends its next request when it has the
// response to the previous one. kvd bench and the comparison in bench/ use it,
// so that whatever is compared is driven and measured in the same way.
//
// # How a load runs
//
// Load.Run starts one goroutine for each worker. A worker opens a connection
// (Load.Open), then calls its operation until the load ends, and opens another
// connection when one breaks. Each worker counts in a histogram of its own;
// the results are merged when all have returned. Two more goroutines report
// progress and give up a load of which nothing succeeds.
//
// # Invariants
//
//   - I1: An operation counts only if it began after the warmup, ended before
//     the load did, and succeeded. Error responses are counted by code,
//     separately, and not in the latencies.
//   - I2: A worker shares nothing on its way through an operation but one
//     atomic counter: a load of thousands of workers must not measure its own
//     locks.
//   - I3: A request of the client allocates nothing and changes no goroutine:
//     on a shared machine, CPU that the load takes is taken from the server.
//     HTTP therefore speaks just enough of HTTP/1.1, and net/http is not used.
//
// # Rejected
//
//   - An open loop, with requests at a fixed rate: it shows queueing that a
//     closed loop hides (coordinated omission), but needs a rate that each
//     system under comparison can sustain, and those differ widely. Latencies
//     here are those of clients that wait.
//   - A tool such as wrk or vegeta: it drives HTTP only, and etcd's side of
//     the comparison is gRPC.
package loadgen
