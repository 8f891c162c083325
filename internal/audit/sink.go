package audit

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxQueuedBytes bounds the lines that wait: tens of thousands.
	maxQueuedBytes = 16 << 20
	// strictPatience is how long a request waits for its intent to be written. A disk
	// that takes longer counts as one that takes nothing.
	strictPatience = 2 * time.Second
	// closePatience bounds the wait for the last lines of a process that stops.
	closePatience = time.Second
)

// The reasons why a line is not written, in addition to errors of the file.
var (
	errFull   = errors.New("too many lines wait for the disk")
	errSlow   = errors.New("the disk does not take the line")
	errClosed = errors.New("the node is stopping")
)

// sink writes lines in the order in which they were put.
type sink struct {
	// out is written, closed, and thereby opened anew by the goroutine of run alone.
	out   io.WriteCloser
	limit int // of queued bytes
	// notice returns the line about n lost lines.
	notice func(n uint64) []byte
	// written and dropped count lines since the start.
	written, dropped atomic.Uint64

	mu struct {
		sync.Mutex // held to queue and to take lines, never while writing
		queue      []entry
		bytes      int // in queue and in what is being written
		closed     bool
		reopen     bool // the file may have been moved away
	}
	wake chan struct{} // capacity 1; only run receives
	done chan struct{} // closed by run when it returns
}

// entry is a line and the channel for its result. receipt may be nil, and is buffered.
type entry struct {
	line    []byte
	receipt chan<- error
}

// newSink starts the goroutine that writes; close ends it.
func newSink(out io.WriteCloser, limit int, notice func(n uint64) []byte) *sink {
	s := &sink{out: out, limit: limit, notice: notice, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go s.run()
	return s
}

// put queues a line. If there is no room, it counts the line as lost and returns an error.
func (s *sink) put(line []byte, receipt chan<- error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := errFull
	switch {
	case s.mu.closed:
		err = errClosed
	case s.mu.bytes+len(line) <= s.limit:
		s.mu.queue = append(s.mu.queue, entry{line, receipt})
		s.mu.bytes += len(line)
		s.signal()
		return nil
	}
	s.dropped.Add(1)
	return err
}

// putAll queues lines and waits until all are written. The error says why one was not.
func (s *sink) putAll(ctx context.Context, lines [][]byte) error {
	receipt := make(chan error, len(lines))
	queued := 0
	var failed error
	for _, line := range lines {
		if failed = s.put(line, receipt); failed != nil {
			break
		}
		queued++
	}
	due := time.NewTimer(strictPatience)
	defer due.Stop()
	for ; queued > 0; queued-- {
		select {
		case err := <-receipt:
			failed = errors.Join(failed, err)
		case <-due.C:
			return errSlow
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return failed
}

func (s *sink) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// reopen makes run reopen the file before the next line.
func (s *sink) reopen() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.reopen = true
	s.signal()
}

// close waits until the queued lines are written, for at most closePatience; later lines are
// lost.
func (s *sink) close() {
	s.mu.Lock()
	s.mu.closed = true
	s.signal()
	s.mu.Unlock()
	select {
	case <-s.done:
	case <-time.After(closePatience): // the disk hangs, and the process is about to exit
	}
}

// run writes what is queued.
func (s *sink) run() {
	defer close(s.done)
	defer func() { _ = s.out.Close() }() // a line is with the operating system once Write returns
	w := &lineWriter{out: s.out}
	var told uint64 // of the lines that were lost, those that the log tells of
	for range s.wake {
		lines, reopen, closed := s.take()
		if reopen {
			_ = s.out.Close() // the next write opens it
		}
		for _, e := range lines {
			err := w.write(e.line)
			if err != nil {
				s.dropped.Add(1)
			} else {
				s.written.Add(1)
			}
			if e.receipt != nil {
				e.receipt <- err
			}
			s.release(len(e.line))
			if lost := s.dropped.Load(); err == nil && lost > told && w.write(s.notice(lost-told)) == nil {
				told = lost
			}
		}
		if closed {
			return
		}
	}
}

// take empties the queue. The lines count against the limit until release.
func (s *sink) take() (lines []entry, reopen, closed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	lines, reopen, closed = s.mu.queue, s.mu.reopen, s.mu.closed
	s.mu.queue, s.mu.reopen = nil, false
	return lines, reopen, closed
}

func (s *sink) release(bytes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.bytes -= bytes
}

// lineWriter keeps lines apart (U6).
type lineWriter struct {
	out  io.Writer
	torn bool // the last line was written in part
}

func (w *lineWriter) write(line []byte) error {
	if w.torn {
		if _, err := w.out.Write([]byte{'\n'}); err != nil {
			return err
		}
		w.torn = false
	}
	n, err := w.out.Write(line)
	w.torn = err != nil && n > 0
	return err
}
