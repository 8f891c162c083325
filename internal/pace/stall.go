package pace

import (
	"io"
	"net/http"
	"time"
)

// Source is a body of any length on its way here. Each piece that arrives is progress,
// and sets the timer back, which ends a transfer that stalls.
type Source struct {
	R     io.Reader
	Timer *time.Timer
	Limit time.Duration // without a piece
}

// WriteTo implements io.WriterTo, piece by piece.
func (s Source) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(struct{ io.Writer }{w}, struct{ io.Reader }{s})
}

func (s Source) Read(p []byte) (int, error) {
	n, err := s.R.Read(p)
	s.Timer.Reset(s.Limit)
	return n, err
}

// Sink writes a body of any length to an HTTP client, each piece against a deadline of
// its own.
type Sink struct {
	W       io.Writer
	Control *http.ResponseController
	Limit   time.Duration // for one piece
}

func (s Sink) Write(b []byte) (int, error) {
	if err := s.Control.SetWriteDeadline(time.Now().Add(s.Limit)); err != nil {
		return 0, err
	}
	return s.W.Write(b)
}
