package opjson

import (
	"errors"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/api"
)

func TestDecodeDocumentIsStrict(t *testing.T) {
	for in, want := range map[string]string{
		``:                              "empty",
		`  `:                            "at byte 2: unexpected end",
		`{`:                             "unexpected end",
		`{"id":4`:                       "unexpected end",
		`{"id":}`:                       "at byte 7",
		`[]`:                            "at byte 1",
		`"x"`:                           "at byte 3",
		`{"id":"4"}`:                    `field "id"`,
		`{"id":-1}`:                     `field "id"`,
		`{"id":4.5}`:                    `field "id"`,
		`{"nonsense":1}`:                `unknown field "nonsense"`,
		`{"id":4}{}`:                    "at byte 9: invalid character '{' after top-level value",
		`{"id":4} x`:                    "at byte 10",
		`{"id":4,"id":5}`:               `"id" twice`,
		`{"id":4,"ID":5}`:               `"ID" twice`,
		`{"peer_urls":[{"a":1,"a":2}]}`: `"a" twice`,
		strings.Repeat("[", 100) + strings.Repeat("]", 100): "deeper than",
		"{\"id\":4}\xff": "at byte",
	} {
		var m api.NewMember
		err := Decode([]byte(in), &m)
		var p *api.Error
		if !errors.As(err, &p) || p.Code != api.BadRequest || !strings.Contains(p.Detail, want) {
			t.Errorf("%.40q: got %v, want a bad_request with %q", in, err, want)
		}
	}
	var m api.NewMember
	err := Decode([]byte(` {"id": 4, "peer_urls": ["http://a:1", "http://b:2"], "learner": true} `+"\n"), &m)
	if err != nil || m.ID != 4 || len(m.PeerURLs) != 2 || !m.Learner {
		t.Errorf("got %+v, %v", m, err)
	}
}
