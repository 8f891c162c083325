// Package layout is the form in which a store keeps its state in an engine of ordered
// bytes: the tables, the keys of versions and how they compare, and the records that
// several parts of the store read. It encodes and decodes, and holds no state.
//
// # Invariants
//
//   - The engine's order of version keys is the order of the users' keys, and newest first
//     within one, whatever bytes a key has (TestVersionKeysKeepOrder).
//   - What the comparer says about prefixes and separators fits that order (TestComparer).
//   - A flag or a version that is not known is an error, never a value
//     (TestUnknownVersionFlags).
//
// keys.go has the tables and keys, records.go the records, and place.go the keys of the
// change log and how far history was removed.
package layout
