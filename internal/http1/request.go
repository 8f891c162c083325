package http1

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// maxFields is how many header fields a request may have here.
const maxFields = 32

// request is the http.Request of a connection. It is reused for every request, except for
// the text of the header.
type request struct {
	http   *http.Request
	url    url.URL
	header http.Header
	values [maxFields]string // backs the header's one-element values
	body   body
}

func (r *request) init(ctx context.Context, remote string) {
	r.header = make(http.Header, 8)
	r.http = (&http.Request{RemoteAddr: remote, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}).WithContext(ctx)
}

// parse reads the header at the beginning of b and returns its length. It accepts only
// headers that are complete and ordinary (I1).
func (r *request) parse(b []byte) (int, bool) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		return 0, false
	}
	// One string for all of it, which the handler may keep parts of (I3).
	text := string(b[:end+2])
	line, fields, ok := strings.Cut(text, "\r\n")
	if !ok || !r.parseLine(line) || !r.parseFields(fields) {
		return 0, false
	}
	return end + 4, true
}

// parseLine reads the request line.
func (r *request) parseLine(line string) bool {
	method, rest, ok := strings.Cut(line, " ")
	if !ok {
		return false
	}
	target, ok := strings.CutSuffix(rest, " HTTP/1.1")
	if !ok || !ordinaryMethod(method) || !r.parseTarget(target) {
		return false
	}
	h := r.http
	h.Method, h.RequestURI, h.URL, h.Header = method, target, &r.url, r.header
	h.Body, h.ContentLength, h.Host, h.Close = http.NoBody, 0, "", false
	h.Form, h.PostForm, h.MultipartForm, h.Trailer, h.Response, h.Pattern = nil, nil, nil, nil, nil, ""
	h.TransferEncoding = nil
	return true
}

func ordinaryMethod(m string) bool {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPost, http.MethodDelete:
		return true
	}
	return false
}

// parseTarget sets the URL. A path of unreserved characters and slashes is the same
// escaped and decoded; net/url parses all others.
func (r *request) parseTarget(target string) bool {
	if target == "" || target[0] != '/' || strings.IndexByte(target, ' ') >= 0 {
		return false
	}
	path, query, asked := strings.Cut(target, "?")
	if plain(path) && visible(query) && (query != "" || !asked) && !strings.HasPrefix(path, "//") {
		r.url = url.URL{Path: path, RawQuery: query}
		return true
	}
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return false
	}
	r.url = *u
	return true
}

// parseFields reads the header fields, each ending in CRLF.
func (r *request) parseFields(text string) bool {
	clear(r.header)
	host, length := false, false
	for n := 0; text != ""; n++ {
		line, rest, _ := strings.Cut(text, "\r\n")
		text = rest
		name, value, ok := field(line)
		if !ok || n == maxFields {
			return false
		}
		switch name {
		case "Host":
			if host || !plainHost(value) {
				return false
			}
			host, r.http.Host = true, value
			continue // net/http does not put it into the header either
		case "Content-Length":
			if length || !r.parseLength(value) {
				return false
			}
			length = true
		case "Connection":
			if !strings.EqualFold(value, "keep-alive") {
				return false
			}
		case "Transfer-Encoding", "Expect", "Upgrade", "Trailer", "Te", "Pragma", "Http2-Settings":
			return false
		}
		if old, twice := r.header[name]; twice {
			r.header[name] = append(old, value)
			continue
		}
		r.values[n] = value
		r.header[name] = r.values[n : n+1 : n+1]
	}
	return host
}

// field splits a header line. It refuses whatever is not obviously valid.
func field(line string) (name, value string, ok bool) {
	name, value, ok = strings.Cut(line, ":")
	if !ok || name == "" {
		return "", "", false
	}
	value = strings.Trim(value, " \t")
	for i := range len(value) {
		if b := value[i]; b < ' ' && b != '\t' || b >= 0x7f {
			return "", "", false
		}
	}
	name, ok = canonical(name)
	return name, value, ok
}

func (r *request) parseLength(value string) bool {
	if value == "" || value[0] < '0' || value[0] > '9' {
		return false
	}
	n, err := strconv.ParseUint(value, 10, 31)
	r.http.ContentLength = int64(n)
	return err == nil && n <= maxBodyBytes
}

// canonical returns a name as http.CanonicalHeaderKey does. It refuses names with unusual
// characters.
func canonical(name string) (string, bool) {
	upper := true
	same := true
	for i := range len(name) {
		b := name[i]
		switch {
		case b >= 'a' && b <= 'z':
			same = same && !upper
		case b >= 'A' && b <= 'Z':
			same = same && upper
		case b >= '0' && b <= '9' || b == '-':
		default:
			return "", false
		}
		upper = b == '-'
	}
	if same {
		return name, true
	}
	return http.CanonicalHeaderKey(name), true
}

// plain reports whether a path is the same escaped and decoded.
func plain(path string) bool {
	for i := range len(path) {
		b := path[i]
		switch {
		case b >= 'a' && b <= 'z', b >= 'A' && b <= 'Z', b >= '0' && b <= '9':
		case b == '/', b == '-', b == '_', b == '.', b == '~':
		default:
			return false
		}
	}
	return true
}

// plainHost reports whether a Host has only characters that net/http accepts in any
// order.
func plainHost(host string) bool {
	if host == "" {
		return false
	}
	for i := range len(host) {
		b := host[i]
		switch {
		case b >= 'a' && b <= 'z', b >= 'A' && b <= 'Z', b >= '0' && b <= '9':
		case b == '-', b == '_', b == '.', b == ':', b == '[', b == ']':
		default:
			return false
		}
	}
	return true
}

// visible reports whether a query is visible ASCII without a fragment.
func visible(text string) bool {
	for i := range len(text) {
		if b := text[i]; b <= ' ' || b >= 0x7f || b == '#' {
			return false
		}
	}
	return true
}

// setBody sets the body of the request.
func (r *request) setBody(b []byte) {
	if len(b) == 0 {
		return
	}
	r.body = body{rest: b}
	r.http.Body = &r.body
}

// body is the body of a request, in memory.
type body struct{ rest []byte }

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if len(b.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

// Close implements io.Closer.
func (b *body) Close() error { return nil }
