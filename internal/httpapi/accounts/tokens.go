package accounts

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/http"
	"time"

	"github.com/kvd-io/kvd/internal/access"
	"github.com/kvd-io/kvd/internal/httpapi/reply"
	"github.com/kvd-io/kvd/internal/opjson"
	"github.com/kvd-io/kvd/internal/rights"
)

// tokenDocument is the body of POST /v1/tokens.
type tokenDocument struct {
	User  *string       `json:"user"` // by default the caller
	Label string        `json:"label"`
	TTL   *timeToExpiry `json:"ttl"` // by default the token does not expire
}

// timeToExpiry is a duration: a string, or a number of seconds.
type timeToExpiry time.Duration

// maxExpiry keeps the time of expiry within what calendars can show.
const maxExpiry = 100 * 365 * 24 * time.Hour

// UnmarshalJSON implements json.Unmarshaler.
func (d *timeToExpiry) UnmarshalJSON(text []byte) error {
	word := string(text)
	if len(word) >= 2 && word[0] == '"' {
		word = word[1 : len(word)-1]
	}
	ttl, err := opjson.ParseDuration(word)
	if err != nil || ttl < time.Millisecond || ttl > maxExpiry {
		return fmt.Errorf("expected a duration from 1ms to %v (for example, \"720h\") or a number of seconds, found %.40s; without it, the token does not expire", maxExpiry, text)
	}
	*d = timeToExpiry(ttl)
	return nil
}

// appendToken appends a token without its closing brace.
func appendToken(doc []byte, t *rights.Token) []byte {
	doc = reply.AppendString(append(doc, `{"id":`...), []byte(t.ID))
	doc = reply.AppendString(append(doc, `,"user":`...), []byte(t.User))
	doc = reply.AppendString(append(doc, `,"label":`...), []byte(t.Label))
	doc = appendMillis(append(doc, `,"created":`...), t.Created)
	if t.Expires != 0 {
		doc = appendMillis(append(doc, `,"expires":`...), t.Expires)
	}
	if used := t.LastUsed(); !used.IsZero() {
		doc = appendTime(append(doc, `,"last_used":`...), used)
	}
	return doc
}

func appendMillis(doc []byte, at int64) []byte { return appendTime(doc, time.UnixMilli(at)) }

// appendTime appends a time in the form of RFC 3339, in UTC.
func appendTime(doc []byte, at time.Time) []byte {
	return append(at.UTC().AppendFormat(append(doc, '"'), "2006-01-02T15:04:05.000Z07:00"), '"')
}

// listTokens lists the tokens of a user, or all of them. Users may always see their own.
func listTokens(r *Request) (*Answer, error) {
	t, err := r.read()
	if err != nil {
		return nil, err
	}
	admin := r.mayAdminister()
	user, named := r.Query.Get("user")
	switch {
	case admin == nil:
	case !named && r.Caller.User != "":
		user, named = r.Caller.User, true
	case !named || user != r.Caller.User:
		return nil, admin
	}
	ids := t.Tokens()
	if named {
		own := ids[:0]
		for _, id := range ids {
			if t.Token(id).User == user {
				own = append(own, id)
			}
		}
		ids = own
	}
	size := func(id string) int {
		token := t.Token(id)
		return entryBytes + stretched*(len(id)+len(token.User)+len(token.Label))
	}
	return r.page(t, "tokens", ids, size, func(doc []byte, id string) []byte { return append(appendToken(doc, t.Token(id)), '}') })
}

// makeToken creates a token. Only this answer has the secret.
func makeToken(r *Request) (*Answer, error) {
	var doc tokenDocument
	if err := opjson.Decode(r.Body, &doc); err != nil {
		return nil, err
	}
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	secret, sum := access.NewSecret()
	now := time.Now()
	token := &rights.Token{ID: hex.EncodeToString(id[:]), User: r.Caller.User, Label: doc.Label, Sum: sum, Created: now.UnixMilli()}
	if doc.User != nil {
		token.User = *doc.User
	}
	if doc.TTL != nil {
		token.Expires = now.Add(time.Duration(*doc.TTL)).UnixMilli()
	}
	if token.User == "" {
		return nil, badRequest("the field \"user\" is missing; it is whose rights the token has")
	}
	res, err := r.change(&rights.Change{PutToken: token})
	if err != nil {
		return nil, err
	}
	text := appendToken(nil, token)
	text = reply.AppendString(append(text, `,"secret":`...), []byte(secret))
	return &Answer{Status: http.StatusCreated, Document: append(text, '}', '\n'), Revision: res.KV.ModRevision, Location: location("/v1/tokens/", token.ID), Secret: true}, nil
}

func deleteToken(r *Request) (*Answer, error) {
	res, err := r.change(&rights.Change{DeleteToken: r.Name})
	return deleted(&res, err)
}
