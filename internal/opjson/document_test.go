package opjson

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// testDocument has a field of each kind that documents have.
type testDocument struct {
	ID      uint64     `json:"id,omitempty"`
	Limit   int64      `json:"limit"`
	Name    string     `json:"name"`
	URLs    []string   `json:"urls"`
	Learner bool       `json:"learner"`
	For     upper      `json:"for"`
	Parts   []testPart `json:"parts"`
	Hidden  string     `json:"-"`
	Untold  string
}

type testPart struct {
	A int64 `json:"a"`
}

// upper reads itself.
type upper string

func (u *upper) UnmarshalJSON(b []byte) error {
	switch {
	case b[0] == '0':
		return errors.New("zero is not long")
	case string(b) == "null": // by the convention of json.Unmarshaler
		return nil
	}
	*u = upper(strings.ToUpper(string(b)))
	return nil
}

func TestDecode(t *testing.T) {
	doc := testDocument{Name: "kept", URLs: []string{"dropped"}}
	err := Decode([]byte(` {"id": 4, "limit":-5, "urls": ["http://a:1", "\u00e4"], "learner": true, "for":"1m", "parts":[{"a":1},{}], "name":null} `+"\n"), &doc)
	got := fmt.Sprintf("%v %+v", err, doc)
	if want := `<nil> {ID:4 Limit:-5 Name:kept URLs:[http://a:1 ä] Learner:true For:"1M" Parts:[{A:1} {A:0}] Hidden: Untold:}`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if err := Decode([]byte(`{"learner":false,"urls":[]}`), &doc); err != nil || doc.Learner || doc.URLs == nil || len(doc.URLs) > 0 {
		t.Errorf("%+v, %v", doc, err)
	}
}

func TestDecodeIsStrict(t *testing.T) {
	for in, want := range map[string]string{
		``:                        "invalid JSON at byte 1: unexpected end of input, expected an object",
		`  `:                      "invalid JSON at byte 3: unexpected end of input, expected an object",
		`{`:                       "invalid JSON at byte 2: unexpected end of input, expected a field name in double quotes",
		`{"id":4`:                 "invalid JSON at byte 8 (in id): unexpected end of input, expected a comma or '}'",
		`{"id":}`:                 "invalid JSON at byte 7 (in id): unexpected '}', expected a number",
		`[]`:                      "expected an object, found an array",
		`"x"`:                     "expected an object, found a string",
		`null`:                    "expected an object, found null",
		`{"id":"4"}`:              "id: expected a number, found a string",
		`{"id":-1}`:               "id: expected an integer from 0 to 9007199254740991, found -1",
		`{"id":4.5}`:              "id: expected an integer from 0 to 9007199254740991, found 4.5",
		`{"id":1e3}`:              "id: expected an integer from 0 to 9007199254740991, found 1e3",
		`{"nonsense":1}`:          "nonsense: unknown field; expected one of id, limit, name, urls, learner, for, parts",
		`{"-":1}`:                 "-: unknown field; expected one of id, limit, name, urls, learner, for, parts",
		`{"":1}`:                  `"": unknown field; expected one of id, limit, name, urls, learner, for, parts`,
		`{"Untold":"x"}`:          "Untold: unknown field; expected one of id, limit, name, urls, learner, for, parts",
		`{"ID":4}`:                "ID: unknown field; expected one of id, limit, name, urls, learner, for, parts",
		`{"id":4}{}`:              "invalid JSON at byte 9: unexpected '{', expected the end",
		`{"id":4} x`:              "invalid JSON at byte 10: unexpected 'x', expected the end",
		`{"id":4,"id":5}`:         "id: duplicate field",
		`{"urls":[1]}`:            "urls[0]: expected a string, found a number",
		`{"urls":["a",{"b":1}]}`:  "urls[1]: expected a string, found an object",
		`{"urls":"a"}`:            "urls: expected an array, found a string",
		`{"learner":1}`:           "learner: expected true or false, found a number",
		`{"learner":"true"}`:      "learner: expected true or false, found a string",
		`{"learner":tru}`:         "invalid JSON at byte 12 (in learner): unexpected 't', expected a value",
		`{"for":0}`:               "for: zero is not long",
		`{"for":[}`:               "invalid JSON at byte 9 (in for[0]): unexpected '}', expected a value",
		`{"parts":[{},{"a":[]}]}`: "parts[1].a: expected a number, found an array",
		`{"parts":[{"b":1}]}`:     "parts[0].b: unknown field; expected one of a",
		`{"name":"\ud800"}`:       `name: unpaired surrogate \ud800 is not a character; send bytes that are not text as base64`,
		"{\"id\":4}\xff":          "invalid JSON at byte 9: unexpected byte 0xff, expected the end",
		strings.Repeat("[", 100) + strings.Repeat("]", 100):               "invalid JSON at byte 33 (in " + strings.Repeat("[0]", 32) + "): nested deeper than 32 levels",
		`{"x":` + strings.Repeat("[", 15) + strings.Repeat("]", 15) + `}`: "x: unknown field; expected one of id, limit, name, urls, learner, for, parts",
	} {
		var doc testDocument
		err := Decode([]byte(in), &doc)
		var e *Error
		if !errors.As(err, &e) || e.Error() != want {
			t.Errorf("%.40q:\ngot  %v\nwant %s", in, err, want)
		}
	}
}
