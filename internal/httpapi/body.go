package httpapi

import (
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/kvd-io/kvd/internal/api"
)

const (
	// bodyGrace is how long a body may take beside the time that minRate
	// allows its size.
	bodyGrace = 30 * time.Second
	// drainGrace is how long the rest of a body that nobody wants may take.
	drainGrace = 2 * time.Second
	// minRate, in bytes a second, is what a peer must move on average.
	minRate = 64 << 10
	// firstRead is the most memory that a declared length alone can claim.
	firstRead = 64 << 10
	// maxDocument bounds a JSON document in a request.
	maxDocument = 64 << 10
)

// readBody reads the whole body, of at most limit bytes. A body that declares
// more is refused before a byte of it is read, which also keeps the client
// from being told to go on; one that declares nothing is cut off while
// reading.
func (x *exchange) readBody(limit int64) ([]byte, error) {
	declared := x.r.ContentLength
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
		// Left standing, the deadline would end the request in the middle of
		// the work: net/http goes on reading, to notice a client that leaves.
		_ = http.NewResponseController(x.w).SetReadDeadline(time.Time{})
	case !errors.Is(err, errTooLarge):
		x.body = bodyBroken
	}
	return body, err
}

// bodyState is what has become of a request's body.
type bodyState uint8

const (
	bodyUnread bodyState = iota // not, or not to its end
	bodyRead
	bodyBroken // reading failed; its deadline may have passed
)

// boundDrain is the last step of an exchange. net/http reads what a handler
// left of a body before it lets the answer go, and of itself would wait for it
// for ever. A deadline that has already passed is left alone, so that the
// answer goes at once.
func (x *exchange) boundDrain() {
	if x.r.ContentLength != 0 && x.body == bodyUnread {
		_ = http.NewResponseController(x.w).SetReadDeadline(time.Now().Add(drainGrace))
	}
}

// readUpTo fills buf, growing it, until the declared length (or, where that
// is -1, the end) has been read.
func readUpTo(r io.Reader, buf []byte, declared, limit int64) ([]byte, error) {
	for int64(len(buf)) != declared {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
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

// limitReadTime sets the deadline for the body. Writers without a connection
// have none to set.
func (x *exchange) limitReadTime(limit int64) {
	size := x.r.ContentLength
	if size < 0 {
		size = limit
	}
	_ = http.NewResponseController(x.w).SetReadDeadline(time.Now().Add(bodyGrace + transferTime(size)))
}

// limitWriteTime sets the deadline for writing the next size bytes.
func (x *exchange) limitWriteTime(size int) {
	// Writers without a connection have no deadline to set.
	_ = http.NewResponseController(x.w).SetWriteDeadline(time.Now().Add(writeGrace + transferTime(int64(size))))
}

func transferTime(size int64) time.Duration {
	return time.Duration(size/minRate) * time.Second
}

// errTooLarge marks a body over its limit, of which more could be read.
var errTooLarge = errors.New("body over its limit")

func tooLargeBody(limit int64) error {
	return errors.Join(api.Errorf(api.TooLarge, "the body is over the limit of %d bytes", limit), errTooLarge)
}

func brokenBody(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return badRequest("the body arrived too slowly; nothing was done")
	}
	return badRequest("the body could not be read to its end; nothing was done")
}
