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

// response is the http.ResponseWriter of a connection. It collects the whole
// answer; answers to pipelined requests wait for each other, so that they go
// out in one write. Streaming is not for this package: there is no Flush.
type response struct {
	conn   *conn
	header http.Header
	names  []string // of the header, to sort them

	out      []byte // finished answers, and the head of the one in work
	head     int    // where that begins
	body     []byte // of the one in work
	declared int64  // its Content-Length as the handler said it; -1: not said
	status   int    // 0 until the header is written
	isHead   bool
	last     bool // the connection ends with this answer
}

func (w *response) init(c *conn) {
	w.conn = c
	w.header = make(http.Header, 8)
}

// begin prepares for the next answer.
func (w *response) begin(isHead bool) {
	clear(w.header)
	w.head, w.body, w.declared, w.status, w.isHead = len(w.out), w.body[:0], -1, 0, isHead
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
	if w.declared >= 0 && int64(len(w.body)+len(p)) > w.declared {
		return 0, http.ErrContentLength
	}
	w.body = append(w.body, p...)
	return len(p), nil
}

// WriteHeader implements http.ResponseWriter. The header is written as it is
// now; whether the connection ends and, where it was not said, the length
// follow when the answer is whole.
func (w *response) WriteHeader(status int) {
	if w.status != 0 || status < http.StatusOK {
		return // informational answers are of no use to small requests
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
			w.last = true // said by finish
			return
		}
	}
	w.out = append(append(w.out, name...), ": "...)
	if strings.ContainsAny(value, "\r\n") {
		value = strings.NewReplacer("\r", " ", "\n", " ").Replace(value)
	}
	w.out = append(append(w.out, value...), "\r\n"...)
}

// finish completes the answer. It reports false where the handler said a
// length and wrote another.
func (w *response) finish(closing bool) bool {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if w.last = w.last || closing; w.last {
		w.out = append(w.out, "Connection: close\r\n"...)
	}
	switch {
	case !bodyAllowed(w.status), w.isHead && (w.declared >= 0 || len(w.body) == 0):
	case w.declared < 0:
		w.out = append(w.out, "Content-Length: "...)
		w.out = append(strconv.AppendInt(w.out, int64(len(w.body)), 10), "\r\n"...)
	case w.declared != int64(len(w.body)):
		w.out = w.out[:w.head]
		_ = w.flush()
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

// flush sends the finished answers.
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

// reset empties the buffers, and lets go of those that grew.
func (w *response) reset() {
	w.out, w.body = w.out[:0], w.body[:0]
	if cap(w.out) > keptBytes {
		w.out = nil
	}
	if cap(w.body) > keptBytes {
		w.body = nil
	}
}

// SetReadDeadline is for http.ResponseController. The body is in memory: there
// is nothing to wait for.
func (w *response) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline is for http.ResponseController.
func (w *response) SetWriteDeadline(t time.Time) error {
	w.conn.idleUntil = time.Time{} // to be set anew for the next request
	return w.conn.nc.SetWriteDeadline(t)
}

func bodyAllowed(status int) bool {
	return status != http.StatusNoContent && status != http.StatusNotModified
}

// sortNames is an insertion sort: there are few.
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

// clock is the Date header of a second.
type clock struct {
	second int64
	text   string
}

var lastDate atomic.Pointer[clock]

// date returns the Date header for now (RFC 9110, section 5.6.7).
func date() string {
	now := time.Now()
	if c := lastDate.Load(); c != nil && c.second == now.Unix() {
		return c.text
	}
	c := &clock{second: now.Unix(), text: now.UTC().Format(http.TimeFormat)}
	lastDate.Store(c)
	return c.text
}
