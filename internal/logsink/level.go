package logsink

import (
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/kvd-io/kvd/internal/settings"
)

// Level is the level of the log, which can be changed at run time: by
// SIGHUP to what the settings say, and by clients, also for a while.
type Level struct {
	Atomic zap.AtomicLevel
	Log    *zap.Logger

	mu struct {
		sync.Mutex
		lasting zapcore.Level // to go back to
		until   time.Time     // zero: nothing to go back from
		back    *time.Timer
	}
}

func NewLevel(l zapcore.Level) *Level {
	v := &Level{Atomic: zap.NewAtomicLevelAt(l), Log: zap.NewNop()}
	v.mu.lasting = l
	return v
}

// LogLevel returns the level, and until when it holds; zero is for good.
func (l *Level) LogLevel() (level string, until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Atomic.String(), l.mu.until
}

// SetLogLevel changes the level, for good where period is 0.
func (l *Level) SetLogLevel(level string, period time.Duration) error {
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

// Reload makes the level that of the settings.
func (l *Level) Reload(s *settings.Settings) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endPeriodLocked()
	l.mu.lasting = s.LogLevel
	l.changeLocked(s.LogLevel, "by a reload")
	return nil
}

// goBack ends the period that ends at until, if it has not been replaced.
func (l *Level) goBack(until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.until != until {
		return
	}
	l.endPeriodLocked()
	l.changeLocked(l.mu.lasting, "since its period is over")
}

func (l *Level) endPeriodLocked() {
	if l.mu.back != nil {
		l.mu.back.Stop()
	}
	l.mu.back, l.mu.until = nil, time.Time{}
}

// changeLocked says so while the more talkative of the two levels holds.
func (l *Level) changeLocked(to zapcore.Level, why string) {
	from := l.Atomic.Level()
	if from == to {
		return
	}
	l.Atomic.SetLevel(min(from, to))
	l.Log.Info("the log level changes", zap.Stringer("from", from), zap.Stringer("to", to), zap.String("why", why))
	l.Atomic.SetLevel(to)
}

// Close ends a period's timer.
func (l *Level) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endPeriodLocked()
}
