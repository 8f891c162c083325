package param

import "testing"

func TestPrefers(t *testing.T) {
	for _, c := range []struct {
		accept []string
		want   bool
	}{
		{nil, false},
		{[]string{"*/*"}, false},
		{[]string{"application/json"}, true},
		{[]string{"APPLICATION/JSON"}, true},
		{[]string{"application/json; charset=utf-8"}, true},
		{[]string{"application/*"}, false},
		{[]string{"application/json, */*"}, false},
		{[]string{"application/json, */*;q=0.8"}, true},
		{[]string{"application/json;q=0.8", "*/*;q=0.1"}, true},
		{[]string{"application/octet-stream;q=0.5, application/json;q=0.6"}, true},
		{[]string{"application/octet-stream, application/json;q=0.6"}, false},
		{[]string{"application/json;q=0"}, false},
		{[]string{"application/json;q=nonsense"}, false},
		{[]string{"application/json;q=2"}, false},
		{[]string{"*/*, application/octet-stream;q=0.1"}, true},
		{[]string{"text/html"}, false},
		{[]string{"", ",,", ";"}, false},
	} {
		if got := Prefers(c.accept, "application/json", "application/octet-stream"); got != c.want {
			t.Errorf("Accept %q: got %v, want %v", c.accept, got, c.want)
		}
	}
}
