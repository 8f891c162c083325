package opjson

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/kvd-io/kvd/internal/limits"
)

// What follows is a second reader of operations: slow, built on encoding/json,
// and written from the documentation.

// object splits an object into its fields, without those that are null. It returns
// false if the text is not an object, or has a duplicate or unknown field.
func object(text []byte) (map[string]json.RawMessage, bool) {
	dec := json.NewDecoder(bytes.NewReader(text))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return nil, false
	}
	fields, seen := map[string]json.RawMessage{}, map[string]bool{}
	for dec.More() {
		name, err := dec.Token()
		if err != nil || seen[name.(string)] {
			return nil, false
		}
		seen[name.(string)] = true
		var value json.RawMessage
		if dec.Decode(&value) != nil {
			return nil, false
		}
		if string(value) != "null" {
			fields[name.(string)] = value
		}
		if _, known := kindByName(name.(string)); !known && !strings.Contains(" key key_base64 value value_base64 delta revision if_revision return ttl lease ", " "+name.(string)+" ") {
			return nil, false
		}
	}
	return fields, true
}

func kindByName(name string) (Kind, bool) {
	for k := Get; k < kinds; k++ {
		if k.String() == name {
			return k, true
		}
	}
	return 0, false
}

// byteString reads one of the two forms of a field.
func byteString(fields map[string]json.RawMessage, name string) (b []byte, given, ok bool) {
	text, plain := fields[name]
	encoded, based := fields[name+"_base64"]
	if !plain && !based {
		return nil, false, true
	}
	if plain && based {
		return nil, true, false
	}
	if based {
		text = encoded
	}
	var s string
	if json.Unmarshal(text, &s) != nil {
		return nil, true, false
	}
	if !based {
		return []byte(s), true, true
	}
	b, err := base64.StdEncoding.DecodeString(s)
	return b, true, err == nil
}

func whole(text json.RawMessage, low, high int64) (int64, bool) {
	n, err := strconv.ParseInt(string(text), 10, 64)
	return n, err == nil && n >= low && n <= high
}

// second parses valid JSON.
func second(text []byte, maxValueBytes int) (o Op, ok bool) {
	doc, ok := object(text)
	if !ok || len(doc) != 1 {
		return o, false
	}
	for name, body := range doc {
		if o.Kind, ok = kindByName(name); !ok {
			return o, false
		}
		fields, ok := object(body)
		if !ok {
			return o, false
		}
		takes := map[Kind]string{Get: "key revision", Put: "key value if_revision return", Append: "key value if_revision return", Delete: "key if_revision return", Incr: "key delta if_revision return"}[o.Kind]
		for f, v := range fields {
			if !strings.Contains(" "+takes+" ", " "+strings.TrimSuffix(f, "_base64")+" ") {
				return o, false
			}
			switch f {
			case "delta":
				o.Delta, ok = whole(v, math.MinInt64, math.MaxInt64)
			case "revision", "if_revision":
				low := int64(0)
				if f == "revision" {
					low = 1
				}
				n, fits := whole(v, low, limits.MaxSafeInteger)
				if ok = fits; f == "revision" {
					o.Revision = uint64(n)
				} else {
					o.IfRevision, o.Conditional = uint64(n), true
				}
			case "return":
				var s string
				o.ReturnPrevious = json.Unmarshal(v, &s) == nil && s == "previous"
				ok = o.ReturnPrevious
			}
			if !ok {
				return o, false
			}
		}
		var given bool
		if o.Key, given, ok = byteString(fields, "key"); !ok || !given || len(o.Key) == 0 || len(o.Key) > 4096 {
			return o, false
		}
		if o.Value, given, ok = byteString(fields, "value"); !ok || given != strings.Contains(takes, "value") || len(o.Value) > maxValueBytes {
			return o, false
		}
		if _, given := fields["delta"]; given != (o.Kind == Incr) {
			return o, false
		}
	}
	return o, true
}

// depth returns the nesting of valid JSON.
func depth(text []byte) (deepest int) {
	dec := json.NewDecoder(bytes.NewReader(text))
	for n := 0; ; {
		tok, err := dec.Token()
		if err != nil {
			return deepest
		}
		switch tok {
		case json.Delim('{'), json.Delim('['):
			n++
		case json.Delim('}'), json.Delim(']'):
			n--
		}
		deepest = max(deepest, n)
	}
}

// surrogates reports whether the text has an escaped surrogate, which the second
// reader cannot judge.
func surrogates(text []byte) bool {
	lower := bytes.ToLower(text)
	return bytes.Contains(lower, []byte(`\ud8`)) || bytes.Contains(lower, []byte(`\ud9`)) || bytes.Contains(lower, []byte(`\uda`)) || bytes.Contains(lower, []byte(`\udb`)) ||
		bytes.Contains(lower, []byte(`\udc`)) || bytes.Contains(lower, []byte(`\udd`)) || bytes.Contains(lower, []byte(`\ude`)) || bytes.Contains(lower, []byte(`\udf`))
}

// FuzzParse compares the reader with the second one, and checks P2.
func FuzzParse(f *testing.F) {
	for _, c := range lines {
		f.Add([]byte(c.line))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var p Parser
		before := bytes.Clone(text)
		got, err := p.Parse(text, 1000)
		if !bytes.Equal(before, text) {
			t.Fatalf("%q was changed to %q", before, text)
		}
		if valid := json.Valid(text) && utf8.Valid(text) && depth(text) <= MaxDepth; valid == errors.Is(err, ErrSyntax) {
			t.Fatalf("%q: valid %v, error %v", text, valid, err)
		}
		checkError(t, text, err)
		if errors.Is(err, ErrSyntax) || surrogates(text) {
			return
		}
		if want, ok := second(text, 1000); ok != (err == nil) || ok && !sameOp(got, want) {
			t.Fatalf("%q: %+v %v, want %+v %v", text, got, err, want, ok)
		}
	})
}

func checkError(t *testing.T, text []byte, err error) {
	if err == nil {
		return
	}
	var e *Error
	if !errors.As(err, &e) || e.Reason == "" || e.Offset < 0 || e.Offset > len(text) {
		t.Fatalf("%q: error %+v", text, err)
	}
	if len(e.Error()) > 4000 {
		t.Fatalf("%q: error of %d bytes", text, len(e.Error()))
	}
}

// FuzzDecode checks P2 for documents, and that encoding/json decodes those that
// are accepted to the same values.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(` {"id": 4, "limit":-5, "urls": ["http://a:1", "\u00e4"], "learner": true, "for":"1m", "parts":[{"a":1},{}], "name":null} `))
	f.Add([]byte(`{"id":4,"ID":5}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var got, want testDocument
		err := Decode(text, &got)
		if valid := json.Valid(text) && utf8.Valid(text) && depth(text) <= MaxDepth; valid == errors.Is(err, ErrSyntax) {
			t.Fatalf("%q: valid %v, error %v", text, valid, err)
		}
		checkError(t, text, err)
		if err != nil {
			return
		}
		if err := json.Unmarshal(text, &want); err != nil {
			t.Fatalf("%q is accepted, but by encoding/json: %v", text, err)
		}
		a, _ := json.Marshal(got)
		b, _ := json.Marshal(want)
		if !bytes.Equal(a, b) {
			t.Fatalf("%q: %s, want %s", text, a, b)
		}
	})
}
