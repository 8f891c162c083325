// Package roster is the replicated membership of a cluster, and the form of the
// entries that go through it.
package roster
