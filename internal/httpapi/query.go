package httpapi

import (
	"context"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/limits"
	"github.com/kvd-io/kvd/internal/opjson"
)

// The default and the bounds of the parameter timeout.
const (
	defaultTimeout = 5 * time.Second
	minTimeout     = time.Millisecond
	maxTimeout     = 10 * time.Minute
)

// query is the parsed query of a request. There are few parameters, so it is a list.
type query struct {
	params []param
}

type param struct{ name, value string }

// get returns the value of a parameter and whether it was given.
func (q *query) get(name string) (string, bool) {
	for i := range q.params {
		if q.params[i].name == name {
			return q.params[i].value, true
		}
	}
	return "", false
}

// has reports whether a parameter was given.
func (q *query) has(name string) bool {
	_, ok := q.get(name)
	return ok
}

// parse reads a raw query and refuses what the method does not take: a misspelled
// parameter must not silently change what a request means (H2).
func (q *query) parse(raw string, m *method) error {
	for raw != "" {
		var pair string
		pair, raw, _ = strings.Cut(raw, "&")
		if pair == "" {
			continue // "?a&&b" and "?" are harmless
		}
		p, err := decodeParam(pair)
		if err != nil {
			return err
		}
		if err := q.check(m, p); err != nil {
			return err
		}
		q.params = append(q.params, p)
	}
	_, err := q.flag("pretty")
	return err
}

func decodeParam(pair string) (param, error) {
	rawName, rawValue, _ := strings.Cut(pair, "=")
	name, err := url.QueryUnescape(rawName)
	if err != nil {
		return param{}, badRequest("the query has an invalid percent-escape in the parameter name %.40q", rawName)
	}
	value, err := url.QueryUnescape(rawValue)
	if err != nil {
		return param{}, badRequest("the query has an invalid percent-escape in the value of the parameter %.40q", name)
	}
	return param{name, value}, nil
}

// check compares a parameter with what the method takes.
func (q *query) check(m *method, p param) error {
	if !slices.Contains(m.params, p.name) && !slices.Contains(everywhere, p.name) {
		return badRequest("unknown parameter %.40q; this request takes %s", p.name, strings.Join(slices.Concat(m.params, everywhere), ", "))
	}
	// kubelets repeat exclude, as in ?exclude=a&exclude=b. For all others, which of
	// two values counts would be a guess.
	if q.has(p.name) && p.name != "exclude" {
		return badRequest("the parameter %q is given more than once", p.name)
	}
	return nil
}

// everywhere are the parameters that every request takes.
var everywhere = []string{"timeout", "pretty"}

// flag reads a parameter that is either given or not. "false" and "0" count as not
// given.
func (q *query) flag(name string) (bool, error) {
	v, ok := q.get(name)
	if !ok {
		return false, nil
	}
	switch v {
	case "", "true", "1":
		return true, nil
	case "false", "0":
		return false, nil
	}
	return false, badRequest("the parameter %q is a switch: give it no value, true, or false, not %.40q", name, v)
}

// number reads a parameter that is a decimal number from low to 2^53-1. ok is false
// if it is not given.
func (q *query) number(name string, low uint64) (n uint64, ok bool, err error) {
	v, ok := q.get(name)
	if !ok {
		return 0, false, nil
	}
	n, err = strconv.ParseUint(v, 10, 64)
	if err != nil || n < low || n > limits.MaxSafeInteger {
		return 0, true, badRequest("the parameter %q must be a decimal number from %d to %d, not %.40q", name, low, uint64(limits.MaxSafeInteger), v)
	}
	return n, true, nil
}

// duration reads a parameter that is a Go duration or a bare number of seconds, not
// negative. ok is false if it is not given.
func (q *query) duration(name string) (d time.Duration, ok bool, err error) {
	v, ok := q.get(name)
	if !ok {
		return 0, false, nil
	}
	d, err = opjson.ParseDuration(v)
	if err != nil || d < 0 {
		return 0, true, badRequest("the parameter %q must be a duration (for example, 500ms) or a number of seconds, not %.40q", name, v)
	}
	return d, true, nil
}

// timeout returns how long the request may take.
func (q *query) timeout() (time.Duration, error) {
	d, ok, err := q.duration("timeout")
	switch {
	case err != nil:
		return 0, err
	case !ok:
		return defaultTimeout, nil
	case d < minTimeout || d > maxTimeout:
		return 0, badRequest("the parameter \"timeout\" must be from %v to %v", minTimeout, maxTimeout)
	}
	return d, nil
}

// context returns the request's context with its timeout, which begins with the first
// call: the time that the client takes to send the body does not count.
func (x *exchange) context() (context.Context, context.CancelFunc, error) {
	if err := x.startTimeout(); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithDeadline(x.r.Context(), x.deadline)
	return ctx, cancel, nil
}

// signedContext is context for a change that every member logs, with the request
// that asked for it and its idempotency key.
func (x *exchange) signedContext() (context.Context, context.CancelFunc, error) {
	ctx, cancel, err := x.context()
	if err != nil {
		return nil, nil, err
	}
	if change := x.once.change(x); change != nil {
		ctx = api.WithOnce(ctx, change)
	}
	return api.WithRequester(ctx, api.Requester{RequestID: x.requestID(), Client: x.r.RemoteAddr}), cancel, nil
}

// startTimeout sets the deadline of the request, unless it is set.
func (x *exchange) startTimeout() error {
	if !x.deadline.IsZero() {
		return nil
	}
	d, err := x.query.timeout()
	x.deadline = time.Now().Add(d)
	return err
}

// briefContext is context for a callee that does not keep the context when it
// returns. It costs no allocation if the client is not being watched.
func (x *exchange) briefContext() (context.Context, context.CancelFunc, error) {
	// A deadline does not watch its parent. net/http cancels the request's context
	// when the client disconnects; package http1 does not watch the client.
	if x.r.Context().Done() != nil {
		return x.context()
	}
	if err := x.startTimeout(); err != nil {
		return nil, nil, err
	}
	ctx, release := x.srv.deadlines.Get(x.r.Context(), x.deadline)
	return ctx, release, nil
}

// freshness says how fresh a read has to be. The zero value asks for a
// linearizable read.
type freshness struct {
	// stale allows an answer from this node's own state, without a leader.
	stale bool
	// maxStaleness refuses a stale read if this node has not heard from a
	// leader for longer; 0 allows any staleness.
	maxStaleness time.Duration
}

// freshness reads the parameters consistency and max_staleness.
func (q *query) freshness() (f freshness, err error) {
	if v, ok := q.get("consistency"); ok {
		switch v {
		case "linearizable":
		case "stale":
			f.stale = true
		default:
			return f, badRequest("the parameter \"consistency\" must be linearizable or stale, not %.40q", v)
		}
	}
	d, ok, err := q.duration("max_staleness")
	if err != nil || !ok {
		return f, err
	}
	if !f.stale {
		return f, badRequest("the parameter \"max_staleness\" requires consistency=stale")
	}
	if d == 0 {
		return f, badRequest("the parameter \"max_staleness\" must be greater than 0; omit it to allow any staleness")
	}
	f.maxStaleness = d
	return f, nil
}
