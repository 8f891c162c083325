package client

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// hangingNodes are three nodes that keep one lease. One of them answers within 10 ms, the others
// hang, and every period another one answers.
type hangingNodes struct {
	begin   time.Time
	period  time.Duration
	ttl     time.Duration
	ends    time.Time // of the lease
	renewed int
}

// RoundTrip implements http.RoundTripper.
func (n *hangingNodes) RoundTrip(r *http.Request) (*http.Response, error) {
	at := int(time.Since(n.begin) / n.period)
	if host := r.URL.Hostname(); host != []string{"a", "b", "c"}[at%3] {
		<-r.Context().Done()
		return nil, context.Cause(r.Context())
	}
	time.Sleep(10 * time.Millisecond)
	status, body := http.StatusOK, `{"id":7,"ttl":"1s"}`
	if time.Now().After(n.ends) {
		status, body = http.StatusNotFound, `{"status":404,"code":"lease_not_found","detail":"the lease has ended"}`
	} else {
		n.ends = time.Now().Add(n.ttl)
		n.renewed++
	}
	return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(body)), Header: http.Header{}, Request: r}, nil
}

// A lease lives on while two of three nodes hang, and the third is another one again and again:
// there is time to ask all of them in what a renewal leaves of the time to live.
func TestRenewalsSkipHangingNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := New(Config{Endpoints: []string{"http://a:1", "http://b:1", "http://c:1"}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		nodes := &hangingNodes{begin: time.Now(), period: 1500 * time.Millisecond, ttl: time.Second, ends: time.Now().Add(time.Second)}
		for _, e := range c.endpoints {
			e.http.Transport = nodes
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		if err := c.KeepAlive(ctx, &Lease{ID: 7, TTL: nodes.ttl}); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnavailable) {
			t.Errorf("after %v and %d renewals: %v", time.Since(nodes.begin), nodes.renewed, err)
		}
		if nodes.renewed < 1000 {
			t.Errorf("%d renewals", nodes.renewed)
		}
	})
}
