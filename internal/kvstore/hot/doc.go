// Package hot keeps the newest pairs of keys that are being read, so that a read of one
// opens no iterator, which costs more than everything else that a read does here.
//
// A pair gets in when it is read and stays the newest because Apply replaces it,
// before the change becomes visible. Keys that are only written stay out: Apply does
// not more than look for them. Two races decide the form of it:
//
//   - A reader finds revision 5 of a key in the engine; revision 6 is applied, and
//     not noted, since the key is not here; the reader puts 5 in. Each shard
//     therefore knows its last change: a pair that was read before it stays out.
//   - A reader looks between the change of a pair here and the moment it becomes
//     visible. The pair is ahead of it, and it reads from the engine instead.
//
// Values are copies that are never changed, so readers share them. Two
// generations approximate least recently used.
//
// # Invariants
//
//   - A reader never gets a pair that is older than the revision it sees, or newer
//     (kvstore's TestHotPairsAreTheNewest and TestHotPairReadBeforeAChange).
//   - The pairs take a bounded number of bytes, whatever is read (TestPairsAreBounded).
package hot
