package httpapi

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/httpapi/dialect"
	"github.com/kvd-io/kvd/internal/httpapi/door"
	"github.com/kvd-io/kvd/internal/httpapi/param"
	"github.com/kvd-io/kvd/internal/httpapi/reply"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/rights"
)

// Dialects are the names that Options.Dialects may have.
var Dialects = dialect.Names

// Newcomers asks nodes that are to become members. Its errors are *api.Error.
type Newcomers interface {
	// PeerURLsOf asks the node behind a client URL for its peer URLs.
	PeerURLsOf(ctx context.Context, clientURL string) ([]string, error)
}

// dialectRoutes returns the routes of the dialects, with one for each pattern.
func dialectRoutes(names []string) (out []*route) {
	at := make(map[string]*route)
	for _, name := range names {
		for _, d := range dialect.Routes(name) {
			rt := at[d.Pattern]
			if rt == nil {
				rt = &route{pattern: d.Pattern, refuse: d.Refuse}
				at[d.Pattern], out = rt, append(out, rt)
			}
			rt.methods = append(rt.methods, method{name: d.Method, who: audienceOf(&d), handle: answerDialect(d.Answer), params: d.Params, body: d.Body, mutates: d.Mutates, once: d.Mutates})
		}
	}
	return out
}

// audienceOf returns who may call a route of a dialect.
func audienceOf(d *dialect.Route) door.Audience {
	switch {
	case d.Keys:
		return door.ByHandler
	case d.Mutates:
		return door.Having(rights.Members)
	}
	return door.ForUsers
}

// dialectMatch finds the route of a dialect. A dialect owns the whole first segment of
// its paths: if /db were a key while /db/x is not, a mistyped path would store something.
func (t *router) dialectMatch(path string) (rt *route, arg string, taken bool) {
	for _, rt := range t.dialects {
		prefix, _, isPrefix := strings.Cut(rt.pattern, "{")
		if isPrefix && strings.HasPrefix(path, prefix) {
			return rt, path[len(prefix):], true
		}
		if !isPrefix && path == prefix {
			return rt, "", true
		}
		taken = taken || firstSegment(path) == firstSegment(rt.pattern)
	}
	return nil, "", taken
}

// answerDialect makes a handler of a dialect's function.
func answerDialect(answer func(*dialect.Call) error) handler {
	return func(s *Server, x *exchange) error {
		return answer(&dialect.Call{
			Keys:     dialectKeys{x},
			Cluster:  dialectCluster{&s.opts},
			Arg:      x.arg,
			Param:    x.query.Get,
			Document: x.readDocument,
			Begin:    x.signedContext,
			Respond:  x.respond,
		})
	}
}

func (x *exchange) respond(status int, contentType string, body []byte) {
	if contentType != "" {
		x.set("Content-Type", contentType)
		x.Header()["X-Content-Type-Options"] = nosniff
	}
	x.writeWhole(status, body)
}

// dialectCluster is what dialects see of the cluster.
type dialectCluster struct{ opts *Options }

// Members implements dialect.Cluster.
func (c dialectCluster) Members(ctx context.Context) ([]api.Member, error) {
	return c.opts.Members.Members(ctx)
}

// Leader implements dialect.Cluster.
func (c dialectCluster) Leader() (api.Leader, error) { return c.opts.Leadership.Leader() }

// Status implements dialect.Cluster.
func (c dialectCluster) Status(ctx context.Context) (api.Status, error) {
	return c.opts.Inspector.Status(ctx)
}

// AddMember checks the new member as POST /v1/members does.
func (c dialectCluster) AddMember(ctx context.Context, m api.NewMember) (api.AddedMember, error) {
	if err := checkNewMember(&m); err != nil {
		return api.AddedMember{}, err
	}
	return c.opts.Members.AddMember(ctx, m)
}

// PeerURLsOf asks only what could be a member: the URL comes from a client. A member
// that does not run is known by its URL all the same.
func (c dialectCluster) PeerURLsOf(ctx context.Context, clientURL string) ([]string, error) {
	normal := []string{clientURL}
	if err := normalizeURLs("the connection string", &normal); err != nil {
		return nil, err
	}
	members, err := c.Members(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range members {
		if slices.Contains(m.ClientURLs, normal[0]) {
			return nil, api.Errorf(api.MemberExists, "%s is a client URL of member %d", normal[0], m.ID)
		}
	}
	return c.opts.Newcomers.PeerURLsOf(ctx, normal[0])
}

// dialectKeys carries out the requests of dialects on keys. Each is for one request.
type dialectKeys struct{ x *exchange }

// Put implements dialect.Keys.
func (k dialectKeys) Put(key string) error {
	k.x.arg = key
	_, res, err := k.x.put()
	if err == nil {
		k.x.set("Etag", param.ETag(res.KV.ModRevision))
		k.x.markReplayed()
	}
	return err
}

// Get implements dialect.Keys.
func (k dialectKeys) Get(key string, stale bool) (found bool, err error) {
	x := k.x
	if err := checkKey(key); err != nil {
		return false, err
	}
	if err := x.visit.ReadsKey(key); err != nil {
		return false, err
	}
	if err := x.freshenAs(param.Freshness{Stale: stale}, 0); err != nil {
		return false, err
	}
	read := reply.Read{Key: []byte(key), Memory: &x.held.memory, Patience: budget.Patience}
	kv, at, err := read.From(x.r.Context(), x.srv.opts.Store)
	if err != nil && !errors.Is(err, kvstore.ErrKeyNotFound) {
		return false, err
	}
	if err := x.visit.Again(); err != nil {
		return false, err
	}
	x.setRevision(at)
	if err != nil {
		return false, nil
	}
	x.set("Etag", param.ETag(kv.ModRevision))
	x.writePair(&kv, false, 0)
	return true, nil
}

// Delete implements dialect.Keys.
func (k dialectKeys) Delete(key string) (found bool, err error) {
	k.x.arg = key
	cmd, err := k.x.keyCommand(kvstore.OpDelete)
	if err != nil {
		return false, err
	}
	res, err := k.x.do(cmd)
	return res.Deleted > 0, err
}
