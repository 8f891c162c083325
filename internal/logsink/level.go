package logsink

import (
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/kvd-io/kvd/internal/settings"
)

// Level is the least severe level that is logged. It can be changed while the
// process runs: by a reload, to what the settings say, and by clients,
// permanently or for a while.
type Level struct {
	atomic zap.AtomicLevel
	log    *zap.Logger // set once by New, before anything can change the level

	mu struct {
		sync.Mutex               // held by clients' requests, the reload and the timer
		lasting    zapcore.Level // what to go back to
		until      time.Time     // end of a temporary level; zero if the level is permanent
		back       *time.Timer   // calls goBack at until; nil if the level is permanent
	}
}

// NewLevel returns a level to start with. Close ends its timer.
func NewLevel(l zapcore.Level) *Level {
	v := &Level{atomic: zap.NewAtomicLevelAt(l), log: zap.NewNop()}
	v.mu.lasting = l
	return v
}

// attach makes the level log its changes.
func (l *Level) attach(log *zap.Logger) { l.log = log }

// LogLevel returns the level and when it ends; zero if it is permanent.
func (l *Level) LogLevel() (level string, until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.atomic.String(), l.mu.until
}

// SetLogLevel changes the level for a period, or permanently if the period is
// 0.
func (l *Level) SetLogLevel(level string, period time.Duration) error {
	to, err := settings.ParseLogLevel(level)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endPeriodLocked()
	reason := "request"
	if period > 0 {
		reason = fmt.Sprintf("request for %v", period)
		until := time.Now().Add(period)
		l.mu.until = until
		l.mu.back = time.AfterFunc(period, func() { l.goBack(until) })
	} else {
		l.mu.lasting = to
	}
	l.changeLocked(to, reason)
	return nil
}

// Reload takes the level from the settings, permanently.
func (l *Level) Reload(s *settings.Settings) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endPeriodLocked()
	l.mu.lasting = s.LogLevel
	l.changeLocked(s.LogLevel, "reload")
	return nil
}

// goBack ends the period that lasts until the given time. Stopping a timer
// does not stop a call that is already waiting for the lock, so a period that
// was replaced meanwhile is recognized by its end.
func (l *Level) goBack(until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.until != until {
		return
	}
	l.endPeriodLocked()
	l.changeLocked(l.mu.lasting, "period over")
}

func (l *Level) endPeriodLocked() {
	if l.mu.back != nil {
		l.mu.back.Stop()
	}
	l.mu.back, l.mu.until = nil, time.Time{}
}

// changeLocked logs the change while the more verbose of the two levels is in
// force: going from info to error would otherwise be silent.
func (l *Level) changeLocked(to zapcore.Level, reason string) {
	from := l.atomic.Level()
	if from == to {
		return
	}
	l.atomic.SetLevel(min(from, to))
	l.log.Info("log level changed", zap.Stringer("from", from), zap.Stringer("to", to), zap.String("reason", reason))
	l.atomic.SetLevel(to)
}

// Close ends a temporary level's timer.
func (l *Level) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endPeriodLocked()
}
