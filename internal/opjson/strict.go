package opjson

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
)

// lineDoc is a line as the strict decoder reads it.
type lineDoc struct {
	Put            *putLine        `json:"put"`
	Get            *getLine        `json:"get"`
	Delete         *deleteLine     `json:"delete"`
	Append         *putLine        `json:"append"`
	Incr           *incrLine       `json:"incr"`
	IdempotencyKey json.RawMessage `json:"idempotency_key"`
}

type keyLine struct {
	Key       *string `json:"key"`
	KeyBase64 *string `json:"key_base64"`
}

type changeLine struct {
	IfRevision *uint64 `json:"if_revision"`
	Return     *string `json:"return"`
}

// laterLine are fields of the contract that this version does not offer.
type laterLine struct {
	TTL   json.RawMessage `json:"ttl"`
	Lease json.RawMessage `json:"lease"`
}

type putLine struct {
	keyLine
	changeLine
	laterLine
	Value       *string `json:"value"`
	ValueBase64 *string `json:"value_base64"`
}

type incrLine struct {
	keyLine
	changeLine
	laterLine
	Delta *int64 `json:"delta"`
}

type deleteLine struct {
	keyLine
	changeLine
}

type getLine struct {
	keyLine
	Revision *uint64 `json:"revision"`
}

// strictLine parses a line by the rules for documents.
func strictLine(line []byte) (Op, error) {
	if err := parsable(line); err != nil {
		return Op{}, err
	}
	if at := loneSurrogate(line); at >= 0 {
		return Op{}, badRequest("the line has half a surrogate pair at byte %d, which is no text; give the bytes as \"key_base64\" or \"value_base64\"", at)
	}
	var doc lineDoc
	if err := Decode(line, &doc); err != nil {
		return Op{}, ofLine(err)
	}
	if doc.IdempotencyKey != nil {
		return Op{}, notOffered("idempotency_key")
	}
	return doc.operation()
}

// parsable refuses what is no JSON text with ErrNotJSON.
func parsable(line []byte) error {
	if !utf8.Valid(line) {
		return errors.Join(badRequest("the line is no valid UTF-8; bytes that are no text go into \"key_base64\" and \"value_base64\""), ErrNotJSON)
	}
	if json.Valid(line) {
		return nil
	}
	var any json.RawMessage
	return errors.Join(ofLine(syntaxError(json.Unmarshal(line, &any), len(line))), ErrNotJSON)
}

// ofLine makes an error about a body one about a line.
func ofLine(err error) error {
	var p *api.Error
	if errors.As(err, &p) {
		if rest, ok := strings.CutPrefix(p.Detail, "the body"); ok {
			return badRequest("%s", "the line"+rest)
		}
	}
	return err
}

// loneSurrogate finds an escape that the decoder would silently replace; -1
// where there is none.
func loneSurrogate(line []byte) int {
	for i := 0; i < len(line); i++ {
		if line[i] != '\\' {
			continue
		}
		if i++; line[i] != 'u' {
			continue
		}
		u := escapedUnit(line[i-1:])
		if u < 0xD800 || u > 0xDFFF {
			continue
		}
		low := escapedUnit(line[i+5:])
		if u >= 0xDC00 || low < 0xDC00 || low > 0xDFFF {
			return i - 1
		}
		i += 6
	}
	return -1
}

// escapedUnit reads \uXXXX at the beginning of b; -1 where it is not.
func escapedUnit(b []byte) int64 {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return -1
	}
	n, err := strconv.ParseInt(string(b[2:6]), 16, 32)
	if err != nil {
		return -1
	}
	return n
}

func notOffered(field string) error {
	return badRequest("this version of kvd does not offer the field %q; send the line without it", field)
}

// operation is the one that the document names.
func (d *lineDoc) operation() (o Op, err error) {
	named := 0
	for _, is := range [...]bool{d.Put != nil, d.Get != nil, d.Delete != nil, d.Append != nil, d.Incr != nil} {
		if is {
			named++
		}
	}
	if named != 1 {
		return o, badRequest("the line names %d operations; it takes one of put, get, delete, append, incr, as in {\"put\":{\"key\":\"a\",\"value\":\"x\"}}", named)
	}
	switch {
	case d.Put != nil:
		o.Op = kvstore.OpPut
		err = d.Put.into(&o)
	case d.Append != nil:
		o.Op = kvstore.OpAppend
		err = d.Append.into(&o)
	case d.Incr != nil:
		o.Op = kvstore.OpIncr
		err = d.Incr.into(&o)
	case d.Delete != nil:
		o.Op = kvstore.OpDelete
		err = errors.Join(d.Delete.keyLine.into(&o), d.Delete.changeLine.into(&o))
	default:
		err = d.Get.into(&o)
	}
	return o, firstOf(err)
}

// firstOf is the first of joined errors: an answer has one.
func firstOf(err error) error {
	var p *api.Error
	if errors.As(err, &p) {
		return p
	}
	return err
}

func (l *putLine) into(o *Op) error {
	err := errors.Join(l.laterLine.refuse(), l.keyLine.into(o), l.changeLine.into(o))
	if err != nil {
		return err
	}
	o.Value, o.hasOperand, err = eitherForm("value", l.Value, l.ValueBase64)
	return err
}

func (l *incrLine) into(o *Op) error {
	if l.Delta != nil {
		o.Delta, o.hasOperand = *l.Delta, true
	}
	return errors.Join(l.laterLine.refuse(), l.keyLine.into(o), l.changeLine.into(o))
}

func (l *getLine) into(o *Op) error {
	if l.Revision != nil {
		if o.Revision = *l.Revision; o.Revision == 0 || o.Revision > maxSafeInteger {
			return badRequest("\"revision\" is a number from 1 to %d", uint64(maxSafeInteger))
		}
	}
	return l.keyLine.into(o)
}

func (l *keyLine) into(o *Op) (err error) {
	o.Key, o.hasKey, err = eitherForm("key", l.Key, l.KeyBase64)
	return err
}

func (l *changeLine) into(o *Op) error {
	if l.IfRevision != nil {
		if o.IfRevision, o.Conditional = *l.IfRevision, true; o.IfRevision > maxSafeInteger {
			return badRequest("\"if_revision\" is a number from 0 to %d", uint64(maxSafeInteger))
		}
	}
	if l.Return != nil {
		if *l.Return != "previous" {
			return badRequest("\"return\" takes \"previous\", not %.40q", *l.Return)
		}
		o.Previous = true
	}
	return nil
}

func (l *laterLine) refuse() error {
	switch {
	case l.TTL != nil:
		return notOffered("ttl")
	case l.Lease != nil:
		return notOffered("lease")
	}
	return nil
}

// eitherForm reads a byte string given as text or as base64.
func eitherForm(name string, text, encoded *string) (b []byte, given bool, err error) {
	switch {
	case text != nil && encoded != nil:
		return nil, true, badRequest("the operation has both %q and \"%s_base64\"", name, name)
	case text != nil:
		return []byte(*text), true, nil
	case encoded == nil:
		return nil, false, nil
	}
	if b, err = base64.StdEncoding.DecodeString(*encoded); err != nil {
		return nil, true, badRequest("\"%s_base64\" is no base64 with padding (RFC 4648, section 4): %v", name, err)
	}
	return b, true, nil
}
