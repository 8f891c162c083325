package engine

import (
	"fmt"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
)

// pebbleFormat is the version of Pebble's own files. Raising it is a format
// change: older binaries cannot open the directory afterwards.
const pebbleFormat = pebble.FormatTableFormatV6

const filterBitsPerKey = 10

// generation is one Pebble database and the count of those who use it.
type generation struct {
	engine *pebbleEngine
	number uint64
	db     *pebble.DB
	// refs is one for the engine while this generation is current or being
	// filled, and one for each reader. At zero the database is closed.
	refs atomic.Int64
	// obsolete is set when another generation has taken over, or when this one
	// never will: its directory goes with it.
	obsolete atomic.Bool
}

// existence says what openGeneration expects to find.
type existence bool

const (
	mustNotExist existence = false
	mustExist    existence = true
)

func (e *pebbleEngine) openGeneration(number uint64, expected existence) (*generation, error) {
	opts := e.pebbleOptions()
	opts.ErrorIfNotExists = expected == mustExist
	opts.ErrorIfExists = expected == mustNotExist
	db, err := pebble.Open(e.dir.generationPath(number), opts)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", generationName(number), err)
	}
	g := &generation{engine: e, number: number, db: db}
	g.refs.Store(1)
	e.open.Add(1)
	return g, nil
}

// tryAcquire adds a reader unless the generation is already gone.
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

// release undoes tryAcquire, or gives up the engine's own hold. Its error is
// that of closing the database, which the last one does.
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

// flush makes everything committed so far durable before it returns.
func (g *generation) flush(f *failure) error {
	if err := f.get(); err != nil {
		return err
	}
	flushed, err := g.db.AsyncFlush()
	if err != nil {
		return fmt.Errorf("flush %s: %w", generationName(g.number), err)
	}
	// Pebble tries a failed flush again without end, so that flushed may never
	// be closed.
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
		Logger:                      pebbleLogger{e.opts.Logger, e.failure},
		MemTableSize:                e.opts.MemTableBytes,
		MemTableStopWritesThreshold: noLimit, // see backlog
		L0StopWritesThreshold:       noLimit,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 2 },
	}
	// Each table of the store (the first byte of its keys) has files of its own.
	// A file with the end of one and the beginning of the next would overlap
	// with every other of its kind, and be merged with them again and again,
	// though most tables are written in ascending order.
	opts.Experimental.SpanPolicyFunc = func(start []byte) (pebble.SpanPolicy, []byte, error) {
		if len(start) == 0 || start[0] == 0xFF {
			return pebble.SpanPolicy{}, nil, nil
		}
		return pebble.SpanPolicy{}, []byte{start[0] + 1}, nil
	}
	// Also for the last level, which has nine tenths of the keys: a new key is
	// looked for there too, and without a filter that reads a block.
	for i := range opts.Levels {
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
		BackgroundError: e.failure.report,
		DataCorruption: func(info pebble.DataCorruptionInfo) {
			e.failure.report(fmt.Errorf("corrupt file %s: %w", info.Path, info.Details))
		},
		FlushEnd:      func(pebble.FlushInfo) { progressed() },
		CompactionEnd: func(pebble.CompactionInfo) { progressed() },
		TableDeleted:  func(pebble.TableDeleteInfo) { e.sizeStale.Store(true) },
	}
}

// pebbleLogger hands Pebble's messages on. Pebble expects Fatalf not to return.
// Where it does for a failed write, Pebble passes the error up, stays in the
// state before and tries again, which failStopFS prevents.
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
	l.failure.report(fmt.Errorf(format, args...))
}
