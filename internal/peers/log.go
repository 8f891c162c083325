package peers

import (
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// rafthttp tells each step of each connection at info, and a peer that is away
// every few seconds at warn. Here the steps are detail for who debugs a
// connection, and of lines that repeat themselves some a minute are kept: as
// many as tell of each connection to two peers.
const (
	sampleTime  = time.Minute
	sampleFirst = 8
)

// newTransportLogger is rafthttp's way to the log. Once stopping is set, that
// connections end is no news.
func newTransportLogger(lg *zap.Logger, stopping *atomic.Bool) *zap.Logger {
	return lg.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core {
		return quietCore{zapcore.NewSamplerWithOptions(c, sampleTime, sampleFirst, 0), stopping}
	}))
}

// quietCore lowers the levels of lines.
type quietCore struct {
	zapcore.Core
	stopping *atomic.Bool
}

// With implements zapcore.Core.
func (c quietCore) With(fields []zapcore.Field) zapcore.Core {
	return quietCore{c.Core.With(fields), c.stopping}
}

// Check implements zapcore.Core.
func (c quietCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	step := e.Level == zapcore.InfoLevel && e.Message != "peer became active"
	if step || e.Level < zapcore.ErrorLevel && c.stopping.Load() {
		e.Level = zapcore.DebugLevel
	}
	return c.Core.Check(e, ce)
}
