package peers

import (
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// rafthttp logs every step of every connection at level info, and every few
// seconds at level warn that a peer is unreachable. Here the steps become debug
// lines. Of lines with the same message only the first sampleFirst in a minute
// are kept: one for each of the four streams with each of two peers.
const (
	sampleTime  = time.Minute
	sampleFirst = 8
)

// newTransportLogger returns the logger for rafthttp. Once stopping is set, only
// errors keep their level: connections are expected to end then.
func newTransportLogger(lg *zap.Logger, stopping *atomic.Bool) *zap.Logger {
	return lg.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core {
		return quietCore{zapcore.NewSamplerWithOptions(c, sampleTime, sampleFirst, 0), stopping}
	}))
}

// quietCore lowers the level of lines that report nothing unusual.
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
