package logsink

import (
	"io"
	"sync"
	"time"
)

const (
	// maxQueuedBytes bounds the lines that wait for a slow reader: several
	// seconds of a node that logs at debug level.
	maxQueuedBytes = 1 << 20
	// SyncTimeout bounds how long anything waits for the lines to be written.
	SyncTimeout = time.Second
)

// Sink takes log lines without waiting for their reader. The package
// comment gives its invariants.
type Sink struct {
	out io.Writer // only the goroutine of run writes to it
	// notice makes the line that tells of n dropped lines.
	notice func(n uint64) []byte

	mu struct {
		sync.Mutex // held only to queue or take lines, never while writing
		queue      [][]byte
		bytes      int           // in queue and in the lines being written
		dropped    uint64        // not reported yet
		total      uint64        // dropped since the start
		closed     bool          // later lines are dropped
		idle       chan struct{} // closed and replaced when nothing is left to write
	}
	wake chan struct{} // capacity 1: there is something to do; only run receives
	done chan struct{} // closed by run when it returns
}

// newSink starts the goroutine that writes; Close ends it.
func newSink(out io.Writer, notice func(n uint64) []byte) *Sink {
	s := &Sink{out: out, notice: notice, wake: make(chan struct{}, 1), done: make(chan struct{})}
	s.mu.idle = make(chan struct{})
	go s.run()
	return s
}

// Write queues a copy of the line. It never waits and never fails.
func (s *Sink) Write(line []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed || s.mu.bytes+len(line) > maxQueuedBytes {
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

// Dropped returns the number of lines lost since the start.
func (s *Sink) Dropped() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.total
}

// Sync waits until the lines so far are written, for at most SyncTimeout.
func (s *Sink) Sync() error {
	s.Flush(SyncTimeout)
	return nil
}

// Flush waits until the lines so far are written, for at most the limit.
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

// Close writes out the queued lines, for at most SyncTimeout; later lines are
// dropped. If the reader is stuck, the goroutine stays behind in its write:
// nothing can interrupt that, and the process is about to exit.
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
	var unreported uint64 // lines lost to errors that no notice tells of yet
	for range s.wake {
		for {
			lines, bytes, dropped := s.take()
			lost := s.write(lines)
			s.count(lost)
			// A notice that is lost is due again.
			if dropped > 0 && s.write([][]byte{s.notice(dropped)}) > 0 {
				unreported += dropped
			}
			if unreported += lost; lost < uint64(len(lines)) {
				s.report(unreported) // somebody reads again
				unreported = 0
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

// write writes the lines and returns how many were lost. There is no better place to
// report an error. It may pass, as that of a full disk under a redirected log, or stay,
// as that of a terminal that was closed; either way the node goes on.
func (s *Sink) write(lines [][]byte) (lost uint64) {
	for _, line := range lines {
		if _, err := s.out.Write(line); err != nil {
			lost++
		}
	}
	return lost
}

// count adds lines that were lost to errors.
func (s *Sink) count(lost uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.total += lost
}

// report has the next notice tell of n lines that were lost to errors.
func (s *Sink) report(n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.dropped += n
}

// take empties the queue, and returns the number of lines dropped before. Its lines
// count against the bound until finish.
func (s *Sink) take() (lines [][]byte, bytes int, dropped uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	lines, s.mu.queue = s.mu.queue, nil
	bytes = s.mu.bytes
	dropped, s.mu.dropped = s.mu.dropped, 0
	return lines, bytes, dropped
}

// finish frees the room of lines that were written and reports whether nothing
// is left. Lines may have been queued or dropped during the write.
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
