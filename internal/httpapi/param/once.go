package param

import (
	"crypto/sha256"
	"encoding/binary"
	"net/http"
	"slices"
	"strings"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/limits"
	"github.com/kvd-io/kvd/internal/opjson"
)

// The headers with which a client repeats a request without harm.
const (
	idempotencyKey     = "Idempotency-Key"
	idempotencyRelease = "Idempotency-Release"
)

// Once is what the headers of a request say about its repetition.
type Once struct {
	Key     string // empty if only others are released
	Release []string
}

// ParseOnce reads the headers; nil means that there are none. A route that would not honor
// them refuses them: its client would repeat the request, trusting that it takes effect
// once. instead is what a client of that route does, or empty.
func ParseOnce(h http.Header, honored bool, instead string) (*Once, error) {
	keys, releases := h[idempotencyKey], h[idempotencyRelease]
	if len(keys)+len(releases) == 0 {
		return nil, nil
	}
	if !honored {
		if instead != "" {
			instead = "; " + instead
		}
		return nil, badRequest("this request does not support the headers %s and %s; send it without them%s", idempotencyKey, idempotencyRelease, instead)
	}
	o := new(Once)
	if len(keys) > 1 {
		return nil, badRequest("the header %s is given more than once", idempotencyKey)
	}
	if len(keys) == 1 {
		if o.Key = keys[0]; !opjson.ValidIdempotencyKey(o.Key) {
			return nil, badRequest("the header %s must have 1 to %d visible ASCII characters", idempotencyKey, kvstore.MaxIdempotencyKeyBytes)
		}
	}
	return o, o.parseRelease(releases)
}

func (o *Once) parseRelease(lines []string) error {
	for _, line := range lines {
		for key := range strings.SplitSeq(line, ",") {
			if key = strings.Trim(key, " \t"); key == "" {
				continue // RFC 9110, section 5.6.1.2
			}
			if !opjson.ValidIdempotencyKey(key) {
				return badRequest("the header %s must be a list of keys, each with 1 to %d visible ASCII characters", idempotencyRelease, kvstore.MaxIdempotencyKeyBytes)
			}
			if o.Release = append(o.Release, key); len(o.Release) > limits.MaxReleases {
				return badRequest("the header %s has more than %d keys", idempotencyRelease, limits.MaxReleases)
			}
		}
	}
	return nil
}

// Fingerprint hashes what makes two requests the same one: method, path, query,
// conditions, and body. How long the client waits, and how it wants to see the answer, are
// not part of it.
func Fingerprint(method, route, arg string, q *Query, header http.Header, body []byte) (sum [16]byte) {
	var head [512]byte
	b := appendPart(appendPart(appendPart(head[:0], method), route), arg)
	if len(q.params) > 0 {
		for name, value := range q.Sorted() {
			if !slices.Contains(Everywhere, name) && name != "timing" {
				b = appendPart(appendPart(b, name), value)
			}
		}
	}
	b = appendPart(b, "conditions")
	b = appendPart(appendPart(b, strings.Join(header["If-Match"], ",")), strings.Join(header["If-None-Match"], ","))
	if len(b)+len(body) <= len(head) {
		whole := sha256.Sum256(append(b, body...))
		return [16]byte(whole[:])
	}
	h := sha256.New()
	_, _ = h.Write(b) // never fails
	_, _ = h.Write(body)
	return [16]byte(h.Sum(nil))
}

// appendPart appends a part with its length: no two requests may become the same bytes.
func appendPart(b []byte, part string) []byte {
	return append(binary.LittleEndian.AppendUint64(b, uint64(len(part))), part...)
}
