package accounts

import (
	"context"
	"net/http"
	"net/url"

	"github.com/kvd-io/kvd/internal/access"
	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/budget"
	"github.com/kvd-io/kvd/internal/httpapi/param"
	"github.com/kvd-io/kvd/internal/httpapi/reply"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/rights"
)

// Route is a pattern with its methods.
type Route struct {
	Pattern string
	Methods []Method
}

// Method is what a route does for one HTTP method.
type Method struct {
	Name   string
	Handle func(*Request) (*Answer, error)
	Params []string // of the query
	// MaxBody bounds the body in bytes; 0 means that there is none.
	MaxBody int64
	// Mutates marks requests that change something. They take an idempotency key and
	// conditions unless Instead says why not.
	Mutates bool
	Instead string
	// Open methods are for every client, and ignore credentials.
	Open bool
}

// Request is a request to one of the routes. It belongs to the goroutine that answers it.
type Request struct {
	Context    context.Context // ends when the request times out
	Name       string          // the parameter of the route
	Query      *param.Query
	Body       []byte
	Conditions []kvstore.Condition
	Caller     *access.Caller
	Gate       *access.Gate
	Memory     *budget.Claim // for the answer
	// Do proposes a command and returns its result; Fresh waits until reads on this node
	// are as fresh as the query demands.
	Do    func(*kvstore.Command) (kvstore.Result, error)
	Fresh func() error
}

// Answer is the response to a request.
type Answer struct {
	Status   int
	Document []byte // JSON text; nil for none
	// Revision is the revision of the rights, which is the entity tag.
	Revision uint64
	Location string
	// Secret keeps the answer out of caches.
	Secret bool
}

const (
	// maxDocument is the limit for most bodies, and maxRole for a role, which may have
	// many permissions.
	maxDocument = 64 << 10
	maxRole     = 1 << 20
	// pageBytes is the size from which a page of a list ends.
	pageBytes = 1 << 20
	// maxPage is the maximum number of entries in a page.
	maxPage = 1000
)

var (
	readParams = []string{"consistency", "max_staleness"}
	pageParams = append([]string{"limit", "cursor"}, readParams...)
)

// Routes returns all routes.
func Routes() []Route {
	return []Route{
		{"/v1/users", []Method{{Name: http.MethodGet, Handle: listUsers, Params: pageParams}}},
		{"/v1/users/{name}", entry(getUser, putUser, deleteUser, maxDocument)},
		{"/v1/roles", []Method{{Name: http.MethodGet, Handle: listRoles, Params: pageParams}}},
		{"/v1/roles/{name}", entry(getRole, putRole, deleteRole, maxRole)},
		{"/v1/tokens", []Method{
			{Name: http.MethodGet, Handle: listTokens, Params: append([]string{"user"}, pageParams...)},
			{Name: http.MethodPost, Handle: makeToken, MaxBody: maxDocument, Mutates: true, Instead: "the secret is in the first answer alone; delete a token whose answer was lost"},
		}},
		{"/v1/tokens/{id}", []Method{{Name: http.MethodDelete, Handle: deleteToken, Mutates: true}}},
		{"/v1/auth", []Method{
			{Name: http.MethodGet, Handle: getAuth, Params: readParams},
			{Name: http.MethodPut, Handle: putAuth, MaxBody: maxDocument, Mutates: true},
		}},
		{"/v1/auth/whoami", []Method{{Name: http.MethodGet, Handle: whoAmI, Params: readParams}}},
		{"/v1/auth/check", []Method{{Name: http.MethodPost, Handle: check, MaxBody: maxDocument, Params: readParams}}},
		{"/v1/auth/login", []Method{{Name: http.MethodPost, Handle: login, MaxBody: maxDocument, Open: true}}},
	}
}

// entry returns the methods of an entry with a name.
func entry(get, put, remove func(*Request) (*Answer, error), maxBody int64) []Method {
	return []Method{
		{Name: http.MethodGet, Handle: get, Params: readParams},
		{Name: http.MethodPut, Handle: put, MaxBody: maxBody, Mutates: true},
		{Name: http.MethodDelete, Handle: remove, Mutates: true},
	}
}

func badRequest(format string, args ...any) *api.Error {
	return api.Errorf(api.BadRequest, format, args...)
}

// atField is the error for a field of the document, in the form of package opjson.
func atField(path, format string, args ...any) *api.Error {
	e := badRequest(path+": "+format, args...)
	e.Fields = map[string]any{"path": path}
	return e
}

// read returns the tables to answer from, if the caller's credentials are still valid in them.
func (r *Request) read() (*rights.Tables, error) {
	if err := r.Fresh(); err != nil {
		return nil, err
	}
	t := r.Gate.Tables()
	if t == nil {
		return nil, api.Errorf(api.Starting, "this node does not know the users yet; try again soon or use another node")
	}
	return t, r.Gate.Still(r.Caller)
}

// mayAdminister returns nil if the caller has the capability auth.
func (r *Request) mayAdminister() error {
	return r.Gate.Check(r.Caller, rights.Need{Capability: rights.Auth})
}

// judge judges a change at the door.
func (r *Request) judge(c *rights.Change) error {
	return r.Gate.CheckCommand(r.Caller, command(c, r.Conditions))
}

func command(c *rights.Change, conditions []kvstore.Condition) *kvstore.Command {
	return &kvstore.Command{Op: kvstore.OpRights, Rights: c, Conditions: conditions}
}

// change proposes a change with the conditions of the request.
func (r *Request) change(c *rights.Change) (kvstore.Result, error) {
	if err := r.judge(c); err != nil {
		return kvstore.Result{}, err
	}
	res, err := r.Do(command(c, r.Conditions))
	switch res.Outcome {
	case kvstore.PreconditionFailed:
		p := api.Errorf(api.PreconditionFailed, "a condition of the request failed: the rights have the entity tag %s; read the entry again before you change it", param.ETag(res.KV.ModRevision))
		if res.KV.ModRevision == 0 {
			p.Detail = "a condition of the request failed: the entry does not exist"
		}
		p.Fields = map[string]any{"revision": res.KV.ModRevision}
		return res, p
	case kvstore.KeyNotFound:
		return res, api.Errorf(api.NotFound, "%s", res.Detail)
	}
	return res, err
}

// location returns the path of an entry.
func location(prefix, name string) string { return prefix + url.PathEscape(name) }

// status returns the HTTP status of the response to a PUT.
func status(res *kvstore.Result) int {
	if res.Created {
		return http.StatusCreated
	}
	return http.StatusOK
}

// deleted returns the answer to a DELETE.
func deleted(res *kvstore.Result, err error) (*Answer, error) {
	if err != nil {
		return nil, err
	}
	doc := reply.AppendNumber([]byte(`{"deleted":1`), "revision", res.KV.ModRevision)
	return &Answer{Status: http.StatusOK, Document: append(doc, '}', '\n'), Revision: res.KV.ModRevision}, nil
}
