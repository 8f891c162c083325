package logsink

import (
	"io"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// The formats of --log-format.
const (
	FormatConsole = "console" // for people: columns, local time without the date
	FormatJSON    = "json"    // for programs: one object a line
)

// New returns a logger that writes to out and the sink behind it, which the
// caller closes. The level can be changed while the logger is in use. An empty
// format means FormatConsole on a terminal and FormatJSON elsewhere.
//
// Keys and values of the store never go into the log.
func New(out io.Writer, level *Level, format string) (*zap.Logger, *Sink) {
	enc := newEncoder(format, out)
	sink := newSink(out, func(n uint64) []byte { return dropNotice(enc, n) })
	core := zapcore.NewCore(enc, sink, level.atomic)
	// Only main may exit the process: libraries that log a fatal line panic.
	log := zap.New(core, zap.AddCaller(), zap.ErrorOutput(sink), zap.WithFatalHook(zapcore.WriteThenPanic))
	level.attach(log)
	return log, sink
}

// ForPeople reports whether the log is in the format for people.
func ForPeople(format string, out io.Writer) bool {
	return format == FormatConsole || format == "" && IsTerminal(out)
}

func newEncoder(format string, out io.Writer) zapcore.Encoder {
	cfg := zap.NewProductionEncoderConfig()
	cfg.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	cfg.EncodeDuration = zapcore.StringDurationEncoder
	if ForPeople(format, out) {
		cfg.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
		cfg.EncodeLevel = zapcore.CapitalLevelEncoder
		return zapcore.NewConsoleEncoder(cfg)
	}
	return zapcore.NewJSONEncoder(cfg)
}

// dropNotice is the line about lines that the sink had no room for. It cannot
// go through the logger: that would queue it behind what it reports.
func dropNotice(enc zapcore.Encoder, n uint64) []byte {
	entry := zapcore.Entry{
		Level: zapcore.WarnLevel, Time: time.Now(),
		Message: "log lines dropped: standard error is not read fast enough, or fails",
	}
	buf, err := enc.EncodeEntry(entry, []zapcore.Field{zap.Uint64("dropped", n)})
	if err != nil {
		return []byte("log lines dropped\n")
	}
	defer buf.Free()
	return append([]byte(nil), buf.Bytes()...)
}
