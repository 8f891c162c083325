package http1

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// echo answers with what it received.
func echo(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	w.Header().Set("Content-Type", "text/plain") // neither server has to guess
	switch r.URL.Path {
	case "/none":
		w.WriteHeader(http.StatusNoContent)
	case "/unchanged":
		w.Header().Set("Etag", `"7"`)
		w.WriteHeader(http.StatusNotModified)
	case "/declared":
		w.Header().Set("Content-Length", "5")
		_, _ = io.WriteString(w, "hello")
	case "/short":
		w.Header().Set("Content-Length", "50")
		_, _ = io.WriteString(w, "hello")
	case "/abort":
		panic(http.ErrAbortHandler)
	case "/panic":
		panic("a bug")
	case "/large-panic":
		w.Header().Set("Content-Length", "102400")
		_, _ = w.Write(bytes.Repeat([]byte("x"), 50<<10))
		panic("a bug")
	case "/slow/400":
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, "HTTP/1.1 400 Bad Request"+refusalHead+"400 Bad Request")
	case "/slow/text":
		// Long enough not to be collected with what comes before.
		w.Header().Set("Content-Length", "50000")
		_ = http.NewResponseController(w).Flush()
		_, _ = io.WriteString(w, longRefusal)
	case "/stream/refused":
		http.Error(w, "no", http.StatusGone)
	case "/stream/empty":
		_ = http.NewResponseController(w).Flush()
	case "/stream/abort":
		_, _ = io.WriteString(w, "some")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case "/stream":
		for range 3 {
			_, _ = io.WriteString(w, "some")
			_ = http.NewResponseController(w).Flush()
			_, _ = io.WriteString(w, "more")
		}
	case "/attend":
		leave := attend(w, func() {})
		defer leave()
		fmt.Fprintf(w, "%d %.4q", len(b), b)
	case "/split":
		w.Header().Set("X-Split", "a\r\nX-Forged: b")
	case "/close":
		w.Header().Set("Connection", "close")
	case "/large":
		w.Header().Set("Content-Length", "102400")
		_, _ = w.Write(bytes.Repeat([]byte("x"), 100<<10))
	default:
		w.Header().Set("X-Seen", fmt.Sprintf("%s %q %q %q %d", r.Method, r.URL.Path, r.URL.RawQuery, r.Host, r.ContentLength))
		fmt.Fprintf(w, "%q %v %v", b, err, r.Header)
	}
}

// attend has the client watched. net/http does so by itself.
func attend(w http.ResponseWriter, gone func()) (leave func()) {
	if w, ok := w.(interface {
		Attend(gone func()) (leave func())
	}); ok {
		return w.Attend(gone)
	}
	return func() {}
}

func never(string, string) bool { return false }

// startServer serves echo on loopback, by this package if fast is set, else by net/http
// alone.
func startServer(t *testing.T, fast bool) (addr string, srv *Server) {
	t.Helper()
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	whole := &http.Server{Handler: http.HandlerFunc(echo), IdleTimeout: time.Minute, Protocols: &protocols}
	srv = New(whole, func(_, target string) bool { return fast && !strings.HasPrefix(target, "/slow") }, func(_, target string) bool { return fast && strings.HasPrefix(target, "/stream") })
	return serveOnLoopback(t, srv, asItIs), srv
}

// serveOnLoopback serves until the end of the test, and returns the address.
func serveOnLoopback(t *testing.T, srv *Server, wrap func(net.Listener) net.Listener) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(wrap(l)) }()
	t.Cleanup(func() {
		_ = srv.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve ended with %v", err)
		}
	})
	return l.Addr().String()
}

// talk sends a text and returns all answers until the server closes the connection, one per
// line, without their dates.
func talk(t *testing.T, addr, text string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	return answersTo(t, c, text)
}

// answersTo returns the answers to a text that was sent.
func answersTo(t *testing.T, c net.Conn, text string) string {
	t.Helper()
	method, _, _ := strings.Cut(text, " ")
	var answers strings.Builder
	for r := bufio.NewReader(c); ; method = "" {
		resp, err := http.ReadResponse(r, &http.Request{Method: method})
		if err != nil {
			return answers.String()
		}
		resp.Header.Del("Date")
		body, err := io.ReadAll(resp.Body)
		fmt.Fprintf(&answers, "%s %v %d close=%v %q %v\n", resp.Status, resp.Header, resp.ContentLength, resp.Close, body, err)
	}
}

// longRefusal is a body that begins like a refusal of net/http.
var longRefusal = "HTTP/1.1 400 Bad Request" + refusalHead + strings.Repeat("x", 50000-24-len(refusalHead))

const last = "GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

// conversations are raw requests, each followed by one that ends the
// connection.
var conversations = []struct {
	name, text string
	whole      bool // left to net/http
	stream     bool // the last answer of its connection
}{
	{name: "get", text: "GET /a/b HTTP/1.1\r\nHost: x\r\n\r\n"},
	{name: "query", text: "GET /a?x=1&y=%20 HTTP/1.1\r\nHost: x:12\r\n\r\n"},
	{name: "escapes", text: "GET /a%2Fb%00/../c HTTP/1.1\r\nHost: [::1]:12\r\n\r\n"},
	{name: "double slash", text: "GET //a//b HTTP/1.1\r\nHost: x\r\n\r\n"},
	{name: "put", text: "PUT /a HTTP/1.1\r\nHost: x\r\ncontent-length: 5\r\n\r\nhello"},
	{name: "no status written", text: "GET /none HTTP/1.1\r\nHost: x\r\n\r\n"},
	{name: "not modified", text: "GET /unchanged HTTP/1.1\r\nHost: x\r\n\r\n"},
	{name: "declared", text: "GET /declared HTTP/1.1\r\nHost: x\r\n\r\n"},
	{name: "head declared", text: "HEAD /declared HTTP/1.1\r\nHost: x\r\n\r\n"},
	{name: "header splitting", text: "GET /split HTTP/1.1\r\nHost: x\r\n\r\n"},
	{name: "handler closes", text: "GET /close HTTP/1.1\r\nHost: x\r\n\r\n"},
	{name: "repeated field", text: "GET /a HTTP/1.1\r\nHost: x\r\nAccept: a\r\nACCEPT:b \r\nX-Odd-name: c\r\n\r\n"},
	{name: "pipelined", text: strings.Repeat("PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi", 20)},
	{name: "attended", text: strings.Repeat("POST /attend HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi", 200)},
	{name: "attended with a long body", text: "POST /attend HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n" + strings.Repeat("x", 9000)},
	{name: "chunked", text: "PUT /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", whole: true},
	{name: "expect", text: "PUT /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi", whole: true},
	{name: "long body", text: "PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 40000\r\n\r\n" + strings.Repeat("x", 40000), whole: true},
	{name: "bare line feeds", text: "GET /a HTTP/1.1\nHost: x\n\n", whole: true},
	{name: "old version", text: "GET /a HTTP/1.0\r\nHost: x\r\n\r\n", whole: true},
	{name: "no host", text: "GET /a HTTP/1.1\r\n\r\n", whole: true},
	{name: "two hosts", text: "GET /a HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", whole: true},
	{name: "two lengths", text: "PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi", whole: true},
	{name: "length and chunks", text: "PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", whole: true},
	{name: "signed length", text: "PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: +2\r\n\r\nhi", whole: true},
	{name: "space before colon", text: "GET /a HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n", whole: true},
	{name: "folded field", text: "GET /a HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", whole: true},
	{name: "NUL in a field", text: "GET /a HTTP/1.1\r\nHost: x\r\nA: b\x00\r\n\r\n", whole: true},
	{name: "bad escape", text: "GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", whole: true},
	{name: "absolute target", text: "GET http://y/a HTTP/1.1\r\nHost: x\r\n\r\n", whole: true},
	{name: "other method", text: "PATCH /a HTTP/1.1\r\nHost: x\r\n\r\n", whole: true},
	{name: "not taken", text: "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n", whole: true},
	{name: "many fields", text: "GET /a HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", 50) + "\r\n", whole: true},
	{name: "large header", text: "GET /a HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("b", 9000) + "\r\n\r\n"},
	{name: "large answer", text: "GET /large HTTP/1.1\r\nHost: x\r\n\r\n"},
	{name: "refused stream", text: "GET /stream/refused HTTP/1.1\r\nHost: x\r\n\r\n", stream: true},
	{name: "empty stream", text: "GET /stream/empty HTTP/1.1\r\nHost: x\r\n\r\n", stream: true},
	{name: "stream", text: "GET /stream HTTP/1.1\r\nHost: x\r\n\r\n", stream: true},
	{name: "stream that breaks off", text: "GET /stream/abort HTTP/1.1\r\nHost: x\r\n\r\n", stream: true},
	{name: "stream behind another request", text: "GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /stream HTTP/1.1\r\nHost: x\r\n\r\n", stream: true},
	{name: "no HTTP at all", text: "hello\r\n\r\n", whole: true},
}

// TestAnswersAreNetHTTPs compares the answers of every conversation with net/http's (I4).
func TestAnswersAreNetHTTPs(t *testing.T) {
	fast, _ := startServer(t, true)
	slow, _ := startServer(t, false)
	for _, c := range conversations {
		t.Run(c.name, func(t *testing.T) {
			want, got := talk(t, slow, c.text+last), talk(t, fast, c.text+last)
			if c.stream { // net/http would go on
				text := strings.TrimSuffix(c.text, "\r\n\r\n")
				want = talk(t, slow, text+"\r\nConnection: close\r\n\r\n")
			}
			if got != want || want == "" {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			var r request
			r.init(context.Background(), "")
			_, ok := r.parse([]byte(c.text))
			if ok == c.whole && c.name != "not taken" {
				t.Errorf("parse accepts: %v", ok)
			}
		})
	}
}

// The preface of an HTTP/2 client is handed over to net/http in full.
func TestAnHTTP2ClientIsServed(t *testing.T) {
	addr, _ := startServer(t, true)
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &protocols}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get("http://" + addr + "/a")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.ProtoMajor != 2 || resp.StatusCode != http.StatusOK {
		t.Errorf("HTTP/%d, %s", resp.ProtoMajor, resp.Status)
	}
}

// dial opens a connection, and a reader for its answers.
func dial(t *testing.T, addr string) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, bufio.NewReader(c)
}

func ask(t *testing.T, c net.Conn, r *bufio.Reader, text string) (*http.Response, error) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(r, nil)
	if err == nil {
		_, err = io.ReadAll(resp.Body)
	}
	return resp, err
}

const get = "GET /a HTTP/1.1\r\nHost: x\r\n\r\n"

// The body may arrive after the header, in another segment.
func TestABodyMayComeLater(t *testing.T) {
	addr, _ := startServer(t, true)
	c, r := dial(t, addr)
	// The answer to the first shows that the server waits for the body.
	if _, err := ask(t, c, r, get+"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 6000\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := ask(t, c, r, strings.Repeat("x", 6000))
	if err != nil || !strings.HasSuffix(resp.Header.Get("X-Seen"), " 6000") {
		t.Errorf("%v %v", resp, err)
	}
}

// An answer that breaks off must not look complete (I5).
func TestUnfinishedAnswersAreCut(t *testing.T) {
	for _, path := range []string{"/short", "/abort"} {
		addr, _ := startServer(t, true)
		c, r := dial(t, addr)
		if resp, err := ask(t, c, r, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n"); err == nil {
			t.Errorf("%s: %v", path, resp)
		}
	}
}

// What was answered before a request that fails is sent, with and without a body that
// the handler had begun to send.
func TestAnswersBeforeAPanicAreSent(t *testing.T) {
	for _, path := range []string{"/short", "/abort", "/panic", "/large-panic"} {
		addr, srv := startServer(t, true)
		srv.whole.ErrorLog = log.New(io.Discard, "", 0)
		c, r := dial(t, addr)
		if _, err := io.WriteString(c, get+get+"GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n"+get); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatalf("%s: an answer before it is lost: %v", path, err)
			}
			if _, err := io.ReadAll(resp.Body); err != nil {
				t.Fatal(err)
			}
		}
		if resp, err := http.ReadResponse(r, nil); err == nil {
			if _, err := io.ReadAll(resp.Body); err == nil {
				t.Errorf("%s: a complete answer: %v", path, resp)
			}
		}
	}
}

// A long answer is sent as the handler writes it.
func TestLongAnswersAreNotCollected(t *testing.T) {
	wrote := make(chan struct{})
	srv := New(&http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100000")
		_, _ = w.Write(make([]byte, 50000))
		<-wrote
		_, _ = w.Write(make([]byte, 50000))
	})}, func(string, string) bool { return true }, never)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	c, r := dial(t, l.Addr().String())
	if _, err := io.WriteString(c, get+get); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, resp.Body, 50000); err != nil {
			t.Fatal(err)
		}
		wrote <- struct{}{}
		if n, err := io.Copy(io.Discard, resp.Body); n != 50000 || err != nil {
			t.Fatalf("%d more bytes, %v", n, err)
		}
	}
	if err := srv.Close(); err != nil {
		t.Error(err)
	}
	<-served
}

// net/http's refusals are replaced by documents, and nothing else is.
func TestRefusals(t *testing.T) {
	const text = "HTTP/1.1 400 Bad Request" + refusalHead + "400 Bad Request"
	addr, srv := startServer(t, true)
	srv.Refusal = func(status int, reason string) (string, []byte) {
		return "application/x", fmt.Appendf(nil, "%d because %s", status, reason)
	}
	srv.whole.MaxHeaderBytes = 8 << 10
	for _, c := range []struct {
		name, text string
		status     int
		body       string
	}{
		{"bad escape", "GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400, "400 because 400 Bad Request"},
		{"no host", "GET /a HTTP/1.1\r\n\r\n", 400, "400 because 400 Bad Request: missing required Host header"},
		{"large header", "GET /a HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("b", 20<<10) + "\r\n\r\n", 431, "431 because 431 Request Header Fields Too Large"},
		{"encoding", "PUT /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "501 because Unsupported transfer encoding"},
		{"a handler's", "GET /slow/400 HTTP/1.1\r\nHost: x\r\n\r\n", 400, text},
		{"in the middle", "GET /slow/text HTTP/1.1\r\nHost: x\r\n\r\n", 200, longRefusal},
	} {
		conn, r := dial(t, addr)
		if _, err := io.WriteString(conn, c.text); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != c.status || string(body) != c.body {
			t.Errorf("%s: %s, %.200q, %v", c.name, resp.Status, body, err)
		}
	}
}

// A handler can have the connection closed after its answer.
func TestLastAnswer(t *testing.T) {
	var last atomic.Bool
	srv := New(&http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if last.Load() {
			w.Header().Set("Connection", "close")
		}
	})}, func(string, string) bool { return true }, never)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	c, r := dial(t, l.Addr().String())
	if resp, err := ask(t, c, r, get); err != nil || resp.Close {
		t.Fatalf("%v %v", resp, err)
	}
	last.Store(true)
	if resp, err := ask(t, c, r, get); err != nil || !resp.Close {
		t.Fatalf("%v %v", resp, err)
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("the connection stays open: %v", err)
	}
	if err := srv.Close(); err != nil {
		t.Error(err)
	}
	<-served
}

// Shutdown closes idle connections immediately and waits for requests that are being
// handled.
func TestShutdown(t *testing.T) {
	began, release := make(chan struct{}), make(chan struct{})
	whole := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			close(began)
			<-release
		}
	})}
	srv := New(whole, func(string, string) bool { return true }, never)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served, stopped := make(chan error, 1), make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	idle, idleReader := dial(t, l.Addr().String())
	if _, err := ask(t, idle, idleReader, get); err != nil {
		t.Fatal(err)
	}
	_, unused := dial(t, l.Addr().String())
	busy, busyReader := dial(t, l.Addr().String())
	if _, err := io.WriteString(busy, "GET /wait HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-began
	go func() { stopped <- srv.Shutdown(context.Background()) }()
	for _, r := range []*bufio.Reader{idleReader, unused} {
		if _, err := r.ReadByte(); err == nil {
			t.Error("an idle connection got an answer")
		}
	}
	select {
	case err := <-stopped:
		t.Fatalf("Shutdown did not wait: %v", err)
	default:
	}
	close(release)
	resp, err := http.ReadResponse(busyReader, nil)
	if err != nil || !resp.Close {
		t.Errorf("%v %v", resp, err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}

// FuzzParse checks I1: net/http reads an accepted request as the same.
func FuzzParse(f *testing.F) {
	for _, c := range conversations {
		f.Add([]byte(c.text))
	}
	var r request
	r.init(context.Background(), "")
	f.Fuzz(func(t *testing.T, b []byte) {
		n, ok := r.parse(b)
		if !ok {
			return
		}
		want, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			t.Fatalf("net/http refuses it: %v", err)
		}
		got := r.http
		if got.Method != want.Method || *got.URL != *want.URL || got.Host != want.Host || got.RequestURI != want.RequestURI ||
			got.ContentLength != want.ContentLength || got.Proto != want.Proto || want.Close {
			t.Errorf("got %v, want %v", got, want)
		}
		if fmt.Sprint(got.Header) != fmt.Sprint(want.Header) {
			t.Errorf("header %v, want %v", got.Header, want.Header)
		}
		whole := int64(len(b)-n) >= got.ContentLength
		if body, err := io.ReadAll(want.Body); whole && (err != nil || !bytes.Equal(body, b[n:int64(n)+got.ContentLength])) {
			t.Errorf("body %q %v", body, err)
		}
	})
}

// BenchmarkServe measures a request over loopback, by this package and by net/http, with
// the same client.
func BenchmarkServe(b *testing.B) {
	for _, fast := range []bool{true, false} {
		name := map[bool]string{true: "http1", false: "net-http"}[fast]
		b.Run(name, func(b *testing.B) {
			whole := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(http.StatusNoContent)
			})}
			srv := New(whole, func(string, string) bool { return fast }, never)
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			go func() { _ = srv.Serve(l) }()
			defer srv.Close()
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				c, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					b.Error(err)
					return
				}
				defer c.Close()
				buf := make([]byte, 4096)
				for pb.Next() {
					if _, err := io.WriteString(c, get); err != nil {
						b.Error(err)
						return
					}
					if _, err := c.Read(buf); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// TestStreamsHearOfTheirClient: a stream learns that its client has left, and what a client
// sends meanwhile does not disturb it.
func TestStreamsHearOfTheirClient(t *testing.T) {
	ended := make(chan error, 1)
	more := make(chan struct{})
	whole := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-more
		_, _ = io.WriteString(w, "some")
		<-r.Context().Done()
		ended <- r.Context().Err()
	})}
	srv := New(whole, never, func(string, string) bool { return true })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	c, r := dial(t, l.Addr().String())
	if _, err := io.WriteString(c, get+get); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil || !resp.Close || len(resp.TransferEncoding) != 1 {
		t.Fatal(resp, err)
	}
	if _, err := io.WriteString(c, get); err != nil {
		t.Fatal(err)
	}
	close(more)
	if _, err := io.ReadFull(resp.Body, make([]byte, 4)); err != nil {
		t.Error(err)
	}
	_ = c.Close()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the stream ended with %v", err)
	}
	if err := srv.Close(); err != nil {
		t.Error(err)
	}
	<-done
}
