package param

import (
	"errors"
	"iter"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/limits"
	"github.com/kvd-io/kvd/internal/opjson"
)

// The default and the bounds of the parameter timeout.
const (
	DefaultTimeout = 5 * time.Second
	minTimeout     = time.Millisecond
	MaxTimeout     = 10 * time.Minute
)

// Everywhere are the parameters that every request takes.
var Everywhere = []string{"timeout", "pretty"}

// Query is the parsed query of a request. There are few parameters, so it is a list.
type Query struct {
	params []param
}

type param struct{ name, value string }

// Get returns the value of a parameter and whether it was given.
func (q *Query) Get(name string) (string, bool) {
	for i := range q.params {
		if q.params[i].name == name {
			return q.params[i].value, true
		}
	}
	return "", false
}

// Has reports whether a parameter was given.
func (q *Query) Has(name string) bool {
	_, ok := q.Get(name)
	return ok
}

// Sorted yields the parameters in the order of their names, those that may be repeated
// in the order in which they were given.
func (q *Query) Sorted() iter.Seq2[string, string] {
	params := slices.Clone(q.params)
	slices.SortStableFunc(params, func(a, b param) int { return strings.Compare(a.name, b.name) })
	return func(yield func(name, value string) bool) {
		for _, p := range params {
			if !yield(p.name, p.value) {
				return
			}
		}
	}
}

// Parse reads a raw query and refuses what is neither in accepted nor in Everywhere: a
// misspelled parameter must not silently change what a request means (K1).
func (q *Query) Parse(raw string, accepted []string) error {
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
		if err := q.check(accepted, p); err != nil {
			return err
		}
		q.params = append(q.params, p)
	}
	if _, err := q.Flag("pretty"); err != nil {
		return err
	}
	// Checked here, also for a request that needs no time, and before its body is read.
	_, err := q.Timeout()
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

// check compares a parameter with what the request takes.
func (q *Query) check(accepted []string, p param) error {
	if !slices.Contains(accepted, p.name) && !slices.Contains(Everywhere, p.name) {
		return badRequest("unknown parameter %.40q; this request takes %s", p.name, strings.Join(slices.Concat(accepted, Everywhere), ", "))
	}
	// kubelets repeat exclude, as in ?exclude=a&exclude=b. For all others, which of
	// two values counts would be a guess.
	if q.Has(p.name) && p.name != "exclude" {
		return badRequest("the parameter %q is given more than once", p.name)
	}
	return nil
}

// Flag reads a parameter that is either given or not. "false" and "0" count as not
// given.
func (q *Query) Flag(name string) (bool, error) {
	v, ok := q.Get(name)
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

// Number reads a parameter that is a decimal number from low to 2^53-1. ok is false
// if it is not given.
func (q *Query) Number(name string, low uint64) (n uint64, ok bool, err error) {
	v, ok := q.Get(name)
	if !ok {
		return 0, false, nil
	}
	n, err = strconv.ParseUint(v, 10, 64)
	if err != nil || n < low || n > limits.MaxSafeInteger {
		return 0, true, badRequest("the parameter %q must be a decimal number from %d to %d, not %.40q", name, low, uint64(limits.MaxSafeInteger), v)
	}
	return n, true, nil
}

// Duration reads a parameter that is a Go duration or a bare number of seconds, not
// negative. ok is false if it is not given.
func (q *Query) Duration(name string) (d time.Duration, ok bool, err error) {
	v, ok := q.Get(name)
	if !ok {
		return 0, false, nil
	}
	d, err = opjson.ParseDuration(v)
	if errors.Is(err, opjson.ErrTooLong) {
		return 0, true, badRequest("the parameter %q must be less than 292 years, not %.40q", name, v)
	}
	if err != nil || d < 0 {
		return 0, true, badRequest("the parameter %q must be a duration (for example, 500ms) or a number of seconds, not %.40q", name, v)
	}
	return d, true, nil
}

// Timeout returns how long the request may take.
func (q *Query) Timeout() (time.Duration, error) {
	d, ok, err := q.Duration("timeout")
	switch {
	case err != nil:
		return 0, err
	case !ok:
		return DefaultTimeout, nil
	case d < minTimeout || d > MaxTimeout:
		return 0, badRequest("the parameter \"timeout\" must be from %v to %v", minTimeout, MaxTimeout)
	}
	return d, nil
}

// Freshness says how fresh a read has to be. The zero value asks for a
// linearizable read.
type Freshness struct {
	// Stale allows an answer from this node's own state, without a leader.
	Stale bool
	// MaxStaleness refuses a stale read if this node has not heard from a
	// leader for longer; 0 allows any staleness.
	MaxStaleness time.Duration
}

// Freshness reads the parameters consistency and max_staleness.
func (q *Query) Freshness() (f Freshness, err error) {
	if v, ok := q.Get("consistency"); ok {
		switch v {
		case "linearizable":
		case "stale":
			f.Stale = true
		default:
			return f, badRequest("the parameter \"consistency\" must be linearizable or stale, not %.40q", v)
		}
	}
	d, ok, err := q.Duration("max_staleness")
	if err != nil || !ok {
		return f, err
	}
	if !f.Stale {
		return f, badRequest("the parameter \"max_staleness\" requires consistency=stale")
	}
	if d == 0 {
		return f, badRequest("the parameter \"max_staleness\" must be greater than 0; omit it to allow any staleness")
	}
	f.MaxStaleness = d
	return f, nil
}

// Range reads prefix, or start and end.
func (q *Query) Range() (kvstore.Range, error) {
	var r kvstore.Range
	prefix, hasPrefix := q.Get("prefix")
	start, hasStart := q.Get("start")
	end, hasEnd := q.Get("end")
	for _, v := range []string{prefix, start, end} {
		if len(v) > kvstore.MaxKeyBytes {
			return r, api.Errorf(api.TooLarge, "the prefix, start, or end has %d bytes, but the limit is %d, as for keys", len(v), kvstore.MaxKeyBytes)
		}
	}
	switch {
	case hasPrefix && (hasStart || hasEnd):
		return r, badRequest("use either prefix or start and end, not both")
	case hasPrefix:
		r.Start, r.End = []byte(prefix), kvstore.Prefix(prefix).End()
		return r, nil
	case hasEnd && end == "":
		return r, badRequest("the parameter \"end\" is empty; omit it to list up to the last key")
	case hasEnd && end < start:
		return r, badRequest("the parameter \"end\" is before \"start\"")
	}
	r.Start = []byte(start)
	if hasEnd {
		r.End = []byte(end)
	}
	return r, nil
}

// Excluded returns the values of exclude, which may be repeated.
func (q *Query) Excluded() []string {
	var names []string
	for _, p := range q.params {
		if p.name == "exclude" {
			names = append(names, strings.Split(p.value, ",")...)
		}
	}
	return names
}

// badRequest returns the error for input that cannot be understood.
func badRequest(format string, args ...any) *api.Error {
	return api.Errorf(api.BadRequest, format, args...)
}
