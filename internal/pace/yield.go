package pace

import (
	"io"
	"time"
)

// Yielding makes room for requests while a backup is streamed: if entries
// were applied since the last piece, it rests for longer than that piece took
// to make. On an idle node it does not slow down.
//
// Pebble's reads and zstd would otherwise take every core that requests leave
// idle for a moment, and with it the caches and the disk.
type Yielding struct {
	W       io.Writer
	Applied func() uint64
	seen    uint64
	since   time.Time // end of the last piece; zero before the first
}

const (
	// restFactor leaves a backup a third of the time.
	restFactor = 2
	// maxRest bounds the rest after a piece that took long because its reader
	// was slow.
	maxRest = 20 * time.Millisecond
)

// Write implements io.Writer.
func (y *Yielding) Write(b []byte) (int, error) {
	var work time.Duration
	if !y.since.IsZero() {
		work = time.Since(y.since)
	}
	n, err := y.W.Write(b)
	if at := y.Applied(); at != y.seen {
		y.seen = at
		time.Sleep(min(restFactor*work, maxRest))
	}
	y.since = time.Now()
	return n, err
}
