package httpapi

import (
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi/feed"
	"github.com/kvd-io/kvd/internal/httpapi/param"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/limits"
	"github.com/kvd-io/kvd/internal/rights"
	"github.com/kvd-io/kvd/internal/watch"
)

const eventStreamType = "text/event-stream"

// Header values of event streams. nginx keeps an answer back until it has 8 KiB of it,
// unless it is told not to.
var (
	noStore     = []string{"no-store"}
	noBuffering = []string{"no"}
)

// watching is the query of GET /v1/watch.
type watching struct {
	spec     watch.Spec
	previous bool
	events   bool // as Server-Sent Events
}

// watchKeys answers GET and HEAD of /v1/watch. It has no place from the limiter, since it
// lasts for as long as the client wants; the hub bounds the number of watches.
func watchKeys(s *Server, x *exchange) error {
	p, err := parseWatch(x)
	if err != nil {
		return err
	}
	ctx, cancel, err := longContext(x)
	if err != nil {
		return err
	}
	defer cancel()
	reads := rights.Need{Access: rights.Read, Range: rights.Range{Start: p.spec.Start, End: p.spec.End, One: p.spec.Single}}
	if err := x.visit.Need(reads); err != nil {
		return err
	}
	if err := p.freshen(x); err != nil {
		return err
	}
	stream, err := s.opts.Watches.OpenStream()
	if err != nil {
		return watchProblem(err)
	}
	defer stream.Close()
	_, revision, err := stream.Add(p.spec)
	if err != nil {
		return watchProblem(err)
	}
	if p.spec.From > revision+1 {
		return &kvstore.FutureRevisionError{Revision: revision}
	}
	if p.spec.From == 0 {
		p.spec.From = revision + 1
	}
	p.begin(x, revision)
	if x.r.Method == http.MethodHead {
		return nil
	}
	f := &feed.Feed{
		W: x, Stream: stream, From: p.spec.From, Events: p.events, Previous: p.previous,
		Progress: s.opts.WatchProgress, LimitWrite: x.limitWriteTime,
		Memory: s.watching.Claim(), Patience: writeGrace,
	}
	if s.opts.Gate != nil {
		f.Changed, f.Judge, f.Expires = s.opts.Gate.Changed, func() error { return x.visit.NeedStill(reads) }, x.visit.Caller.Expires
	}
	return endOfWatch(f.Run(ctx))
}

// endOfWatch tells the end of a stream that the client caused, which is nothing to count or
// log, from a fault of the node.
func endOfWatch(err error) error {
	switch {
	case errors.Is(err, feed.ErrGone):
		panic(http.ErrAbortHandler)
	case errors.Is(err, feed.ErrNoMemory):
		return api.Errorf(api.Overloaded, "%v", err)
	}
	return err
}

// begin sends the header.
func (p *watching) begin(x *exchange, revision uint64) {
	h := x.Header()
	h["X-Content-Type-Options"] = nosniff
	h["Vary"] = varyAccept
	h["Cache-Control"] = noStore
	h["X-Accel-Buffering"] = noBuffering
	if p.events {
		x.set("Content-Type", eventStreamType)
	} else {
		x.set("Content-Type", ndjsonType)
	}
	x.setRevision(revision)
	x.WriteHeader(http.StatusOK)
}

// watchProblem gives the errors of the hub their codes.
func watchProblem(err error) error {
	switch {
	case errors.Is(err, watch.ErrTooMany):
		return api.Errorf(api.Overloaded, "%v, the limit of --max-watches; end some, or use another node", err)
	case errors.Is(err, watch.ErrClosed):
		return api.Errorf(api.Stopping, "this node is stopping; use another node")
	}
	return err
}

// freshen waits until this node can decide where a watch begins. One from now on
// begins behind every write that was answered before it, on whatever node, as a
// linearizable read would. One from a revision that this node has, or will have next,
// needs no proof: it misses nothing, and can resume while there is no leader.
func (p *watching) freshen(x *exchange) error {
	from := p.spec.From
	f, err := x.query.Freshness()
	if err != nil {
		return err
	}
	if !f.Stale && from != 0 && from <= x.srv.opts.Store.Revision()+1 {
		return nil
	}
	return x.freshen(max(from, 1) - 1)
}

// parseWatch reads the whole query and the header Last-Event-ID.
func parseWatch(x *exchange) (p watching, err error) {
	if pretty, _ := x.query.Flag("pretty"); pretty {
		return p, badRequest("a watch sends one line per event and cannot be indented; omit \"pretty\"")
	}
	if err := p.parseKeys(&x.query); err != nil {
		return p, err
	}
	if err := p.parseEvents(&x.query); err != nil {
		return p, err
	}
	if p.previous, err = x.query.Flag("previous"); err != nil {
		return p, err
	}
	p.events = param.Prefers(x.r.Header["Accept"], eventStreamType, ndjsonType)
	if p.spec.From, _, err = x.query.Number("from_revision", 1); err != nil {
		return p, err
	}
	// A browser that reconnects repeats the query of the first time, and adds the header.
	if id := x.r.Header.Get("Last-Event-ID"); id != "" {
		last, err := strconv.ParseUint(id, 10, 64)
		if err != nil || last >= limits.MaxSafeInteger {
			return p, badRequest("the header Last-Event-ID must be an id of this watch, which is a revision, not %.40q", id)
		}
		p.spec.From = last + 1
	}
	return p, nil
}

// parseKeys reads key, prefix, or start and end. A watch of everything has to be asked
// for, because it is rarely meant.
func (p *watching) parseKeys(q *param.Query) error {
	key, single := q.Get("key")
	ranged := q.Has("prefix") || q.Has("start") || q.Has("end")
	switch {
	case single == ranged:
		return badRequest("specify what to watch with either ?key=K, ?prefix=P, or ?start=A&end=B; an empty prefix watches all keys")
	case single:
		p.spec.Single, p.spec.Start = true, []byte(key)
		return checkKey(key)
	}
	r, err := q.Range()
	p.spec.Start, p.spec.End = r.Start, r.End
	return err
}

// parseEvents reads events=put,delete.
func (p *watching) parseEvents(q *param.Query) error {
	text, ok := q.Get("events")
	if !ok {
		return nil
	}
	p.spec.NoPuts, p.spec.NoDeletes = true, true
	for kind := range strings.SplitSeq(text, ",") {
		switch kind {
		case "put":
			p.spec.NoPuts = false
		case "delete":
			p.spec.NoDeletes = false
		default:
			return badRequest("the parameter \"events\" is a list of put and delete, not %.40q", text)
		}
	}
	return nil
}
