package logsink

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

func testNotice(n uint64) []byte { return fmt.Appendf(nil, "dropped %d\n", n) }

// TestStuckReaderDoesNotStopTheLogger: while nobody reads standard error,
// logging does not wait and takes bounded memory; lost lines are counted, and
// reported once somebody reads again.
func TestStuckReaderDoesNotStopTheLogger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe() // a write waits until it is read
		sink := newSink(w, testNotice)
		line := []byte(strings.Repeat("x", 1023) + "\n")
		const lines = 3 * maxQueuedBytes / 1024
		begin := time.Now()
		for range lines {
			if n, err := sink.Write(line); n != len(line) || err != nil {
				t.Fatal(n, err)
			}
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("the writer waited %v", took)
		}
		lost := sink.Dropped()
		if lost != lines-maxQueuedBytes/1024 {
			t.Errorf("%d of %d lines count as dropped", lost, lines)
		}
		if err := sink.Sync(); err != nil || time.Since(begin) > SyncTimeout {
			t.Errorf("Sync took %v: %v", time.Since(begin), err)
		}
		var got bytes.Buffer
		var reading sync.WaitGroup
		reading.Go(func() { _, _ = io.Copy(&got, r) })
		sink.Close()
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		reading.Wait()
		if n := strings.Count(got.String(), string(line)); n != lines-int(lost) {
			t.Errorf("%d lines arrived, %d were dropped of %d", n, lost, lines)
		}
		if reported := reportedDropped(t, got.String()); reported != lost {
			t.Errorf("the notices report %d lost lines, want %d", reported, lost)
		}
	})
}

// reportedDropped adds up the notices in the output.
func reportedDropped(t *testing.T, output string) (sum uint64) {
	t.Helper()
	for line := range strings.Lines(output) {
		if !strings.HasPrefix(line, "dropped") {
			continue
		}
		var n uint64
		if _, err := fmt.Sscanf(line, "dropped %d\n", &n); err != nil {
			t.Error(err)
		}
		sum += n
	}
	return sum
}

// TestCloseOfAStuckSinkIsBounded: a process with a stuck reader can exit.
func TestCloseOfAStuckSinkIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		sink := newSink(w, testNotice)
		if _, err := sink.Write([]byte("a\n")); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		sink.Close()
		if took := time.Since(begin); took != SyncTimeout {
			t.Errorf("Close took %v", took)
		}
		// Release the goroutine, or the bubble would never end.
		if err := r.CloseWithError(errors.New("gone")); err != nil {
			t.Error(err)
		}
		<-sink.done
	})
}

func TestSinkKeepsTheOrder(t *testing.T) {
	var got bytes.Buffer
	sink := newSink(&got, testNotice)
	var want strings.Builder
	for i := range 1000 {
		line := fmt.Sprintln("line", i)
		want.WriteString(line)
		if _, err := sink.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	sink.Close()
	if got.String() != want.String() {
		t.Errorf("%d bytes arrived of %d", got.Len(), want.Len())
	}
	if _, err := sink.Write([]byte("late\n")); err != nil || sink.Dropped() != 1 {
		t.Errorf("a line after Close: %v, %d dropped", err, sink.Dropped())
	}
}

func TestLoggerWritesJSONLines(t *testing.T) {
	var out bytes.Buffer
	log, sink := New(&out, NewLevel(zapcore.InfoLevel), "")
	log.Debug("not this")
	log.Info("ready", zap.String("a", "b"), zap.Duration("took", 1500*time.Millisecond))
	sink.Close()
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatalf("%v in %s", err, &out)
	}
	for key, want := range map[string]any{"msg": "ready", "level": "info", "a": "b", "took": "1.5s"} {
		if line[key] != want {
			t.Errorf("%s is %v, want %v", key, line[key], want)
		}
	}
	if _, err := time.Parse(time.RFC3339Nano, line["ts"].(string)); err != nil {
		t.Error(err)
	}
	var notice map[string]any
	if err := json.Unmarshal(dropNotice(newEncoder(FormatJSON, nil), 7), &notice); err != nil || notice["dropped"] != 7.0 {
		t.Errorf("%v: %v", notice, err)
	}
}

func TestLoggerForPeople(t *testing.T) {
	var out bytes.Buffer
	log, sink := New(&out, NewLevel(zapcore.WarnLevel), FormatConsole)
	log.Info("not this")
	log.Warn("careful")
	sink.Close()
	if got := out.String(); !strings.Contains(got, "WARN") || !strings.Contains(got, "careful") || strings.Contains(got, "not this") {
		t.Errorf("got %q", got)
	}
}

// failingWriter fails while broken is set.
type failingWriter struct {
	mu     sync.Mutex
	broken bool
	tries  int
	got    bytes.Buffer
}

func (w *failingWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tries++
	if w.broken {
		return 0, syscall.EIO
	}
	return w.got.Write(p)
}

func (w *failingWriter) set(broken bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken = broken
}

// TestDeadReaderDoesNotStopTheLogger: standard error fails, as that of a closed terminal
// does. Each line is tried once, counted, and reported if it ever comes back.
func TestDeadReaderDoesNotStopTheLogger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &failingWriter{broken: true}
		sink := newSink(out, testNotice)
		const lines = 10
		for range lines {
			if _, err := sink.Write([]byte("lost\n")); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if sink.Dropped() != lines || out.tries != lines {
			t.Errorf("%d lines counted as dropped after %d tries, want %d", sink.Dropped(), out.tries, lines)
		}
		out.set(false)
		_, _ = sink.Write([]byte("back\n")) // never fails
		sink.Close()
		if got := out.got.String(); !strings.HasPrefix(got, "back\n") || reportedDropped(t, got) != lines {
			t.Errorf("the log has %q", got)
		}
	})
}
