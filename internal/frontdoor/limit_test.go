package frontdoor

import (
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kvd-io/kvd/internal/api"
)

// limited is a listener under a limit, with what comes through it.
type limited struct {
	t        *testing.T
	limit    *connectionLimit
	inner    net.Listener
	accepted chan net.Conn
}

func newLimited(t *testing.T, limit *connectionLimit) *limited {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &limited{t: t, limit: limit, inner: inner, accepted: make(chan net.Conn)}
	outer := limit.wrap(inner)
	ended := make(chan error, 1)
	go func() {
		for {
			c, err := outer.Accept()
			if err != nil {
				ended <- err
				return
			}
			l.accepted <- c
		}
	}()
	t.Cleanup(func() {
		_ = inner.Close()
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return l
}

func (l *limited) dial() net.Conn {
	l.t.Helper()
	c, err := net.Dial("tcp", l.inner.Addr().String())
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { c.Close() })
	return c
}

// open connects and returns the server's end.
func (l *limited) open(beyond bool) net.Conn {
	l.t.Helper()
	l.dial()
	c := <-l.accepted
	if (l.limit.mark(l.t.Context(), c).Value(beyondLimit{}) != nil) != beyond {
		l.t.Errorf("beyond the limit: %v", !beyond)
	}
	return c
}

// TestPlacesOfConnections: a few are served beyond the limit and none beyond
// those, and a connection that is closed makes room for another.
func TestPlacesOfConnections(t *testing.T) {
	limit := newConnectionLimit(2, 1)
	closed := make(chan api.Code, 1)
	limit.rejected = func(c api.Code) { closed <- c }
	l := newLimited(t, limit)
	first, second, extra := l.open(false), l.open(false), l.open(true)
	if n, err := l.dial().Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes came on a connection beyond the spare ones", n)
	}
	if code := <-closed; code != api.Overloaded {
		t.Errorf("it counts as %s", code)
	}
	_, _ = first.Close(), first.Close() // twice gives one place back
	third := l.open(false)
	_ = extra.Close()
	again := l.open(true)
	if open, extra := limit.open.Taken(), limit.extra.Taken(); open != 2 || extra != 1 {
		t.Errorf("%d and %d connections count", open, extra)
	}
	for _, c := range []net.Conn{second, third, again} {
		_ = c.Close()
	}
}

// TestConnectionBeyondTheLimitIsShort: a silent connection takes a spare place
// away from probes for a moment only.
func TestConnectionBeyondTheLimitIsShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit := newConnectionLimit(1, spareConnections)
		ours, theirs := net.Pipe()
		defer limit.admit(theirs).Close()
		silent, end := net.Pipe()
		limit.admit(end)
		begin := time.Now()
		if _, err := silent.Read(make([]byte, 1)); !errors.Is(err, io.EOF) || time.Since(begin) != spareLifetime {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		if n := limit.extra.Taken(); n != 0 {
			t.Errorf("%d connections count", n)
		}
		_ = ours.SetReadDeadline(time.Now().Add(time.Hour))
		if _, err := ours.Read(make([]byte, 1)); errors.Is(err, io.EOF) || time.Since(begin) < time.Hour {
			t.Errorf("the one within the limit: %v after %v", err, time.Since(begin))
		}
	})
}
