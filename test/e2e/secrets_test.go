package e2e

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// secrets are strings that a client sends and that must not appear in any log,
// in every form in which a careless log line might contain them.
type secrets struct{ words []string }

func (s *secrets) make(kind string) string {
	word := "s3cr3t-" + kind + "-0xC0FFEE"
	s.words = append(s.words, word)
	return word
}

// find returns the secrets that occur in a text.
func (s *secrets) find(text string) (found []string) {
	for _, word := range s.words {
		for _, form := range []string{
			word, hex.EncodeToString([]byte(word)), strings.ToUpper(hex.EncodeToString([]byte(word))),
			base64.StdEncoding.EncodeToString([]byte(word)), base64.RawURLEncoding.EncodeToString([]byte(word)),
			strings.Trim(strings.ReplaceAll(fmt.Sprint([]byte(word)), " ", ","), "[]"), strings.Trim(fmt.Sprint([]byte(word)), "[]"),
		} {
			if strings.Contains(text, form) {
				found = append(found, word+" as "+form)
			}
		}
	}
	return found
}

// TestNoSecretInTheLog: even at the lowest level and with all requests logged, the
// log of no member contains anything that a client sent: no key, value, query,
// header or token, and none of a failed request.
func TestNoSecretInTheLog(t *testing.T) {
	t.Parallel()
	var s secrets
	token := s.make("cluster-token")
	c := newCluster(t, 3, append([]string{"--log-level", "debug", "--request-log", "all", "--cluster-token", token}, quick...)...)
	key, value, query, header := s.make("key"), s.make("value"), s.make("query"), s.make("header")
	for i, m := range c.nodes {
		for _, r := range []struct{ method, path, body string }{
			{"PUT", "/v1/kv/" + key + fmt.Sprint(i), value},
			{"PUT", "/" + key, value},
			{"GET", "/v1/kv/" + key + "?consistency=stale", ""},
			{"GET", "/v1/kv/" + key + "?" + query + "=" + query, ""},
			{"GET", "/v1/kv?prefix=" + key + "&limit=" + query, ""},
			{"GET", "/v1/kv?prefix=" + key + "&cursor=" + query, ""},
			{"POST", "/v1/kv/" + key + "?append", value},
			{"POST", "/v1/kv/" + key + "?incr=1", ""}, // not a number: 412
			{"PUT", "/v1/kv/" + key + "?if_revision=" + query, value},
			{"PUT", "/v1/kv/" + key + strings.Repeat("x", 5000), value}, // 413
			{"PUT", "/v1/kv/" + key, value + strings.Repeat("x", 2<<20)},
			{"PUT", "/v1/operator/log-level", `{"level":"` + value + `"}`},
			{"POST", "/v1/members", `{"name":"` + value + `","peer_urls":["` + query + `"]}`},
			{"POST", "/v1/batch", `{"op":"put","key":"` + key + `","value":"` + value + `"}` + "\n" + `{"` + value + `":1}`},
			{"DELETE", "/" + key, ""},
			{"PUT", "/v99/" + key, value},
			{"SECRET", "/v1/kv/" + key, value},
			{"DELETE", "/v1/kv?prefix=" + key, ""},
		} {
			a := send(m, r.method, r.path, r.body, "Authorization", "Bearer "+header, "X-Request-Id", header, "User-Agent", header,
				"Cookie", header, "Idempotency-Key-X", header, "If-Match", `"`+header+`"`, "Referer", "http://"+header)
			if a.err != nil && len(r.body) < 1<<20 { // a large body may be cut off early
				t.Errorf("%s %.60s: %v", r.method, r.path, a.err)
			}
			b := send(m, r.method, r.path, r.body)
			if b.status >= 500 && b.status != http.StatusServiceUnavailable {
				t.Errorf("%s %.60s: %v", r.method, r.path, b)
			}
		}
		if a := get(m, "/v1/kv/"+url.PathEscape(key)+"%zz"); a.err == nil && a.status != 400 {
			t.Errorf("a bad escape: %v", a)
		}
	}
	lines := 0
	for _, m := range c.nodes {
		m.stop()
	}
	for _, m := range c.nodes {
		for _, p := range m.runs {
			text := p.output.String()
			lines += strings.Count(text, `"msg":"request"`)
			for _, found := range s.find(text) {
				t.Errorf("%s logs %s:\n%s", p.name, found, lineWith(text, found))
			}
		}
	}
	if lines < 100 {
		t.Errorf("only %d requests were logged", lines)
	}
	restart(c.nodes...)
}

// lineWith returns the first line that contains what was found.
func lineWith(text, found string) string {
	_, form, _ := strings.Cut(found, " as ")
	for line := range strings.Lines(text) {
		if strings.Contains(line, form) {
			return line
		}
	}
	return ""
}
