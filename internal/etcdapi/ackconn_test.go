package etcdapi

import (
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
)

// recorder is a connection that records what is written, each write by itself.
type recorder struct {
	net.Conn
	writes []string
	err    error
	closed bool
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	r.writes = append(r.writes, string(p))
	return len(p), nil
}

func (r *recorder) Close() error {
	r.closed = true
	return nil
}

// frames returns what f writes.
func frames(f func(*http2.Framer) error) string {
	var b strings.Builder
	if err := f(http2.NewFramer(&b, nil)); err != nil {
		panic(err)
	}
	return b.String()
}

func pingAck(n byte) string {
	return frames(func(f *http2.Framer) error { return f.WritePing(true, [8]byte{n, 2, 3, 4, 5, 6, 7, 8}) })
}

// TestAcksGoAlong: the acknowledgment of a ping goes out before what follows, in the same
// write if that is short, or by itself once it has waited for ackDelay. Nothing is lost,
// and everything else is written at once.
func TestAcksGoAlong(t *testing.T) {
	data := frames(func(f *http2.Framer) error { return f.WriteData(1, false, []byte("answer")) })
	long := frames(func(f *http2.Framer) error { return f.WriteData(1, false, make([]byte, pairedBytes)) })
	ping := frames(func(f *http2.Framer) error { return f.WritePing(false, [8]byte{1}) })
	settings := frames(func(f *http2.Framer) error { return f.WriteSettingsAck() })
	many := strings.Repeat(pingAck(1), maxHeldAcks)
	const later = "later" // ackDelay passes; what is written at its end follows
	for name, test := range map[string]struct{ writes, want []string }{
		"a short answer":            {[]string{pingAck(1), data}, []string{pingAck(1) + data}},
		"a long answer":             {[]string{pingAck(1), long}, []string{pingAck(1), long}},
		"no answer":                 {[]string{pingAck(1), later, data}, []string{later, pingAck(1), data}},
		"two pings":                 {[]string{pingAck(1), pingAck(2), data, data}, []string{pingAck(1) + pingAck(2) + data, data}},
		"two pings in one write":    {[]string{pingAck(1) + pingAck(2), data}, []string{pingAck(1) + pingAck(2) + data}},
		"the next ping":             {[]string{pingAck(1), data, later, pingAck(2), later}, []string{pingAck(1) + data, later, later, pingAck(2)}},
		"too many":                  {[]string{many, pingAck(2), pingAck(3), data}, []string{many + pingAck(2), pingAck(3) + data}},
		"an answer with it already": {[]string{pingAck(1) + data}, []string{pingAck(1) + data}},
		"a ping of the server":      {[]string{ping, settings}, []string{ping, settings}},
		"a part of one":             {[]string{pingAck(1)[:12], data}, []string{pingAck(1)[:12], data}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := new(recorder)
				c := &ackConn{Conn: r}
				for _, p := range test.writes {
					if p == later {
						time.Sleep(ackDelay - 1)
						c.mu.Lock()
						r.writes = append(r.writes, later)
						c.mu.Unlock()
						time.Sleep(time.Nanosecond)
						synctest.Wait()
						continue
					}
					if n, err := c.Write([]byte(p)); n != len(p) || err != nil {
						t.Errorf("wrote %d of %d bytes: %v", n, len(p), err)
					}
				}
				if !slices.Equal(r.writes, test.want) {
					t.Errorf("wrote %q, not %q", r.writes, test.want)
				}
			})
		})
	}
}

// TestAckFails: the writer learns that an acknowledgment could not be written, and nothing
// is written after the end.
func TestAckFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{err: net.ErrClosed}
		c := &ackConn{Conn: r}
		_, err := c.Write([]byte(pingAck(1)))
		time.Sleep(ackDelay)
		synctest.Wait()
		if _, later := c.Write([]byte("answer")); err != nil || !errors.Is(later, net.ErrClosed) {
			t.Errorf("%v, then %v", err, later)
		}
		r = new(recorder)
		c = &ackConn{Conn: r}
		_, err = c.Write([]byte(pingAck(1)))
		if err = errors.Join(err, c.Close()); err != nil || !r.closed {
			t.Errorf("close: %v", err)
		}
		time.Sleep(ackDelay)
		synctest.Wait()
		if len(r.writes) > 0 {
			t.Errorf("wrote %q after the end", r.writes)
		}
	})
}
