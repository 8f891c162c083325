package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/api"
)

const (
	// reportPace is how often the supervisor is told about the node, at least.
	reportPace = 5 * time.Second
	// extension is how much more time a starting node asks for, each time.
	// Replaying a log and waiting for a majority take as long as they take.
	extension = 6 * reportPace
	// pingsInTime is how many pings fit into the time after which systemd takes
	// a silent node for hung.
	pingsInTime = 3
	// maxUnsent bounds the notifications to a supervisor that does not read.
	maxUnsent = 16
	// notifyTimeout bounds the wait for the last notification to be sent.
	notifyTimeout = time.Second
)

// watched is the node, as its supervisor sees it.
type watched interface {
	Status(ctx context.Context) (api.Status, error)
	// Responsive reports whether the node's own loop still runs.
	Responsive() bool
}

// supervisor tells systemd about the node by the protocol of sd_notify(3).
// Without NOTIFY_SOCKET it does nothing.
//
// A datagram to a supervisor that does not read waits in the kernel, for as
// long as that takes. So one goroutine sends (send), and the others only queue
// under the lock: the signal loop must be able to stop a node whose supervisor
// hangs.
type supervisor struct {
	log  *zap.Logger
	node watched
	pace time.Duration
	ping bool // a watchdog is set

	mu struct {
		sync.Mutex        // held by the signal loop and the reporter, to queue in order
		status     string // as last queued
		ready      bool
	}
	unsent chan string        // nil without a supervisor; received by send alone
	sent   chan struct{}      // closed by send once it has sent everything
	end    context.CancelFunc // of the reporter; nil before watch
	report sync.WaitGroup     // the reporter
}

// newSupervisor returns the supervisor that the environment names, if any.
func newSupervisor(log *zap.Logger) *supervisor {
	s := &supervisor{log: log, pace: reportPace}
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return s
	}
	limit, err := systemd.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("supervisor watchdog ignored", zap.Error(err))
	}
	if err == nil && limit > 0 {
		s.ping = true
		s.pace = min(s.pace, limit/pingsInTime)
	}
	s.unsent, s.sent = make(chan string, maxUnsent), make(chan struct{})
	go s.send()
	return s
}

// send passes notifications on until close. A supervisor that is gone is not a
// reason to stop: the node serves without it.
func (s *supervisor) send() {
	defer close(s.sent)
	failed := false
	for state := range s.unsent {
		_, err := systemd.SdNotify(false, state)
		if err != nil && !failed {
			s.log.Warn("failed to notify the supervisor", zap.Error(err))
		}
		failed = err != nil
	}
}

// watch starts reporting about the node; close ends it.
func (s *supervisor) watch(node watched) {
	if s.unsent == nil {
		return
	}
	s.node = node
	ctx, cancel := context.WithCancel(context.Background())
	s.end = cancel
	s.report.Go(func() {
		pace := time.NewTicker(s.pace)
		defer pace.Stop()
		for {
			s.reportOnce(ctx)
			select {
			case <-ctx.Done():
				return
			case <-pace.C:
			}
		}
	})
}

// reportOnce tells how the node is. It is silent about a node whose loop
// hangs, so that the watchdog ends it: a goroutine that pings regardless would
// keep a dead node alive.
func (s *supervisor) reportOnce(ctx context.Context) {
	if !s.node.Responsive() {
		return
	}
	status := s.describe(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	var lines []string
	if s.ping {
		lines = append(lines, systemd.SdNotifyWatchdog)
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

// describe returns the status for people, for example "leader, term 7,
// applied 123".
func (s *supervisor) describe(ctx context.Context) string {
	st, err := s.node.Status(ctx)
	switch {
	case err != nil:
		return "starting: reading the data or looking for the other members"
	case st.Leader == 0:
		return fmt.Sprintf("%s, no leader known, term %d, applied %d", st.Role, st.Term, st.Applied)
	case st.Lag > 0:
		return fmt.Sprintf("%s, term %d, applied %d of %d", st.Role, st.Term, st.Applied, st.Applied+st.Lag)
	}
	return fmt.Sprintf("%s, term %d, applied %d", st.Role, st.Term, st.Applied)
}

// ready reports that the node serves.
func (s *supervisor) ready() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.ready = true
	s.tellLocked(systemd.SdNotifyReady)
}

// reloading announces that the settings are being read again, until reloaded.
// systemd tells one reload from another by the time that comes with it.
func (s *supervisor) reloading() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.ready {
		s.tellLocked(systemd.SdNotifyReloading, systemd.SdNotifyMonotonicUsec())
	}
}

// reloaded ends what reloading began.
func (s *supervisor) reloaded() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.ready {
		s.tellLocked(systemd.SdNotifyReady)
	}
}

// stopping reports that the node is about to exit.
func (s *supervisor) stopping() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.ready = true // a node that stops needs no more time to start
	s.mu.status = "stopping"
	s.tellLocked(systemd.SdNotifyStopping, "STATUS="+s.mu.status)
}

// tellLocked queues one notification of several lines. If the supervisor has
// not read the last ones, it is dropped.
func (s *supervisor) tellLocked(lines ...string) {
	if s.unsent == nil || len(lines) == 0 {
		return
	}
	select {
	case s.unsent <- strings.TrimSuffix(strings.Join(lines, "\n"), "\n"):
	default:
	}
}

// close ends the reports and waits, for a bounded time, until they are sent.
func (s *supervisor) close() {
	if s.unsent == nil {
		return
	}
	if s.end != nil {
		s.end()
	}
	s.report.Wait()
	close(s.unsent)
	select {
	case <-s.sent:
	case <-time.After(notifyTimeout):
	}
}
