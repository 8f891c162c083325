package httpapi

import (
	"crypto/sha256"
	"encoding/binary"
	"net/http"
	"slices"
	"strings"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi/param"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/limits"
	"github.com/kvd-io/kvd/internal/opjson"
)

// The headers with which a client repeats a request without harm.
const (
	idempotencyKey     = "Idempotency-Key"
	idempotencyRelease = "Idempotency-Release"
)

// once is what the headers of a request say about its repetition. The store remembers
// the result under the key, so that a repeat on any node gets it, too.
type once struct {
	key     string // empty if only others are released
	release []string
	body    []byte    // what readBody read; it is part of the request's identity
	made    *api.Once // of a membership change
}

// parseOnce reads the headers. A route that would not honor them refuses them: its
// client would repeat the request, trusting that it takes effect once.
func parseOnce(h http.Header, m *method) (*once, error) {
	keys, releases := h[idempotencyKey], h[idempotencyRelease]
	if len(keys)+len(releases) == 0 {
		return nil, nil
	}
	if !m.once {
		instead := ""
		if m.instead != "" {
			instead = "; " + m.instead
		}
		return nil, badRequest("this request does not support the headers %s and %s; send it without them%s", idempotencyKey, idempotencyRelease, instead)
	}
	o := new(once)
	if len(keys) > 1 {
		return nil, badRequest("the header %s is given more than once", idempotencyKey)
	}
	if len(keys) == 1 {
		if o.key = keys[0]; !opjson.ValidIdempotencyKey(o.key) {
			return nil, badRequest("the header %s must have 1 to %d visible ASCII characters", idempotencyKey, kvstore.MaxIdempotencyKeyBytes)
		}
	}
	return o, o.parseRelease(releases)
}

func (o *once) parseRelease(lines []string) error {
	for _, line := range lines {
		for key := range strings.SplitSeq(line, ",") {
			if key = strings.Trim(key, " \t"); key == "" {
				continue // RFC 9110, section 5.6.1.2
			}
			if !opjson.ValidIdempotencyKey(key) {
				return badRequest("the header %s must be a list of keys, each with 1 to %d visible ASCII characters", idempotencyRelease, kvstore.MaxIdempotencyKeyBytes)
			}
			if o.release = append(o.release, key); len(o.release) > limits.MaxReleases {
				return badRequest("the header %s has more than %d keys", idempotencyRelease, limits.MaxReleases)
			}
		}
	}
	return nil
}

// sign adds to the command what makes it take effect once.
func (o *once) sign(cmd *kvstore.Command, x *exchange) {
	if o == nil {
		return
	}
	cmd.Release = o.release
	if o.key != "" {
		cmd.Idempotency = &kvstore.Idempotency{Key: o.key, Fingerprint: o.fingerprint(x)}
	}
}

// change returns what makes a membership change take effect once; nil if the request
// does not ask for it. Changes are few and remembered for a long time, so there is no
// need to release them.
func (o *once) change(x *exchange) *api.Once {
	if o == nil || o.key == "" {
		return nil
	}
	o.made = &api.Once{Key: o.key, Fingerprint: o.fingerprint(x)}
	return o.made
}

// markReplayed tells the client that its change had been made before.
func (x *exchange) markReplayed() {
	if x.once != nil && x.once.made != nil && x.once.made.Replayed {
		x.set("Idempotency-Replayed", "true")
	}
}

// fingerprint hashes what makes two requests the same one: method, path, query,
// conditions, and body. How long the client waits, and how it wants to see the answer, are
// not part of it.
func (o *once) fingerprint(x *exchange) (sum [16]byte) {
	h := sha256.New()
	// Each part with its length: no two requests may become the same bytes.
	add := func(part string) {
		var n [8]byte
		binary.LittleEndian.PutUint64(n[:], uint64(len(part)))
		_, _ = h.Write(n[:]) // never fails
		_, _ = h.Write([]byte(part))
	}
	add(x.r.Method)
	add(x.route.pattern)
	add(x.arg)
	for name, value := range x.query.Sorted() {
		if !slices.Contains(param.Everywhere, name) && name != "timing" {
			add(name)
			add(value)
		}
	}
	add("conditions")
	for _, name := range []string{"If-Match", "If-None-Match"} {
		add(strings.Join(x.r.Header[name], ","))
	}
	_, _ = h.Write(o.body)
	copy(sum[:], h.Sum(nil))
	return sum
}
