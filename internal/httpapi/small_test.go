package httpapi

import (
	"strings"
	"testing"
)

func TestSmall(t *testing.T) {
	for target, want := range map[string]bool{
		"/k": true, "/v1/kv/k": true, "/v1/kv/v1/kv": true, "/k?timing&if_revision=3": true, "/a%2Fb": true, "/%761/x": true, "/v1/txn": true,
		"/k?timeout=1m": false, "/k?pretty&timeout=1m": false, "/k?t%69meout=1m": false, "/k?wait=1m": true,
		"/v1/kv": false, "/v1/txn?timeout=1m": false, "/v1/txn/": false, "/v1/batch": false, "/v1/snapshot": false, "/metrics": false, "": false, "*": false, "http://h/k": false,
	} {
		if got := Small("GET", target); got != want {
			t.Errorf("GET %s: %v", target, got)
		}
	}
	for request, want := range map[string]bool{
		"POST /v1/leases": true, "POST /v1/leases/7/keepalive": true, "GET /v1/leases/7": true, "DELETE /v1/leases/7": true,
		"POST /v1/locks/l?ttl=15s": true, "DELETE /v1/locks/l?lease=7": true,
		"GET /v1/leases": false, "GET /v1/locks": false, "POST /v1/locks/l?ttl=15s&wait=1m": true, "POST /v1/leases/7/keepalive?timeout=1m": false,
	} {
		method, target, _ := strings.Cut(request, " ")
		if got := Small(method, target); got != want {
			t.Errorf("%s: %v", request, got)
		}
	}
	// POST and DELETE change keys below /v1/kv/, but the membership at the root.
	for _, method := range []string{"POST", "DELETE"} {
		if !Small(method, "/v1/kv/4") || Small(method, "/4") {
			t.Errorf("%s: %v, %v", method, Small(method, "/v1/kv/4"), Small(method, "/4"))
		}
	}
}
