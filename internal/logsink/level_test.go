package logsink

import (
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/kvd-io/kvd/internal/settings"
)

func TestLogLevelGoesBack(t *testing.T) {
	l := NewLevel(zapcore.InfoLevel)
	defer l.Close()
	core, lines := observer.New(l.atomic)
	l.attach(zap.New(core))
	expect := func(want string, permanent bool) {
		t.Helper()
		if got, until := l.LogLevel(); got != want || until.IsZero() != permanent {
			t.Errorf("level %s until %v, want %s", got, until, want)
		}
	}
	if err := l.SetLogLevel("loud", 0); err == nil {
		t.Error("an unknown level was accepted")
	}
	expect("info", true)
	if err := l.SetLogLevel("debug", time.Hour); err != nil {
		t.Fatal(err)
	}
	expect("debug", false)
	l.goBack(time.Now()) // of a period that was replaced
	expect("debug", false)
	_, until := l.LogLevel()
	l.goBack(until)
	expect("info", true)
	if err := l.SetLogLevel("error", 0); err != nil {
		t.Fatal(err)
	}
	expect("error", true)
	if err := l.Reload(&settings.Settings{LogLevel: zapcore.WarnLevel}); err != nil {
		t.Fatal(err)
	}
	expect("warn", true)
	if n := lines.FilterMessage("log level changed").Len(); n != 3 {
		t.Errorf("%d changes logged, want 3: %v", n, lines.All())
	}
}
