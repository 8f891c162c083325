package engine

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// replaceBatchBytes is the size of the batches in which Replace writes.
const replaceBatchBytes = 1 << 20

// pebbleWriteBatch collects into a Pebble batch, which belongs to one database. If
// another generation is current by the time of Commit, the content moves over.
type pebbleWriteBatch struct {
	engine *pebbleEngine
	db     *pebble.DB
	batch  *pebble.Batch
	// err is the first error of Set or Delete, kept for Commit.
	err error
}

func (e *pebbleEngine) NewWriteBatch() WriteBatch {
	b := &pebbleWriteBatch{engine: e}
	if g, err := e.acquire(); err == nil {
		b.db = g.db
		b.err = g.release()
	}
	b.batch = newBatchOf(b.db)
	return b
}

// newBatchOf returns a batch of the database. Without one, for a closed engine, the
// batch still collects, and Commit fails.
func newBatchOf(db *pebble.DB) *pebble.Batch {
	if db == nil {
		return new(pebble.Batch)
	}
	return db.NewBatch()
}

func (b *pebbleWriteBatch) Set(key, value []byte) {
	b.err = firstError(b.err, b.batch.Set(key, value, nil))
}

func (b *pebbleWriteBatch) Delete(key []byte) {
	b.err = firstError(b.err, b.batch.Delete(key, nil))
}

// Commit waits for the disk if memtables fill faster than they are flushed.
func (b *pebbleWriteBatch) Commit() error {
	g, err := b.engine.acquire()
	if err != nil {
		return err
	}
	if err := firstError(b.commitTo(g), g.release()); err != nil {
		return fmt.Errorf("engine commit: %w", err)
	}
	return nil
}

// commitTo applies the batch to g and resets it.
func (b *pebbleWriteBatch) commitTo(g *generation) error {
	failure := b.engine.failure
	if err := firstError(b.err, failure.get()); err != nil {
		return err
	}
	if err := b.moveTo(g.db); err != nil {
		return err
	}
	if err := b.engine.backlog.wait(g.db, b.batch.Len()); err != nil {
		return err
	}
	if err := g.db.Apply(b.batch, pebble.NoSync); err != nil {
		return err
	}
	// The mark is set after the batch is in. If it were set before, a Flush in between
	// would clear it without flushing the batch, and nothing would ask again.
	b.engine.unflushed.Store(true)
	b.Reset()
	// Pebble reports some failed commits only through its logger.
	return failure.get()
}

func (b *pebbleWriteBatch) moveTo(db *pebble.DB) error {
	if b.db == db {
		return nil
	}
	moved := db.NewBatch()
	if err := firstError(moved.Apply(b.batch, nil), b.batch.Close()); err != nil {
		return err
	}
	b.db, b.batch = db, moved
	return nil
}

func (b *pebbleWriteBatch) Reset() {
	b.err = nil
	b.batch.Reset()
}

func (b *pebbleWriteBatch) Close() error { return b.batch.Close() }

// Replace fills a new generation beside the current one, makes it durable, and only
// then names it in CURRENT, so that a crash at any step leaves one of the two complete
// (E1). Readers use the current one meanwhile.
func (e *pebbleEngine) Replace(fill func(set func(key, value []byte) error) error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	old := e.current.Load()
	if old == nil {
		return ErrClosed
	}
	if err := e.failure.get(); err != nil {
		return fmt.Errorf("replace: %w", err)
	}
	next, err := e.fillGeneration(old.number+1, fill)
	if err != nil {
		return fmt.Errorf("replace: %w", err)
	}
	if err := e.switchTo(next, old); err != nil {
		return fmt.Errorf("replace: %w", err)
	}
	return nil
}

// fillGeneration returns a new generation with what fill writes, all of it durable.
func (e *pebbleEngine) fillGeneration(number uint64, fill func(set func(key, value []byte) error) error) (*generation, error) {
	// An earlier Replace that failed may have left its directory.
	if err := e.dir.removeGeneration(number); err != nil {
		return nil, err
	}
	g, err := e.openGeneration(number, mustNotExist)
	if err != nil {
		return nil, err
	}
	err = g.load(fill)
	if err == nil {
		err = g.flush(e.failure)
	}
	if err == nil {
		err = e.dir.sync()
	}
	if err != nil {
		g.obsolete.Store(true)
		return nil, firstError(err, g.release())
	}
	return g, nil
}

// load writes what fill writes, without waiting for it to be durable.
func (g *generation) load(fill func(set func(key, value []byte) error) error) error {
	b := &pebbleWriteBatch{engine: g.engine, db: g.db, batch: g.db.NewBatch()}
	err := fill(func(key, value []byte) error {
		b.Set(key, value)
		if b.batch.Len() < replaceBatchBytes {
			return b.err
		}
		return b.commitTo(g)
	})
	if err == nil {
		err = b.commitTo(g)
	}
	return firstError(err, b.Close())
}

// switchTo makes next the current generation and retires old.
func (e *pebbleEngine) switchTo(next, old *generation) error {
	if err := e.dir.setCurrent(next.number); err != nil {
		// It is unknown which of the two CURRENT names now. Neither may be removed,
		// and nothing may be written that could turn out to be lost.
		e.failure.report(err)
		return firstError(err, next.release())
	}
	e.current.Store(next)
	e.unflushed.Store(false)
	e.sizeStale.Store(true)
	old.obsolete.Store(true)
	return old.release()
}
