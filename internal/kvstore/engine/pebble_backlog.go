package engine

import (
	"github.com/cockroachdb/pebble/v2"
)

const (
	// maxMemTables bounds the memory that waits for a flush, in memtables.
	maxMemTables = 3
	// maxSublevels bounds the tables in L0 that one lookup may have to read. Pebble's
	// default of 12 would stop writes during a burst of the small tables that
	// periodic flushes make.
	maxSublevels = 64
	// looksPerMemTable is how often the backlog is measured while a memtable fills. A
	// measurement takes about ten microseconds.
	looksPerMemTable = 16

	// noLimit turns off Pebble's own limits on its backlog.
	noLimit = 1 << 30
)

// backlog makes the writer wait for flushes and compactions. Pebble can do that
// itself, but it retries a failed flush forever, and its writers wait as long: the
// process could not even stop.
type backlog struct {
	lookBytes int
	memBytes  uint64
	log       Logger
	failure   *failure
	// progress holds a token if something was flushed or compacted since the last
	// look. Pebble's event goroutines send, the writer receives.
	progress chan struct{}
	// unseen is the number of bytes committed since the last look. It belongs to the
	// writer.
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

// progressed never blocks, because Pebble calls it with its locks held.
func (b *backlog) progressed() {
	select {
	case b.progress <- struct{}{}:
	default:
	}
}

// wait returns when db can take the next batch of n bytes, or with the failure that
// prevents it.
func (b *backlog) wait(db *pebble.DB, n int) error {
	b.unseen += n
	if b.unseen < b.lookBytes {
		return nil
	}
	b.unseen = 0
	if !b.full(db) {
		return nil
	}
	b.say("writes stalled until the disk catches up")
	for b.full(db) {
		select {
		case <-b.progress:
		case <-b.failure.failed:
			return b.failure.get()
		}
	}
	b.say("writes resumed")
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
