package arrival

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"
)

// pair returns both ends of a connection over loopback, or of a pipe instead of a socket.
func pair(t *testing.T, socket bool) (client, server net.Conn) {
	t.Helper()
	client, server = net.Pipe()
	if socket {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
			t.Fatal(err)
		}
		if server, err = l.Accept(); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = client.Close(); _ = server.Close() })
	return client, server
}

// lender lends one buffer, and tells when it comes back.
type lender struct {
	buf  []byte
	lent atomic.Bool
	back chan struct{} // has room for what a test makes happen
}

func (l *lender) Take() []byte {
	if l.lent.Swap(true) {
		panic("taken twice")
	}
	return l.buf
}

func (l *lender) GiveBack() {
	if !l.lent.Swap(false) {
		panic("given back twice")
	}
	l.back <- struct{}{}
}

// TestNothingIsHeldMeanwhile: a read that waits has no buffer, and gets one for what comes.
func TestNothingIsHeldMeanwhile(t *testing.T) {
	client, server := pair(t, true)
	l := &lender{buf: make([]byte, 16), back: make(chan struct{}, 100)}
	w := New(server, l)
	for _, text := range []string{"first", "and one that is longer than that"} {
		var got []byte
		read, going := make(chan error, 1), text
		go func() {
			n, err := w.Read()
			got = append(got, l.buf[:n]...)
			read <- err
		}()
		<-l.back // an attempt found nothing, or the test would hang
		if _, err := io.WriteString(client, going); err != nil {
			t.Fatal(err)
		}
		if err := <-read; err != nil || len(got) == 0 || !l.lent.Load() {
			t.Fatalf("%q, %v; taken: %v", got, err, l.lent.Load())
		}
		l.GiveBack()
		<-l.back
		for len(got) < len(text) {
			n, err := w.Read()
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, l.buf[:n]...)
			l.lent.Store(false)
		}
		if string(got) != text {
			t.Errorf("%q, want %q", got, text)
		}
		for len(l.back) > 0 {
			<-l.back
		}
	}
}

// TestWaitsEnd: a wait ends as one of package net does.
func TestWaitsEnd(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(client, server net.Conn) error
		want error
	}{
		"the client closes": {func(client, _ net.Conn) error { return client.Close() }, io.EOF},
		"a deadline":        {func(_, server net.Conn) error { return server.SetReadDeadline(time.Unix(1, 0)) }, os.ErrDeadlineExceeded},
		"the server closes": {func(_, server net.Conn) error { return server.Close() }, net.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := pair(t, true)
			l := &lender{buf: make([]byte, 16), back: make(chan struct{}, 100)}
			read := make(chan error, 1)
			go func() {
				_, err := New(server, l).Read()
				read <- err
			}()
			<-l.back
			if err := c.end(client, server); err != nil {
				t.Fatal(err)
			}
			if err := <-read; !errors.Is(err, c.want) || l.lent.Load() {
				t.Errorf("%v, want %v; taken: %v", err, c.want, l.lent.Load())
			}
		})
	}
}

// TestBuffered: a Conn reads what was sent, in pieces of all sizes, and holds no buffer in
// the end.
func TestBuffered(t *testing.T) {
	for _, socket := range []bool{true, false} {
		client, server := pair(t, socket)
		sent := make([]byte, 300<<10)
		for i := range sent {
			sent[i] = byte(rand.Uint32())
		}
		wrote := make(chan error, 1)
		go func() {
			for rest := sent[100:]; len(rest) > 0; {
				n := min(len(rest), 1+rand.IntN(50<<10))
				if _, err := client.Write(rest[:n]); err != nil {
					wrote <- err
					return
				}
				rest = rest[n:]
			}
			wrote <- client.Close()
		}()
		c := Buffered(server, bytes.Clone(sent[:100]))
		var got []byte
		for {
			piece := make([]byte, 1+rand.IntN(1<<rand.IntN(17)))
			n, err := c.Read(piece)
			if got = append(got, piece[:n]...); err != nil {
				if err != io.EOF {
					t.Error(err)
				}
				break
			}
		}
		if err := <-wrote; err != nil || !bytes.Equal(got, sent) {
			t.Errorf("socket %v: %d bytes of %d, %v", socket, len(got), len(sent), err)
		}
		if b := c.(*Conn); b.buffer != nil || len(b.waiting) > 0 {
			t.Errorf("socket %v: the buffer is still taken", socket)
		}
	}
}

// TestOtherConnectionsAreLeftAlone: TLS reads ahead itself.
func TestOtherConnectionsAreLeftAlone(t *testing.T) {
	_, server := pair(t, false)
	if c := Buffered(server, nil); c != server {
		t.Errorf("%T", c)
	}
}
