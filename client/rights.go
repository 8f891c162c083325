package client

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// User is a user of the cluster.
type User struct {
	Name        string   `json:"name"`
	Roles       []string `json:"roles"`
	HasPassword bool     `json:"has_password"`
	// Tag is the entity tag of all rights when the user was read, for UserChange.IfTag.
	Tag string `json:"-"`
}

// UserChange adds or changes a user.
type UserChange struct {
	// Roles are all roles that the user has afterwards. If nil, the user must exist, and
	// keeps its roles.
	Roles []string
	// Password is the new password, and PasswordHash its bcrypt hash instead. Without
	// either, the password stays as it is.
	Password, PasswordHash string
	NoPassword             bool // removes the password
	// IfTag makes the change only while the rights have this tag, and IfAbsent only if
	// there is no such user; otherwise the error is ErrPreconditionFailed.
	IfTag    string
	IfAbsent bool
}

// Access is what a Permission allows.
type Access string

// The kinds of access.
const (
	Read      Access = "read"
	Write     Access = "write"
	ReadWrite Access = "readwrite"
)

// Permission allows access to keys or, with Locks, to locks of these names:
//
//	client.Permission{Access: client.Read, Names: client.Prefix("app/")}
type Permission struct {
	Access Access
	Locks  bool
	Names  Range
}

// Role is a set of rights.
type Role struct {
	Name        string       `json:"name"`
	Permissions []Permission `json:"permissions"`
	// Capabilities are rights that do not concern keys: members, settings, backup, operate,
	// auth.
	Capabilities []string `json:"capabilities"`
	// Tag is the entity tag of all rights when the role was read. If it is not empty,
	// PutRole succeeds only while it is current. With IfAbsent, PutRole succeeds only if
	// there is no such role. Otherwise the error is ErrPreconditionFailed.
	Tag      string `json:"-"`
	IfAbsent bool   `json:"-"`
}

// Token is a credential of a user, without its secret.
type Token struct {
	ID      string    `json:"id"`
	User    string    `json:"user"`
	Label   string    `json:"label"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"` // zero if it does not expire
	// LastUsed is the minute in which the node that answered last saw the token used. It is
	// zero if it has not since it started: each node knows only its own requests.
	LastUsed time.Time `json:"last_used,omitzero"`
}

// NewToken is a token with its secret, which cannot be read again.
type NewToken struct {
	Token
	Secret string `json:"secret"`
}

// TokenRequest asks for a token.
type TokenRequest struct {
	User  string        // whose rights the token has; by default, the caller
	Label string        // shown in lists
	TTL   time.Duration // 0 means that the token does not expire
}

// AuthState says whether rights are enabled. Every change of rights increments Revision.
type AuthState struct {
	Enabled  bool   `json:"enabled"`
	Revision uint64 `json:"revision"`
}

// Identity describes the caller and its rights.
type Identity struct {
	AuthState
	User         string       `json:"user"`  // empty without credentials
	Proof        string       `json:"proof"` // none, token, password, login, jwt, certificate, socket, or off
	Roles        []string     `json:"roles"`
	Root         bool         `json:"root"` // everything is allowed
	Permissions  []Permission `json:"permissions"`
	Capabilities []string     `json:"capabilities"`
	Expires      time.Time    `json:"expires,omitzero"` // of the token
}

// Question asks whether a user has either a permission or a capability.
type Question struct {
	User       string // by default, the caller
	Permission *Permission
	Capability string
}

// Verdict answers a Question.
type Verdict struct {
	User    string `json:"user"`
	Allowed bool   `json:"allowed"`
	Reason  string `json:"reason,omitempty"` // why not
}

// MarshalJSON returns the permission in the form that the HTTP API uses.
func (p Permission) MarshalJSON() ([]byte, error) {
	doc := map[string]any{"access": p.Access, "space": "keys"}
	if p.Locks {
		doc["space"] = "locks"
	}
	switch n := p.Names; {
	case !n.bounded:
		putBytes(doc, "prefix", n.prefix)
	case n.end == n.start+"\x00":
		putBytes(doc, "key", n.start)
	default:
		putBytes(doc, "start", n.start)
		if n.end != "" {
			putBytes(doc, "end", n.end)
		}
	}
	return json.Marshal(doc)
}

// UnmarshalJSON reads the form that the HTTP API uses.
func (p *Permission) UnmarshalJSON(b []byte) error {
	var w struct {
		Access       Access  `json:"access"`
		Space        string  `json:"space"`
		Key          *string `json:"key"`
		KeyBase64    *string `json:"key_base64"`
		Prefix       *string `json:"prefix"`
		PrefixBase64 *string `json:"prefix_base64"`
		Start        *string `json:"start"`
		StartBase64  *string `json:"start_base64"`
		End          *string `json:"end"`
		EndBase64    *string `json:"end_base64"`
	}
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	var parts [4]string
	for i, part := range [][2]*string{{w.Key, w.KeyBase64}, {w.Prefix, w.PrefixBase64}, {w.Start, w.StartBase64}, {w.End, w.EndBase64}} {
		var err error
		if parts[i], err = text(part[0], part[1]); err != nil {
			return fmt.Errorf("kvd client: a permission: %w", err)
		}
	}
	*p = Permission{Access: w.Access, Locks: w.Space == "locks", Names: Prefix(parts[1])}
	switch {
	case parts[0] != "":
		p.Names = Key(parts[0])
	case parts[2] != "" || parts[3] != "":
		p.Names = Between(parts[2], parts[3])
	}
	return nil
}

// Rights reads and changes users, roles, and tokens.
type Rights struct{ c *Client }

// Rights returns the API for users, roles, and tokens.
func (c *Client) Rights() Rights { return Rights{c} }

// named returns the path of the entry with a name. The name may contain slashes.
func named(path, name string) string { return path + url.PathEscape(name) }

// Users yields all users in the order of their names.
func (r Rights) Users(ctx context.Context) iter.Seq2[*User, error] {
	return pages(ctx, r.c, "/v1/users", nil, func(p *struct {
		Users []User `json:"users"`
		Next  string `json:"next"`
	}) ([]User, string) {
		return p.Users, p.Next
	}, itself[User])
}

// itself is for items that need no conversion.
func itself[T any](v *T) (*T, error) { return v, nil }

// User returns a user.
func (r Rights) User(ctx context.Context, name string) (*User, error) {
	return tagged(ctx, r.c, newRequest(http.MethodGet, named("/v1/users/", name)), tagOfUser)
}

func tagOfUser(u *User) *string { return &u.Tag }

// tagged sends a request and returns the document of the response, with its entity tag in
// the field that tag selects.
func tagged[T any](ctx context.Context, c *Client, r *request, tag func(*T) *string) (*T, error) {
	out := new(T)
	resp, err := c.call(ctx, r, out)
	if err != nil {
		return nil, err
	}
	*tag(out) = resp.Header.Get("ETag")
	return out, nil
}

// PutUser adds or changes a user.
func (r Rights) PutUser(ctx context.Context, name string, u UserChange) (*User, error) {
	doc := make(map[string]any)
	if u.Roles != nil {
		doc["roles"] = u.Roles
	}
	if u.Password != "" {
		doc["password"] = u.Password
	}
	if u.PasswordHash != "" {
		doc["password_hash"] = u.PasswordHash
	}
	if u.NoPassword {
		doc["has_password"] = false
	}
	q, err := change(http.MethodPut, named("/v1/users/", name), nil).withJSON(doc)
	if err != nil {
		return nil, err
	}
	return tagged(ctx, r.c, q.onlyIf(u.IfTag, u.IfAbsent), tagOfUser)
}

// onlyIf sets the conditions of a change and returns the request.
func (r *request) onlyIf(tag string, absent bool) *request {
	if tag != "" {
		r.header.Set("If-Match", tag)
	}
	if absent {
		r.header.Set("If-None-Match", "*")
	}
	return r
}

// DeleteUser deletes a user and its tokens.
func (r Rights) DeleteUser(ctx context.Context, name string) error {
	_, err := r.c.call(ctx, change(http.MethodDelete, named("/v1/users/", name), nil), nil)
	return err
}

// Roles yields all roles in the order of their names.
func (r Rights) Roles(ctx context.Context) iter.Seq2[*Role, error] {
	return pages(ctx, r.c, "/v1/roles", nil, func(p *struct {
		Roles []Role `json:"roles"`
		Next  string `json:"next"`
	}) ([]Role, string) {
		return p.Roles, p.Next
	}, itself[Role])
}

// Role returns a role.
func (r Rights) Role(ctx context.Context, name string) (*Role, error) {
	return tagged(ctx, r.c, newRequest(http.MethodGet, named("/v1/roles/", name)), tagOfRole)
}

func tagOfRole(r *Role) *string { return &r.Tag }

// PutRole adds or replaces a role.
func (r Rights) PutRole(ctx context.Context, role Role) (*Role, error) {
	doc := map[string]any{"permissions": role.Permissions, "capabilities": role.Capabilities} // null counts as none
	q, err := change(http.MethodPut, named("/v1/roles/", role.Name), nil).withJSON(doc)
	if err != nil {
		return nil, err
	}
	return tagged(ctx, r.c, q.onlyIf(role.Tag, role.IfAbsent), tagOfRole)
}

// DeleteRole deletes a role, and removes it from its users.
func (r Rights) DeleteRole(ctx context.Context, name string) error {
	_, err := r.c.call(ctx, change(http.MethodDelete, named("/v1/roles/", name), nil), nil)
	return err
}

// Tokens yields the tokens of a user. If user is empty, it yields the tokens of all users,
// or only the caller's own if the caller lacks the capability auth.
func (r Rights) Tokens(ctx context.Context, user string) iter.Seq2[*Token, error] {
	var query url.Values
	if user != "" {
		query = url.Values{"user": {user}}
	}
	return pages(ctx, r.c, "/v1/tokens", query, func(p *struct {
		Tokens []Token `json:"tokens"`
		Next   string  `json:"next"`
	}) ([]Token, string) {
		return p.Tokens, p.Next
	}, itself[Token])
}

// CreateToken creates a token. If the response is lost, the request is sent again, which may
// leave a token whose secret nobody knows. Tokens lists it and DeleteToken revokes it.
func (r Rights) CreateToken(ctx context.Context, t TokenRequest) (*NewToken, error) {
	doc := map[string]any{"label": t.Label}
	if t.User != "" {
		doc["user"] = t.User
	}
	if t.TTL != 0 {
		doc["ttl"] = t.TTL.String()
	}
	q, err := newRequest(http.MethodPost, "/v1/tokens").withJSON(doc)
	if err != nil {
		return nil, err
	}
	out := new(NewToken)
	_, err = r.c.call(ctx, q, out)
	return out, err
}

// DeleteToken revokes a token.
func (r Rights) DeleteToken(ctx context.Context, id string) error {
	_, err := r.c.call(ctx, change(http.MethodDelete, named("/v1/tokens/", id), nil), nil)
	return err
}

// State returns whether rights are enabled. It needs no credentials.
func (r Rights) State(ctx context.Context) (*AuthState, error) { return r.c.authState(ctx) }

func (c *sender) authState(ctx context.Context) (*AuthState, error) {
	r := newRequest(http.MethodGet, "/v1/auth")
	r.open = true
	out := new(AuthState)
	_, err := c.call(ctx, r, out)
	return out, err
}

// Enable enables rights. With a password, it also adds the user root; without one, that
// user must exist and have the role root.
func (r Rights) Enable(ctx context.Context, rootPassword string) (*AuthState, error) {
	return r.EnableFrom(ctx, nil, rootPassword)
}

// EnableFrom is Enable that takes effect only while all rights are as they were in the
// state from; otherwise, the error is ErrPreconditionFailed. With nil it always does.
func (r Rights) EnableFrom(ctx context.Context, from *AuthState, rootPassword string) (*AuthState, error) {
	doc := map[string]any{"enabled": true}
	if rootPassword != "" {
		doc["root_password"] = rootPassword
	}
	return r.set(ctx, from, doc)
}

// Disable disables rights, so that every client may do everything.
func (r Rights) Disable(ctx context.Context) (*AuthState, error) {
	return r.set(ctx, nil, map[string]any{"enabled": false})
}

func (r Rights) set(ctx context.Context, from *AuthState, doc map[string]any) (*AuthState, error) {
	q, err := change(http.MethodPut, "/v1/auth", nil).withJSON(doc)
	if err != nil {
		return nil, err
	}
	if from != nil {
		q.onlyIf(strconv.Quote(strconv.FormatUint(from.Revision, 10)), false)
	}
	out := new(AuthState)
	_, err = r.c.call(ctx, q, out)
	return out, err
}

// WhoAmI returns the caller and its rights.
func (c *Client) WhoAmI(ctx context.Context) (*Identity, error) {
	return get[Identity](ctx, c, "/v1/auth/whoami")
}

// Check returns whether a user may do something.
func (c *Client) Check(ctx context.Context, q Question) (*Verdict, error) {
	doc := make(map[string]any)
	if q.User != "" {
		doc["user"] = q.User
	}
	if q.Permission != nil {
		doc["permission"] = q.Permission
	}
	if q.Capability != "" {
		doc["capability"] = q.Capability
	}
	r, err := newRequest(http.MethodPost, "/v1/auth/check").withJSON(doc)
	if err != nil {
		return nil, err
	}
	out := new(Verdict)
	_, err = c.call(ctx, r, out)
	return out, err
}
