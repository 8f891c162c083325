package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// abuse is a request in bytes and the expected response.
type abuse struct {
	name, request string
	status        int
	want          []string // in the response, including its header
	never         []string
}

// door has the requests of hostile or broken clients. HOST is replaced by the
// node's address.
var door = []abuse{
	{name: "header bomb", request: "GET /a HTTP/1.1\r\nHost: HOST\r\nA: " + strings.Repeat("x", 80<<10) + "\r\n\r\n", status: 431},
	{name: "many small headers", request: "GET /a HTTP/1.1\r\nHost: HOST\r\n" + strings.Repeat("A: b\r\n", 20_000) + "\r\n", status: 431},
	{name: "body over the limit, asked first", request: "PUT /a HTTP/1.1\r\nHost: HOST\r\nExpect: 100-continue\r\nContent-Length: 2000000\r\n\r\n", status: 413, never: []string{"100 Continue"}},
	{name: "body over the limit, declared", request: "PUT /a HTTP/1.1\r\nHost: HOST\r\nContent-Length: 2000000\r\n\r\nx", status: 413},
	{name: "body over the limit, chunked", request: "PUT /a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("10000\r\n"+strings.Repeat("x", 1<<16)+"\r\n", 30), status: 413},
	{name: "length and chunks at once", request: "PUT /a HTTP/1.1\r\nHost: HOST\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", status: 204},
	{name: "two lengths", request: "PUT /a HTTP/1.1\r\nHost: HOST\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", status: 400},
	{name: "foreign host", request: "GET /a HTTP/1.1\r\nHost: evil.example\r\n\r\n", status: 421},
	{name: "write from another origin", request: "PUT /a HTTP/1.1\r\nHost: HOST\r\nOrigin: http://evil.example\r\nSec-Fetch-Site: cross-site\r\nContent-Length: 1\r\n\r\nx", status: 403},
	{name: "member from another origin", request: "POST /4 HTTP/1.1\r\nHost: HOST\r\nOrigin: http://evil.example\r\nContent-Length: 16\r\n\r\nhttp://127.0.0.1", status: 403},
	{name: "pprof", request: "GET /debug/pprof/ HTTP/1.1\r\nHost: HOST\r\n\r\n", status: 404},
	{name: "pprof profile", request: "GET /debug/pprof/profile?seconds=1 HTTP/1.1\r\nHost: HOST\r\n\r\n", status: 404},
	{name: "method of its own making", request: "BREW /a HTTP/1.1\r\nHost: HOST\r\n\r\n", status: 405, want: []string{"Allow: "}},
	{name: "TRACE", request: "TRACE / HTTP/1.1\r\nHost: HOST\r\nX: secret\r\n\r\n", status: 405, never: []string{"secret"}},
	{name: "proxy request", request: "CONNECT evil.example:1 HTTP/1.1\r\nHost: evil.example:1\r\n\r\n", status: 421},
	{name: "JSON with a field twice", request: jsonRequest("PUT", "/v1/settings", `{"quota_bytes":1073741824,"quota_bytes":0}`), status: 400, want: []string{"quota_bytes"}},
	{name: "JSON with an unknown field", request: jsonRequest("PUT", "/v1/settings", `{"quotabytes":1}`), status: 400, want: []string{"quotabytes"}},
	{name: "JSON with something after it", request: jsonRequest("PUT", "/v1/settings", `{} {}`), status: 400},
	{name: "JSON nested deeply", request: jsonRequest("POST", "/v1/members", strings.Repeat(`{"peer_urls":[`, 4000)), status: 400},
	{name: "JSON nested deeply in a batch", request: jsonRequest("POST", "/v1/batch", strings.Repeat("[", 20_000)+"\n"), status: 200, want: []string{`"status":400`}},
	{name: "batch line with a field twice", request: jsonRequest("POST", "/v1/batch", `{"put":{"key":"a","key":"b","value":"x"}}`+"\n"), status: 200, want: []string{`"status":400`}},
	{name: "member URL of another scheme", request: jsonRequest("POST", "/v1/members", `{"peer_urls":["ftp://127.0.0.1:1"]}`), status: 400, want: []string{"ftp://127.0.0.1:1"}},
	{name: "member URL that is a file", request: jsonRequest("POST", "/v1/members", `{"peer_urls":["file:///etc/passwd"]}`), status: 400},
	{name: "member URL with a password", request: jsonRequest("POST", "/v1/members", `{"peer_urls":["http://user:pass@127.0.0.1:1"]}`), status: 400},
	{name: "member URL with a path", request: jsonRequest("POST", "/v1/members", `{"peer_urls":["http://127.0.0.1:1/x"]}`), status: 400},
	{name: "member URL of the link-local cloud service", request: jsonRequest("POST", "/v1/members", `{"peer_urls":["http://169.254.169.254:80"]}`), status: 400, want: []string{"169.254.169.254"}},
	{name: "member URL of a link-local IPv6 address", request: jsonRequest("POST", "/v1/members", `{"peer_urls":["http://[fe80::1]:80"]}`), status: 400},
	{name: "member URL in the short form", request: "POST /4 HTTP/1.1\r\nHost: HOST\r\nContent-Length: 25\r\n\r\nhttp://169.254.169.254:80", status: 400},
	{name: "key with NUL, line breaks and dots", request: "PUT /v1/kv/a%00b%0d%0aX-Forged:%20c%2F%2e%2e%2Fd%FF HTTP/1.1\r\nHost: HOST\r\nContent-Length: 1\r\n\r\nx", status: 201, want: []string{"key_base64"}, never: []string{"\nX-Forged"}},
	{name: "key with line breaks that is absent", request: "GET /v1/kv/none%0d%0aX-Forged:%20c HTTP/1.1\r\nHost: HOST\r\n\r\n", status: 404, never: []string{"\nX-Forged"}},
	{name: "raw values are no pages", request: "PUT /page HTTP/1.1\r\nHost: HOST\r\nContent-Length: 8\r\n\r\n<script>GET /page HTTP/1.1\r\nHost: HOST\r\n\r\n", status: 200,
		want: []string{"X-Content-Type-Options: nosniff", "Content-Security-Policy: sandbox", "Content-Type: application/octet-stream"}},
	{name: "idempotency key that is too long", request: "PUT /a HTTP/1.1\r\nHost: HOST\r\nIdempotency-Key: " + strings.Repeat("x", 129) + "\r\nContent-Length: 1\r\n\r\nx", status: 400},
}

func jsonRequest(method, target, body string) string {
	return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: HOST\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", method, target, len(body), body)
}

// TestDoor sends each request to a real node and checks the response, and that
// the node is healthy afterwards.
func TestDoor(t *testing.T) {
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	p := startNode(t, log)
	p.awaitReady(t)
	host := strings.TrimPrefix(p.client, "http://")
	for _, a := range door {
		t.Run(a.name, func(t *testing.T) {
			answer := converse(t, host, strings.ReplaceAll(a.request, "HOST", host))
			status := fmt.Sprintf("HTTP/1.1 %d ", a.status)
			if !strings.Contains(answer, status) {
				t.Errorf("no %q in\n%.600s", status, answer)
			}
			for _, w := range a.want {
				if !strings.Contains(answer, w) {
					t.Errorf("no %q in\n%.600s", w, answer)
				}
			}
			for _, n := range a.never {
				if strings.Contains(answer, n) {
					t.Errorf("%q in\n%.600s", n, answer)
				}
			}
		})
	}
	if err := probe(&http.Client{Timeout: patience}, p.client+"/readyz"); err != nil {
		t.Errorf("the node afterwards: %v", err)
	}
	text, err := os.ReadFile(log.Name())
	if err != nil || strings.Contains(string(text), "X-Forged") || strings.Contains(string(text), "panic") {
		t.Errorf("the log: %v\n%s", err, text)
	}
}

// converse sends the bytes, closes its side, and returns everything that the
// node sends.
func converse(t *testing.T, host, request string) string {
	t.Helper()
	c, err := net.Dial("tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(c, request)
		sent <- err // the node may refuse before everything is sent
	}()
	var answers strings.Builder
	r := bufio.NewReader(io.TeeReader(c, &answers))
	for range strings.Count(request, " HTTP/1.1\r\n") {
		resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodGet})
		if err != nil {
			break
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		if resp.Close {
			break
		}
	}
	_ = c.Close()
	<-sent
	return answers.String()
}
