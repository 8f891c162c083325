package param

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// A query means what it says or is refused (K1).
func TestParse(t *testing.T) {
	accepted := []string{"limit", "wait", "prefix", "exclude"}
	for _, c := range []struct {
		raw  string
		want []string // name=value, in the order of names
		bad  string
	}{
		{raw: ""},
		{raw: "&&"},
		{raw: "wait=1s&limit=5", want: []string{"limit=5", "wait=1s"}},
		{raw: "pre%66ix=a%2Fb+c", want: []string{"prefix=a/b c"}},
		{raw: "prefix=%ff%00", want: []string{"prefix=\xff\x00"}},
		{raw: "exclude=b&exclude=a", want: []string{"exclude=b", "exclude=a"}},
		{raw: "timeout=1s&pretty", want: []string{"pretty=", "timeout=1s"}},
		{raw: "limits=5", bad: `unknown parameter "limits"; this request takes limit, wait, prefix, exclude, timeout, pretty`},
		{raw: "limit=5&limit=5", bad: "more than once"},
		{raw: "pretty=maybe", bad: "is a switch"},
		{raw: "timeout=soon", bad: "must be a duration"},
		{raw: "timeout=601", bad: "must be from 1ms to 10m0s"},
		{raw: "%zz=1", bad: "parameter name"},
		{raw: "limit=%zz", bad: "value of the parameter"},
	} {
		var q Query
		err := q.Parse(c.raw, accepted)
		if c.bad != "" {
			if err == nil || !strings.Contains(err.Error(), c.bad) {
				t.Errorf("%q: error %v, want one with %q", c.raw, err, c.bad)
			}
			continue
		}
		var got []string
		for name, value := range q.Sorted() {
			got = append(got, name+"="+value)
		}
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%q: got %q, %v, want %q", c.raw, got, err, c.want)
		}
	}
}

func TestTimeout(t *testing.T) {
	for raw, want := range map[string]time.Duration{
		"": DefaultTimeout, "timeout=2": 2 * time.Second, "timeout=1ms": time.Millisecond, "timeout=10m": MaxTimeout,
		"timeout=0": 0, "timeout=601": 0, "timeout=-1s": 0, "timeout=": 0, "timeout=soon": 0, // refused
	} {
		var q Query
		parsed := q.Parse(raw, nil)
		if got, err := q.Timeout(); got != want || (err == nil) != (want > 0) || (parsed == nil) != (want > 0) {
			t.Errorf("%q: got %v, %v, %v, want %v", raw, got, err, parsed, want)
		}
	}
}
