package httpapi

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi/dialect"
	"github.com/kvd-io/kvd/internal/httpapi/door"
	"github.com/kvd-io/kvd/internal/rights"
)

// handler answers a request to one route by one method, or returns an error.
type handler func(*Server, *exchange) error

// method is what a route does for one HTTP method. GET includes HEAD.
type method struct {
	name   string
	handle handler
	// who may call it; the zero value is for root alone.
	who door.Audience
	// params are the query parameters it takes, besides those in param.Everywhere.
	params []string
	// body marks methods that read a body into memory, by readBody.
	body bool
	// mutates marks requests that change something, which Idempotency-Key is for.
	mutates bool
	// once marks those that heed it; instead is what a client does where it is refused.
	once    bool
	instead string
	// unconditional marks those that change something without an entity tag. They refuse
	// If-Match and If-None-Match, on which their client would rely.
	unconditional bool
	// anyQuery passes the query to the handler unchecked.
	anyQuery bool
}

// route is a row of the route table. Its pattern is also its name in metrics and in
// openapi.yaml.
type route struct {
	pattern string
	methods []method
	// allow is the Allow header of a 405; empty means to list methods.
	allow string
	// exempt routes need no place from the limiter.
	exempt bool
	// standby routes are also answered while the node does not serve.
	standby bool
	// refuse returns an error's document in the form of a dialect; nil for problem
	// documents.
	refuse func(status int, p *api.Error) any
	// endpoints are told how requests end, by method; nil without an Observer.
	endpoints [len(methods)]Endpoint
}

// The patterns that the router or Small treat specially.
const (
	kvPattern     = "/v1/kv/{key}"
	shortPattern  = "/{key}"
	kvPrefix      = "/v1/kv/"
	leasesPattern = "/v1/leases"
	leasePrefix   = "/v1/leases/"
	lockPattern   = "/v1/locks/{name}"
	lockPrefix    = "/v1/locks/"
	txnPattern    = "/v1/txn"
)

// method returns what the route does for an HTTP method, or nil.
func (rt *route) method(name string) *method {
	if name == http.MethodHead {
		name = http.MethodGet
	}
	for i := range rt.methods {
		if rt.methods[i].name == name {
			return &rt.methods[i]
		}
	}
	return nil
}

// allowed returns the value of the Allow header.
func (rt *route) allowed() string {
	if rt.allow != "" {
		return rt.allow
	}
	var names []string
	for _, m := range rt.methods {
		names = append(names, m.name)
		if m.name == http.MethodGet {
			names = append(names, http.MethodHead)
		}
	}
	return strings.Join(names, ", ")
}

// Parameters that several methods share.
var (
	readParams  = []string{"consistency", "max_staleness"}
	keyParams   = []string{"if_revision", "return", "timing"}
	bindParams  = []string{"ttl", "lease"}
	rangeParams = []string{"prefix", "start", "end"}
)

func with(lists ...[]string) []string {
	var all []string
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

// routeTable returns every route that exists.
func routeTable(rootMembers, authMetrics bool) []*route {
	return slices.Concat(keyRoutes(rootMembers), leaseRoutes(), clusterRoutes(), accountRoutes(), probeRoutes(authMetrics))
}

func keyRoutes(rootMembers bool) []*route {
	getKey := method{name: http.MethodGet, who: door.ByHandler, handle: (*Server).getKey, params: with([]string{"revision", "meta", "wait", "if_revision", "timing"}, readParams)}
	return []*route{
		{pattern: kvPattern, methods: []method{
			getKey,
			{name: http.MethodPut, who: door.ByHandler, handle: (*Server).putKey, body: true, mutates: true, once: true, params: with(keyParams, bindParams)},
			{name: http.MethodPost, who: door.ByHandler, handle: (*Server).changeKey, body: true, mutates: true, once: true, params: with([]string{"append", "incr"}, keyParams, bindParams)},
			{name: http.MethodDelete, who: door.ByHandler, handle: (*Server).deleteKey, mutates: true, once: true, params: keyParams},
		}},
		shortRoute(getKey, rootMembers),
		{pattern: "/v1/kv", methods: []method{
			{name: http.MethodGet, who: door.ByHandler, handle: (*Server).listKeys, params: with(rangeParams, readParams, []string{"limit", "cursor", "reverse", "keys_only", "count_only", "delimiter", "revision", "timing"})},
			{name: http.MethodDelete, who: door.ByHandler, handle: (*Server).deleteRange, mutates: true, once: true, params: with(rangeParams, []string{"timing"})},
		}},
		{pattern: txnPattern, methods: []method{
			{name: http.MethodPost, who: door.ByHandler, handle: runTxn, body: true, mutates: true, once: true, params: with(readParams, []string{"timing"})},
		}},
		{pattern: "/v1/batch", methods: []method{{name: http.MethodPost, who: door.ForUsers, handle: streamOps, mutates: true, instead: "each line may have an idempotency_key", params: []string{"timing"}}}},
		{pattern: "/v1/watch", exempt: true, methods: []method{
			{name: http.MethodGet, who: door.ByHandler, handle: watchKeys, params: with([]string{"key"}, rangeParams, []string{"from_revision", "previous", "events"}, readParams)},
		}},
	}
}

// shortRoute returns the route of the short form. Its Allow header is the one that
// etcd's raftexample sends.
func shortRoute(getKey method, rootMembers bool) *route {
	rt := &route{pattern: shortPattern, allow: "PUT, GET", methods: []method{
		getKey,
		{name: http.MethodPut, who: door.ByHandler, handle: (*Server).putShort, body: true, mutates: true, once: true, params: with([]string{"if_revision", "timing"}, bindParams)},
	}}
	if rootMembers {
		rt.allow = "PUT, GET, POST, DELETE"
		rt.methods = append(rt.methods,
			method{name: http.MethodPost, who: door.Having(rights.Members), handle: (*Server).addShort, body: true, mutates: true, unconditional: true, once: true},
			method{name: http.MethodDelete, who: door.Having(rights.Members), handle: (*Server).removeShort, mutates: true, unconditional: true, once: true})
	}
	return rt
}

func leaseRoutes() []*route {
	pages := []string{"limit", "cursor"}
	return []*route{
		{pattern: leasesPattern, methods: []method{
			{name: http.MethodGet, who: door.ForUsers, handle: listLeases, params: with(readParams, pages)},
			{name: http.MethodPost, who: door.ByHandler, handle: grantLease, body: true, mutates: true, unconditional: true, once: true},
		}},
		{pattern: leasePrefix + "{id}", methods: []method{
			{name: http.MethodGet, who: door.ForUsers, handle: getLease, params: with([]string{"keys"}, pages)},
			{name: http.MethodDelete, who: door.ByHandler, handle: revokeLease, mutates: true, unconditional: true, once: true},
		}},
		// A keep-alive leaves no record in the log, so there is no first answer to return.
		{pattern: leasePrefix + "{id}/keepalive", methods: []method{
			{name: http.MethodPost, who: door.ForUsers, handle: keepLease, mutates: true, unconditional: true, instead: "a keep-alive may be repeated without harm"},
		}},
		{pattern: "/v1/locks", methods: []method{{name: http.MethodGet, who: door.ForUsers, handle: listLocks, params: with(readParams, pages)}}},
		{pattern: lockPattern, methods: []method{
			{name: http.MethodGet, who: door.ByHandler, handle: getLock, params: with(readParams, []string{"limit"})},
			{name: http.MethodPost, who: door.ByHandler, handle: acquireLock, body: true, mutates: true, unconditional: true, once: true, params: with(bindParams, []string{"wait", "lock_delay"})},
			{name: http.MethodDelete, who: door.ByHandler, handle: releaseLock, mutates: true, unconditional: true, once: true, params: []string{"lease"}},
		}},
	}
}

func clusterRoutes() []*route {
	return []*route{
		{pattern: "/v1/members", methods: []method{
			{name: http.MethodGet, who: door.ForUsers, handle: (*Server).listMembers},
			{name: http.MethodPost, who: door.Having(rights.Members), handle: (*Server).addMember, body: true, mutates: true, unconditional: true, once: true},
		}},
		{pattern: "/v1/members/{id}", methods: []method{
			{name: http.MethodPut, who: door.Having(rights.Members), handle: (*Server).updateMember, body: true, mutates: true, unconditional: true, once: true},
			{name: http.MethodDelete, who: door.Having(rights.Members), handle: (*Server).removeMember, mutates: true, unconditional: true, once: true},
		}},
		{pattern: "/v1/members/{id}/promote", methods: []method{
			{name: http.MethodPost, who: door.Having(rights.Members), handle: (*Server).promoteMember, mutates: true, unconditional: true, once: true},
		}},
		{pattern: "/v1/leader", methods: []method{
			{name: http.MethodGet, who: door.ForUsers, handle: (*Server).getLeader},
			{name: http.MethodPost, who: door.Having(rights.Members), handle: (*Server).transferLeader, mutates: true, unconditional: true, params: []string{"to"}},
		}},
		{pattern: "/v1/status", methods: []method{{name: http.MethodGet, who: door.ForUsers, handle: (*Server).getStatus}}},
		{pattern: "/v1/cluster", methods: []method{{name: http.MethodGet, who: door.ForUsers, handle: (*Server).getCluster}}},
		{pattern: "/v1/snapshot", methods: []method{{name: http.MethodGet, who: door.Having(rights.Backup), handle: (*Server).getSnapshot, params: readParams}}},
		{pattern: "/v1/compact", methods: []method{
			{name: http.MethodPost, who: door.Having(rights.Operate), handle: (*Server).compact, mutates: true, unconditional: true, once: true, params: []string{"revision"}},
		}},
		{pattern: "/v1/settings", methods: []method{
			{name: http.MethodGet, who: door.ForUsers, handle: (*Server).getSettings, params: readParams},
			{name: http.MethodPut, who: door.Having(rights.Settings), handle: (*Server).changeSettings, body: true, mutates: true, once: true},
			{name: http.MethodPatch, who: door.Having(rights.Settings), handle: (*Server).changeSettings, body: true, mutates: true, once: true},
		}},
		{pattern: "/v1/operator/log-level", exempt: true, methods: []method{
			{name: http.MethodGet, who: door.Having(rights.Operate), handle: (*Server).getLogLevel},
			{name: http.MethodPut, who: door.Having(rights.Operate), handle: (*Server).putLogLevel, body: true, mutates: true, unconditional: true},
		}},
	}
}

func probeRoutes(authMetrics bool) []*route {
	get := func(pattern string, h handler, params ...string) *route {
		return &route{pattern: pattern, exempt: true, standby: true, methods: []method{{name: http.MethodGet, who: door.ForAll, handle: h, params: params}}}
	}
	metrics := get("/metrics", (*Server).getMetrics)
	metrics.methods[0].anyQuery = true
	if authMetrics {
		metrics.methods[0].who, metrics.standby = door.ForUsers, false // users are not known then
	}
	health := get("/health", (*Server).getEtcdHealth, "serializable", "exclude")
	health.standby = false // it performs a read
	return []*route{
		get("/healthz", (*Server).getLive, "verbose"),
		get("/livez", (*Server).getLive, "verbose"),
		get("/readyz", (*Server).getReady, "verbose", "exclude", "role"),
		get("/readyz/{check}", (*Server).getReadyCheck),
		health,
		get("/version", (*Server).getVersion),
		get("/openapi.yaml", (*Server).getOpenAPI),
		get("/ui", toPage),
		get("/ui/", getPage),
		get("/ui/{file}", getPage),
		metrics,
	}
}

// router finds the route of a request on its escaped path (H1). It is immutable.
type router struct {
	kv, short *route // short is nil without the dialect that it belongs to
	lock      *route
	dialects  []*route
	static    map[string]*route
	// params are the routes with one parameter, which is one segment.
	params []paramRoute
	// unmatched stands in for the route of a request that has none.
	unmatched *route
	all       []*route
}

type paramRoute struct {
	prefix, suffix string
	route          *route
}

// newRouter returns the router with the routes that the options ask for.
func newRouter(o *Options) *router {
	t := &router{static: make(map[string]*route), unmatched: &route{pattern: "none"}, all: routeTable(o.RootMembers, o.AuthMetrics), dialects: dialectRoutes(o.Dialects)}
	if !slices.Contains(o.Dialects, dialect.Raftexample) {
		t.all = slices.DeleteFunc(t.all, func(rt *route) bool { return rt.pattern == shortPattern })
	}
	for _, rt := range t.all {
		prefix, rest, found := strings.Cut(rt.pattern, "{")
		switch {
		case rt.pattern == kvPattern:
			t.kv = rt
		case rt.pattern == shortPattern:
			t.short = rt
		case rt.pattern == lockPattern:
			t.lock = rt
		case !found:
			t.static[rt.pattern] = rt
		default:
			_, suffix, _ := strings.Cut(rest, "}")
			t.params = append(t.params, paramRoute{prefix, suffix, rt})
		}
	}
	t.all = append(t.all, t.dialects...)
	return t
}

// observe gets the endpoints of every route.
func (t *router) observe(o Observer) {
	for _, rt := range append(t.all, t.unmatched) {
		for i, m := range methods {
			rt.endpoints[i] = o.Endpoint(rt.pattern, m)
		}
	}
}

// escapedPath returns the path as it was sent, and whether it still has to be decoded.
//
// URL.EscapedPath would not do: if the path has one character that it would have
// escaped itself, it escapes the whole decoded path anew. The key `/%761/x"` would
// then turn into a path below /v1. RawPath is empty if and only if the path is the
// default escaping of Path. No character that routes are matched on is escaped
// there, so Path serves as well.
func escapedPath(u *url.URL) (path string, escaped bool) {
	if u.RawPath != "" {
		return u.RawPath, true
	}
	return u.Path, false
}

// find returns the route and its parameter, decoded once, or the reason why there is
// none.
func (t *router) find(r *http.Request) (*route, string, error) {
	path, escaped := escapedPath(r.URL)
	if path == "" || path[0] != '/' {
		// "OPTIONS *" and "CONNECT host:port" have no path. An absolute target
		// without one ("GET http://host") means the root.
		if path != "" || r.URL.Opaque != "" {
			return nil, "", badRequest("the request target is not a path; it must begin with a slash")
		}
		path = "/"
	}
	rt, arg := t.match(path)
	if rt == nil {
		return nil, "", t.noRoute(r.Method, r.URL.EscapedPath())
	}
	if !escaped {
		return rt, arg, nil
	}
	decoded, err := url.PathUnescape(arg)
	if err != nil {
		return nil, "", badRequest("the path has an invalid percent-escape; a percent sign itself is written %%25")
	}
	return rt, decoded, nil
}

// match returns the route of a path and its parameter.
func (t *router) match(path string) (*route, string) {
	// Keys come first: a key may look like any other route behind the prefix.
	if strings.HasPrefix(path, kvPrefix) {
		return t.kv, path[len(kvPrefix):]
	}
	if strings.HasPrefix(path, lockPrefix) { // names are like keys
		return t.lock, path[len(lockPrefix):]
	}
	if rt, arg, taken := t.dialectMatch(path); taken {
		return rt, arg
	}
	// An escaped letter makes a segment that is not reserved: "/%761/x" is the
	// key "v1/x" (H1).
	if !reserved(firstSegment(path)) {
		return t.short, path[1:]
	}
	if rt := t.static[path]; rt != nil {
		return rt, ""
	}
	for i := range t.params {
		if arg, ok := t.params[i].match(path); ok {
			return t.params[i].route, arg
		}
	}
	return nil, ""
}

func (p *paramRoute) match(path string) (string, bool) {
	arg, ok := strings.CutPrefix(path, p.prefix)
	if !ok {
		return "", false
	}
	// A parameter is one segment that is not empty: /v1/members/ and
	// /v1/members/4/x are not members.
	arg, ok = strings.CutSuffix(arg, p.suffix)
	return arg, ok && arg != "" && !strings.Contains(arg, "/")
}

func firstSegment(path string) string {
	seg, _, _ := strings.Cut(path[1:], "/")
	return seg
}

// reserved reports whether a first segment belongs to kvd's own routes, of this or a
// later version. No key of the short form begins with it.
func reserved(segment string) bool {
	switch segment {
	case "ui", "metrics", "health", "healthz", "livez", "readyz", "version", "openapi.yaml", "debug", ".well-known":
		return true
	}
	return versionSegment(segment)
}

// versionSegment reports whether a segment is one of v0 to v99.
func versionSegment(s string) bool {
	if len(s) < 2 || len(s) > 3 || s[0] != 'v' {
		return false
	}
	if len(s) == 3 && s[1] == '0' {
		return false // v01 is not a version
	}
	return strings.Trim(s[1:], "0123456789") == ""
}

// noRoute returns the error for a path that has no route.
func (t *router) noRoute(verb, path string) error {
	if verb == http.MethodPut && t.short != nil {
		return reservedKey(path)
	}
	return api.Errorf(api.NotFound, "%.200q does not exist; /openapi.yaml lists the routes, and keys are under /v1/kv/", path)
}

func reservedKey(path string) error {
	return badRequest("/%s is reserved and cannot begin a key of the short form; use PUT /v1/kv%.4200s", firstSegment(path), path)
}

// wrongMethod returns the error for a method that the route does not have. A PUT was
// most likely meant to store a key of the short form.
func (x *exchange) wrongMethod() error {
	path := x.r.URL.EscapedPath()
	// PUT /metrics would be answered 405, which does not tell the user why the key
	// "metrics" cannot be stored.
	if x.r.Method == http.MethodPut && x.route != x.srv.router.short && firstSegment(path) != "v1" {
		return reservedKey(path)
	}
	allow := x.route.allowed()
	x.Header()["Allow"] = []string{allow}
	return api.Errorf(api.MethodNotAllowed, "%s accepts only %s", x.route.pattern, allow)
}
