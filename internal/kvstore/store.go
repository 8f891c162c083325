package kvstore

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/guard"
	"github.com/kvd-io/kvd/internal/kvstore/hot"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/kvstore/rows"
	"github.com/kvd-io/kvd/internal/kvstore/statehash"
	"github.com/kvd-io/kvd/internal/kvstore/tally"
	"github.com/kvd-io/kvd/internal/kvstore/timeline"
	"github.com/kvd-io/kvd/internal/kvstore/waiters"
	"github.com/kvd-io/kvd/internal/rights"
)

// ErrKeyNotFound is returned by Get for a key that is absent at the revision.
var ErrKeyNotFound = errors.New("key not found")

// CompactedError is returned for a revision that can no longer be read.
type CompactedError struct {
	CompactRevision uint64 // the oldest revision that can be read
}

func (e *CompactedError) Error() string {
	return fmt.Sprintf("the revision was compacted; the oldest readable revision is %d", e.CompactRevision)
}

// FutureRevisionError is returned for a revision that does not exist yet.
type FutureRevisionError struct {
	Revision uint64 // the newest revision
}

func (e *FutureRevisionError) Error() string {
	return fmt.Sprintf("the revision does not exist yet; the newest revision is %d", e.Revision)
}

// Options configure a Store. Zero values mean the defaults.
type Options struct {
	// CacheEntries bounds the number of keys whose metadata Apply keeps in memory.
	// The default is 128 Ki.
	CacheEntries int
	// HotBytes bounds the memory for the newest pairs of keys that are being read.
	// The default is 64 MiB.
	HotBytes int
	// OnSettings is called on every replica when settings are applied that differ,
	// by the goroutine that applies; after a crash it may be called again.
	OnSettings func(before, after Settings, by Origin)
	OnRights   guard.Observer // likewise, of changes of users, roles, and tokens
	// Observer, if not nil, is told all changes.
	Observer Observer
	// Leases, if not nil, is told of grants and of the ends of leases.
	Leases LeaseObserver
}

// Observer is told the changes of a store by the goroutine that applies, which waits
// for it.
type Observer interface {
	// Applied is called with the changes of a call of Apply, oldest first, once they
	// are in the engine. show makes them visible, and must be called. That lets an
	// observer register its watchers and move the revision they see under one lock of
	// its own, so that no watcher misses a change or gets it twice.
	//
	// The changes do not change anymore and may be kept; their values share the memory
	// of the entries. They have no previous pairs.
	Applied(changes []Change, show func())
	// Reset is called when the whole state was replaced, instead of Applied. Readers
	// of the store wait until it returns, so it must not read.
	Reset(show func())
}

const defaultHotBytes = 64 << 20

// Store is the replicated state. The package comment tells how it works and lists
// its invariants.
//
// Apply, Restore, Maintain and Close belong to one goroutine, the one that
// applies. All other methods may be called from any goroutine: a reader sees a
// position only after the writes of that position were committed to the engine, and
// then sees all of them (S5).
type Store struct {
	eng engine.Engine
	// exec is owned by the goroutine that applies.
	exec executor

	// visible is replaced as a whole by the goroutine that applies, after each
	// commit to the engine.
	visible  atomic.Pointer[visible]
	timeline timeline.Timeline
	hot      *hot.Pairs
	observer Observer      // may be nil
	leases   LeaseObserver // may be nil
	waiters  waiters.Waiters

	// swap is held by Restore while it replaces the content of the engine and
	// what is visible. Readers hold it for reading from choosing a revision until
	// they have an iterator. Otherwise one could choose revision 900 of the old
	// state and open its iterator on the new one, which may be at 500.
	swap       sync.RWMutex
	generation uint64 // of the content, counted by load; swap guards it

	tally *tally.Tally
}

// visible is what readers see: one position and what belongs to it. It does not
// change.
type visible struct {
	layout.Meta
	counts        counts
	settings      Settings
	settingsGiven bool
	cleaned       uint64
	hits, misses  uint64 // of the metadata cache
	refused       bool   // puts are refused for the quota
	remembered    Remembered
}

// Open opens the state that the engine holds. An empty engine is an empty store at
// position 0. The store takes over the engine and closes it, unless Open fails.
func Open(eng engine.Engine, o Options) (*Store, error) {
	if o.CacheEntries == 0 {
		o.CacheEntries = 128 << 10
	}
	if o.HotBytes == 0 {
		o.HotBytes = defaultHotBytes
	}
	s := &Store{eng: eng, hot: hot.New(o.HotBytes), tally: tally.New(tally.Grain), observer: o.Observer, leases: o.Leases}
	s.exec = executor{
		eng: eng, timeline: &s.timeline, hot: s.hot, cache: newMetaCache(o.CacheEntries), writes: eng.NewWriteBatch(),
		rows: rows.New(eng), changedRecords: make(map[string][]byte), onSettings: o.OnSettings, observed: o.Observer != nil,
	}
	s.exec.log.Set, s.exec.guard.Rows, s.exec.guard.Observe = s.exec.setChanges, s.exec.rows.Each, o.OnRights
	if err := s.load(); err != nil {
		return nil, err
	}
	s.publish()
	return s, nil
}

// Rights returns the users, roles and tokens as of what was applied here.
func (s *Store) Rights() *rights.Tables { return s.exec.guard.Tables() }

// RightsChanged returns a channel that is closed once the store has other rights than now.
func RightsChanged(s *Store) <-chan struct{} { return s.exec.guard.Changed() }

// load reads from the engine what is kept in memory. A restored state must leave
// nothing of the old one behind: hashes by index of the old state would be compared
// with those of other replicas.
func (s *Store) load() error {
	samples, err := timeline.Read(s.eng)
	if err != nil {
		return err
	}
	if err := s.exec.load(); err != nil {
		return err
	}
	s.timeline.Reset(samples)
	s.hot.Reset()
	s.generation++
	return nil
}

func readMeta(r engine.Reader) (layout.Meta, error) {
	b, err := r.Get(nil, []byte{layout.TableMeta})
	if errors.Is(err, engine.ErrNotFound) {
		return layout.Meta{Revision: layout.FirstRevision, Compact: layout.FirstRevision, Rest: emptyHash()}, nil
	}
	if err != nil {
		return layout.Meta{}, fmt.Errorf("read position: %w", err)
	}
	return layout.DecodeMeta(b)
}

// emptyHash is the state hash of an empty store, which consists of the default
// settings.
func emptyHash() uint64 {
	var h statehash.Hasher
	settings := DefaultSettings()
	return h.Settings(encodeSettings(&settings))
}

func readSettings(r engine.Reader) (settings Settings, given bool, err error) {
	b, err := r.Get(nil, []byte{layout.TableSetting})
	if errors.Is(err, engine.ErrNotFound) {
		return DefaultSettings(), false, nil
	}
	if err != nil {
		return Settings{}, false, fmt.Errorf("read settings: %w", err)
	}
	settings, err = decodeSettings(b)
	return settings, true, err
}

func readRecords(r engine.Reader) (map[string][]byte, error) {
	out := make(map[string][]byte)
	it, err := r.Iter([]byte{layout.TableRecord}, []byte{layout.TableRecord + 1})
	if err != nil {
		return nil, fmt.Errorf("read records: %w", err)
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		out[string(it.Key()[1:])] = bytes.Clone(it.Value())
	}
	return out, it.Err()
}

// publish makes the state of the executor visible to readers.
func (s *Store) publish() {
	x := &s.exec
	if q := x.settings.QuotaBytes; q == 0 || x.now.Logical+x.refused <= q {
		x.refused = 0
	}
	s.visible.Store(&visible{
		refused: x.refused > 0, Meta: x.now, counts: x.leases.counts, settings: x.settings, settingsGiven: x.settingsGiven, cleaned: x.uncleaned.Cleaned(), hits: x.cache.hits, misses: x.cache.misses,
		remembered: x.idempotency.Stats(),
	})
}

// show makes what was applied visible, by way of the observer if there is one.
func (s *Store) show() {
	defer s.showLeases()
	if s.observer == nil {
		s.publish()
		return
	}
	changes := s.exec.observations
	s.exec.observations = nil
	s.observer.Applied(changes, s.publish)
}

// showLeases tells who waits for a lock, and who keeps the time of leases, after what
// they will look at has become visible.
func (s *Store) showLeases() {
	changes, woken := s.exec.leases.take()
	if len(woken) > 0 {
		s.waiters.Wake(woken)
	}
	if len(changes) > 0 && s.leases != nil {
		s.leases.LeasesChanged(changes)
	}
}

// Position returns the log position of the last entry that was applied.
func (s *Store) Position() Position { return s.visible.Load().Position }

// Revision returns the newest revision, which is 1 for the empty store.
func (s *Store) Revision() uint64 { return s.visible.Load().Revision }

// CompactRevision returns the oldest revision that can be read.
func (s *Store) CompactRevision() uint64 { return s.visible.Load().Compact }

// Settings returns the replicated settings.
func (s *Store) Settings() Settings { return s.visible.Load().settings }

// SettingsGiven reports whether the settings were ever set. Until then they are the
// defaults, and the leader proposes first values.
func (s *Store) SettingsGiven() bool { return s.visible.Load().settingsGiven }

// StateHash returns the state hash and the position that it belongs to.
func (s *Store) StateHash() (Position, uint64) {
	v := s.visible.Load()
	return v.Position, v.Hash()
}

// Hashes returns the state hashes at the last 64 log indexes divisible by 1,024
// that were applied since Open or Restore. Replicas under load are rarely at one
// index at the same time; these are where they can be compared.
func (s *Store) Hashes() map[uint64]uint64 { return s.timeline.Hashes() }

// lowSpacePercent is the share of the quota from which space is low.
const lowSpacePercent = 80

// Space is what the quota leaves.
type Space struct {
	UsedBytes, QuotaBytes int64 // live data as the quota counts it; no quota is 0
	// Low means that most of the quota is used.
	Low bool
	// Refused means that puts are refused: the quota is reached, or the last put
	// that was refused for it would still not fit.
	Refused bool
}

// Space returns what the quota leaves.
func (s *Store) Space() Space {
	v := s.visible.Load()
	sp := Space{UsedBytes: v.Logical, QuotaBytes: v.settings.QuotaBytes}
	if q := sp.QuotaBytes; q > 0 {
		sp.Low = v.Logical >= q/100*lowSpacePercent
		sp.Refused = v.refused || v.Logical >= q
	}
	return sp
}

// Stats are figures about the content of the store.
type Stats struct {
	Keys            uint64
	LogicalBytes    int64 // live keys and values with their overhead, as the quota counts
	HistoryBytes    int64 // superseded versions on this replica, before compression
	HistoryVersions int64
	EngineBytes     int64
	EngineName      string
}

// Work counts what the store has done since it was opened, and has left to do.
type Work struct {
	// CacheHits and CacheMisses count Apply's lookups of key metadata.
	CacheHits, CacheMisses uint64
	// UncleanedRevisions is the number of compacted revisions whose history has not
	// been removed yet.
	UncleanedRevisions uint64
	Remembered         Remembered
}

// Work returns the counters of the store's work.
func (s *Store) Work() Work {
	v := s.visible.Load()
	return Work{CacheHits: v.hits, CacheMisses: v.misses, UncleanedRevisions: v.Compact - min(v.Compact, v.cleaned), Remembered: v.remembered}
}

// EngineStats returns figures of the engine.
func (s *Store) EngineStats() engine.Stats { return s.eng.Stats() }

// Stats returns figures about the content.
func (s *Store) Stats() Stats {
	v := s.visible.Load()
	return Stats{
		Keys:            v.Keys,
		LogicalBytes:    v.Logical,
		HistoryBytes:    v.HistoryBytes,
		HistoryVersions: v.HistoryVersions,
		EngineBytes:     s.eng.SizeBytes(),
		EngineName:      s.eng.Name(),
	}
}

// Flush starts making everything that was applied durable, and returns without
// waiting for it.
func (s *Store) Flush() error { return s.eng.Flush() }

// Close makes everything that was applied durable, if the engine keeps anything, and
// releases the engine.
func (s *Store) Close() error {
	return errors.Join(s.exec.writes.Close(), s.eng.Close())
}
