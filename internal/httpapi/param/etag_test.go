package param

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore"
)

func TestParseTags(t *testing.T) {
	strong := func(s ...string) tagList {
		var l tagList
		for _, o := range s {
			l.tags = append(l.tags, entityTag{opaque: o})
		}
		return l
	}
	for _, c := range []struct {
		lines []string
		want  tagList
		bad   string
	}{
		{lines: []string{`"7"`}, want: strong("7")},
		{lines: []string{`"7","8"`}, want: strong("7", "8")},
		{lines: []string{`"7" ,	"8" `, ` "9"`}, want: strong("7", "8", "9")},
		{lines: []string{`,, "7",,`}, want: strong("7")},
		{lines: []string{``}, want: tagList{}},
		{lines: []string{`*`}, want: tagList{any: true}},
		{lines: []string{` * `}, want: tagList{any: true}},
		{lines: []string{`W/"7"`}, want: tagList{tags: []entityTag{{weak: true, opaque: "7"}}}},
		{lines: []string{`""`}, want: strong("")},
		{lines: []string{`"a,b"`}, want: strong("a,b")},
		{lines: []string{"\"\xe9\xff\""}, want: strong("\xe9\xff")},
		{lines: []string{`7`}, bad: "double quotes"},
		{lines: []string{`'7'`}, bad: "double quotes"},
		{lines: []string{`w/"7"`}, bad: "double quotes"},
		{lines: []string{`W/7`}, bad: "double quotes"},
		{lines: []string{`W/`}, bad: "double quotes"},
		{lines: []string{`"7`}, bad: "closing"},
		{lines: []string{`"7" "8"`}, bad: "comma"},
		{lines: []string{`"7"x`}, bad: "comma"},
		{lines: []string{`"a b"`}, bad: "must not contain"},
		{lines: []string{"\"a\tb\""}, bad: "must not contain"},
		{lines: []string{"\"a\x7fb\""}, bad: "must not contain"},
		{lines: []string{`*, "7"`}, bad: "both"},
		{lines: []string{`"7"`, `*`}, bad: "both"},
		{lines: []string{`*, *`}, bad: "twice"},
		{lines: []string{strings.Repeat(`"7",`, maxTags+1)}, bad: "more than"},
	} {
		got, err := parseTags("If-Match", c.lines)
		switch {
		case c.bad == "" && err != nil:
			t.Errorf("%q: %v", c.lines, err)
		case c.bad == "" && !reflect.DeepEqual(got, c.want):
			t.Errorf("%q: got %+v, want %+v", c.lines, got, c.want)
		case c.bad != "" && (err == nil || !strings.Contains(err.Error(), c.bad)):
			t.Errorf("%q: error %v, want one with %q", c.lines, err, c.bad)
		}
	}
}

func TestConditionFromTags(t *testing.T) {
	for _, c := range []struct {
		line string
		kind kvstore.ConditionKind
		want []uint64
	}{
		{`"7", W/"8"`, kvstore.IfMatch, []uint64{7}},
		{`"7", W/"8"`, kvstore.IfNoneMatch, []uint64{7, 8}},
		{`"07", "+7", "0", "7 ", "-7", "x", "", "18446744073709551616"`, kvstore.IfMatch, nil},
		{`"18446744073709551615"`, kvstore.IfMatch, []uint64{1<<64 - 1}},
	} {
		l, err := parseTags("If-Match", []string{strings.ReplaceAll(c.line, `"7 ", `, "")})
		if err != nil {
			t.Fatal(err)
		}
		if got := l.condition(c.kind).Revisions; !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s as kind %d: got %v, want %v", c.line, c.kind, got, c.want)
		}
	}
}

// FuzzETag checks that an accepted list can be written and parsed again, and that every
// tag of kvd's own is read back as its revision.
func FuzzETag(f *testing.F) {
	for _, s := range []string{`"7"`, `W/"7", *`, `"a","b" ,,`, `*`, "\"\xff\"", `"`, `W/`} {
		f.Add(s, uint64(7))
	}
	f.Fuzz(func(t *testing.T, line string, revision uint64) {
		if l, err := parseTags("If-Match", []string{line}); err == nil {
			again, err := parseTags("If-Match", []string{l.text()})
			if err != nil || !reflect.DeepEqual(l, again) {
				t.Fatalf("%q: %+v came back as %+v, %v", line, l, again, err)
			}
		}
		own, err := parseTags("If-Match", []string{ETag(revision)})
		if err != nil {
			t.Fatal(err)
		}
		got := own.condition(kvstore.IfMatch).Revisions
		if revision != 0 && (len(got) != 1 || got[0] != revision) {
			t.Fatalf("the tag of %d came back as %v", revision, got)
		}
	})
}

func (l *tagList) text() string {
	var parts []string
	if l.any {
		parts = append(parts, "*")
	}
	for _, tag := range l.tags {
		parts = append(parts, fmt.Sprintf("%s\"%s\"", map[bool]string{true: "W/"}[tag.weak], tag.opaque))
	}
	return strings.Join(parts, ", ")
}
