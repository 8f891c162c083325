package engine

import (
	"fmt"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
)

// pebbleFormat is the version of Pebble's own files. Raising it changes the format on
// disk: older binaries cannot open the directory afterward.
const pebbleFormat = pebble.FormatTableFormatV6

// filterBitsPerKey gives about 1 % false positives.
const filterBitsPerKey = 10

// generation is one Pebble database, with a count of its users.
type generation struct {
	engine *pebbleEngine
	number uint64
	db     *pebble.DB
	// refs is one for the engine while this generation is current or being filled,
	// plus one for each reader. At zero the database is closed, and it never rises
	// from zero.
	refs atomic.Int64
	// obsolete is set when another generation has taken over, or when this one never
	// will. The directory is then removed when the database is closed.
	obsolete atomic.Bool
}

// existence is what openGeneration expects to find.
type existence bool

const (
	mustNotExist existence = false
	mustExist    existence = true
)

func (e *pebbleEngine) openGeneration(number uint64, expected existence) (*generation, error) {
	opts := e.pebbleOptions()
	opts.ErrorIfNotExists = expected == mustExist
	opts.ErrorIfExists = expected == mustNotExist
	scheduler := newCompactions()
	opts.Experimental.CompactionScheduler = scheduler
	db, err := e.openDatabase(e.dir.generationPath(number), opts)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", generationName(number), err)
	}
	scheduler.start()
	g := &generation{engine: e, number: number, db: db}
	g.refs.Store(1)
	e.open.Add(1)
	return g, nil
}

// openDatabase opens a database, or gives up when work in the background fails. Pebble
// flushes what its log holds before Open returns, and repeats that for as long as it
// fails. After the first failure, that is forever (see failStopFS).
func (e *pebbleEngine) openDatabase(path string, opts *pebble.Options) (*pebble.DB, error) {
	failing := make(chan struct{}, 1)
	opts.EventListener.BackgroundError = func(err error) {
		e.failure.report(err)
		select {
		case failing <- struct{}{}:
		default: // one is enough
		}
	}
	type opened struct {
		db  *pebble.DB
		err error
	}
	done := make(chan opened, 1)
	go func() {
		db, err := pebble.Open(path, opts)
		done <- opened{db, err}
	}()
	select {
	case o := <-done:
		return o.db, o.err
	case <-failing:
		go func() { // a compaction has failed, not the flush, if Open returns after all
			if o := <-done; o.err == nil {
				_ = o.db.Close()
			}
		}()
		return nil, e.failure.get()
	}
}

// tryAcquire adds a reader, unless the generation is already closed.
func (g *generation) tryAcquire() bool {
	for {
		n := g.refs.Load()
		if n == 0 {
			return false
		}
		if g.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// release undoes tryAcquire, or gives up the engine's own reference. The last call
// closes the database and returns its error.
func (g *generation) release() error {
	if g.refs.Add(-1) > 0 {
		return nil
	}
	err := g.db.Close()
	g.engine.open.Add(-1)
	if g.obsolete.Load() {
		err = firstError(err, g.engine.dir.removeGeneration(g.number))
	}
	if err != nil {
		return fmt.Errorf("close %s: %w", generationName(g.number), err)
	}
	return nil
}

// flush returns when everything that was committed is durable.
func (g *generation) flush(f *failure) error {
	if err := f.get(); err != nil {
		return err
	}
	flushed, err := g.db.AsyncFlush()
	if err != nil {
		return fmt.Errorf("flush %s: %w", generationName(g.number), err)
	}
	// Pebble retries a failed flush forever, so flushed may never be closed.
	select {
	case <-flushed:
	case <-f.failed:
	}
	return f.get()
}

func (e *pebbleEngine) pebbleOptions() *pebble.Options {
	opts := &pebble.Options{
		Cache:                       e.cache,
		Comparer:                    e.opts.Comparer,
		DisableWAL:                  true,
		EventListener:               e.listener(),
		FS:                          e.opts.FS,
		FormatMajorVersion:          pebbleFormat,
		MaxOpenFiles:                e.opts.OpenFiles,
		ReadOnly:                    e.opts.ReadOnly,
		Logger:                      pebbleLogger{e.opts.Logger, e.failure},
		MemTableSize:                e.opts.MemTableBytes,
		MemTableStopWritesThreshold: noLimit, // see backlog
		L0StopWritesThreshold:       noLimit,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 2 },
		L0CompactionThreshold:       e.opts.Compaction.Runs,
		LBaseMaxBytes:               e.opts.Compaction.BaseBytes,
	}
	opts.TargetFileSizes[0] = e.opts.Compaction.FileBytes
	// Each table of the store (the first byte of its keys) gets files of its own.
	// The change log and the time samples are written in ascending order, so their
	// files never overlap and never need merging. A file that held the end of one
	// table and the beginning of the next would overlap with every other such file,
	// and be merged again and again.
	// The values of older versions stay beside their keys. Pebble would move them to
	// blocks of their own, which it holds, each in a buffer of 32 KiB, until the file is
	// complete: a quarter of the CPU of writing versions.
	inline := pebble.SpanPolicy{DisableValueSeparationBySuffix: true}
	opts.Experimental.SpanPolicyFunc = func(start []byte) (pebble.SpanPolicy, []byte, error) {
		if len(start) == 0 || start[0] == 0xFF {
			return inline, nil, nil
		}
		return inline, []byte{start[0] + 1}, nil
	}
	// The last level gets a filter too, although it has nine tenths of the keys and
	// Pebble would spare it: Apply looks up new keys, which are in no level, and
	// without a filter each of them reads a block.
	for i := range opts.Levels {
		opts.Levels[i].BlockSize = e.opts.BlockBytes
		opts.Levels[i].FilterPolicy = bloom.FilterPolicy(filterBitsPerKey)
	}
	return opts
}

func (e *pebbleEngine) listener() *pebble.EventListener {
	progressed := func() {
		e.sizeStale.Store(true)
		e.backlog.progressed()
	}
	return &pebble.EventListener{
		DataCorruption: func(info pebble.DataCorruptionInfo) {
			e.failure.report(fmt.Errorf("%w: %s: %w", ErrDamaged, info.Path, info.Details))
		},
		FlushEnd:      func(pebble.FlushInfo) { progressed() },
		CompactionEnd: func(pebble.CompactionInfo) { progressed() },
		TableDeleted:  func(pebble.TableDeleteInfo) { e.sizeStale.Store(true) },
	}
}

// pebbleLogger forwards Pebble's messages. Pebble expects Fatalf not to return. If it
// does return, as here, Pebble passes the error up, keeps its previous state and
// tries again, which failStopFS prevents from reaching the disk.
type pebbleLogger struct {
	log     Logger
	failure *failure
}

func (l pebbleLogger) Infof(format string, args ...any) {
	if l.log != nil {
		l.log.Infof(format, args...)
	}
}

func (l pebbleLogger) Errorf(format string, args ...any) {
	if l.log != nil {
		l.log.Errorf(format, args...)
	}
}

func (l pebbleLogger) Fatalf(format string, args ...any) {
	err := fatalError{text: fmt.Sprintf(format, args...)}
	for _, a := range args {
		if cause, ok := a.(error); ok {
			err.cause = cause
		}
	}
	l.failure.report(err)
}

// fatalError is a message of Pebble's, which has the text of an error but not the error.
type fatalError struct {
	text  string
	cause error // nil if there is none
}

func (e fatalError) Error() string { return e.text }
func (e fatalError) Unwrap() error { return e.cause }
