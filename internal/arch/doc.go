// Package arch holds the rules of the house as tests: which package may import
// which, how large packages, types and interfaces may grow, and how errors, log
// messages and documents are written.
//
// ARCHITECTURE.md draws the import graph; the table in arch_test.go is its only
// other copy. docs/style.md states the remaining rules in prose.
//
// Each rule is a function from parsed sources to a list of violations, so that
// a second test can hand it sources with a planted violation: a rule that
// cannot fail guards nothing. The tables of exceptions give a reason for each
// entry, and an entry that excuses nothing is itself a violation; the tables
// can only shrink unnoticed, never grow.
//
// A linter with a configuration file was rejected. None of the available ones
// knows these rules, and a table in Go has room for reasons.
package arch
