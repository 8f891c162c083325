package httpapi

import (
	"net/http"
	"strings"
)

// Small reports whether a request concerns a single key, lease or lock, or is a
// transaction, and is answered in one piece. A server may answer such a request without
// watching the connection, unless the handler asks for it (attended). The target
// is the one of the request line.
func Small(method, target string) bool {
	path, query, _ := strings.Cut(target, "?")
	// A rough test is enough: a parameter that only contains the word is left to
	// net/http, which is slower but always right. Escaped names are, too.
	if strings.Contains(query, "timeout") || strings.Contains(query, "%") {
		return false // it may take as long as it asks for
	}
	if strings.HasPrefix(path, kvPrefix) || path == txnPattern || smallLease(method, path) {
		return true
	}
	if path == "" || path[0] != '/' || reserved(firstSegment(path)) {
		return false
	}
	return method == http.MethodGet || method == http.MethodPut // other methods change the membership
}

// smallLease reports whether a request concerns a single lease or lock.
func smallLease(method, path string) bool {
	return strings.HasPrefix(path, leasePrefix) || strings.HasPrefix(path, lockPrefix) || method == http.MethodPost && path == leasesPattern
}

// Streams reports whether the answer to a request is a stream that lasts, and whose
// connection serves nothing else afterwards.
func Streams(method, target string) bool {
	path, _, _ := strings.Cut(target, "?")
	return method == http.MethodGet && path == "/v1/watch"
}
