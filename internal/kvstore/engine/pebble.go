package engine

import (
	"fmt"
	iofs "io/fs"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// PebbleOptions configure the engine on disk. The zero value is usable.
type PebbleOptions struct {
	// CacheBytes bounds the block cache and the memtables together, because
	// memtables are charged to the cache. 0 means 64 MiB.
	CacheBytes int64
	// OpenFiles bounds the files that are open at the same time, of at least 32. 0
	// means Pebble's default, 1000.
	OpenFiles int
	// MemTableBytes is the size at which a memtable is flushed without being asked
	// to. With maxMemTables of them in memory, Commit waits for the disk. 0 means a
	// quarter of CacheBytes.
	MemTableBytes uint64
	// BlockBytes is the size of a block of a file before compression, which is what a
	// read reads. 0 means 8 KiB.
	BlockBytes int
	// Compaction says when Pebble merges files, and into how large ones.
	Compaction Compaction
	// Comparer orders the keys and says where the prefix of a key ends, which is the
	// part that filters are about. Its name is written to disk, and a directory
	// cannot be opened with a comparer of another name. nil means the order of the
	// bytes, with the whole key as the prefix.
	Comparer *pebble.Comparer
	// FS is where the files are. nil means the file system of the machine.
	FS vfs.FS
	// Logger gets messages about write stalls and Pebble's own messages. It may be
	// nil.
	Logger Logger
	// OnFatal is called at most once, with the first error after which the disk
	// cannot be trusted: a failed sync, flush or compaction, or a corrupt block. From
	// then on nothing is written, no batch becomes durable, and every write and
	// every look at the durable state fails. OnFatal is called with Pebble's locks
	// held, possibly before OpenPebble returns; it must neither block nor use the
	// engine.
	OnFatal func(error)
	// ReadOnly opens existing files and changes none of them. A directory without
	// files is an error.
	ReadOnly bool
}

// Compaction is a style of compaction. Zero values mean Pebble's defaults.
type Compaction struct {
	// Runs is how many sorted runs of the first level start a compaction of it.
	Runs int
	// BaseBytes is the size of the level below the first one at which it is compacted
	// into the next, and FileBytes that of a file of the first level.
	BaseBytes, FileBytes int64
}

// Logger takes messages for the operator. A *zap.SugaredLogger is a Logger.
type Logger interface {
	Infof(format string, args ...any)
	Errorf(format string, args ...any)
}

const (
	defaultCacheBytes = 64 << 20
	// memTableShare is the part of CacheBytes that a memtable has by default.
	memTableShare = 4
	// defaultBlockBytes is twice Pebble's, because blocks hold all versions of a key.
	defaultBlockBytes = 8 << 10
)

func (o PebbleOptions) withDefaults() PebbleOptions {
	if o.CacheBytes == 0 {
		o.CacheBytes = defaultCacheBytes
	}
	if o.MemTableBytes == 0 {
		o.MemTableBytes = uint64(o.CacheBytes / memTableShare)
	}
	if o.BlockBytes == 0 {
		o.BlockBytes = defaultBlockBytes
	}
	if o.Comparer == nil {
		o.Comparer = pebble.DefaultComparer
	}
	if o.FS == nil {
		o.FS = vfs.Default
	}
	return o
}

// pebbleEngine keeps its content in one generation: a Pebble database in a
// subdirectory of its own, which the file CURRENT names. Replace fills another
// generation and then moves CURRENT to it. See E1 to E4 of the package comment.
type pebbleEngine struct {
	opts    PebbleOptions
	dir     *pebbleDir
	cache   *pebble.Cache
	failure *failure
	backlog *backlog

	// current is nil once the engine is closed. Readers acquire it; Replace and Close
	// change it, holding mu.
	current atomic.Pointer[generation]
	// open counts the generations whose database is still open.
	open atomic.Int64
	// unflushed is true if a batch was committed since the last Flush. An idle store
	// is asked to flush periodically, and an empty flush would still write to disk.
	unflushed atomic.Bool

	// sizeStale is set by Pebble's events if sizeBytes has to be measured again.
	// Measuring takes Pebble's lock, and SizeBytes is called for each status request.
	sizeStale atomic.Bool
	sizeBytes atomic.Int64

	// mu makes Replace and Close exclude each other. It is held while Replace fills
	// a generation, so Close waits for that.
	mu sync.Mutex
}

// OpenPebble opens the engine in dir, which is created if necessary and locked against
// other processes until Close. A directory that holds databases but does not say which
// of them counts is refused: guessing could bring back an old state, or remove the
// current one.
func OpenPebble(dir string, opts PebbleOptions) (Engine, error) {
	opts = opts.withDefaults()
	f := newFailure(opts.OnFatal)
	opts.FS = failStopFS{opts.FS, f}
	d := &pebbleDir{fs: opts.FS, path: dir} // Pebble itself locks the database
	if !opts.ReadOnly {
		var err error
		if d, err = openPebbleDir(opts.FS, dir); err != nil {
			return nil, fmt.Errorf("open engine: %w", err)
		}
	}
	e := &pebbleEngine{
		opts:    opts,
		dir:     d,
		cache:   pebble.NewCache(opts.CacheBytes),
		failure: f,
		backlog: newBacklog(opts, f),
	}
	e.sizeStale.Store(true)
	if err := e.openCurrent(); err != nil {
		e.cache.Unref()
		return nil, fmt.Errorf("open engine: %w", firstError(err, d.close()))
	}
	return e, nil
}

// openCurrent opens the generation that counts, or creates the first one, and removes
// what a crash left of others.
func (e *pebbleEngine) openCurrent() error {
	number, err := e.dir.current()
	if err != nil {
		return damage(err)
	}
	if e.opts.ReadOnly {
		if number == noGeneration {
			return fmt.Errorf("%s: %w", e.dir.path, iofs.ErrNotExist)
		}
		g, err := e.openGeneration(number, mustExist)
		e.current.Store(g)
		return damage(err)
	}
	if number == noGeneration {
		return e.createFirst()
	}
	// Others are removed only now, when this one is known to exist and to be readable.
	g, err := e.openGeneration(number, mustExist)
	if err != nil {
		return damage(err)
	}
	if err := firstError(e.dir.removeAllBut(number), e.failure.get()); err != nil {
		return firstError(err, g.release())
	}
	e.current.Store(g)
	return nil
}

func (e *pebbleEngine) createFirst() error {
	g, err := e.fillGeneration(noGeneration+1, func(func(key, value []byte) error) error { return nil })
	if err != nil {
		return err
	}
	if err := firstError(e.dir.setCurrent(g.number), e.failure.get()); err != nil {
		return firstError(err, g.release())
	}
	e.current.Store(g)
	return nil
}

// acquire returns the current generation, which stays open until it is released.
func (e *pebbleEngine) acquire() (*generation, error) {
	for {
		g := e.current.Load()
		if g == nil {
			return nil, ErrClosed
		}
		// Replace may have retired g since it was loaded. The next load then finds its
		// successor.
		if g.tryAcquire() {
			return g, nil
		}
	}
}

func (e *pebbleEngine) Name() string { return "pebble" }

func (e *pebbleEngine) Get(dst, key []byte) ([]byte, error) {
	g, err := e.acquire()
	if err != nil {
		return dst, err
	}
	dst, err = getFrom(g.db, dst, key)
	return dst, firstError(err, g.release())
}

func (e *pebbleEngine) Iter(lower, upper []byte) (Iterator, error) {
	g, err := e.acquire()
	if err != nil {
		return nil, err
	}
	return newPebbleIter(g, g.db, lower, upper)
}

func (e *pebbleEngine) Snapshot() Snapshot {
	g, err := e.acquire()
	if err != nil {
		return brokenSnapshot{err}
	}
	return &pebbleSnapshot{gen: g, snap: g.db.NewSnapshot()}
}

// Durable pins memtables and tables, so it must not be kept for long.
func (e *pebbleEngine) Durable() Snapshot {
	// After a failed sync, what Pebble considers durable may not be: releasing the log
	// up to it would lose writes.
	if err := e.failure.get(); err != nil {
		return brokenSnapshot{err}
	}
	g, err := e.acquire()
	if err != nil {
		return brokenSnapshot{err}
	}
	return newDurableSnapshot(g)
}

func (e *pebbleEngine) Flush() error {
	if err := e.failure.get(); err != nil {
		return fmt.Errorf("flush engine: %w", err)
	}
	if !e.unflushed.Swap(false) {
		return nil
	}
	g, err := e.acquire()
	if err != nil {
		return err
	}
	_, err = g.db.AsyncFlush()
	if err = firstError(err, g.release()); err != nil {
		return fmt.Errorf("flush engine: %w", err)
	}
	return nil
}

// SizeBytes returns the size of the files of the current generation, including those
// that are about to be removed.
func (e *pebbleEngine) SizeBytes() int64 {
	if !e.sizeStale.Swap(false) {
		return e.sizeBytes.Load()
	}
	g, err := e.acquire()
	if err != nil {
		return 0
	}
	size := int64(g.db.Metrics().DiskSpaceUsage())
	e.sizeBytes.Store(size)
	if err := g.release(); err != nil {
		e.failure.report(err)
	}
	return size
}

func (e *pebbleEngine) Stats() Stats {
	g, err := e.acquire()
	if err != nil {
		return Stats{}
	}
	m := g.db.Metrics()
	if err := g.release(); err != nil {
		e.failure.report(err)
	}
	return Stats{
		Flushes:             uint64(m.Flush.Count),
		Compactions:         uint64(m.Compact.Count),
		CompactionDebtBytes: m.Compact.EstimatedDebt,
		MemTableBytes:       m.MemTable.Size,
		ReadAmplification:   m.ReadAmp(),
		CacheBytes:          m.BlockCache.Size,
		CacheHits:           m.BlockCache.Hits,
		CacheMisses:         m.BlockCache.Misses,
	}
}

// Close flushes, so that a clean stop leaves nothing to replay. Readers should be closed
// before. If some are not, Close reports them in its error, and the database is closed
// with the last of them.
func (e *pebbleEngine) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	g := e.current.Swap(nil)
	if g == nil {
		return nil
	}
	var err error
	if !e.opts.ReadOnly {
		err = g.flush(e.failure)
	}
	err = firstError(err, g.release())
	e.cache.Unref()
	err = firstError(err, e.dir.close())
	if n := e.open.Load(); err == nil && n > 0 {
		err = fmt.Errorf("snapshots or iterators of %d generations are still open", n)
	}
	if err != nil {
		return fmt.Errorf("close engine: %w", err)
	}
	return nil
}

// firstError returns the first of errs that is not nil. It is for steps that must all
// be taken, whether the others fail or not; later errors mostly follow from the first.
func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
