package frontdoor

import "testing"

// TestProbesAreSmall: who probes a node costs little. What may be long, or changes
// something, is left to net/http.
func TestProbesAreSmall(t *testing.T) {
	for target, want := range map[string]bool{
		"/livez": true, "/readyz?verbose": true, "/readyz/disk": true, "/version": true, "/v1/kv/a": true,
		"/metrics": false, "/v1/kv?prefix=a": false, "/v1/snapshot": false,
	} {
		if small("GET", target) != want {
			t.Errorf("GET %s: %v", target, !want)
		}
	}
	if small("POST", "/livez") {
		t.Error("POST /livez")
	}
}
