// Package etcdfile writes an etcd snapshot file: the file that etcdctl snapshot save would
// write for an etcd with the same keys and leases.
//
// The file is a bbolt database in the form of etcd's storage, followed by its SHA-256, which
// etcdutl checks before it restores. Each pair is a version in the bucket "key", under its
// revision: 8 bytes for the main part, '_', and 8 bytes for the sub part, which numbers the
// changes of one transaction. kvd keeps no such number, so the pairs are numbered through:
// etcd demands only that no two versions have the same revision. History is not written.
// The file says that it is compacted at the revision of the export, which also keeps that
// revision if its own change was a delete.
//
// # Invariants
//
//   - F1: A file under its final name is complete and has its hash; until Finish it is under
//     another one.
//   - F2: Memory does not grow with the number of pairs: they are committed in batches.
//
// # Rejected
//
//   - Using the packages of etcd's server that write such files: they pull in its whole
//     storage layer, with metrics, for the sake of ten constants.
package etcdfile
