package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/frontdoor"
)

// The parts of a stop, each with its limit. Together they stay below the ten
// seconds after which supervisors kill; normally none is used up.
const (
	drainTimeout  = 1500 * time.Millisecond // handing leadership over
	farewellTime  = 100 * time.Millisecond  // busy clients get a last answer
	finishTimeout = 1200 * time.Millisecond // requests in work
	lostTimeout   = 300 * time.Millisecond  // the same, without a leader to finish them
	closeTimeout  = 4 * time.Second         // the node's own loops, and flushing
	cutTimeout    = 300 * time.Millisecond  // answers that the end of the node brings
)

// exitBySignal is added to the number of the second signal, as shells do.
const exitBySignal = 128

// lastWordTimeout bounds how long the last line may take to get out when the
// process exits at once.
const lastWordTimeout = 200 * time.Millisecond

// crashBySignal makes a panic end the process by SIGABRT. Of itself Go exits
// with 2, which says that the settings are wrong: a supervisor that rightly
// does not try those again would leave a crashed node down. No core is written,
// since it would hold the data.
func crashBySignal() {
	debug.SetTraceback("crash")
	// Where the limit can not be set, a core is the lesser evil.
	_ = syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{})
}

// stop brings the node out of the way so that clients notice as little as
// possible: it is not ready from now on, and leadership is handed over while
// requests are served as ever; then the listeners are closed, and each
// connection ends with its next answer; then those in work are finished. What
// is in work after that is answered by the end of the node: 504, or 503 if
// nothing was done.
func (d *daemon) stop(cancel context.CancelFunc, ended <-chan error) error {
	d.handOver()
	d.sendAway()
	limit := finishTimeout
	if !d.node.HasLeader() {
		limit = lostTimeout
	}
	d.finishRequests(limit)
	d.gate.Shut()
	cancel()
	err := d.wait(ended)
	d.cutRequests()
	if err == nil {
		d.log.Info("stopped")
	}
	return err
}

func (d *daemon) handOver() {
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	d.node.Drain(ctx)
}

// sendAway closes the listeners before it ends connections: a client that is
// sent away would otherwise come back, and be in the queue of a listener when
// that is closed, which resets its connection.
func (d *daemon) sendAway() {
	if err := frontdoor.CloseAll(d.listeners); err != nil {
		d.log.Warn("closing the listeners failed", zap.Error(err))
	}
	d.gate.LastAnswers()
	<-time.After(farewellTime)
}

// finishRequests waits for the requests in work, and closes the connections
// that have none.
func (d *daemon) finishRequests(limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	err := d.server.Shutdown(ctx)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, net.ErrClosed) {
		d.log.Warn("closing the connections failed", zap.Error(err))
	}
}

// cutRequests ends the connections, those last whose request nobody answered.
func (d *daemon) cutRequests() {
	d.finishRequests(cutTimeout)
	if err := d.server.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		d.log.Warn("closing the connections failed", zap.Error(err))
	}
}

// wait returns how the node ended, after it was told to.
func (d *daemon) wait(ended <-chan error) error {
	select {
	case err := <-ended:
		if errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	case <-time.After(closeTimeout):
		return fmt.Errorf("the node did not stop within %v", closeTimeout)
	}
}

// exitOnSecond ends the process at once for whoever cannot wait for the stop.
// The returned function ends the watch.
func (d *daemon) exitOnSecond(signals <-chan os.Signal) (end func()) {
	stopped := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-stopped:
				return
			case sig := <-signals:
				d.second(sig)
			}
		}
	})
	return func() { close(stopped); watch.Wait() }
}

func (d *daemon) second(sig os.Signal) {
	if sig == syscall.SIGHUP {
		d.log.Info("SIGHUP is ignored: the node is stopping")
		return
	}
	code := exitFailed
	if s, ok := sig.(syscall.Signal); ok {
		code = exitBySignal + int(s)
	}
	d.log.Error("second signal: exiting without a clean stop", zap.Stringer("signal", sig), zap.Int("exit_code", code))
	d.sink.Flush(lastWordTimeout)
	d.exit(code)
}
