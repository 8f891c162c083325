package httpapi

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi/param"
	"github.com/kvd-io/kvd/internal/httpapi/reply"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/opjson"
)

// newLease is the body of POST /v1/leases.
type newLease struct {
	ID   jsonLeaseID `json:"id"`
	TTL  jsonTTL     `json:"ttl"`
	Name string      `json:"name"`
	// LockDelay is how long a lock that the end of the lease frees stays closed.
	LockDelay jsonTTL `json:"lock_delay"`
}

// jsonLeaseID is the id of a lease: a number or, as ids from 2^53 on are sent, a string.
type jsonLeaseID uint64

// UnmarshalJSON implements json.Unmarshaler.
func (id *jsonLeaseID) UnmarshalJSON(text []byte) error {
	n, err := strconv.ParseUint(unquoted(text), 10, 63)
	if *id = jsonLeaseID(n); err != nil || n == 0 {
		return fmt.Errorf("expected the id of a lease, a decimal number from 1 to 2^63-1, found %.40s", text)
	}
	return nil
}

// jsonTTL is a time to live in milliseconds: a duration as a string, or a number of seconds.
type jsonTTL int64

// UnmarshalJSON implements json.Unmarshaler.
func (ttl *jsonTTL) UnmarshalJSON(text []byte) error {
	ms, err := opjson.ParseTTL(unquoted(text))
	*ttl = jsonTTL(ms)
	return err
}

// unquoted returns the text of a JSON number, or of a string without escapes.
func unquoted(text []byte) string {
	if s, err := strconv.Unquote(string(text)); err == nil && text[0] == '"' {
		return s
	}
	return string(text)
}

// leaseAnswerBytes is the size of most answers about a lease.
const leaseAnswerBytes = 64

// appendLeaseHead appends what every answer about a lease begins with.
func appendLeaseHead(dst []byte, id uint64, ttl time.Duration) []byte {
	begin := len(dst)
	dst = reply.AppendLease(slices.Grow(dst, leaseAnswerBytes), "id", id)
	dst[begin] = '{' // in place of the comma
	return appendTime(dst, "ttl", ttl)
}

func appendTime(dst []byte, name string, d time.Duration) []byte {
	dst = append(append(append(dst, `,"`...), name...), `":"`...)
	return append(append(dst, d.String()...), '"')
}

func millis(n int64) time.Duration { return time.Duration(n) * time.Millisecond }

// grantLease answers POST /v1/leases.
func grantLease(s *Server, x *exchange) error {
	var l newLease
	if err := x.readDocument(&l); err != nil {
		return err
	}
	if l.TTL == 0 {
		return badRequest("the field \"ttl\" is missing; it is how long the lease lives without a keep-alive (for example, {\"ttl\":\"30s\"})")
	}
	cmd := &kvstore.Command{Op: kvstore.OpLeaseGrant, Lease: uint64(l.ID), TTLMillis: int64(l.TTL)}
	if l.Name != "" || l.LockDelay > 0 {
		cmd.Grant = &kvstore.LeaseOptions{Name: l.Name, LockDelayMillis: int64(l.LockDelay)}
	}
	res, err := x.do(cmd)
	if err != nil {
		return err
	}
	x.set("Location", "/v1/leases/"+strconv.FormatUint(res.Lease.ID, 10))
	doc := appendLeaseHead(nil, res.Lease.ID, millis(res.Lease.TTLMillis))
	x.writeDocument(jsonType, http.StatusCreated, append(doc, '}', '\n'))
	return nil
}

// pageLimit reads the parameter limit of a list of leases or locks, or of what they have.
func pageLimit(q *param.Query) (int, error) {
	limit, ok, err := q.Number("limit", 1)
	switch {
	case err != nil:
		return 0, err
	case !ok:
		return defaultLimit, nil
	case limit > defaultLimit:
		return 0, badRequest("the parameter \"limit\" is at most %d here; follow \"next\" for more", defaultLimit)
	}
	return int(limit), nil
}

// position reads the cursor of a list: where it continues, in the form of its own choice.
func position(q *param.Query) ([]byte, error) {
	text, ok := q.Get("cursor")
	if !ok {
		return nil, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(b) == 0 {
		return nil, badRequest("invalid parameter \"cursor\"; it must be the \"next\" of an earlier response")
	}
	return b, nil
}

// appendNext appends the cursor of the next page.
func appendNext(dst, from []byte) []byte {
	dst = append(dst, `,"next":"`...)
	return append(base64.RawURLEncoding.AppendEncode(dst, from), '"')
}

// listLeases answers GET /v1/leases.
func listLeases(s *Server, x *exchange) error {
	limit, err := pageLimit(&x.query)
	if err != nil {
		return err
	}
	from, err := position(&x.query)
	if err != nil {
		return err
	}
	after := uint64(0)
	if from != nil {
		if len(from) != 8 {
			return badRequest("invalid parameter \"cursor\"; it must be the \"next\" of an earlier list of leases")
		}
		after = binary.BigEndian.Uint64(from)
	}
	if err := x.freshen(0); err != nil {
		return err
	}
	leases, err := s.opts.Leases.Leases(after, limit)
	if err := x.visit.After(err); err != nil {
		return err
	}
	var next []byte
	if len(leases) == limit {
		next = binary.BigEndian.AppendUint64(nil, leases[limit-1].ID)
	}
	// Others are left out, as in etcd.
	leases = slices.DeleteFunc(leases, func(l kvstore.LeaseInfo) bool { return x.visit.ReadsLease(l.ID) != nil })
	writePage(x, "leases", leases, appendLeaseInfo, next)
	return nil
}

// writePage answers with a page of a list, each item as appendItem gives it without its
// closing brace, and with the position of the next page unless that is nil.
func writePage[T any](x *exchange, name string, items []T, appendItem func([]byte, *T) []byte, next []byte) {
	doc := append(append([]byte(`{"`), name...), `":[`...)
	for i := range items {
		if i > 0 {
			doc = append(doc, ',')
		}
		doc = append(appendItem(doc, &items[i]), '}')
	}
	doc = append(doc, ']')
	if next != nil {
		doc = appendNext(doc, next)
	}
	x.setRevision(x.srv.opts.Store.Revision())
	x.writeDocument(jsonType, http.StatusOK, append(doc, '}', '\n'))
}

func appendLeaseInfo(dst []byte, l *kvstore.LeaseInfo) []byte {
	dst = appendLeaseHead(dst, l.ID, millis(l.TTLMillis))
	if l.Name != "" {
		dst = reply.AppendBytes(append(dst, ','), "name", []byte(l.Name))
	}
	if l.LockDelayMillis > 0 {
		dst = appendTime(dst, "lock_delay", millis(l.LockDelayMillis))
	}
	return reply.AppendNumber(reply.AppendNumber(dst, "key_count", l.Keys), "lock_count", l.Tickets)
}

// getLease answers GET /v1/leases/{id}, with the time that is left as the leader has it.
func getLease(s *Server, x *exchange) error {
	id, err := param.LeaseID(x.arg)
	if err != nil {
		return err
	}
	withKeys, err := x.query.Flag("keys")
	if err != nil {
		return err
	}
	if withKeys {
		if err := x.visit.ReadsLease(id); err != nil {
			return err
		}
	}
	at, err := askLease(s, x, id, false)
	if err != nil {
		return err
	}
	// The leader proved to be in office with a barrier; this node may still be behind.
	if err := x.freshen(0); err != nil {
		return err
	}
	l, err := s.opts.Leases.Lease(id)
	if err := x.visit.Again(); err != nil {
		return err
	}
	if errors.Is(err, kvstore.ErrLeaseNotFound) {
		return leaseGone(id)
	}
	if err != nil {
		return err
	}
	doc := appendTime(appendLeaseInfo(nil, &l), "remaining", at.Remaining)
	if withKeys {
		if doc, err = appendLeaseKeys(s, x, doc, id); err != nil {
			return err
		}
		if err := x.visit.ReadsLease(id); err != nil { // of what is bound to it now
			return err
		}
	}
	x.setRevision(s.opts.Store.Revision())
	x.writeDocument(jsonType, http.StatusOK, append(doc, '}', '\n'))
	return nil
}

func appendLeaseKeys(s *Server, x *exchange, doc []byte, id uint64) ([]byte, error) {
	limit, err := pageLimit(&x.query)
	if err != nil {
		return nil, err
	}
	from, err := position(&x.query)
	if err != nil {
		return nil, err
	}
	keys, more, err := s.opts.Leases.LeaseKeys(id, from, limit)
	if err != nil {
		return nil, err
	}
	doc = append(doc, `,"keys":[`...)
	for i, key := range keys {
		if i > 0 {
			doc = append(doc, ',')
		}
		doc = append(reply.AppendBytes(append(doc, '{'), "key", key), '}')
	}
	doc = append(doc, ']')
	if more {
		doc = appendNext(doc, append(keys[len(keys)-1], 0)) // the first key after it
	}
	return doc, nil
}

func leaseGone(id uint64) error {
	return api.Errorf(api.LeaseNotFound, "lease %d does not exist; it may have ended", id)
}

// askLease asks the leader within the request's timeout.
func askLease(s *Server, x *exchange, id uint64, renew bool) (api.LeaseTime, error) {
	ctx, cancel, err := x.briefContext()
	if err != nil {
		return api.LeaseTime{}, err
	}
	defer cancel()
	return s.opts.LeaseTimes.AskLease(ctx, id, renew)
}

// keepLease answers POST /v1/leases/{id}/keepalive.
func keepLease(s *Server, x *exchange) error {
	id, err := param.LeaseID(x.arg)
	if err != nil {
		return err
	}
	if err := x.visit.WritesLease(id); err != nil {
		return err
	}
	at, err := askLease(s, x, id, true)
	if err != nil {
		return err
	}
	x.setCluster()
	x.writeDocument(jsonType, http.StatusOK, append(appendLeaseHead(nil, id, at.TTL), '}', '\n'))
	return nil
}

// revokeLease answers DELETE /v1/leases/{id}.
func revokeLease(_ *Server, x *exchange) error {
	id, err := param.LeaseID(x.arg)
	if err != nil {
		return err
	}
	cmd := &kvstore.Command{Op: kvstore.OpLeaseRevoke, Lease: id}
	res, err := x.do(cmd)
	if err != nil {
		return err
	}
	x.writeDeleted(cmd, &res)
	return nil
}

// remaining returns how long the lease of a pair lives on, for an answer that has the
// pair as JSON. Only the leader knows, whom a stale read does not ask.
func remaining(x *exchange, kv *kvstore.KV) (time.Duration, error) {
	f, err := x.query.Freshness()
	if err != nil || f.Stale || kv.Lease == 0 {
		return 0, err
	}
	at, err := askLease(x.srv, x, kv.Lease, false)
	var e *api.Error
	if errors.As(err, &e) && e.Code == api.LeaseNotFound {
		return 0, nil // it ended after the read
	}
	return at.Remaining, err
}
