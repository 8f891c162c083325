// Command mutation checks whether the tests would notice a bug. It plants many small bugs,
// one at a time: a negated condition, a shifted bound, a plus for a minus, a dropped call, a
// swallowed error. A mutant that no test catches, a survivor, is either a gap in the tests
// or not a bug; survivors.txt says which, and why.
//
//	go run ./test/mutation [flags] PACKAGE...
//
// # How it works
//
// All mutants of a package are compiled into one test binary. Each is behind a switch,
// and the environment variable KVD_MUTANT turns one on. The changed source goes to the
// compiler through -overlay, so the tree never changes, and a mutant costs the time of
// its tests, not that of a build. A first run of each test, without a mutant, notes
// which switches it passes and how long it takes: a mutant then gets only the tests
// that reach it, the fast ones first, until one fails or its time is up.
//
// A mutant is chosen by the hash of its name, which has no line number in it: the same
// ones are chosen as long as their lines do not change.
//
// # Rejected
//
// A build for each mutant: most of the time would go into linking. Types (go/types):
// a mutant that does not compile is found by the compiler, and left out.
package main
