package httpapi

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/kvd-io/kvd/internal/opjson"
)

const (
	jsonType = "application/json"
	// writeGrace is how long a client may accept no data.
	writeGrace = 60 * time.Second
	// smallAnswer fits into the socket's buffer without waiting for the client. The
	// deadline that the request already has suffices for it.
	smallAnswer = 16 << 10
	// maxPooled is the largest buffer that is kept for reuse.
	maxPooled = 256 << 10
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

// writeDocument answers with JSON text, which ends in a newline. It is indented if the
// query has ?pretty.
func (x *exchange) writeDocument(mediaType string, status int, doc []byte) {
	if pretty, _ := x.query.flag("pretty"); pretty {
		var buf bytes.Buffer
		if json.Indent(&buf, doc, "", "  ") == nil {
			doc = buf.Bytes()
		}
	}
	x.set("Content-Type", mediaType)
	x.Header()["X-Content-Type-Options"] = nosniff
	x.writeWhole(status, doc)
}

// writeWhole sends the header, and the body unless the method is HEAD.
func (x *exchange) writeWhole(status int, body []byte) {
	x.set("Content-Length", strconv.Itoa(len(body)))
	if len(body) > smallAnswer {
		x.limitWriteTime(len(body))
	}
	x.WriteHeader(status)
	if x.r.Method != http.MethodHead {
		// A failed write means that the client is gone.
		_, _ = x.Write(body)
	}
}

// readDocument reads the body into doc, by the strict rules of package opjson.
func (x *exchange) readDocument(doc any) error {
	body, err := x.readBody(maxDocument)
	if err != nil {
		return err
	}
	return opjson.Decode(body, doc)
}
