package httpapi

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/opjson"
	"github.com/kvd-io/kvd/internal/pace"
)

const (
	jsonType = "application/json"
	// writeGrace is how long the client of a stream may accept no data. It costs
	// little meanwhile; for answers that are held in memory, see package pace.
	writeGrace = 60 * time.Second
	// smallAnswer fits into the socket's buffer without waiting for the client. The
	// deadline that the request already has suffices for it.
	smallAnswer = 16 << 10
	// maxPooled is the largest buffer that is kept for reuse: a larger one would be
	// held for an answer that claimed less.
	maxPooled = budget.Free
)

// buffers has buffers for assembling answers.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

func getBuffer() *[]byte { return buffers.Get().(*[]byte) }

func putBuffer(p *[]byte, used []byte) {
	if cap(used) <= maxPooled {
		*p = used[:0]
		buffers.Put(p)
	}
}

// writeJSON answers with doc as JSON.
func (x *exchange) writeJSON(status int, doc any) error {
	return x.writeJSONAs(jsonType, status, doc)
}

func (x *exchange) writeJSONAs(mediaType string, status int, doc any) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(doc); err != nil {
		return err
	}
	x.writeDocument(mediaType, status, buf.Bytes())
	return nil
}

// writeDocument answers with JSON text, in parts, which ends in a newline. It is indented
// if the query has ?pretty and there is memory for it.
func (x *exchange) writeDocument(mediaType string, status int, parts ...[]byte) {
	if pretty, _ := x.query.Flag("pretty"); pretty {
		parts = indented(&x.held.memory, parts)
	}
	x.set("Content-Type", mediaType)
	x.Header()["X-Content-Type-Options"] = nosniff
	x.writeWhole(status, parts...)
}

// indented returns the parts indented, or as they are if there is no room: a write that
// was done has to be answered.
func indented(memory *budget.Claim, parts [][]byte) [][]byte {
	const needed = 5 // the parts joined, and the buffer in the middle of growing
	doc := bytes.Join(parts, nil)
	if !memory.Try(memory.Bytes() + needed*int64(len(doc))) {
		return parts
	}
	var buf bytes.Buffer
	if json.Indent(&buf, doc, "", "  ") != nil {
		return parts
	}
	return [][]byte{buf.Bytes()}
}

// writeWhole sends the header, and the body, in parts, unless the method is HEAD. The
// request needs no place any more.
func (x *exchange) writeWhole(status int, body ...[]byte) {
	size := 0
	for _, part := range body {
		size += len(part)
	}
	x.held.leave()
	x.set("Content-Length", strconv.Itoa(size))
	x.WriteHeader(status)
	switch {
	case x.r.Method == http.MethodHead:
	case size <= smallAnswer:
		for _, part := range body {
			_, _ = x.Write(part) // a failed write means that the client is gone
		}
	default:
		_ = pace.Write(http.NewResponseController(x.w), x, body...)
	}
}

// readDocument reads the body into doc, by the strict rules of package opjson.
func (x *exchange) readDocument(doc any) error {
	body, err := x.readBody(maxDocument, "")
	if err != nil {
		return err
	}
	return opjson.Decode(body, doc)
}
