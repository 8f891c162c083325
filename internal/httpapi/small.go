package httpapi

import (
	"net/http"
	"strings"
)

// Small reports whether a request, by its method and its target as it came,
// is one on a single key that is answered whole and soon: the kind that a
// server may read and answer without watching the connection meanwhile.
func Small(method, target string) bool {
	path, query, _ := strings.Cut(target, "?")
	if strings.Contains(query, "timeout") || strings.Contains(query, "wait") {
		return false // it may take as long as it says
	}
	if strings.HasPrefix(path, kvPrefix) {
		return true
	}
	if path == "" || path[0] != '/' || reserved(firstSegment(path)) {
		return false
	}
	return method == http.MethodGet || method == http.MethodPut // others change the membership
}
