package logsink

import (
	"io"
	"sync"
	"time"
)

const (
	// maxLogBytes bounds the lines that wait for a slow reader: some seconds
	// of a very talkative node.
	maxLogBytes = 1 << 20
	// SyncTimeout bounds how long anybody waits for the lines to get out.
	SyncTimeout = time.Second
)

// Sink takes log lines without ever waiting for whoever reads them.
//
// A logger holds a lock while it writes: with a full pipe on standard error,
// every goroutine that logs would stop, and with it the node. So Write only
// queues, up to maxLogBytes; one goroutine writes the queue out. What does not
// fit is dropped and counted, and once there is room again a line says how
// much was lost.
type Sink struct {
	out io.Writer
	// notice makes the line that tells of n dropped lines.
	notice func(n uint64) []byte

	mu struct {
		sync.Mutex
		queue   [][]byte
		bytes   int    // in queue and in the batch being written
		dropped uint64 // not told of yet
		total   uint64 // dropped since the start
		closed  bool
		idle    chan struct{} // closed and replaced when nothing is left to write
	}
	wake chan struct{} // capacity 1: there is something to do
	done chan struct{} // closed when the goroutine has ended
}

// newSink starts the goroutine; Close ends it.
func newSink(out io.Writer, notice func(n uint64) []byte) *Sink {
	s := &Sink{out: out, notice: notice, wake: make(chan struct{}, 1), done: make(chan struct{})}
	s.mu.idle = make(chan struct{})
	go s.run()
	return s
}

// Write queues a line. It never fails and never waits.
func (s *Sink) Write(line []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed || s.mu.bytes+len(line) > maxLogBytes {
		s.mu.dropped++
		s.mu.total++
		return len(line), nil
	}
	s.mu.queue = append(s.mu.queue, append([]byte(nil), line...))
	s.mu.bytes += len(line)
	s.signal()
	return len(line), nil
}

func (s *Sink) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Dropped is the number of lines lost since the start.
func (s *Sink) Dropped() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.total
}

// Sync waits until the lines so far are written, for a bounded time.
func (s *Sink) Sync() error {
	s.Flush(SyncTimeout)
	return nil
}

func (s *Sink) Flush(limit time.Duration) {
	s.mu.Lock()
	idle, empty := s.mu.idle, s.mu.bytes == 0
	s.mu.Unlock()
	if empty {
		return
	}
	select {
	case <-idle:
	case <-s.done:
	case <-time.After(limit):
	}
}

// Close writes out what is queued, for a bounded time; later lines are
// dropped. Where the reader is stuck the goroutine stays behind in its write.
func (s *Sink) Close() {
	s.mu.Lock()
	s.mu.closed = true
	s.signal()
	s.mu.Unlock()
	select {
	case <-s.done:
	case <-time.After(SyncTimeout):
	}
}

func (s *Sink) run() {
	defer close(s.done)
	for range s.wake {
		for {
			lines, bytes := s.take()
			for _, line := range lines {
				_, _ = s.out.Write(line) // there is no better place to complain
			}
			if s.finish(bytes) {
				break
			}
		}
		s.mu.Lock()
		closed := s.mu.closed
		s.mu.Unlock()
		if closed {
			return
		}
	}
}

// take empties the queue. The lines count against the limit until they are
// written.
func (s *Sink) take() (lines [][]byte, bytes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	lines, s.mu.queue = s.mu.queue, nil
	bytes = s.mu.bytes
	if n := s.mu.dropped; n > 0 {
		s.mu.dropped = 0
		lines = append(lines, s.notice(n))
	}
	return lines, bytes
}

// finish frees the room of lines that are written and reports whether nothing
// is left.
func (s *Sink) finish(bytes int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.bytes -= bytes
	if s.mu.bytes > 0 || s.mu.dropped > 0 {
		return false
	}
	close(s.mu.idle)
	s.mu.idle = make(chan struct{})
	return true
}
