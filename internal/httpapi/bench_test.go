package httpapi

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/access"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/rights"
)

// These measure the package alone, without a socket and with a node that answers
// immediately.

func BenchmarkGet(b *testing.B)         { benchmarkGet(b, frontAlone(b)) }
func BenchmarkPut(b *testing.B)         { benchmarkPut(b, frontAlone(b)) }
func BenchmarkGetObserved(b *testing.B) { benchmarkGet(b, observedFront(b)) }
func BenchmarkPutObserved(b *testing.B) { benchmarkPut(b, observedFront(b)) }

// With rights that are disabled, and with a token.
func BenchmarkGetOff(b *testing.B) { benchmarkGet(b, judgedFront(b, false)) }
func BenchmarkPutOff(b *testing.B) { benchmarkPut(b, judgedFront(b, false)) }
func BenchmarkGetToken(b *testing.B) {
	benchmarkGet(b, judgedFront(b, true), "Authorization", "Bearer "+benchSecret)
}
func BenchmarkPutToken(b *testing.B) {
	benchmarkPut(b, judgedFront(b, true), "Authorization", "Bearer "+benchSecret)
}

const benchSecret = "kvd_bench"

// judgedFront is frontAlone behind a gate, with a user who may do everything with one
// prefix.
func judgedFront(b *testing.B, enabled bool) *Server {
	s, f := newServer(b, withGate, func(o *Options) { o.Replicator, o.Store = committed{}, onePair{o.Store} })
	changes := []rights.Change{
		{PutUser: &rights.User{Name: rights.Root, Roles: []string{rights.Root}}},
		{PutRole: &rights.Role{Name: "k", Permissions: []rights.Permission{{Access: rights.ReadWrite, Key: []byte("k"), RangeEnd: []byte("l")}}}},
		{PutUser: &rights.User{Name: "ann", Roles: []string{"k"}}},
		{PutToken: &rights.Token{ID: "t", User: "ann", Sum: access.Sum(benchSecret)}},
		{Enable: enabled, Disable: !enabled},
	}
	for i := range changes {
		if res, err := f.node.Do(b.Context(), &kvstore.Command{Op: kvstore.OpRights, Rights: &changes[i]}, nil); err != nil || res.Outcome != kvstore.OK {
			b.Fatal(res, err)
		}
	}
	return s
}

func benchmarkGet(b *testing.B, s *Server, header ...string) {
	w, r := &discard{h: http.Header{}}, httptest.NewRequest("GET", "/v1/kv/k", nil)
	if len(header) > 0 {
		r.Header.Set(header[0], header[1])
	}
	b.ReportAllocs()
	for b.Loop() {
		s.ServeHTTP(w, r)
	}
}

func benchmarkPut(b *testing.B, s *Server, header ...string) {
	w, body := &discard{h: http.Header{}}, bytes.NewReader(nil)
	r := httptest.NewRequest("PUT", "/v1/kv/k", strings.NewReader("value"))
	r.Body = io.NopCloser(body)
	if len(header) > 0 {
		r.Header.Set(header[0], header[1])
	}
	b.ReportAllocs()
	for b.Loop() {
		body.Reset([]byte("value"))
		s.ServeHTTP(w, r)
	}
}
