package main

import (
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/kvd-io/kvd/internal/settings"
)

// logLevel is the level of the log, which can be changed at run time: by
// SIGHUP to what the settings say, and by clients, also for a while.
type logLevel struct {
	level zap.AtomicLevel
	log   *zap.Logger

	mu struct {
		sync.Mutex
		lasting zapcore.Level // to go back to
		until   time.Time     // zero: nothing to go back from
		back    *time.Timer
	}
}

func newLogLevel(l zapcore.Level) *logLevel {
	v := &logLevel{level: zap.NewAtomicLevelAt(l), log: zap.NewNop()}
	v.mu.lasting = l
	return v
}

// LogLevel returns the level, and until when it holds; zero is for good.
func (l *logLevel) LogLevel() (level string, until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.level.String(), l.mu.until
}

// SetLogLevel changes the level, for good where period is 0.
func (l *logLevel) SetLogLevel(level string, period time.Duration) error {
	to, err := settings.ParseLogLevel(level)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endPeriodLocked()
	why := "by a client"
	if period > 0 {
		why = fmt.Sprintf("by a client, for %v", period)
		until := time.Now().Add(period)
		l.mu.until = until
		l.mu.back = time.AfterFunc(period, func() { l.goBack(until) })
	} else {
		l.mu.lasting = to
	}
	l.changeLocked(to, why)
	return nil
}

// reload makes the level that of the settings.
func (l *logLevel) reload(s *settings.Settings) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endPeriodLocked()
	l.mu.lasting = s.LogLevel
	l.changeLocked(s.LogLevel, "by a reload")
	return nil
}

// goBack ends the period that ends at until, if it has not been replaced.
func (l *logLevel) goBack(until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.until != until {
		return
	}
	l.endPeriodLocked()
	l.changeLocked(l.mu.lasting, "since its period is over")
}

func (l *logLevel) endPeriodLocked() {
	if l.mu.back != nil {
		l.mu.back.Stop()
	}
	l.mu.back, l.mu.until = nil, time.Time{}
}

// changeLocked says so while the more talkative of the two levels holds.
func (l *logLevel) changeLocked(to zapcore.Level, why string) {
	from := l.level.Level()
	if from == to {
		return
	}
	l.level.SetLevel(min(from, to))
	l.log.Info("the log level changes", zap.Stringer("from", from), zap.Stringer("to", to), zap.String("why", why))
	l.level.SetLevel(to)
}

// close ends a period's timer.
func (l *logLevel) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endPeriodLocked()
}
