package repeat

import (
	"bytes"
	"sync"
	"time"

	"go.uber.org/zap"
)

// SparseLog passes on one line per second of what an http.Server logs, with the
// number of lines that it left out: a member that is refused tries again many
// times a second.
type SparseLog struct {
	Logger *zap.Logger
	mu     struct {
		sync.Mutex // held by the connections of the server
		next       time.Time
		dropped    int
	}
}

// Write implements io.Writer.
func (s *SparseLog) Write(line []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if now.Before(s.mu.next) {
		s.mu.dropped++
		return len(line), nil
	}
	s.Logger.Warn(string(bytes.TrimSpace(line)), zap.Int("lines_omitted", s.mu.dropped))
	s.mu.next, s.mu.dropped = now.Add(time.Second), 0
	return len(line), nil
}
