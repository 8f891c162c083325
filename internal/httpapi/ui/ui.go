package ui

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"sync"
)

//go:embed page
var embedded embed.FS

// What a node serves at /ui/.
const (
	Off  = "off"  // nothing
	Read = "read" // a page that changes nothing
	On   = "on"
)

// index is the file that /ui/ itself stands for.
const index = "index.html"

// policy allows the page's own files and requests to its own node (U1). A form never
// leaves the page, and no other page may frame it: a click there would be a change here.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// mediaTypes are fixed: those of package mime depend on the machine.
var mediaTypes = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
}

// file is one file of the page, in both forms that it is answered in.
type file struct {
	mediaType     string
	plain, packed []byte
	tag           string // of the plain form, without quotes
}

// Page is the files of the page in one mode. They are made ready, which takes some
// megabytes of memory, when a browser first asks for one.
type Page struct {
	files func() map[string]*file
}

// pages are those of each mode. Nodes of one process share them.
var pages = map[string]*Page{
	Read: {files: sync.OnceValue(func() map[string]*file { return load(Read) })},
	On:   {files: sync.OnceValue(func() map[string]*file { return load(On) })},
}

// Open returns the page in a mode, and nil for Off and for what is no mode.
func Open(mode string) *Page { return pages[mode] }

// load panics where the binary was built wrong, which every test of the page would show.
func load(mode string) map[string]*file {
	files := make(map[string]*file)
	entries, err := fs.ReadDir(embedded, "page")
	if err != nil {
		panic(fmt.Sprintf("ui: %v", err))
	}
	for _, e := range entries {
		text, err := embedded.ReadFile("page/" + e.Name())
		if err != nil {
			panic(fmt.Sprintf("ui: %v", err))
		}
		if e.Name() == index {
			text = bytes.Replace(text, []byte(`data-ui="on"`), []byte(`data-ui="`+mode+`"`), 1)
		}
		files[e.Name()] = newFile(e.Name(), text)
	}
	return files
}

func newFile(name string, text []byte) *file {
	sum := sha256.Sum256(text)
	return &file{mediaType: mediaTypes[path.Ext(name)], plain: text, packed: pack(text), tag: hex.EncodeToString(sum[:8])}
}

// pack compresses at the highest level: it happens once.
func pack(text []byte) []byte {
	var buf bytes.Buffer
	w, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
	if err != nil {
		panic(fmt.Sprintf("ui: %v", err)) // the level is a valid one
	}
	_, _ = w.Write(text) // a bytes.Buffer never fails
	_ = w.Close()
	return buf.Bytes()
}

// Answer sets the header of an answer with a file, and returns its status and body.
// The name "" stands for the page itself. ok is false if there is no such file; the
// header is untouched then.
func (p *Page) Answer(name string, request, header http.Header) (status int, body []byte, ok bool) {
	if name == "" {
		name = index
	}
	f := p.files()[name]
	if f == nil {
		return 0, nil, false
	}
	tag, body := `"`+f.tag+`"`, f.plain
	if acceptsGzip(request["Accept-Encoding"]) {
		tag, body = `"`+f.tag+`-gzip"`, f.packed
		header.Set("Content-Encoding", "gzip")
	}
	header.Set("Etag", tag)
	header.Set("Cache-Control", "no-cache") // keep it, but ask (U3)
	header.Set("Vary", "Accept-Encoding")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Content-Security-Policy", policy)
	// Not no-referrer: browsers would then send "Origin: null", which the check of
	// origins refuses, with some requests.
	header.Set("Referrer-Policy", "same-origin")
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	if lists(request["If-None-Match"], tag) {
		header.Del("Content-Encoding")
		return http.StatusNotModified, nil, true
	}
	header.Set("Content-Type", f.mediaType)
	return http.StatusOK, body, true
}

// acceptsGzip reports whether the lines of Accept-Encoding list gzip, and not with the
// weight 0, which means "anything but this".
func acceptsGzip(lines []string) bool {
	for element := range strings.SplitSeq(strings.Join(lines, ","), ",") {
		name, params, _ := strings.Cut(element, ";")
		if strings.EqualFold(strings.TrimSpace(name), "gzip") {
			weight := strings.TrimSpace(params)
			return weight == "" || strings.Trim(strings.TrimPrefix(weight, "q="), "0.") != ""
		}
	}
	return false
}

// lists reports whether the lines of If-None-Match have the tag, or any.
func lists(lines []string, tag string) bool {
	for element := range strings.SplitSeq(strings.Join(lines, ","), ",") {
		if e := strings.TrimPrefix(strings.TrimSpace(element), "W/"); e == tag || e == "*" {
			return true
		}
	}
	return false
}
