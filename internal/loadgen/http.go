package loadgen

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"time"
)

// HTTP is a connection that speaks the subset of HTTP/1.1 that kvd's key routes
// need (I3). It understands only responses with a Content-Length. One goroutine
// owns it.
type HTTP struct {
	conn   net.Conn
	r      *bufio.Reader
	head   []byte // of each request, from the version to the fields that all of them have
	buf    []byte
	limit  time.Time // deadline of the connection
	detail []byte    // body of an error response
	kept   []byte    // body of the response of Request
	keep   bool      // the exchange is one of Request
}

const (
	dialTimeout = 5 * time.Second
	// answerTimeout is longer than kvd takes for any request without a timeout
	// of its own.
	answerTimeout  = 15 * time.Second
	maxErrorBytes  = 4 << 10
	maxAnswerBytes = 1 << 20
)

// Dial connects to HOST:PORT.
func Dial(address string) (*HTTP, error) {
	conn, err := net.DialTimeout("tcp", address, dialTimeout)
	if err != nil {
		return nil, err
	}
	return New(conn, address), nil
}

// New uses an existing connection, for example one of TLS. The host is the one
// that requests name.
func New(conn net.Conn, host string) *HTTP {
	return &HTTP{conn: conn, r: bufio.NewReaderSize(conn, 8<<10), head: []byte(" HTTP/1.1\r\nHost: " + host + "\r\n")}
}

// Authorize adds the header Authorization to each request that follows; "" adds none. Call it
// once at most.
func (h *HTTP) Authorize(credentials string) {
	if credentials != "" {
		h.head = append(h.head, "Authorization: "+credentials+"\r\n"...)
	}
}

// Close closes the connection.
func (h *HTTP) Close() { _ = h.conn.Close() }

// Put writes a key, which must not need escaping in a path.
func (h *HTTP) Put(key, value []byte) (code string, err error) {
	h.begin("PUT", key, "")
	h.buf = append(h.buf, "Content-Length: "...)
	h.buf = append(strconv.AppendInt(h.buf, int64(len(value)), 10), "\r\n\r\n"...)
	h.buf = append(h.buf, value...)
	return h.exchange()
}

// Get reads a key, which must not need escaping in a path. A stale read is
// answered by the node alone.
func (h *HTTP) Get(key []byte, stale bool) (code string, err error) {
	query := ""
	if stale {
		query = "?consistency=stale"
	}
	h.begin("GET", key, query)
	h.buf = append(h.buf, "\r\n"...)
	return h.exchange()
}

// Request sends a request to a target, a path with its query. The fields are
// further header fields, each with its line end. The body of a successful
// response is valid until the next request; one above maxAnswerBytes is an
// error.
func (h *HTTP) Request(method, target string, fields, body []byte) (answer []byte, code string, err error) {
	b := append(append(h.buf[:0], method...), ' ')
	b = append(append(append(b, target...), h.head...), fields...)
	b = append(strconv.AppendInt(append(b, "Content-Length: "...), int64(len(body)), 10), "\r\n\r\n"...)
	h.buf = append(b, body...)
	h.keep, h.kept = true, h.kept[:0]
	code, err = h.exchange()
	h.keep = false
	return h.kept, code, err
}

func (h *HTTP) begin(method string, key []byte, query string) {
	b := append(append(h.buf[:0], method...), " /v1/kv/"...)
	h.buf = append(append(append(b, key...), query...), h.head...)
}

// exchange sends the request and reads the response.
func (h *HTTP) exchange() (code string, err error) {
	// Setting a deadline moves a timer, for each request. It is enough to renew
	// it when half of it is over.
	if now := time.Now(); h.limit.Sub(now) < answerTimeout/2 {
		h.limit = now.Add(answerTimeout)
		if err := h.conn.SetDeadline(h.limit); err != nil {
			return "", err
		}
	}
	if _, err := h.conn.Write(h.buf); err != nil {
		return "", err
	}
	return h.answer()
}

var errAnswer = errors.New("malformed response")

// answer reads one response. It returns ErrClosing with the last one of the
// connection.
func (h *HTTP) answer() (code string, err error) {
	line, err := h.r.ReadSlice('\n')
	if err != nil {
		return "", err
	}
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) {
		return "", fmt.Errorf("%w: %.40q", errAnswer, line)
	}
	status, err := strconv.Atoi(string(line[9:12]))
	if err != nil || status < 200 {
		return "", fmt.Errorf("%w: %.40q", errAnswer, line)
	}
	length, closing, err := h.header(status)
	if err != nil {
		return "", err
	}
	switch {
	case status >= 300:
		code, err = h.refusal(status, length)
	case h.keep && length > maxAnswerBytes:
		err = fmt.Errorf("%w: %d bytes", errAnswer, length)
	case h.keep:
		h.kept, err = h.read(h.kept, length)
	default:
		_, err = h.r.Discard(length)
	}
	if err == nil && closing {
		err = ErrClosing
		h.Close()
	}
	return code, err
}

// header reads the header fields that matter here.
func (h *HTTP) header(status int) (length int, closing bool, err error) {
	declared := status == 204 || status == 304
	for {
		line, err := h.r.ReadSlice('\n')
		if err != nil {
			return 0, false, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		if v, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			if length, err = strconv.Atoi(string(v)); err != nil || length < 0 {
				return 0, false, fmt.Errorf("%w: %.40q", errAnswer, line)
			}
			declared = true
		}
		closing = closing || bytes.EqualFold(line, []byte("Connection: close"))
	}
	if !declared {
		return 0, false, fmt.Errorf("%w: no Content-Length", errAnswer)
	}
	return length, closing, nil
}

// refusal returns the status and the code of an error response.
func (h *HTTP) refusal(status, length int) (string, error) {
	if length > maxErrorBytes {
		_, err := h.r.Discard(length)
		return strconv.Itoa(status), err
	}
	var err error
	if h.detail, err = h.read(h.detail, length); err != nil {
		return "", err
	}
	return codeOf(status, h.detail), nil
}

// read reads a body into a buffer that it may enlarge.
func (h *HTTP) read(buf []byte, length int) ([]byte, error) {
	buf = slices.Grow(buf[:0], length)[:length]
	_, err := io.ReadFull(h.r, buf)
	return buf, err
}

// codeOf returns the status with the "code" of a problem document.
func codeOf(status int, document []byte) string {
	_, rest, ok := bytes.Cut(document, []byte(`"code":`))
	_, rest, ok2 := bytes.Cut(rest, []byte(`"`))
	word, _, ok3 := bytes.Cut(rest, []byte(`"`))
	if !ok || !ok2 || !ok3 {
		return strconv.Itoa(status)
	}
	return strconv.Itoa(status) + " " + string(word)
}
