package httpapi

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/kvd-io/kvd/internal/kvstore"
)

const (
	jsonType = "application/json"
	// writeGrace is how long a reader may accept nothing.
	writeGrace = 60 * time.Second
	// smallAnswer is what a socket's buffer takes without waiting for the
	// reader; the deadline that the request already has is enough for it.
	smallAnswer = 16 << 10
	// maxDepth bounds the nesting of a JSON document in a request.
	maxDepth = 16
	// maxPooled is the largest buffer kept for re-use.
	maxPooled = 256 << 10
)

// buffers holds the buffers in which answers are put together.
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

// appendBytes appends a member for a byte string: under its name as text
// where it is valid UTF-8, else under name_base64.
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

// appendPairFields appends what is between the braces of a pair, from its key
// on.
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

// writeJSON answers with a document.
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

// writeDocument answers with JSON text, which ends in a newline, indented
// where ?pretty asks for it.
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

// writeWhole sends the header and the body, which a HEAD request does not
// get.
func (x *exchange) writeWhole(status int, body []byte) {
	x.set("Content-Length", strconv.Itoa(len(body)))
	if len(body) > smallAnswer {
		x.limitWriteTime(len(body))
	}
	x.WriteHeader(status)
	if x.r.Method != http.MethodHead {
		// A failed write means that the client is gone: nobody to tell.
		_, _ = x.Write(body)
	}
}

// readDocument reads the body as one JSON object into doc, strictly: unknown
// and repeated fields, and anything after the object, are refused with their
// position.
func (x *exchange) readDocument(doc any) error {
	body, err := x.readBody(maxDocument)
	if err != nil {
		return err
	}
	return decodeDocument(body, doc)
}

func decodeDocument(body []byte, doc any) error {
	if err := checkDocument(body); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(doc); err != nil {
		return documentError(err, dec.InputOffset())
	}
	return nil
}

func documentError(err error, at int64) error {
	var wrongType *json.UnmarshalTypeError
	switch {
	case errors.As(err, &wrongType):
		return badRequest("the body has a %s at byte %d, where the field %q cannot take it", wrongType.Value, wrongType.Offset, wrongType.Field)
	case errors.Is(err, io.EOF):
		return badRequest("the body is empty; a JSON object is needed")
	}
	return badRequest("the body is not the JSON object that is needed, at byte %d: %s", at, strings.TrimPrefix(err.Error(), "json: "))
}

// checkDocument finds what the decoder lets through, or reports without its
// place: bad syntax, text after the end, a field given twice, deep nesting.
func checkDocument(body []byte) error {
	var whole json.RawMessage
	if err := json.Unmarshal(body, &whole); err != nil {
		return syntaxError(err, len(body))
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	w := documentWalk{dec: dec}
	for {
		tok, err := dec.Token()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return badRequest("the body is no valid JSON at byte %d: %v", dec.InputOffset(), err)
		}
		if err := w.step(tok); err != nil {
			return err
		}
	}
}

func syntaxError(err error, size int) error {
	var syntax *json.SyntaxError
	switch {
	case size == 0:
		return badRequest("the body is empty; a JSON object is needed")
	case !errors.As(err, &syntax):
		return badRequest("the body is no valid JSON: %v", err)
	}
	return badRequest("the body is no valid JSON at byte %d: %v", syntax.Offset, err)
}

// documentWalk follows the tokens of a document.
type documentWalk struct {
	dec   *json.Decoder
	stack []documentLevel
}

// documentLevel is an object (with the names seen) or an array.
type documentLevel struct {
	names map[string]bool // nil for an array
	value bool            // in an object: the next token is a value
}

func (w *documentWalk) step(tok json.Token) error {
	if d, ok := tok.(json.Delim); ok && (d == '}' || d == ']') {
		w.stack = w.stack[:len(w.stack)-1]
		return nil
	}
	if len(w.stack) > 0 {
		if name, err := w.stack[len(w.stack)-1].next(tok); name || err != nil {
			return w.at(err)
		}
	}
	d, ok := tok.(json.Delim)
	if !ok {
		return nil
	}
	if len(w.stack) == maxDepth {
		return badRequest("the body nests deeper than %d levels, at byte %d", maxDepth, w.dec.InputOffset())
	}
	level := documentLevel{}
	if d == '{' {
		level.names = make(map[string]bool)
	}
	w.stack = append(w.stack, level)
	return nil
}

// at adds the position to the name of a repeated field.
func (w *documentWalk) at(repeated error) error {
	if repeated == nil {
		return nil
	}
	return badRequest("the body has the field %.40q twice, the second time at byte %d", repeated.Error(), w.dec.InputOffset())
}

// repeatedField is a field that an object has already.
type repeatedField string

func (e repeatedField) Error() string { return string(e) }

// next notes a token inside the level and reports whether it was a field's
// name. Names are compared without case, as the decoder does.
func (l *documentLevel) next(tok json.Token) (name bool, err error) {
	if l.names == nil {
		return false, nil
	}
	if l.value {
		l.value = false
		return false, nil
	}
	s, _ := tok.(string)
	folded := strings.ToLower(s)
	if l.names[folded] {
		return true, repeatedField(s)
	}
	l.names[folded] = true
	l.value = true
	return true, nil
}

func appendBase64(dst, b []byte) []byte { return base64.StdEncoding.AppendEncode(dst, b) }
