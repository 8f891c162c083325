package engine

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustOpen(t testing.TB, dir string, opts PebbleOptions) Engine {
	t.Helper()
	e, err := OpenPebble(dir, opts)
	must(t, err)
	return e
}

func set(t testing.TB, e Engine, key, value string) {
	t.Helper()
	commit(t, e, func(b WriteBatch) { b.Set([]byte(key), []byte(value)) })
}

func commit(t testing.TB, e Engine, fill func(b WriteBatch)) {
	t.Helper()
	b := e.NewWriteBatch()
	fill(b)
	must(t, b.Commit())
	must(t, b.Close())
}

// testKey maps numbers to keys of letters, in order.
func testKey(n int) string {
	digits := []byte(fmt.Sprintf("%05d", n))
	for i := range digits {
		digits[i] += 'a' - '0'
	}
	return string(digits)
}

func wantValue(t testing.TB, r Reader, key, want string) {
	t.Helper()
	got, err := r.Get(nil, []byte(key))
	if err != nil || string(got) != want {
		t.Fatalf("Get(%q) = %q, %v; want %q", key, got, err, want)
	}
}

func wantAbsent(t testing.TB, r Reader, key string) {
	t.Helper()
	if got, err := r.Get(nil, []byte(key)); !errors.Is(err, ErrNotFound) {
		t.Fatalf("Get(%q) = %q, %v; want ErrNotFound", key, got, err)
	}
}

func wantContent(t testing.TB, r Reader, want map[string]string) {
	t.Helper()
	got, err := contentOf(r)
	must(t, err)
	if !maps.Equal(got, want) {
		t.Fatalf("content is %s; want %s", abbreviate(got), abbreviate(want))
	}
}

func abbreviate(content map[string]string) string {
	if s := fmt.Sprint(content); len(s) <= 500 {
		return s
	}
	return fmt.Sprintf("%d pairs", len(content))
}

// contentOf reads everything, forward, and checks the order.
func contentOf(r Reader) (map[string]string, error) {
	it, err := r.Iter(nil, nil)
	if err != nil {
		return nil, err
	}
	content := map[string]string{}
	last := ""
	for ok := it.First(); ok; ok = it.Next() {
		key := string(it.Key())
		if len(content) > 0 && key <= last {
			return nil, errors.Join(fmt.Errorf("%q after %q", key, last), it.Close())
		}
		content[key] = string(it.Value())
		last = key
	}
	return content, firstError(it.Err(), it.Close())
}

// walk makes moves (F, L, N, P, >key for SeekGE, <key for SeekLT) and returns
// the keys it stood on, - for none.
func walk(t *testing.T, r Reader, lower, upper, moves string) string {
	t.Helper()
	it, err := r.Iter(bound(lower), bound(upper))
	must(t, err)
	var got []string
	for _, move := range strings.Fields(moves) {
		if !makeMove(it, move) {
			got = append(got, "-")
			continue
		}
		got = append(got, string(it.Key()))
		if v := string(it.Value()); v != "value of "+string(it.Key()) {
			t.Errorf("%q has %q", it.Key(), v)
		}
	}
	must(t, it.Err())
	must(t, it.Close())
	return strings.Join(got, " ")
}

func bound(s string) []byte {
	if s == "" {
		return nil
	}
	return []byte(s)
}

func makeMove(it Iterator, move string) bool {
	switch move[0] {
	case 'F':
		return it.First()
	case 'L':
		return it.Last()
	case 'N':
		return it.Next()
	case 'P':
		return it.Prev()
	case '>':
		return it.SeekGE([]byte(move[1:]))
	}
	return it.SeekLT([]byte(move[1:]))
}
