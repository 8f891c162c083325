package engine

import (
	"github.com/cockroachdb/pebble/v2"
)

const (
	// maxMemTables bounds the memory of what waits for its flush: this many
	// times MemTableBytes.
	maxMemTables = 3
	// maxSublevels bounds the tables that one lookup may have to read. Flushes
	// by time make small ones, in bursts that are no reason to stop writes.
	maxSublevels = 64
	// looksPerMemTable is how often the backlog is measured while a memtable
	// fills. It costs some ten microseconds.
	looksPerMemTable = 16

	// noLimit is for Pebble's own limits on its backlog.
	noLimit = 1 << 30
)

// backlog makes writers wait for flushes and compactions. Pebble can do that
// itself, but repeats a failed flush for ever, and its writers wait as long:
// the process could not even stop.
type backlog struct {
	lookBytes int
	memBytes  uint64
	log       Logger
	failure   *failure
	// progress holds a token if something was flushed or compacted since the
	// last look.
	progress chan struct{}
	// unseen is the bytes committed since the last look; the writer's.
	unseen int
}

func newBacklog(opts PebbleOptions, f *failure) *backlog {
	return &backlog{
		lookBytes: int(opts.MemTableBytes / looksPerMemTable),
		memBytes:  maxMemTables * opts.MemTableBytes,
		log:       opts.Logger,
		failure:   f,
		progress:  make(chan struct{}, 1),
	}
}

// progressed never blocks; Pebble calls it with its locks held.
func (b *backlog) progressed() {
	select {
	case b.progress <- struct{}{}:
	default:
	}
}

// wait returns when db can take the next batch of n bytes, or with the failure
// that keeps it from it.
func (b *backlog) wait(db *pebble.DB, n int) error {
	b.unseen += n
	if b.unseen < b.lookBytes {
		return nil
	}
	b.unseen = 0
	if !b.full(db) {
		return nil
	}
	b.say("engine: writes wait for the disk")
	for b.full(db) {
		select {
		case <-b.progress:
		case <-b.failure.failed:
			return b.failure.get()
		}
	}
	b.say("engine: writes go on")
	return nil
}

func (b *backlog) full(db *pebble.DB) bool {
	m := db.Metrics()
	return m.MemTable.Size >= b.memBytes && m.MemTable.Count > 1 ||
		m.Levels[0].Sublevels >= maxSublevels
}

func (b *backlog) say(message string) {
	if b.log != nil {
		b.log.Infof("%s", message)
	}
}
