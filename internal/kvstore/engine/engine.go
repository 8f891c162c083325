package engine

import "errors"

// ErrNotFound is returned by Get for an absent key.
var ErrNotFound = errors.New("engine: key not found")

// ErrClosed is returned by a closed engine.
var ErrClosed = errors.New("engine: closed")

// Reader reads one consistent state.
type Reader interface {
	// Get appends the value of the key to dst and returns the extended slice, or
	// ErrNotFound.
	Get(dst, key []byte) ([]byte, error)
	// Iter returns an iterator over lower <= key < upper. A nil bound is open. The
	// iterator sees the state at the time of the call, and must be closed.
	Iter(lower, upper []byte) (Iterator, error)
}

// Iterator walks keys in byte order. It is not safe for concurrent use.
//
// First, Last, the seeks, Next and Prev report whether the iterator is on a key. A new
// iterator is on none until First, Last or a seek. Past the last key, Prev returns to
// it; before the first key, Next returns to that. Key and Value are valid until the
// next move.
//
// It has eleven methods because it is a cursor: two ends, two directions of seeking
// and stepping, the pair, the error and the end. The store uses all of them.
type Iterator interface {
	First() bool
	Last() bool
	SeekGE(key []byte) bool
	SeekLT(key []byte) bool
	// SeekPrefixGE is SeekGE for a caller that wants only keys with the same prefix
	// as key. Keys with another prefix may be skipped, which lets the engine use its
	// filters. PebbleOptions.Comparer defines what a prefix is.
	SeekPrefixGE(key []byte) bool
	Next() bool
	Prev() bool
	Key() []byte
	Value() []byte
	// Err returns the error that ended the walk, or nil at a regular end.
	Err() error
	Close() error
}

// Snapshot is a Reader of the state at one moment. It must be closed. It is safe for
// concurrent use.
type Snapshot interface {
	Reader
	Close() error
}

// WriteBatch collects writes that Commit makes visible together. Of several writes of
// a key, the last wins. A write batch is not safe for concurrent use.
type WriteBatch interface {
	Set(key, value []byte)
	Delete(key []byte)
	// Commit applies the writes. They are visible when Commit returns, and durable
	// only after a flush. The batch is then empty and can be used again.
	Commit() error
	// Reset drops the writes.
	Reset()
	// Close releases the batch, without applying it.
	Close() error
}

// Stats are figures about an engine since it was opened or replaced. A figure that an
// engine does not have is 0.
type Stats struct {
	Flushes, Compactions   uint64
	CompactionDebtBytes    uint64 // what compactions still have to read
	MemTableBytes          uint64
	ReadAmplification      int // sorted runs that a lookup may have to read
	CacheBytes             int64
	CacheHits, CacheMisses int64 // of the block cache
}

// Engine is an ordered key-value store with one writer and any number of concurrent
// readers.
//
// It is one interface of eleven methods rather than several small ones: the store is
// its only user and needs all of it, and a value that could do half of it does not
// exist.
type Engine interface {
	Reader
	NewWriteBatch() WriteBatch
	// Snapshot pins the current state in constant time.
	Snapshot() Snapshot
	// Durable returns the state that would survive a crash now, which is a prefix
	// of the history of batches. It returns nil if the engine keeps nothing on disk.
	Durable() Snapshot
	// Flush starts making everything that was committed durable, and returns without
	// waiting for it.
	Flush() error
	// Replace swaps the whole content for what fill writes, atomically even across a
	// crash. fill calls its argument with unique keys, in any order. If fill
	// returns an error, nothing changes. Open snapshots stay readable until closed.
	Replace(fill func(set func(key, value []byte) error) error) error
	// SizeBytes returns the space taken, on disk or in memory. It is cheap.
	SizeBytes() int64
	// Stats returns figures for metrics. Collecting them may take a millisecond.
	Stats() Stats
	// Name returns "pebble" or "memory".
	Name() string
	// Close makes everything durable, if the engine keeps anything on disk, and
	// releases it.
	Close() error
}
