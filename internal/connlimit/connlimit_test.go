package connlimit

import (
	"errors"
	"io"
	"net"
	"testing"
)

// TestPlacesAreGivenBack: connections beyond the limit are closed, and each place
// serves the next connection once, however often its last one is closed.
func TestPlacesAreGivenBack(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := make(chan struct{}, 10)
	places := New(2)
	l := Listen(inner, places, func() { refused <- struct{}{} })
	defer l.Close()
	accepted := make(chan net.Conn)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	dial()
	first := <-accepted
	dial()
	second := <-accepted
	over := dial()
	<-refused
	if _, err := over.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the connection beyond the limit: %v", err)
	}
	_, _ = first.Close(), first.Close() // the second one is an error of the connection
	if n := places.Taken(); n != 1 {
		t.Errorf("%d places are taken, want 1", n)
	}
	dial()
	third := <-accepted
	dial()
	<-refused
	_, _ = second.Close(), third.Close()
	if n := places.Taken(); n != 0 {
		t.Errorf("%d places are taken, want 0", n)
	}
}

func TestNoLimit(t *testing.T) {
	places := New(0)
	for range 1000 {
		if places.Take(nil) == nil {
			t.Fatal("no place is left, although there is no limit")
		}
	}
}
