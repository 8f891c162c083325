// Package clients runs what etcd's client library builds on top of the calls:
// sessions, locks, elections, transactional memory, the leasing and the ordering
// client, namespaces, naming, mirrors, and snapshots. With more than one member,
// one is stopped in the middle, and each must go on.
//
// The library's own tests for these run inside etcd's test framework, with
// etcd's server in the process; so these tests are ours, and only the library is
// not.
package clients
