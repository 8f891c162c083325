package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// The parts of a stop, each with its limit. With what frontdoor and logsink
// add they stay below the ten seconds after which supervisors kill; a test
// holds the sum. Normally none is used up.
const (
	drainTimeout  = 1500 * time.Millisecond // hand leadership over
	farewellTime  = 100 * time.Millisecond  // give busy clients a last answer
	finishTimeout = 1200 * time.Millisecond // finish requests in progress
	lostTimeout   = 300 * time.Millisecond  // the same without a leader, which they need
	closeTimeout  = 4 * time.Second         // stop the node's loops and flush
	cutTimeout    = 300 * time.Millisecond  // write the answers that the node's end brings
)

// exitBySignal is added to the number of the second signal, as shells do.
const exitBySignal = 128

// lastWordTimeout bounds the wait for the last log line if the process exits
// immediately.
const lastWordTimeout = 200 * time.Millisecond

// crashBySignal makes a panic end the process with SIGABRT. By default Go exits
// with 2, which for kvd means that the settings are wrong: a supervisor that
// does not restart after that (RestartPreventExitStatus=2) would leave a
// crashed node down. No core is written, because it would contain the data.
func crashBySignal() {
	debug.SetTraceback("crash")
	// If the limit cannot be set, a core file is the lesser evil.
	_ = syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{})
}

// stop takes the node out of service so that clients notice as little as
// possible:
//
//  1. The node is no longer ready, and leadership is handed over while requests
//     are served as before.
//  2. The listeners are closed, and each connection ends with its next answer.
//  3. Watches end, and their clients resume elsewhere; requests in progress are
//     finished.
//  4. The node stops, which answers what is still in progress: 504, or 503 if
//     nothing was done.
func (d *daemon) stop(cancel context.CancelFunc, ended <-chan error) error {
	d.handOver()
	if err := errors.Join(d.door.SendAway(), d.etcd.SendAway()); err != nil {
		d.log.Warn("failed to close the listeners", zap.Error(err))
	}
	d.node.Watches().Close()
	<-time.After(farewellTime)
	limit := finishTimeout
	if !d.node.HasLeader() {
		limit = lostTimeout
	}
	d.finish(limit)
	d.door.Shut()
	cancel()
	err := d.wait(ended)
	d.door.Cut(cutTimeout)
	d.etcd.Cut(cutTimeout)
	if err == nil {
		d.log.Info("stopped")
	}
	return err
}

// finish waits for the requests in progress at both doors.
func (d *daemon) finish(limit time.Duration) {
	var finishing sync.WaitGroup
	finishing.Go(func() { d.etcd.Finish(limit) })
	d.door.Finish(limit)
	finishing.Wait()
}

// handOver moves leadership to another member. Without it, the others would
// notice the missing leader only when its connections break.
func (d *daemon) handOver() {
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	d.node.Drain(ctx)
}

// wait returns how the node ended after its context was cancelled.
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

// exitOnSecond exits immediately on a second signal, for those who cannot wait
// for the stop. The returned function ends the watch.
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

// second handles a signal that comes during the stop. A SIGHUP comes from a
// terminal that closes as well as from an administrator, and is not a second
// request to stop.
func (d *daemon) second(sig os.Signal) {
	if sig == syscall.SIGHUP {
		d.log.Info("SIGHUP ignored: the node is stopping")
		return
	}
	code := exitFailed
	if s, ok := sig.(syscall.Signal); ok {
		code = exitBySignal + int(s)
	}
	d.log.Error("exiting without a clean stop after a second signal", zap.Stringer("signal", sig), zap.Int("exit_code", code))
	d.sink.Flush(lastWordTimeout)
	d.exit(code)
}
