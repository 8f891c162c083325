// Package engine keeps ordered byte strings: the one interface below the
// store, with an on-disk implementation (Pebble) and one in memory (a
// copy-on-write B-tree).
//
// An engine has no write-ahead log. A committed batch is visible at once, and
// survives a crash only when it, and every batch before it, has been flushed:
// what is durable is always a prefix of the history of batches. The owner
// replays the rest from its own log.
package engine

import (
	"errors"
)

// ErrNotFound is returned by Get for an absent key.
var ErrNotFound = errors.New("engine: key not found")

// ErrClosed is what a closed engine answers.
var ErrClosed = errors.New("engine: closed")

// Reader reads one consistent state.
type Reader interface {
	// Get appends the value of key to dst and returns the extended slice, or
	// ErrNotFound.
	Get(dst, key []byte) ([]byte, error)
	// Iter returns an iterator over lower <= key < upper; nil bounds are
	// open. It must be closed. It sees the state of the moment of the call.
	Iter(lower, upper []byte) (Iterator, error)
}

// Iterator walks keys in byte order. First, Last, the seeks, Next and
// Prev report whether the iterator stands on a key. Key and Value are valid
// until the next move. Once past the last key, Prev goes back to it, and Next
// from before the first key to that. A new iterator stands nowhere: First,
// Last or a seek must come first.
type Iterator interface {
	First() bool
	Last() bool
	SeekGE(key []byte) bool
	SeekLT(key []byte) bool
	// SeekPrefixGE is SeekGE for who wants only keys with the same prefix as
	// key: others may be passed over, which lets the engine use its filters.
	// What a prefix is, the engine was told when it was opened.
	SeekPrefixGE(key []byte) bool
	Next() bool
	Prev() bool
	Key() []byte
	Value() []byte
	// Err is the error that ended the walk, nil at a regular end.
	Err() error
	Close() error
}

// Snapshot is a Reader of the state at one moment. It must be closed.
type Snapshot interface {
	Reader
	Close() error
}

// Batch collects writes that Commit makes visible together. Later writes of a
// key win. A batch is not safe for concurrent use.
type WriteBatch interface {
	Set(key, value []byte)
	Delete(key []byte)
	// Commit applies the batch. It is visible when Commit returns, and
	// durable only after a flush. The batch is reset and can be used again.
	Commit() error
	// Reset drops what was collected.
	Reset()
	// Close releases the batch.
	Close() error
}

// Stats are figures about an engine since its start or its last Replace. What
// an engine does not have is 0.
type Stats struct {
	Flushes, Compactions   uint64
	CompactionDebtBytes    uint64 // what compactions still have to read
	MemTableBytes          uint64
	ReadAmplification      int // tables and levels that a look-up may visit
	CacheBytes             int64
	CacheHits, CacheMisses int64 // of the block cache
}

// Engine is an ordered key-value store with one writer and any number of
// concurrent readers.
type Engine interface {
	Reader
	NewWriteBatch() WriteBatch
	// Snapshot pins the current state in constant time.
	Snapshot() Snapshot
	// Durable returns the state that would survive a crash now: a prefix of
	// the history of batches. It returns nil when the engine keeps nothing on
	// disk.
	Durable() Snapshot
	// Flush starts making everything committed so far durable and returns
	// without waiting for it.
	Flush() error
	// Replace swaps the whole content for what fill writes: atomically, also
	// across a crash. fill receives batches' worth of sorted, unique keys
	// through its argument. Open snapshots stay readable until closed.
	Replace(fill func(set func(key, value []byte) error) error) error
	// SizeBytes is the space taken, on disk or in memory.
	SizeBytes() int64
	// Stats are figures for metrics; collecting them may take a millisecond.
	Stats() Stats
	// Name is "pebble" or "memory".
	Name() string
	// Close flushes what can be flushed and releases everything.
	Close() error
}
