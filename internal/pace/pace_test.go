package pace

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvd-io/kvd/internal/budget"
)

const mib = 1 << 20

// read reads a body of which the client sends sent bytes at once and then, if it is
// dripping, one byte a second.
func read(t *testing.T, b *budget.Budget, declared int64, sent int, drip bool) (n int, claimed int64, took time.Duration, err error) {
	t.Helper()
	ours, theirs := net.Pipe()
	begin, ended := time.Now(), make(chan struct{})
	go func() {
		defer close(ended)
		_, err := ours.Write(make([]byte, sent))
		for drip && err == nil {
			time.Sleep(time.Second)
			_, err = ours.Write([]byte{0})
		}
	}()
	claim := b.Claim()
	body := Body{From: theirs, Conn: theirs, Declared: declared, Limit: 64 * mib, Claim: &claim}
	got, err := body.Read(t.Context())
	took, claimed = time.Since(begin), claim.Bytes()
	claim.Release()
	_ = ours.Close()
	_ = theirs.Close()
	<-ended
	return len(got), claimed, took, err
}

// A body costs what has arrived until Small has, and then its size, and it must arrive
// step by step (P1, P2, P3).
func TestBodies(t *testing.T) {
	for name, c := range map[string]struct {
		declared int64
		sent     int
		drip     bool
		n        int
		claimed  int64
		took     time.Duration
		err      error
	}{
		"whole, free":            {10, 10, false, 10, 0, 0, nil},
		"whole, small":           {40_000, 40_000, false, 40_000, 40_000, 0, nil},
		"whole, large":           {mib, mib, false, mib, mib, 0, nil},
		"nothing of 64 MiB":      {64 * mib, 0, false, 0, 0, stepTime, ErrSlow},
		"less than Free":         {64 * mib, budget.Free - 1, false, 0, 0, stepTime, ErrSlow},
		"less than Small":        {64 * mib, budget.Small - 1, false, 0, budget.Small, stepTime, ErrSlow},
		"all but one byte":       {mib, mib - 1, false, 0, mib, stepTime, ErrSlow},
		"drops":                  {mib, step, true, 0, mib, stepTime, ErrSlow},
		"a megabyte of unknown":  {-1, mib, false, 0, 2 * mib, stepTime, ErrSlow},
		"announces more than is": {64 * mib, 70_000, true, 0, 64 * mib, stepTime, ErrSlow},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, claimed, took, err := read(t, budget.New(256*mib), c.declared, c.sent, c.drip)
				if n != c.n || claimed != c.claimed || !errors.Is(err, c.err) {
					t.Errorf("%d bytes, %d claimed, %v", n, claimed, err)
				}
				if took < c.took || took > c.took+time.Second {
					t.Errorf("it took %v, want %v", took, c.took)
				}
			})
		})
	}
}

// A body for which there is no memory is refused after Patience.
func TestBodyWithoutRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := budget.New(8 * mib)
		other := b.Claim()
		other.Try(6 * mib)
		var full *budget.FullError
		if n, _, took, err := read(t, b, mib, mib, false); !errors.As(err, &full) || took != budget.Patience {
			t.Errorf("%d bytes, %v after %v", n, err, took)
		}
		if n, _, _, err := read(t, b, 40_000, 40_000, false); n != 40_000 || err != nil {
			t.Errorf("a small one: %d bytes, %v", n, err)
		}
	})
}

// drip accepts a byte of a body each second, forever.
type drip struct{ *bytes.Reader }

func (d drip) Read(p []byte) (int, error) {
	time.Sleep(time.Second)
	return d.Reader.Read(p[:min(len(p), step/8)])
}

// deadlines records the last deadline for reading.
type deadlines struct{ read time.Time }

func (d *deadlines) SetReadDeadline(t time.Time) error  { d.read = t; return nil }
func (d *deadlines) SetWriteDeadline(t time.Time) error { return nil }

// A body that keeps up step by step must still end at some time.
func TestBodyEndsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin, conn := time.Now(), new(deadlines)
		claim := budget.New(256 * mib).Claim()
		body := Body{From: drip{bytes.NewReader(make([]byte, mib))}, Conn: conn, Declared: mib, Limit: mib, Claim: &claim}
		if _, err := body.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		if end := conn.read.Sub(begin); end > bodyGrace+TransferTime(mib) {
			t.Errorf("the last deadline is after %v", end)
		}
	})
}

// Each piece of an answer has its own deadline (P1).
func TestAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		begin := time.Now()
		go func() {
			_, _ = io.CopyN(io.Discard, ours, piece)
			time.Sleep(pieceGrace)
			_, _ = io.CopyN(io.Discard, ours, piece)
		}()
		err := Write(theirs, theirs, []byte("head"), make([]byte, 4*piece))
		var late net.Error
		if took := time.Since(begin); !errors.As(err, &late) || !late.Timeout() || took < 2*pieceGrace || took > 2*pieceGrace+2*TransferTime(piece) {
			t.Errorf("%v after %v", err, took)
		}
		_ = ours.Close()
		_ = theirs.Close()
	})
}
