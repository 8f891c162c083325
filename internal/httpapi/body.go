package httpapi

import (
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/pace"
)

const (
	// drainGrace is how long the rest of an unwanted body may take.
	drainGrace = 2 * time.Second
	// maxDocument bounds a JSON document in a request.
	maxDocument = 64 << 10
)

// readBody reads the whole body, of at most limit bytes, and then takes the request's
// place: a client that stops sending must not occupy one. A body that declares more is
// refused before any of it is read, so a client that expects "100 Continue" does not
// send it at all. One of unknown length is cut off at the limit.
//
// setting is that of the cluster from which the limit follows, or "".
func (x *exchange) readBody(limit int64, setting string) ([]byte, error) {
	if err := wholeBody(x.r.Header); err != nil {
		return nil, err
	}
	declared := x.r.ContentLength // -1 if it is unknown
	if declared > limit {
		return nil, tooLargeBody(limit, setting)
	}
	if declared == 0 || x.r.Body == nil || x.r.Body == http.NoBody {
		return []byte{}, x.held.enter(x)
	}
	conn := http.NewResponseController(x.w)
	from := pace.Body{From: x.r.Body, Conn: conn, Declared: declared, Limit: limit, Claim: &x.held.memory}
	body, err := from.Read(x.r.Context())
	x.in += int64(len(body))
	switch {
	case err == nil:
		if x.once != nil {
			x.once.body = body
		}
		x.body = bodyRead
		// net/http keeps reading, to notice when the client disconnects. At the
		// deadline it would cancel the request in the middle of the work.
		_ = conn.SetReadDeadline(time.Time{})
		return body, x.held.enter(x)
	case errors.Is(err, pace.ErrTooLarge):
		// This makes net/http wait before it closes the connection. It would not wait for
		// a client that was told "100 Continue": the rest of the body would reset the
		// connection, and one that fails in sending, as curl -T - does, reads no answer.
		x.boundDrain()
		_, _ = http.MaxBytesReader(x.w, x.r.Body, 0).Read(make([]byte, 1))
		return nil, tooLargeBody(limit, setting)
	case errors.Is(err, pace.ErrSlow), errors.Is(err, pace.ErrBroken):
		x.body = bodyBroken
		return nil, badRequest("%v; nothing was done", err)
	}
	return nil, err
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

// limitWriteTime sets the deadline for writing the next size bytes of a stream.
func (x *exchange) limitWriteTime(size int) {
	// A writer without a connection, in tests, has no deadline to set.
	_ = http.NewResponseController(x.w).SetWriteDeadline(time.Now().Add(writeGrace + pace.TransferTime(int64(size))))
}

func tooLargeBody(limit int64, setting string) error {
	if setting != "" {
		setting = ", which follows from " + setting + " in the settings"
	}
	return api.Errorf(api.TooLarge, "the body exceeds the limit of %d bytes%s", limit, setting)
}
