package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kvd-io/kvd/client"
)

// watchdog ends a stream that has brought nothing for the timeout of the session.
// The whole may take any time. It is paused while the output is written: a reader
// who looks at the first page is no reason to give up.
type watchdog struct {
	ctx     context.Context
	timer   *time.Timer
	timeout time.Duration
	cancel  context.CancelCauseFunc
}

func (s *session) watchdog(ctx context.Context) *watchdog {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watchdog{ctx: ctx, timeout: s.timeout, cancel: cancel}
	w.timer = time.AfterFunc(w.timeout, func() {
		cancel(fmt.Errorf("%w: no answer for %v", client.ErrUnavailable, w.timeout))
	})
	return w
}

func (w *watchdog) pause()  { w.timer.Stop() }
func (w *watchdog) resume() { w.timer.Reset(w.timeout) }

func (w *watchdog) stop() {
	w.timer.Stop()
	w.cancel(nil)
}

// explain adds why the stream ended: its own error only says that its context did.
func (w *watchdog) explain(err error) error {
	if cause := context.Cause(w.ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return errors.Join(cause, err)
	}
	return err
}
