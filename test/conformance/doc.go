// Conformance runs suites of tests that nobody here wrote against kvd, through
// its etcd face, and, for comparison, against etcd.
//
// The path of a run: build makes an executable named etcd, which is etcd's
// server or the shim in cmd/etcdshim that becomes kvd, and beside it etcdctl,
// etcdutl, and etcd's benchmark tool, all from their modules. Each suite is a
// package that go test runs, of this module or of etcd's tests. What it prints
// is judged against a list in known/, and the counts are printed as a table.
//
// The lists obey two rules, which judge enforces:
//
//	K1  What is not listed passes.
//	K2  What is listed fails. A line whose reason has gone must go too.
//
// So a list is at any time exactly the difference between kvd and etcd, as far
// as the suite can see it. A list of tests to skip would be shorter to write,
// but nobody would notice when a line is no longer needed; only what kvd lacks
// as a whole is skipped.
//
// This is a module of its own, so that the modules of Kubernetes and of etcd's
// tests are not among kvd's dependencies. They are used as they are published:
// no source is copied. standin/cache takes the place of a module of etcd's that
// has no published version and that no suite needs.
package main
