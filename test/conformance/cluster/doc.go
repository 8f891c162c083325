// Package cluster runs the executable under test, etcd or kvd in its place, as
// real processes of a cluster on this machine.
//
// Both are started with etcd's flags, so that a test cannot tell which one it
// has. The directory of the executable comes from CONFORMANCE_BIN, and the
// number of members from CONFORMANCE_NODES; the command of this module sets
// both. Without the first, a test that needs a cluster is skipped.
package cluster
