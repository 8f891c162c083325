package node

import (
	"io"
	"time"
)

// politeWriter makes room for requests while a backup is streamed: when
// entries were applied since the last piece, it rests for longer than the piece
// took to make. Where nothing else is to do it does not slow down.
type politeWriter struct {
	w       io.Writer
	applied func() uint64
	seen    uint64
	since   time.Time // end of the last piece; zero before the first
}

const (
	// restFactor leaves a backup a third of the time.
	restFactor = 2
	// maxRest bounds what one piece that took long, because its reader was
	// slow, costs.
	maxRest = 20 * time.Millisecond
)

// Write implements io.Writer.
func (p *politeWriter) Write(b []byte) (int, error) {
	var work time.Duration
	if !p.since.IsZero() {
		work = time.Since(p.since)
	}
	n, err := p.w.Write(b)
	if at := p.applied(); at != p.seen {
		p.seen = at
		time.Sleep(min(restFactor*work, maxRest))
	}
	p.since = time.Now()
	return n, err
}
