package cli

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// FuzzLogins reads arbitrary bytes as the file of kvd login. What is read is the same when
// it is written and read again; a login that is stored is found for its endpoint, until it
// is removed; and all others stay what they were, unless they have expired.
func FuzzLogins(f *testing.F) {
	f.Add([]byte(`{"http://a:1":{"user":"ann","id":"4","token":"kvd_x","expires":"2999-01-01T00:00:00Z"},"http://b:1":{"token":"y","expires":"2001-01-01T00:00:00Z"}}`), "http://b:1/")
	f.Add([]byte(`{"http://a:1":null}`), "HTTP://A:1")
	f.Add([]byte(`null`), "http://a:1")
	f.Add([]byte(`{"http://a:1":{"TOKEN":"1","token":"2","expires":"2999-01-01T00:00:00.5+14:00"}}`), "http://a:1")
	f.Add([]byte(`{"http://a:1":{"expires":"10000-01-01T00:00:00Z"}}`), "http://c:1")
	f.Add([]byte(``), "http://c:1")
	home := f.TempDir()
	environ := []string{"XDG_CONFIG_HOME=" + home}
	path := filepath.Join(home, "kvd", "logins.json")
	f.Fuzz(func(t *testing.T, text []byte, endpoint string) {
		if !utf8.ValidString(endpoint) {
			return // no URL
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		logins, err := OpenLogins(environ)
		if err != nil {
			if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "remove it") {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		want := make(map[string]SavedLogin)
		for name, saved := range logins.by {
			if time.Now().Before(saved.Expires) {
				want[name] = saved
			}
		}
		login := SavedLogin{User: "bob", ID: "7", Token: "kvd_token", Expires: time.Now().Add(time.Hour).UTC()}
		for _, set := range []*SavedLogin{&login, nil} {
			if err := logins.Set([]string{endpoint}, set); err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			if logins, err = OpenLogins(environ); err != nil {
				t.Fatalf("%q, written again: %v", text, err)
			}
			delete(want, endpointName(endpoint))
			got, found := logins.Find([]string{endpoint})
			if found != (set != nil) || found && (got.Token != login.Token || !got.Expires.Equal(login.Expires)) {
				t.Fatalf("%q: %q has %+v, %v", text, endpoint, got, found)
			}
			others := maps.Clone(logins.by)
			delete(others, endpointName(endpoint))
			if !maps.EqualFunc(others, want, func(a, b SavedLogin) bool {
				return a.Token == b.Token && a.User == b.User && a.ID == b.ID && a.Expires.Equal(b.Expires)
			}) {
				t.Fatalf("%q became %v, want %v", text, others, want)
			}
		}
	})
}

// FuzzSecret: a secret is the whole first line of a file, or none.
func FuzzSecret(f *testing.F) {
	f.Add("kvd_token\n")
	f.Add("password\r\nsecond")
	f.Add("\nx")
	f.Add("\r\n")
	f.Add(strings.Repeat("x", maxSecretBytes))
	f.Add(strings.Repeat("x", maxSecretBytes) + "\r\n")
	f.Add(strings.Repeat("x", maxSecretBytes) + "y")
	f.Fuzz(func(t *testing.T, text string) {
		e := Environment{Stdin: strings.NewReader(text)}
		got, err := e.ReadSecret("-")
		line, _, _ := strings.Cut(text, "\n")
		want := strings.TrimSuffix(line, "\r")
		switch {
		case want == "" || len(want) > maxSecretBytes:
			if err == nil {
				t.Fatalf("%.100q: %.100q was taken for a secret", text, got)
			}
		case err != nil || got != want:
			t.Fatalf("%.100q: got %.100q, %v", text, got, err)
		}
	})
}
