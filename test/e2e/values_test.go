package e2e

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// paths maps escaped paths below /v1/kv/ to the keys that they name.
func paths() map[string]string {
	out := map[string]string{
		"a//b": "a//b", "a/../b": "a/../b", "a/./b": "a/./b", ".": ".", "..": "..", "../x": "../x",
		"/": "/", "//": "//", "x/": "x/", "a%2Fc": "a/c", "%2e%2e": "..", "a%252Fc": "a%2Fc",
		"%F0%9F%94%91": "\xf0\x9f\x94\x91", "%FF%FE%00": "\xff\xfe\x00", "with%20blank": "with blank",
		"plus+": "plus+", "q%3Fx": "q?x", "%0D%0A": "\r\n", strings.Repeat("k", 4096): strings.Repeat("k", 4096),
	}
	for b := range 256 {
		out[fmt.Sprintf("%%%02X", b)] = string([]byte{byte(b)})
	}
	return out
}

// TestKeysOfAllByteValues uses real curl to store a value under every byte and
// under every path that a server might be tempted to clean, and reads each back
// from another node.
func TestKeysOfAllByteValues(t *testing.T) {
	t.Parallel()
	requireTool(t, "curl")
	c := newCluster(t, 3, quick...)
	escaped := slices.Sorted(maps.Keys(paths()))
	dir := t.TempDir()
	var puts, gets strings.Builder
	for i, path := range escaped {
		key := paths()[path]
		value := filepath.Join(dir, fmt.Sprint("in", i))
		if err := os.WriteFile(value, valueOf(key), 0o600); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&puts, "url=%s/v1/kv/%s\nrequest=PUT\ndata-binary=@%s\npath-as-is\ngloboff\noutput=/dev/null\nwrite-out=%%{http_code}\\n\nnext\n", c.node(1).url(), path, value)
		fmt.Fprintf(&gets, "url=%s/v1/kv/%s\npath-as-is\ngloboff\noutput=%s/out%d\nwrite-out=%%{http_code}\\n\nnext\n", c.node(2).url(), path, dir, i)
	}
	for i, status := range strings.Fields(curlConfig(t, puts.String())) {
		if status != "201" && status != "200" {
			t.Errorf("PUT of %q: %s", escaped[i], status)
		}
	}
	for i, status := range strings.Fields(curlConfig(t, gets.String())) {
		got, err := os.ReadFile(fmt.Sprintf("%s/out%d", dir, i))
		if want := valueOf(paths()[escaped[i]]); status != "200" || err != nil || !bytes.Equal(got, want) {
			t.Errorf("GET of %q: %s with %q (%v), want %q", escaped[i], status, got, err, want)
		}
	}
	judgeKeys(t, c.node(3))
}

// valueOf returns a value that contains its key and every byte.
func valueOf(key string) []byte { return append([]byte(key+"="), allBytes()...) }

func allBytes() []byte {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	return all
}

// curlConfig runs many requests with one curl process.
func curlConfig(t *testing.T, config string) string {
	t.Helper()
	return curl(t, "--config", tempFile(t, "curl", []byte(strings.TrimSuffix(config, "next\n"))))
}

// judgeKeys compares the list of all keys with what was stored: no two paths have
// become the same key, and no path has created a second one.
func judgeKeys(t *testing.T, m *member) {
	t.Helper()
	want := make(map[string]bool)
	for _, key := range paths() {
		want[key] = true
	}
	var doc struct {
		KVs []struct {
			Key       string  `json:"key"`
			KeyBase64 *string `json:"key_base64"`
		} `json:"kvs"`
		Next string `json:"next"`
	}
	if err := m.getJSON("/v1/kv?prefix=", &doc); err != nil {
		t.Fatal(err)
	}
	for _, kv := range doc.KVs {
		key := kv.Key
		if kv.KeyBase64 != nil {
			decoded, err := base64.StdEncoding.DecodeString(*kv.KeyBase64)
			if err != nil {
				t.Errorf("key_base64 %q: %v", *kv.KeyBase64, err)
			}
			key = string(decoded)
		}
		if !want[key] {
			t.Errorf("there is a key %q that nobody stored", abbreviate(key))
		}
		delete(want, key)
	}
	for key := range want {
		t.Errorf("the list lacks the key %q", abbreviate(key))
	}
}

const valueLimit = 1536 << 10

// TestValueLimit: a value may have 1.5 MiB and not one byte more, however it is
// sent and in whichever form of the request.
func TestValueLimit(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, quick...)
	m := c.followers()[0]
	fits := strings.Repeat("\x00\xffval", valueLimit/5) + "...."
	if len(fits) != valueLimit {
		t.Fatalf("the test's value has %d bytes", len(fits))
	}
	over := fits + "!"
	t.Run("round trip", func(t *testing.T) {
		put(t, m, "fits", fits)
		for _, reader := range c.nodes {
			expectValue(t, reader, "fits", fits)
		}
		expectStatus(t, sendChunked(m, "/v1/kv/chunked", fits), 201)
		expectValue(t, c.node(1), "chunked", fits)
	})
	for name, send := range map[string]func(path string) answer{
		"declared": func(path string) answer { return send(m, "PUT", path, over) },
		"chunked":  func(path string) answer { return sendChunked(m, path, over) },
	} {
		t.Run("over the limit, "+name, func(t *testing.T) {
			for _, path := range []string{"/v1/kv/over", "/over"} {
				a := send(path)
				expectStatus(t, a, 413)
				if a.code() != "too_large" {
					t.Errorf("the code is %q", a.code())
				}
				expectStatus(t, get(m, path), 404)
			}
		})
	}
	t.Run("refused before it is sent", func(t *testing.T) { refusedBeforeSent(t, m) })
	t.Run("no limit on bodies", func(t *testing.T) { endlessBody(t, m) })
}

// sendChunked sends a body without declaring its length.
func sendChunked(m *member, path, body string) answer {
	// A reader of unknown kind has no length.
	return sendFrom(m, "PUT", path, io.MultiReader(strings.NewReader(body)))
}

// refusedBeforeSent: a client that sends Expect: 100-continue with too large a
// body is refused before it sends the body.
func refusedBeforeSent(t *testing.T, m *member) {
	conn, err := net.Dial("tcp", loopback(m.clientPort))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "PUT /v1/kv/over HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n", valueLimit+1)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 413 {
		t.Errorf("the first answer is %s", resp.Status)
	}
}

// endlessBody sends a body without end, which must be cut off long before it can
// do harm.
func endlessBody(t *testing.T, m *member) {
	p := m.process()
	before := p.memory(t, "VmRSS")
	p.forgetPeak(t)
	endless := &countedReader{limit: 1 << 30}
	a := sendFrom(m, "PUT", "/over", endless)
	if a.err == nil && a.status != 413 {
		t.Errorf("the answer is %v", a)
	}
	if a.err != nil && endless.sent == endless.limit {
		t.Errorf("it read all: %v", a)
	}
	if endless.sent > 64<<20 {
		t.Errorf("it took %d bytes", endless.sent)
	}
	peak := p.memory(t, "VmHWM")
	t.Logf("cut off after %d KiB; memory %d MiB before, %d MiB at most", endless.sent>>10, before>>20, peak>>20)
	expectStatus(t, get(m, "/over"), 404)
}

// countedReader returns zeros up to a limit.
type countedReader struct{ sent, limit int64 }

func (r *countedReader) Read(b []byte) (int, error) {
	if r.sent >= r.limit {
		return 0, io.EOF
	}
	clear(b)
	r.sent += int64(len(b))
	return len(b), nil
}

// binaryKey gets a value with every byte, for tests that then put the data
// through something.
const binaryKey = "binary"

func putBinary(t *testing.T, m *member) {
	t.Helper()
	put(t, m, binaryKey, string(allBytes()))
	a := send(m, "PUT", "/"+binaryKey+"-short", string(allBytes()))
	expectStatus(t, a, 204)
}

func expectBinary(t *testing.T, m *member) {
	t.Helper()
	for _, key := range []string{binaryKey, binaryKey + "-short"} {
		expectValue(t, m, key, string(allBytes()))
	}
	var doc struct {
		Value string `json:"value_base64"`
	}
	if err := m.getJSON("/v1/kv/"+binaryKey+"?meta", &doc); err != nil {
		t.Fatal(err)
	}
	if want := base64.StdEncoding.EncodeToString(allBytes()); doc.Value != want {
		raw, _ := json.Marshal(doc)
		t.Errorf("as JSON the value is %s", raw)
	}
}
