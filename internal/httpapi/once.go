package httpapi

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi/param"
	"github.com/kvd-io/kvd/internal/kvstore"
)

// once is what the headers of a request say about its repetition. The store remembers
// the result under the key, so that a repeat on any node gets it, too.
type once struct {
	param.Once
	body []byte    // what readBody read; it is part of the request's identity
	made *api.Once // of a membership change
}

// parseOnce reads the headers, as far as the method heeds them.
func parseOnce(h http.Header, m *method) (*once, error) {
	o, err := param.ParseOnce(h, m.once, m.instead)
	if o == nil || err != nil {
		return nil, err
	}
	return &once{Once: *o}, nil
}

// sign adds to the command what makes it take effect once.
func (o *once) sign(cmd *kvstore.Command, x *exchange) {
	if o == nil {
		return
	}
	cmd.Release = o.Release
	if o.Key != "" {
		cmd.Idempotency = &kvstore.Idempotency{Key: o.Key, Fingerprint: o.fingerprint(x)}
	}
}

// change returns what makes a membership change take effect once; nil if the request
// does not ask for it. Changes are few and remembered for a long time, so there is no
// need to release them.
func (o *once) change(x *exchange) *api.Once {
	if o == nil || o.Key == "" {
		return nil
	}
	o.made = &api.Once{Key: o.Key, Fingerprint: o.fingerprint(x)}
	if user := x.visit.Caller.User; user != "" {
		// Keys of different users are different keys. A length keeps the two apart.
		sum := sha256.Sum256(fmt.Appendf(nil, "%d:%s%s", len(user), user, o.Key))
		o.made.Key = hex.EncodeToString(sum[:])
	}
	return o.made
}

// markReplayed tells the client that its change had been made before.
func (x *exchange) markReplayed() {
	if x.once != nil && x.once.made != nil && x.once.made.Replayed {
		x.set("Idempotency-Replayed", "true")
	}
}

// fingerprint hashes what makes two requests the same one.
func (o *once) fingerprint(x *exchange) [16]byte {
	return param.Fingerprint(x.r.Method, x.route.pattern, x.arg, &x.query, x.r.Header, o.body)
}
