package opjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"
	"unicode/utf8"
)

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
		l := Limits{MaxValueBytes: 1000, MaxTxnOps: 9, MaxTxnBytes: 1 << 20}
		got, err := p.Parse(text, l)
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
		s := second{limits: l}
		want, ok := s.parse(text)
		if ok != (err == nil) || ok && describe(got) != describe(&want) {
			t.Fatalf("%q:\ngot  %s %v\nwant %s %v", text, describe(got), err, describe(&want), ok)
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
