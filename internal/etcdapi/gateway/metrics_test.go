package gateway

import (
	"context"
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// TestMetricsAreForSome: a client that may not have the metrics is told why, and gets none.
func TestMetricsAreForSome(t *testing.T) {
	metrics := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("figures")) })
	f := newFixture(t, func(o *Options) {
		o.Metrics = metrics
		o.MayMeasure = func(ctx context.Context) error {
			if md, _ := metadata.FromIncomingContext(ctx); len(md.Get("authorization")) == 0 {
				return status.Error(codes.Unauthenticated, "who are you?")
			}
			return nil
		}
	}).open()
	if code, text := f.do(http.MethodGet, "/metrics", ""); code != http.StatusUnauthorized || !strings.Contains(text, "who are you?") || strings.Contains(text, "figures") {
		t.Errorf("without credentials: %d %s", code, text)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.web.URL+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer x")
	if code, text := f.send(r); code != http.StatusOK || text != "figures" {
		t.Errorf("with credentials: %d %s", code, text)
	}
	open := newFixture(t, func(o *Options) { o.Metrics = metrics }).open()
	if code, text := open.do(http.MethodGet, "/metrics", ""); code != http.StatusOK || text != "figures" {
		t.Errorf("where everybody may: %d %s", code, text)
	}
}

// TestCertificatesStayOutside: as in etcd, a certificate names nobody through the gateway.
func TestCertificatesStayOutside(t *testing.T) {
	r := httptest.NewRequest(http.MethodPost, "/v3/kv/range", nil)
	r.TLS = new(tls.ConnectionState)
	if p, ok := peer.FromContext(incoming(r)); !ok || p.AuthInfo != nil {
		t.Errorf("the services are told about the connection: %+v", p)
	}
}
