package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"gopkg.in/natefinch/lumberjack.v2"
)

// How keys and names of locks are recorded.
const (
	KeysPlain  = "plain"
	KeysHashed = "hashed"
	KeysOff    = "off"
)

// Options configure a Log. Zero values of limits mean that there is none.
type Options struct {
	File string
	// MaxSizeBytes is where the file is rotated, in whole MiB. MaxAge, in whole days, and
	// MaxBackups bound what is kept of rotated files.
	MaxSizeBytes int64
	MaxAge       time.Duration
	MaxBackups   int
	// Keys is KeysPlain, KeysHashed or KeysOff.
	Keys string
	// Strict refuses requests that cannot be recorded.
	Strict bool
	// Salt returns the salt of hashed keys: the same on every member of a cluster, so that
	// their lines can be compared, and different in every cluster.
	Salt func() string
}

// Log is the audit log. Its methods may be called from any goroutine, and on nil, which
// records nothing.
type Log struct {
	opts Options
	sink *sink
	now  func() time.Time
}

const (
	mebibyte = 1 << 20
	day      = 24 * time.Hour
)

// Open opens or creates the file, and starts the goroutine that writes; Close ends it.
func Open(opts Options) (*Log, error) {
	// The rotating writer would report an unusable file only at the first line.
	f, err := os.OpenFile(opts.File, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the audit log: %w", err)
	}
	info, err := f.Stat()
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("open the audit log: %w", err)
	}
	if kind := info.Mode().Type(); kind&^(fs.ModeDevice|fs.ModeCharDevice) != 0 {
		return nil, fmt.Errorf("open the audit log: %s is not a file", opts.File)
	}
	l := newLog(opts)
	l.sink = newSink(&lumberjack.Logger{
		Filename: opts.File, MaxSize: int(roundUp(opts.MaxSizeBytes, mebibyte)),
		MaxAge: int(roundUp(int64(opts.MaxAge), int64(day))), MaxBackups: opts.MaxBackups,
	}, maxQueuedBytes, l.lostLines)
	return l, nil
}

func newLog(opts Options) *Log {
	if opts.Salt == nil {
		opts.Salt = func() string { return "" }
	}
	return &Log{opts: opts, now: time.Now}
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit }

// Reopen reopens the file before the next line, after another program has renamed it.
func (l *Log) Reopen() {
	if l != nil {
		l.sink.reopen()
	}
}

// Close writes the queued lines, for a bounded time. Later lines are lost.
func (l *Log) Close() {
	if l != nil {
		l.sink.close()
	}
}

// Written returns the number of lines since the start.
func (l *Log) Written() uint64 {
	if l == nil {
		return 0
	}
	return l.sink.written.Load()
}

// Dropped returns the number of lines that were lost since the start.
func (l *Log) Dropped() uint64 {
	if l == nil {
		return 0
	}
	return l.sink.dropped.Load()
}
