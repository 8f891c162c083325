package httpapi

import (
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/kvd-io/kvd/internal/api"
)

const (
	// bodyGrace is how long a body may take in addition to what minRate allows for
	// its size.
	bodyGrace = 30 * time.Second
	// drainGrace is how long the rest of an unwanted body may take.
	drainGrace = 2 * time.Second
	// minRate is the average rate, in bytes per second, that a client must reach.
	minRate = 64 << 10
	// firstRead is the most memory that is allocated for a declared length alone: a
	// client that announces 64 MiB and sends nothing must not cost 64 MiB.
	firstRead = 64 << 10
	// maxDocument bounds a JSON document in a request.
	maxDocument = 64 << 10
)

// readBody reads the whole body, of at most limit bytes. A body that declares more is
// refused before any of it is read, so a client that expects "100 Continue" does not
// send it at all. One of unknown length is cut off at the limit.
func (x *exchange) readBody(limit int64) ([]byte, error) {
	if err := wholeBody(x.r.Header); err != nil {
		return nil, err
	}
	declared := x.r.ContentLength // -1 if it is unknown
	if declared > limit {
		return nil, tooLargeBody(limit)
	}
	if declared == 0 || x.r.Body == nil || x.r.Body == http.NoBody {
		return []byte{}, nil
	}
	x.limitReadTime(limit)
	size := int64(512)
	if declared > 0 {
		size = min(declared, firstRead)
	}
	body, err := readUpTo(x.r.Body, make([]byte, 0, size), declared, limit)
	x.in += int64(len(body))
	switch {
	case err == nil:
		x.body = bodyRead
		// net/http keeps reading, to notice when the client disconnects. At the
		// deadline it would cancel the request in the middle of the work.
		_ = http.NewResponseController(x.w).SetReadDeadline(time.Time{})
	case !errors.Is(err, errTooLarge):
		x.body = bodyBroken
	}
	return body, err
}

// wholeBody refuses a body that is not the whole content as it is. curl -C 10 -T FILE
// sends the rest of a file with Content-Range: storing that as the value would replace
// the value by a fragment of it (RFC 9110, section 14.5). Content-Encoding would be lost,
// since values are returned without one, and a reader would get bytes it cannot decode.
func wholeBody(h http.Header) error {
	if v := h.Get("Content-Range"); v != "" {
		return badRequest("the body is a part of the content (Content-Range: %.40q); send the whole content", v)
	}
	if v := h.Get("Content-Encoding"); v != "" && !strings.EqualFold(v, "identity") {
		return badRequest("bodies with Content-Encoding %.40q are not supported; send the content as it is, or encoded but without that header", v)
	}
	return nil
}

// bodyState says how far a request's body has been read.
type bodyState uint8

const (
	bodyUnread bodyState = iota // not at all, or not to the end
	bodyRead
	bodyBroken // reading failed, perhaps because the deadline has passed
)

// boundDrain is the last step of an exchange. net/http reads the rest of a body before it
// sends the answer, and would wait for it forever. A deadline that has already passed is
// left alone, so that the answer is sent at once.
func (x *exchange) boundDrain() {
	if x.r.ContentLength != 0 && x.body == bodyUnread {
		_ = http.NewResponseController(x.w).SetReadDeadline(time.Now().Add(drainGrace))
	}
}

// readUpTo appends to buf until the declared length, or the end if that is -1, has been
// read.
func readUpTo(r io.Reader, buf []byte, declared, limit int64) ([]byte, error) {
	for int64(len(buf)) != declared {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)] // grows as append does
		}
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if int64(len(buf)) > limit {
			return nil, tooLargeBody(limit)
		}
		if err == io.EOF {
			return buf, nil
		}
		if err != nil {
			return nil, brokenBody(err)
		}
	}
	return buf, nil
}

// limitReadTime sets the deadline for reading the body.
func (x *exchange) limitReadTime(limit int64) {
	size := x.r.ContentLength
	if size < 0 {
		size = limit
	}
	_ = http.NewResponseController(x.w).SetReadDeadline(time.Now().Add(bodyGrace + transferTime(size)))
}

// limitWriteTime sets the deadline for writing the next size bytes.
func (x *exchange) limitWriteTime(size int) {
	// A writer without a connection, in tests, has no deadline to set.
	_ = http.NewResponseController(x.w).SetWriteDeadline(time.Now().Add(writeGrace + transferTime(int64(size))))
}

func transferTime(size int64) time.Duration {
	return time.Duration(size/minRate) * time.Second
}

// errTooLarge marks a body that exceeds its limit. Reading it did not fail.
var errTooLarge = errors.New("body exceeds its limit")

func tooLargeBody(limit int64) error {
	return errors.Join(api.Errorf(api.TooLarge, "the body exceeds the limit of %d bytes", limit), errTooLarge)
}

func brokenBody(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return badRequest("the body arrived too slowly; nothing was done")
	}
	return badRequest("reading the body failed; nothing was done")
}
