package httpapi

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/kvd-io/kvd/internal/kvstore"
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

const hexDigits = "0123456789abcdef"

// appendString appends valid UTF-8 as a JSON string.
func appendString(dst, s []byte) []byte {
	dst = append(dst, '"')
	start := 0
	for i, c := range s {
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		dst = append(dst, s[start:i]...)
		start = i + 1
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\t':
			dst = append(dst, '\\', 't')
		case '\r':
			dst = append(dst, '\\', 'r')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}

// appendBytes appends a field with a byte string: as text under its name if it is valid
// UTF-8, else in base64 under name_base64.
func appendBytes(dst []byte, name string, b []byte) []byte {
	dst = append(dst, '"')
	dst = append(dst, name...)
	if utf8.Valid(b) {
		dst = append(dst, '"', ':')
		return appendString(dst, b)
	}
	dst = append(dst, `_base64":"`...)
	dst = appendBase64(dst, b)
	return append(dst, '"')
}

func appendNumber(dst []byte, name string, n uint64) []byte {
	dst = append(dst, `,"`...)
	dst = append(dst, name...)
	dst = append(dst, `":`...)
	return strconv.AppendUint(dst, n, 10)
}

// appendKV appends a pair with its metadata as an object.
func appendKV(dst []byte, kv *kvstore.KV, keysOnly bool) []byte {
	return append(appendPairFields(append(dst, '{'), kv, keysOnly), '}')
}

// appendPairFields appends the fields of a pair, beginning with its key.
func appendPairFields(dst []byte, kv *kvstore.KV, keysOnly bool) []byte {
	dst = appendBytes(dst, "key", kv.Key)
	if !keysOnly {
		dst = append(dst, ',')
		dst = appendBytes(dst, "value", kv.Value)
	}
	dst = appendNumber(dst, "create_revision", kv.CreateRevision)
	dst = appendNumber(dst, "mod_revision", kv.ModRevision)
	dst = appendNumber(dst, "version", kv.Version)
	return appendNumber(dst, "lease", kv.Lease)
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

func appendBase64(dst, b []byte) []byte { return base64.StdEncoding.AppendEncode(dst, b) }
