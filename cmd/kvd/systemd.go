package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/api"
)

// The protocol of sd_notify(3): lines in one datagram to the socket that
// NOTIFY_SOCKET names. It needs no library.

const (
	// reportPace is how often the supervisor hears of a node at least.
	reportPace = 5 * time.Second
	// extension is how much more time a starting node asks for, each time. A
	// log that is replayed and a majority that is waited for take as long as
	// they take.
	extension = 6 * reportPace
	// pingsInTime is how many pings fit into the time after which systemd
	// takes a silent node for hung.
	pingsInTime = 3
	// notifyTimeout bounds a datagram to a supervisor that does not read.
	notifyTimeout = time.Second
)

// watched is the node, as its supervisor sees it.
type watched interface {
	Status(ctx context.Context) (api.Status, error)
	// Responsive reports whether the node's own loop still turns.
	Responsive() bool
}

// supervisor tells systemd how the node is. Without one (the zero value) it
// does nothing.
type supervisor struct {
	conn net.Conn
	log  *zap.Logger
	node watched
	pace time.Duration
	ping bool // a watchdog is set

	mu struct {
		sync.Mutex
		status string // as told last
		ready  bool
		failed bool // telling it failed, and the log says so
	}
	end     context.CancelFunc
	running sync.WaitGroup
}

// newSupervisor connects to the socket that the environment names, if any.
func newSupervisor(environ []string, pid int, log *zap.Logger) (*supervisor, error) {
	s := &supervisor{log: log, pace: reportPace}
	env := make(map[string]string)
	for _, pair := range environ {
		name, value, _ := strings.Cut(pair, "=")
		env[name] = value
	}
	address := env["NOTIFY_SOCKET"]
	if address == "" {
		return s, nil
	}
	if address[0] != '/' && address[0] != '@' { // @: a socket without a file
		return s, fmt.Errorf("NOTIFY_SOCKET is %q, which is neither a path nor an abstract socket", address)
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		return s, fmt.Errorf("connect to NOTIFY_SOCKET: %w", err)
	}
	s.conn = conn
	micros, err := strconv.ParseInt(env["WATCHDOG_USEC"], 10, 64)
	if for1 := env["WATCHDOG_PID"]; err == nil && micros > 0 && (for1 == "" || for1 == strconv.Itoa(pid)) {
		s.ping = true
		s.pace = min(s.pace, time.Duration(micros)*time.Microsecond/pingsInTime)
	}
	return s, nil
}

// watch begins to report about the node; close ends it.
func (s *supervisor) watch(node watched) {
	if s.conn == nil {
		return
	}
	s.node = node
	ctx, cancel := context.WithCancel(context.Background())
	s.end = cancel
	s.running.Go(func() {
		pace := time.NewTicker(s.pace)
		defer pace.Stop()
		for {
			s.report(ctx)
			select {
			case <-ctx.Done():
				return
			case <-pace.C:
			}
		}
	})
}

// report tells how the node is. Of a node whose loop hangs it says nothing, so
// that the watchdog ends it.
func (s *supervisor) report(ctx context.Context) {
	if !s.node.Responsive() {
		return
	}
	status := s.describe(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	var lines []string
	if s.ping {
		lines = append(lines, "WATCHDOG=1")
	}
	if !s.mu.ready {
		lines = append(lines, fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", extension.Microseconds()))
	}
	if status != s.mu.status {
		lines = append(lines, "STATUS="+status)
		s.mu.status = status
	}
	s.tellLocked(lines...)
}

// describe is the status for a person, such as "leader, term 7, applied 123".
func (s *supervisor) describe(ctx context.Context) string {
	st, err := s.node.Status(ctx)
	switch {
	case err != nil:
		return "starting: reading the data, or looking for the other members"
	case st.Leader == 0:
		return fmt.Sprintf("%s, no leader known, term %d, applied %d", st.Role, st.Term, st.Applied)
	case st.Applied < st.Commit:
		return fmt.Sprintf("%s, term %d, applied %d of %d", st.Role, st.Term, st.Applied, st.Commit)
	}
	return fmt.Sprintf("%s, term %d, applied %d", st.Role, st.Term, st.Applied)
}

// ready says that the node serves, for the first time or after a reload.
func (s *supervisor) ready() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.ready = true
	s.tellLocked("READY=1")
}

// reloading announces that the settings are being read again; ready ends it.
func (s *supervisor) reloading() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.ready {
		s.tellLocked("RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", monotonicMicros()))
	}
}

// reloaded ends what reloading began.
func (s *supervisor) reloaded() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.ready {
		s.tellLocked("READY=1")
	}
}

// stopping says that the node leaves.
func (s *supervisor) stopping() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.ready = true // a node that stops asks for no more time to start
	s.tellLocked("STOPPING=1", "STATUS=stopping")
	s.mu.status = "stopping"
}

// tellLocked sends one datagram. A supervisor that is gone is nothing to stop
// for.
func (s *supervisor) tellLocked(lines ...string) {
	if s.conn == nil || len(lines) == 0 {
		return
	}
	_ = s.conn.SetWriteDeadline(time.Now().Add(notifyTimeout)) // of an open socket it always can
	_, err := s.conn.Write([]byte(strings.Join(lines, "\n")))
	if err != nil && !s.mu.failed {
		s.log.Warn("the supervisor behind NOTIFY_SOCKET does not listen", zap.Error(err))
	}
	s.mu.failed = err != nil
}

// close ends the reports.
func (s *supervisor) close() {
	if s.conn == nil {
		return
	}
	if s.end != nil {
		s.end()
	}
	s.running.Wait()
	_ = s.conn.Close() // nothing is left to send
}
