package engine

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// replaceBatchBytes is how much Replace collects before it writes.
const replaceBatchBytes = 1 << 20

// pebbleWriteBatch collects into a batch of one generation, because Pebble ties
// batches to a database. If that one has been replaced by the time of Commit,
// the content moves over.
type pebbleWriteBatch struct {
	engine *pebbleEngine
	db     *pebble.DB
	batch  *pebble.Batch
	// err is the first error of a write, kept for Commit.
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

// newBatchOf makes a batch that can also collect for a closed engine; its
// Commit will fail.
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

// Commit may wait for the disk when memtables fill faster than they are
// flushed.
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
	// After the batch is in, never before: a Flush in between would take the
	// mark away and leave the batch.
	b.engine.unflushed.Store(true)
	b.Reset()
	// Pebble tells of a failed commit only through its logger.
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

// Replace fills a new generation beside the current one, makes it durable, and
// only then names it in CURRENT: a crash at any step finds one of the two
// whole. fill works while readers go on.
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

// fillGeneration returns a generation with fill's content, all of it durable.
func (e *pebbleEngine) fillGeneration(number uint64, fill func(set func(key, value []byte) error) error) (*generation, error) {
	// An earlier Replace may have failed so badly that it left its directory.
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

// load writes what fill gives, without waiting for it to be durable.
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
		// Which of the two CURRENT names now is unknown, so neither may be
		// removed, and nothing may be written that could turn out lost.
		e.failure.report(err)
		return firstError(err, next.release())
	}
	e.current.Store(next)
	e.unflushed.Store(false)
	e.sizeStale.Store(true)
	old.obsolete.Store(true)
	return old.release()
}
