package ui

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

// maxPacked is the size of the whole page that is promised, compressed.
const maxPacked = 100 << 10

func TestSize(t *testing.T) {
	total := 0
	for name, f := range Open(On).files() {
		total += len(f.packed)
		if f.mediaType == "" {
			t.Errorf("%s has no media type", name)
		}
	}
	t.Logf("%d files, %d bytes compressed", len(Open(On).files()), total)
	if total >= maxPacked {
		t.Errorf("the page has %d bytes compressed, want less than %d", total, maxPacked)
	}
}

// Nothing in the files would need a weaker policy, or comes from elsewhere.
func TestFilesKeepThePolicy(t *testing.T) {
	refused := map[string]*regexp.Regexp{
		"an inline script":   regexp.MustCompile(`<script>|<script [^>]*>[^<]`),
		"an inline handler":  regexp.MustCompile(`<[a-z]+ [^>]*\bon[a-z]+=`),
		"an inline style":    regexp.MustCompile(`<style|<[a-z]+ [^>]*\bstyle=`),
		"markup from text":   regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function`),
		"another host":       regexp.MustCompile(`(src|href)="(https?:)?//|@import|[ :]url\(['"]?(https?:|data:)|import .*https?:`),
		"a style attribute":  regexp.MustCompile(`\bstyle: *['"{]`),
		"a placeholder todo": regexp.MustCompile(`TODO|FIXME|XXX`),
	}
	for name, f := range Open(On).files() {
		for what, pattern := range refused {
			if found := pattern.Find(f.plain); found != nil {
				t.Errorf("%s has %s: %q", name, what, found)
			}
		}
	}
	for _, unsafe := range []string{"unsafe", "data:", "blob:", "*", "http"} {
		if strings.Contains(policy, unsafe) {
			t.Errorf("the policy has %q", unsafe)
		}
	}
}

// Every module that another one or the page names exists.
func TestImportsExist(t *testing.T) {
	p := Open(On)
	named := regexp.MustCompile(`(?:from |import\(|href=|src=)['"](?:\./)?([a-z]+\.(?:js|css|svg))['"]`)
	found := 0
	for name, f := range p.files() {
		for _, m := range named.FindAllSubmatch(f.plain, -1) {
			found++
			if p.files()[string(m[1])] == nil {
				t.Errorf("%s names %s, which does not exist", name, m[1])
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d references were found", found)
	}
}

// What can be stored in the tab can be removed: the page must not enumerate kinds of
// credentials, of which a JSON Web Token was missing.
func TestLogOutOfEveryStoredToken(t *testing.T) {
	text := string(Open(On).files()["who.js"].plain)
	if _, before, _ := strings.Cut(text, "who.user ?"); !regexp.MustCompile(`^[^?]*, tokenOf\(\) \? button\('Log out', signOutAndReload`).MatchString(before) {
		t.Error("the button to log out does not depend on the stored token alone")
	}
}

func ask(t *testing.T, mode, name string, request http.Header) (int, http.Header, []byte) {
	t.Helper()
	header := make(http.Header)
	status, body, ok := Open(mode).Answer(name, request, header)
	if !ok {
		t.Fatalf("%q does not exist", name)
	}
	return status, header, body
}

func TestAnswer(t *testing.T) {
	status, header, body := ask(t, On, "", http.Header{})
	if status != 200 || header.Get("Content-Type") != "text/html; charset=utf-8" || !bytes.Contains(body, []byte(`data-ui="on"`)) || header.Get("Content-Encoding") != "" {
		t.Errorf("%d %v %.80s", status, header, body)
	}
	if got := header.Get("Content-Security-Policy"); got != policy {
		t.Errorf("policy %q", got)
	}
	packed := http.Header{"Accept-Encoding": {"deflate, gzip;q=0.5, br"}}
	status, compressed, body := ask(t, Read, "", packed)
	if status != 200 || compressed.Get("Content-Encoding") != "gzip" || compressed.Get("Etag") == header.Get("Etag") {
		t.Errorf("%d %v", status, compressed)
	}
	r, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r)
	if err != nil || !bytes.Contains(text, []byte(`data-ui="read"`)) {
		t.Errorf("%v %.80s", err, text)
	}
	packed["If-None-Match"] = []string{`"x", W/` + compressed.Get("Etag")}
	if status, again, body := ask(t, Read, "", packed); status != 304 || len(body) != 0 || again.Get("Etag") != compressed.Get("Etag") || again.Get("Content-Encoding") != "" {
		t.Errorf("%d %v", status, again)
	}
	packed["If-None-Match"] = []string{header.Get("Etag")} // of the other form
	if status, _, _ := ask(t, Read, "", packed); status != 200 {
		t.Errorf("%d for the tag of the other form", status)
	}
}

func TestWhatThereIsNot(t *testing.T) {
	if _, _, ok := Open(On).Answer("../ui.go", http.Header{}, http.Header{}); ok {
		t.Error("a file outside of the page")
	}
	if Open(Off) != nil || Open("") != nil {
		t.Error("a page that is off")
	}
}

func TestAcceptsGzip(t *testing.T) {
	for line, want := range map[string]bool{"gzip": true, "GZIP ; q=1": true, "br, gzip;q=0.001": true, "gzip;q=0": false, "gzip;q=0.0": false, "br": false, "": false, "*": false} {
		if got := acceptsGzip([]string{line}); got != want {
			t.Errorf("%q: %v", line, got)
		}
	}
	if acceptsGzip(nil) {
		t.Error("no header")
	}
}
