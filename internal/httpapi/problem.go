package httpapi

import (
	"encoding/json"
	"maps"
	"net/http"
	"strconv"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi/door"
	"github.com/kvd-io/kvd/internal/httpapi/reply"
)

const problemType = "application/problem+json"

// badRequest returns the error for input that cannot be understood.
func badRequest(format string, args ...any) *api.Error {
	return api.Errorf(api.BadRequest, format, args...)
}

// WriteProblem answers with the problem document of p (RFC 9457). It is for
// handlers in front of a Server, so that a refusal looks the same no matter
// which of them decides.
func WriteProblem(w http.ResponseWriter, p *api.Error) {
	status := reply.Status(p.Code)
	h := w.Header()
	h.Set("Content-Type", problemType)
	h["X-Content-Type-Options"] = nosniff
	setRetryAfter(h, status, p)
	setChallenge(h, status, nil)
	w.WriteHeader(status)
	// A failed write means that the client is gone.
	_ = json.NewEncoder(w).Encode(problemDocument(p, status))
}

// Malformed returns the problem document for a request that net/http refuses with a
// status before a handler sees it. reason is what it says about it.
func Malformed(status int, reason string) (contentType string, document []byte) {
	p := badRequest("the request is not valid HTTP (%.200s); a percent sign in a path or query is written %%25", reason)
	if status == http.StatusRequestHeaderFieldsTooLarge {
		p = api.Errorf(api.TooLarge, "the header of the request exceeds the limit of %d bytes", maxHeaderBytes)
	}
	document, _ = json.Marshal(problemDocument(p, status)) // plain data always encodes
	return problemType, append(document, '\n')
}

// problemDocument returns the members of the document, the error's own fields
// among them.
func problemDocument(p *api.Error, status int) map[string]any {
	doc := make(map[string]any, len(p.Fields)+5)
	maps.Copy(doc, p.Fields)
	doc["title"] = titleOf(status)
	doc["status"] = status
	doc["detail"] = p.Detail
	doc["code"] = p.Code
	return doc
}

// titleOf returns the name of a status in RFC 9110, which renamed one that net/http has
// under its old name.
func titleOf(status int) string {
	if status == http.StatusRequestEntityTooLarge {
		return "Content Too Large"
	}
	return http.StatusText(status)
}

// setRetryAfter tells a client when to repeat a request that may succeed later.
func setRetryAfter(h http.Header, status int, p *api.Error) {
	if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
		h.Set("Retry-After", retryAfter(p.RetryAfter))
	}
}

// setChallenge tells a client that lacks credentials which there are.
func setChallenge(h http.Header, status int, request http.Header) {
	if status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", door.Challenge(request))
	}
}

// writeProblem is WriteProblem with what only an exchange knows: its request
// id, its timing, and whether the answer is to be indented.
func (x *exchange) writeProblem(p *api.Error) {
	status := reply.Status(p.Code)
	doc := problemDocument(p, status)
	if status == http.StatusInternalServerError {
		doc["request_id"] = x.requestID()
	}
	h := x.Header()
	clearPayloadHeaders(h)
	// The id is only of use to somebody who finds it in the log.
	if x.logged(status) || status == http.StatusInternalServerError {
		h.Set("X-Request-Id", x.requestID())
	}
	x.setTiming()
	setRetryAfter(h, status, p)
	setChallenge(h, status, x.r.Header)
	var body any = doc
	mediaType := problemType
	if x.route.refuse != nil {
		body, mediaType = x.route.refuse(status, p), jsonType
	}
	if err := x.writeJSONAs(mediaType, status, body); err != nil {
		x.srv.log.Error("encoding a problem document failed", x.logFields(err)...)
		x.WriteHeader(http.StatusInternalServerError)
	}
}

// clearPayloadHeaders removes what a handler said about a payload that it then did not
// send.
func clearPayloadHeaders(h http.Header) {
	for _, name := range []string{"Content-Length", "Content-Disposition", "Content-Security-Policy", "Etag", "Location"} {
		delete(h, name)
	}
}

// retryAfter returns a duration in whole seconds, at least one.
func retryAfter(d time.Duration) string {
	return strconv.FormatInt(max(1, int64((d+time.Second-1)/time.Second)), 10)
}
