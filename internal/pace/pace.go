// Package pace reads bodies and writes answers at the pace of a client, within limits:
// of time for each piece, and of memory for the whole.
//
// # Invariants
//
//	P1  A client that sends or accepts nothing is noticed within the time of one
//	    piece, however large the body or the answer is.
//	P2  Memory is allocated as bytes arrive, not as they are announced: first a little,
//	    then budget.Free, which needs no claim, budget.Small, and the declared size
//	    only once that much has arrived. A client that announces 64 MiB and sends
//	    nothing costs next to nothing.
//	P3  What is allocated beyond budget.Free has been claimed before.
package pace

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"github.com/kvd-io/kvd/internal/budget"
)

const (
	// step is how many bytes of a body must arrive within stepTime.
	step     = 64 << 10
	stepTime = 10 * time.Second
	// bodyGrace is how long a body may take in total, in addition to what minRate
	// allows for its size. Without it, one that arrives just fast enough for each
	// step could hold 64 MiB for hours.
	bodyGrace = 30 * time.Second
	// minRate is the average rate, in bytes per second, that a client must reach.
	minRate = 64 << 10
	// piece is how many bytes of an answer are written against one deadline.
	piece = 256 << 10
	// pieceGrace is how long a client may accept nothing of an answer that is
	// held in memory.
	pieceGrace = 10 * time.Second
	// unknown is the first buffer for a body of unknown length, and announced that for
	// a longer one than it.
	unknown, announced = 512, 4 << 10
)

// Errors of ReadBody, besides a *budget.FullError.
var (
	ErrTooLarge = errors.New("the body exceeds its limit")
	ErrSlow     = errors.New("the body arrived too slowly")
	ErrBroken   = errors.New("reading the body failed")
)

// Conn is the connection of a request: an *http.ResponseController. A writer without a
// connection, in tests, has no deadlines to set, so errors are ignored.
type Conn interface {
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
}

// Body is a body that is to be read into memory.
type Body struct {
	From     io.Reader
	Conn     Conn
	Declared int64 // -1 if it is unknown
	Limit    int64 // of its size
	Claim    *budget.Claim

	end  time.Time // when all of it must have arrived
	mark int       // where the next step begins
}

// Read returns the whole body. The claim then covers it.
func (b *Body) Read(ctx context.Context) ([]byte, error) {
	size := b.Declared
	if size < 0 {
		size = b.Limit
	}
	b.end = time.Now().Add(bodyGrace + TransferTime(size))
	first := int64(unknown)
	if b.Declared >= 0 {
		first = min(b.Declared, announced)
	}
	buf := make([]byte, 0, first)
	for int64(len(buf)) != b.Declared {
		if len(buf) == cap(buf) {
			var err error
			if buf, err = b.grow(ctx, buf); err != nil {
				return nil, err
			}
		}
		b.limitTime(len(buf))
		n, err := b.From.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		switch {
		case int64(len(buf)) > b.Limit:
			return nil, ErrTooLarge
		case err == io.EOF && (b.Declared < 0 || int64(len(buf)) == b.Declared):
			return buf, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, ErrSlow
		case err != nil:
			return nil, ErrBroken
		}
	}
	return buf, nil
}

// grow returns a larger buffer with the same content. Both exist while it copies.
func (b *Body) grow(ctx context.Context, buf []byte) ([]byte, error) {
	size, both := min(2*int64(cap(buf)), b.Limit+1), int64(len(buf)) // one byte more shows that it is too large
	switch {
	case cap(buf) < budget.Free:
		size, both = budget.Free, 0
	case cap(buf) < budget.Small:
		size, both = budget.Small, 0 // the old one needed no claim
	case b.Declared >= 0:
		size = b.Declared
	}
	if b.Declared >= 0 {
		size = min(size, b.Declared)
	}
	if err := b.Claim.Wait(ctx, size+both); err != nil {
		return nil, err
	}
	larger := append(make([]byte, 0, size), buf...)
	b.Claim.Lower(size)
	return larger, nil
}

// limitTime sets the deadline for the next step, once the one before has arrived.
func (b *Body) limitTime(arrived int) {
	if arrived < b.mark {
		return
	}
	b.mark = arrived + step
	at := time.Now().Add(stepTime)
	if at.After(b.end) {
		at = b.end
	}
	_ = b.Conn.SetReadDeadline(at)
}

// Write writes parts of an answer that are held in memory, in pieces, each against a
// deadline of its own.
func Write(conn Conn, to io.Writer, parts ...[]byte) error {
	for _, p := range parts {
		for len(p) > 0 {
			n := min(len(p), piece)
			_ = conn.SetWriteDeadline(time.Now().Add(pieceGrace + TransferTime(int64(n))))
			if _, err := to.Write(p[:n]); err != nil {
				return err
			}
			p = p[n:]
		}
	}
	return nil
}

// TransferTime returns how long size bytes may take.
func TransferTime(size int64) time.Duration {
	return time.Duration(size/minRate) * time.Second
}
