package opjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"

	"github.com/kvd-io/kvd/internal/api"
)

// MaxDepth bounds the nesting of a JSON document in a request.
const MaxDepth = 16

// maxSafeInteger is the greatest revision: beyond it JSON readers that keep
// numbers as doubles lose digits.
const maxSafeInteger = 1<<53 - 1

// badRequest is the error for input that cannot be understood.
func badRequest(format string, args ...any) *api.Error {
	return api.Errorf(api.BadRequest, format, args...)
}

// Decode reads the body as one JSON object into doc, strictly: unknown and
// repeated fields, and anything after the object, are refused with their
// position.
func Decode(body []byte, doc any) error {
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
	if len(w.stack) == MaxDepth {
		return badRequest("the body nests deeper than %d levels, at byte %d", MaxDepth, w.dec.InputOffset())
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
