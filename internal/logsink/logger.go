package logsink

import (
	"io"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// New returns the logger and the sink behind it, which the caller
// closes. Keys and values of the store never go into it.
func New(out io.Writer, level zap.AtomicLevel, format string) (*zap.Logger, *Sink) {
	enc := newEncoder(format, out)
	sink := newSink(out, func(n uint64) []byte { return dropNotice(enc, n) })
	core := zapcore.NewCore(enc, sink, level)
	// Only main may exit the process: a library that would, panics.
	return zap.New(core, zap.AddCaller(), zap.ErrorOutput(sink), zap.WithFatalHook(zapcore.WriteThenPanic)), sink
}

func newEncoder(format string, out io.Writer) zapcore.Encoder {
	cfg := zap.NewProductionEncoderConfig()
	cfg.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	cfg.EncodeDuration = zapcore.StringDurationEncoder
	if format == "console" || format == "" && IsTerminal(out) {
		cfg.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
		cfg.EncodeLevel = zapcore.CapitalLevelEncoder
		return zapcore.NewConsoleEncoder(cfg)
	}
	return zapcore.NewJSONEncoder(cfg)
}

// dropNotice is the line about lines that the sink had no room for.
func dropNotice(enc zapcore.Encoder, n uint64) []byte {
	entry := zapcore.Entry{
		Level: zapcore.WarnLevel, Time: time.Now(),
		Message: "log lines were dropped: nobody reads them fast enough",
	}
	buf, err := enc.EncodeEntry(entry, []zapcore.Field{zap.Uint64("dropped", n)})
	if err != nil {
		return []byte("log lines were dropped\n")
	}
	defer buf.Free()
	return append([]byte(nil), buf.Bytes()...)
}
