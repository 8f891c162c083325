package httpapi

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// These measure the package alone, without a socket and with a node that answers
// immediately.

func BenchmarkGet(b *testing.B)         { benchmarkGet(b, frontAlone(b)) }
func BenchmarkPut(b *testing.B)         { benchmarkPut(b, frontAlone(b)) }
func BenchmarkGetObserved(b *testing.B) { benchmarkGet(b, observedFront(b)) }
func BenchmarkPutObserved(b *testing.B) { benchmarkPut(b, observedFront(b)) }

func benchmarkGet(b *testing.B, s *Server) {
	w, r := &discard{h: http.Header{}}, httptest.NewRequest("GET", "/v1/kv/k", nil)
	b.ReportAllocs()
	for b.Loop() {
		s.ServeHTTP(w, r)
	}
}

func benchmarkPut(b *testing.B, s *Server) {
	w, body := &discard{h: http.Header{}}, bytes.NewReader(nil)
	r := httptest.NewRequest("PUT", "/v1/kv/k", strings.NewReader("value"))
	r.Body = io.NopCloser(body)
	b.ReportAllocs()
	for b.Loop() {
		body.Reset([]byte("value"))
		s.ServeHTTP(w, r)
	}
}
