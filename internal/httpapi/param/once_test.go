package param

import (
	"crypto/sha256"
	"encoding/binary"
	"net/http"
	"strings"
	"testing"
)

// TestFingerprint: fingerprints are kept in the log, so they are the same for requests of any
// size as for a hash that is fed part by part.
func TestFingerprint(t *testing.T) {
	var q Query
	if err := q.Parse("b=2&a=1&timeout=3s&pretty&timing", []string{"a", "b", "timing"}); err != nil {
		t.Fatal(err)
	}
	header := http.Header{"If-Match": {`"1"`, `"2"`}}
	for _, arg := range []string{"", "key", strings.Repeat("k", 400), strings.Repeat("k", 600)} {
		for _, size := range []int{0, 1, 100, 300, 511, 512, 5000} {
			body := []byte(strings.Repeat("v", size))
			h := sha256.New()
			for _, part := range []string{"PUT", "/v1/kv/{key}", arg, "a", "1", "b", "2", "conditions", `"1","2"`, ""} {
				_, _ = h.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(part))))
				_, _ = h.Write([]byte(part))
			}
			_, _ = h.Write(body)
			if got := Fingerprint("PUT", "/v1/kv/{key}", arg, &q, header, body); got != [16]byte(h.Sum(nil)) {
				t.Errorf("%d bytes of key, %d of body: %x", len(arg), size, got)
			}
		}
	}
}

func BenchmarkFingerprint(b *testing.B) {
	var q Query
	body := make([]byte, 256)
	b.ReportAllocs()
	for b.Loop() {
		Fingerprint("PUT", "/v1/kv/{key}", "key/000001", &q, nil, body)
	}
}
