package httpapi

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/kvd-io/kvd/internal/httpapi/param"
	"github.com/kvd-io/kvd/internal/httpapi/reply"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/watch"
)

// maxWait bounds a long poll.
const maxWait = 10 * time.Minute

// readConditions are the conditions of a read of one key. With wait, they describe the
// key as the client knows it, and the read waits until the key is no longer like that.
type readConditions struct {
	headers []kvstore.Condition
	// known, if hasKnown, is the revision by which the client knows the key; 0 means that
	// it does not exist.
	known    uint64
	hasKnown bool
	wait     time.Duration // 0 means that the read does not wait
}

// parseReadConditions reads If-Match, If-None-Match, wait and if_revision.
func parseReadConditions(x *exchange) (c readConditions, err error) {
	if c.headers, err = param.HeaderConditions(x.r.Header); err != nil {
		return c, err
	}
	if c.known, c.hasKnown, err = x.query.Number("if_revision", 0); err != nil {
		return c, err
	}
	d, waits, err := x.query.Duration("wait")
	switch {
	case err != nil:
		return c, err
	case !waits && c.hasKnown:
		return c, badRequest("the parameter \"if_revision\" of a read requires \"wait\"; without it, use the headers If-Match and If-None-Match")
	case !waits:
		return c, nil
	case d == 0 || d > maxWait:
		return c, badRequest("the parameter \"wait\" must be greater than 0 and at most %v", maxWait)
	case x.query.Has("revision"):
		return c, badRequest("a past revision does not change; omit \"wait\" or \"revision\"")
	case !c.hasKnown && len(x.r.Header["If-None-Match"]) == 0:
		return c, badRequest("the parameter \"wait\" requires If-None-Match with the ETag that you have, or if_revision=0 for a key that does not exist")
	}
	c.wait = d
	return c, nil
}

// judge returns the status that the conditions allow a read of a key at a revision.
func (c *readConditions) judge(revision uint64) int {
	status := judgeRead(c.headers, revision)
	if status == http.StatusOK && c.hasKnown && c.known == revision {
		return http.StatusNotModified
	}
	return status
}

// poll waits while the key is as the client knows it, and reads it again. Meanwhile
// the request holds neither a place nor memory.
func (c *readConditions) poll(x *exchange, read *reply.Read, kv kvstore.KV, at uint64, err error) (kvstore.KV, uint64, error) {
	if c.judge(kv.ModRevision) != http.StatusNotModified {
		return kv, at, err
	}
	client, leave := attended(x)
	defer leave()
	ctx, cancel := context.WithTimeout(client, c.wait)
	defer cancel()
	defer x.limitWriteTime(0) // it may be a long time since the header
	for ctx.Err() == nil && c.judge(kv.ModRevision) == http.StatusNotModified {
		x.held.end()
		over, failed := awaitChange(ctx, x, at)
		if failed != nil {
			return kv, at, failed
		}
		if over {
			break
		}
		if err := x.visit.ReadsKey(x.arg); err != nil { // the caller may have lost the right
			return kv, at, err
		}
		x.deadline = time.Time{} // what follows has the timeout of a request that begins now
		if err := x.held.enter(x); err != nil {
			return kv, at, err
		}
		kv, at, err = read.From(x.r.Context(), x.srv.opts.Store)
		if err != nil && !errors.Is(err, kvstore.ErrKeyNotFound) {
			return kv, at, err
		}
	}
	return kv, at, err
}

// awaitChange waits until the key of a request, or the right to read it, may have changed
// since a revision. over means that there is nothing to wait for any more: the time has
// passed, or the node is stopping, where "not modified" is still true.
func awaitChange(ctx context.Context, x *exchange, since uint64) (over bool, err error) {
	rights := x.srv.opts.Gate.Changed()
	if err := x.visit.ReadsKey(x.arg); err != nil {
		return true, err
	}
	stream, err := x.srv.opts.Watches.OpenStream()
	if err != nil {
		return true, watchProblem(err)
	}
	defer stream.Close()
	_, _, err = stream.Add(watch.Spec{Single: true, Start: []byte(x.arg), From: since + 1})
	var compacted *kvstore.CompactedError
	switch {
	case errors.As(err, &compacted):
		return false, nil // much has changed since then; perhaps the key, too
	case err != nil:
		return true, watchProblem(err)
	}
	for {
		b, err := stream.Next(ctx)
		switch {
		case ctx.Err() != nil, errors.Is(err, watch.ErrClosed):
			return true, nil
		case err != nil:
			return true, err
		case len(b.Deliveries)+len(b.Ended) > 0:
			return false, nil
		case !b.Idle:
			continue
		}
		select {
		case <-stream.Ready():
		case <-rights:
			return false, nil
		case <-ctx.Done():
			return true, nil
		}
	}
}
