package http1

import (
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// response is the http.ResponseWriter of a connection. It collects the whole answer, and
// the answers to pipelined requests, which are sent in one write.
type response struct {
	conn   *conn
	header http.Header
	names  []string // of the header, for sorting

	out      []byte // complete answers, and the head of the current one
	head     int    // where the current one begins in out
	body     []byte // of the current one
	declared int64  // Content-Length that the handler set; -1 if it did not
	written  int64  // bytes of the body so far
	streamed bool   // they have been sent instead of collected
	status   int    // 0 until the header has been written
	isHead   bool   // the method is HEAD
	last     bool   // the connection is closed after this answer

	streaming bool // the handler may flush
	begun     bool // the header of a stream has been sent
}

// begin prepares for the next answer.
func (w *response) begin(isHead bool) {
	clear(w.header)
	w.head, w.body, w.declared, w.status, w.isHead = len(w.out), w.body[:0], -1, 0, isHead
	w.written, w.streamed = 0, false
}

// Header implements http.ResponseWriter.
func (w *response) Header() http.Header { return w.header }

// Write implements http.ResponseWriter.
func (w *response) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if !bodyAllowed(w.status) {
		return 0, http.ErrBodyNotAllowed
	}
	if w.begun {
		return w.writeChunk(p)
	}
	if w.declared >= 0 && w.written+int64(len(p)) > w.declared {
		return 0, http.ErrContentLength
	}
	w.written += int64(len(p))
	if w.declared > keptBytes && !w.isHead {
		if err := w.stream(p); err != nil {
			w.written = -1 // the answer is not complete
			return 0, err
		}
		return len(p), nil
	}
	w.body = append(w.body, p...)
	return len(p), nil
}

// stream sends a part of a long answer, after its head and the answers before it. To
// collect it would double what a client that does not read costs, and the handler could
// not set a deadline for each part.
func (w *response) stream(p []byte) error {
	parts := net.Buffers{p}
	if !w.streamed {
		w.streamed = true
		w.endHead(w.conn.srv.closing.Load())
		w.out = append(w.out, "\r\n"...)
		parts = net.Buffers{w.out, p}
	}
	_, err := parts.WriteTo(w.conn.nc)
	w.reset()
	w.head = 0
	return err
}

// endHead adds whether the connection is closed after the answer.
func (w *response) endHead(closing bool) {
	if w.last = w.last || closing; w.last {
		w.out = append(w.out, "Connection: close\r\n"...)
	}
}

// WriteHeader implements http.ResponseWriter. It writes the header as it is now. finish
// adds whether the connection is closed, and the length if the handler did not set it.
func (w *response) WriteHeader(status int) {
	if w.status != 0 || status < http.StatusOK {
		return // a small request has no use for an informational answer
	}
	if status > 999 {
		panic(fmt.Sprintf("http1: invalid status %d", status))
	}
	w.status = status
	w.out = append(w.out, statusLine(status)...)
	w.names = w.names[:0]
	for name := range w.header {
		w.names = append(w.names, name)
	}
	sortNames(w.names)
	for _, name := range w.names {
		for _, value := range w.header[name] {
			w.field(name, value)
		}
	}
	if _, own := w.header["Date"]; !own {
		w.out = append(w.out, "Date: "...)
		w.out = append(append(w.out, date()...), "\r\n"...)
	}
}

// field writes one header field.
func (w *response) field(name, value string) {
	switch name {
	case "Content-Length":
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || n < 0 || !bodyAllowed(w.status) {
			return
		}
		w.declared = n
	case "Content-Type":
		if w.status == http.StatusNotModified {
			return
		}
	case "Connection":
		if strings.EqualFold(value, "close") {
			w.last = true // finish writes it
			return
		}
	}
	w.out = append(append(w.out, name...), ": "...)
	if strings.ContainsAny(value, "\r\n") {
		value = strings.NewReplacer("\r", " ", "\n", " ").Replace(value)
	}
	w.out = append(append(w.out, value...), "\r\n"...)
}

// finish completes the answer. It returns false if the handler declared a length and wrote
// another one, or the answer could not be sent.
func (w *response) finish(closing bool) bool {
	if w.begun {
		w.out = append(w.out, "0\r\n\r\n"...)
		return true
	}
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if w.streamed {
		return w.written == w.declared
	}
	w.endHead(closing)
	switch {
	case !bodyAllowed(w.status), w.isHead && (w.declared >= 0 || len(w.body) == 0):
	case w.declared < 0:
		w.out = append(w.out, "Content-Length: "...)
		w.out = append(strconv.AppendInt(w.out, int64(len(w.body)), 10), "\r\n"...)
	case w.declared != int64(len(w.body)):
		w.abandon()
		return false
	}
	w.out = append(w.out, "\r\n"...)
	if w.isHead || len(w.body) == 0 {
		return true
	}
	if len(w.body) > keptBytes {
		return w.send(net.Buffers{w.out, w.body})
	}
	w.out = append(w.out, w.body...)
	return true
}

// abandon drops the current answer and sends those before it, which are complete.
func (w *response) abandon() {
	w.out = w.out[:w.head]
	_ = w.flush()
}

// flush sends the complete answers.
func (w *response) flush() bool {
	if len(w.out) == 0 {
		return true
	}
	_, err := w.conn.nc.Write(w.out)
	w.reset()
	return err == nil
}

func (w *response) send(parts net.Buffers) bool {
	_, err := parts.WriteTo(w.conn.nc)
	w.reset()
	return err == nil
}

// reset empties the buffers and drops those that have grown.
func (w *response) reset() {
	w.out, w.body = w.out[:0], w.body[:0]
	if cap(w.out) > keptBytes {
		w.out = nil
	}
	if cap(w.body) > keptBytes {
		w.body = nil
	}
}

// SetReadDeadline is for http.ResponseController. It does nothing: the body is in memory.
func (w *response) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline is for http.ResponseController.
func (w *response) SetWriteDeadline(t time.Time) error {
	w.conn.idleUntil = time.Time{} // set the deadlines anew for the next request
	return w.conn.nc.SetWriteDeadline(t)
}

func bodyAllowed(status int) bool {
	return status != http.StatusNoContent && status != http.StatusNotModified
}

// sortNames is an insertion sort, because there are few names.
func sortNames(names []string) {
	for i := 1; i < len(names); i++ {
		for j := i; j > 0 && names[j] < names[j-1]; j-- {
			names[j], names[j-1] = names[j-1], names[j]
		}
	}
}

func statusLine(status int) string {
	switch status {
	case http.StatusOK:
		return "HTTP/1.1 200 OK\r\n"
	case http.StatusCreated:
		return "HTTP/1.1 201 Created\r\n"
	case http.StatusNoContent:
		return "HTTP/1.1 204 No Content\r\n"
	case http.StatusNotFound:
		return "HTTP/1.1 404 Not Found\r\n"
	}
	text := http.StatusText(status)
	if text == "" {
		text = "status code " + strconv.Itoa(status)
	}
	return "HTTP/1.1 " + strconv.Itoa(status) + " " + text + "\r\n"
}

// clock is the Date header during a second.
type clock struct {
	second int64
	text   string
}

// lastDate is shared by all connections; a response that finds it outdated replaces it.
var lastDate atomic.Pointer[clock]

// date returns the current Date header (RFC 9110, section 5.6.7).
func date() string {
	now := time.Now()
	if c := lastDate.Load(); c != nil && c.second == now.Unix() {
		return c.text
	}
	c := &clock{second: now.Unix(), text: now.UTC().Format(http.TimeFormat)}
	lastDate.Store(c)
	return c.text
}
