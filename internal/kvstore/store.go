package kvstore

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
)

// The outcomes of reads that have no value.
var ErrKeyNotFound = errors.New("key not found")

// CompactedError says that a revision is not readable any more.
type CompactedError struct {
	CompactRevision uint64 // the oldest readable one
}

func (e *CompactedError) Error() string {
	return fmt.Sprintf("the revision was compacted; the oldest one is %d", e.CompactRevision)
}

// FutureRevisionError says that a revision does not exist yet.
type FutureRevisionError struct {
	Revision uint64 // the newest one
}

func (e *FutureRevisionError) Error() string {
	return fmt.Sprintf("the revision is not reached yet; the newest one is %d", e.Revision)
}

// keyOverheadBytes is what the quota counts for a key beside key and value.
const keyOverheadBytes = 64

// firstRevision is that of the empty store.
const firstRevision = 1

// Options are the tunables of a Store; zero values mean the defaults.
type Options struct {
	// CacheEntries bounds the keys whose metadata Apply keeps in memory.
	// Default 128 Ki.
	CacheEntries int
}

// Store is the replicated state.
//
// Apply, Restore and Maintain belong to one goroutine. Everything else may be
// called from any: readers see a position, and all of it, only after its batch
// was committed to the engine.
//
// Invariants:
//
//	S1  data, records, counters, hash and position of an entry are committed in
//	    one engine batch: whatever the engine has flushed is a whole position
//	S2  revision grows by exactly one with each effective change
//	S3  hash is the sum over the current records (ScanHash reproduces it)
//	S4  no version that a read at or above the compact revision needs is removed
type Store struct {
	eng engine.Engine
	// exec is owned by the goroutine that applies.
	exec executor

	visible  atomic.Pointer[visible]
	timeline timeline

	// swap is locked while Restore changes what the engine holds and what is
	// visible: readers choose a revision and open an iterator in between never.
	swap sync.RWMutex
}

// visible is what readers see: one position and what belongs to it.
type visible struct {
	meta
	settings      Settings
	settingsGiven bool
	cleaned       uint64
	hits, misses  uint64 // of the metadata cache
}

// Open reads the state that the engine holds; an empty engine is an empty
// store at position 0.
func Open(eng engine.Engine, o Options) (*Store, error) {
	if o.CacheEntries == 0 {
		o.CacheEntries = 128 << 10
	}
	s := &Store{eng: eng}
	s.exec = executor{eng: eng, timeline: &s.timeline, cache: newMetaCache(o.CacheEntries), writes: eng.NewWriteBatch()}
	if err := s.load(); err != nil {
		return nil, err
	}
	return s, nil
}

// load takes everything that is kept in memory from the engine.
func (s *Store) load() error {
	samples, err := readSamples(s.eng)
	if err != nil {
		return err
	}
	if err := s.exec.load(); err != nil {
		return err
	}
	s.timeline.reset(samples)
	s.publish()
	return nil
}

func readMeta(r engine.Reader) (meta, error) {
	b, err := r.Get(nil, []byte{tableMeta})
	if errors.Is(err, engine.ErrNotFound) {
		return meta{revision: firstRevision, compact: firstRevision, hash: emptyHash()}, nil
	}
	if err != nil {
		return meta{}, fmt.Errorf("read the position: %w", err)
	}
	return decodeMeta(b)
}

// emptyHash is the state hash of an empty store: that of its settings.
func emptyHash() uint64 {
	var h hasher
	settings := DefaultSettings()
	return h.settings(encodeSettings(&settings))
}

func readSettings(r engine.Reader) (settings Settings, given bool, err error) {
	b, err := r.Get(nil, []byte{tableSetting})
	if errors.Is(err, engine.ErrNotFound) {
		return DefaultSettings(), false, nil
	}
	if err != nil {
		return Settings{}, false, fmt.Errorf("read the settings: %w", err)
	}
	settings, err = decodeSettings(b)
	return settings, true, err
}

func readRecords(r engine.Reader) (map[string][]byte, error) {
	out := make(map[string][]byte)
	it, err := r.Iter([]byte{tableRecord}, []byte{tableRecord + 1})
	if err != nil {
		return nil, fmt.Errorf("read the records: %w", err)
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		out[string(it.Key()[1:])] = bytes.Clone(it.Value())
	}
	return out, it.Err()
}

// publish makes the state of the applying goroutine visible.
func (s *Store) publish() {
	x := &s.exec
	s.visible.Store(&visible{meta: x.now, settings: x.settings, settingsGiven: x.settingsGiven, cleaned: x.cleaned, hits: x.cache.hits, misses: x.cache.misses})
}

// Position returns the place in the log that the state contains.
func (s *Store) Position() Position { return s.visible.Load().position }

// Revision returns the newest revision; 1 for the empty store.
func (s *Store) Revision() uint64 { return s.visible.Load().revision }

// CompactRevision returns the oldest readable revision.
func (s *Store) CompactRevision() uint64 { return s.visible.Load().compact }

// Settings returns the replicated settings.
func (s *Store) Settings() Settings { return s.visible.Load().settings }

// SettingsGiven reports whether the settings were ever set; until then they
// are the defaults.
func (s *Store) SettingsGiven() bool { return s.visible.Load().settingsGiven }

// StateHash returns the hash of the state and the position it belongs to.
func (s *Store) StateHash() (Position, uint64) {
	v := s.visible.Load()
	return v.position, v.hash
}

// Hashes returns the state hashes at the last log indexes divisible by 1,024
// that passed since the start.
func (s *Store) Hashes() map[uint64]uint64 { return s.timeline.hashes() }

// Stats are figures about the store.
type Stats struct {
	Keys            uint64
	LogicalBytes    int64 // live keys and values with their overhead; what the quota counts
	HistoryBytes    int64 // superseded versions on this replica
	HistoryVersions int64
	EngineBytes     int64
	EngineName      string
}

// Work counts what the store did since it was opened.
type Work struct {
	// CacheHits and CacheMisses are Apply's looks at a key's metadata.
	CacheHits, CacheMisses uint64
	// UncleanedRevisions are compacted, and their history is not removed yet.
	UncleanedRevisions uint64
}

// Work returns what the store did.
func (s *Store) Work() Work {
	v := s.visible.Load()
	return Work{CacheHits: v.hits, CacheMisses: v.misses, UncleanedRevisions: v.compact - min(v.compact, v.cleaned)}
}

// EngineStats returns the engine's own figures.
func (s *Store) EngineStats() engine.Stats { return s.eng.Stats() }

// Stats returns figures about the store.
func (s *Store) Stats() Stats {
	v := s.visible.Load()
	return Stats{
		Keys:            v.keys,
		LogicalBytes:    v.logical,
		HistoryBytes:    v.historyBytes,
		HistoryVersions: v.historyVersions,
		EngineBytes:     s.eng.SizeBytes(),
		EngineName:      s.eng.Name(),
	}
}

// Flush asks the engine to make everything applied durable soon.
func (s *Store) Flush() error { return s.eng.Flush() }

// Close makes durable what can be, and releases the engine.
func (s *Store) Close() error {
	return errors.Join(s.exec.writes.Close(), s.eng.Close())
}
