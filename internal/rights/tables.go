package rights

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
)

// ErrStale is wrapped by the refusal of a change that was made against other tables.
var ErrStale = errors.New("the rights were changed meanwhile")

// Change is a change of the tables: of one entry, or of State. Exactly one field beside
// Revision is set.
type Change struct {
	// Revision is the revision of the tables that the change was made against; 0 means
	// any. A change of an entry is the whole entry, so a change against other tables
	// could undo what another one did.
	Revision uint64 `json:"revision,omitempty"`

	PutUser     *User  `json:"put_user,omitempty"`
	DeleteUser  string `json:"delete_user,omitempty"`
	PutRole     *Role  `json:"put_role,omitempty"`
	DeleteRole  string `json:"delete_role,omitempty"`
	PutToken    *Token `json:"put_token,omitempty"`
	DeleteToken string `json:"delete_token,omitempty"`
	Enable      bool   `json:"enable,omitempty"`
	Disable     bool   `json:"disable,omitempty"`
	// RotateKey is the key that signs the tokens of logins from now on.
	RotateKey []byte `json:"rotate_key,omitempty"`
}

// State is the part of the tables that is there once.
type State struct {
	Enabled  bool   `json:"enabled"`
	Revision uint64 `json:"revision"`
	// Keys sign the tokens of logins: the newest first, and the one before.
	Keys [][]byte `json:"keys,omitempty"`
}

// Row is an entry as it is stored. A nil Value means that the entry is gone.
type Row struct {
	Key   string // the kind and the name: u/NAME, r/NAME, t/ID, or s
	Value []byte
}

const stateRow = "s"

// Tables are the users, roles and tokens, and what follows from them. Methods other than
// Load and Apply may be called from several goroutines.
type Tables struct {
	state  State
	users  map[string]*User
	roles  map[string]*Role
	tokens map[string]*Token
	bySum  map[[32]byte]*Token
	sizes  map[string]int // of the rows in bytes, by key
	bytes  int            // the sum of sizes
	// grants are those of users that were asked for: string to *Grants. They follow
	// from the rest, which does not change.
	grants sync.Map
}

// New returns empty tables, with rights disabled.
func New() *Tables {
	return &Tables{
		state: State{Revision: 1}, users: map[string]*User{}, roles: map[string]*Role{}, tokens: map[string]*Token{},
		bySum: map[[32]byte]*Token{}, sizes: map[string]int{},
	}
}

// Enabled reports whether anything is refused.
func (t *Tables) Enabled() bool { return t.state.Enabled }

// Revision is the number of changes, from 1.
func (t *Tables) Revision() uint64 { return t.state.Revision }

// Keys returns the keys that sign the tokens of logins, the newest first.
func (t *Tables) Keys() [][]byte { return t.state.Keys }

// User returns a user, or nil. It must not be changed.
func (t *Tables) User(name string) *User { return t.users[name] }

// Role returns a role, or nil. It must not be changed.
func (t *Tables) Role(name string) *Role { return t.roles[name] }

// Token returns the token with an id, or nil. It must not be changed.
func (t *Tables) Token(id string) *Token { return t.tokens[id] }

// TokenBySum returns the token with the SHA-256 of a secret, or nil. It must not be
// changed.
func (t *Tables) TokenBySum(sum [32]byte) *Token { return t.bySum[sum] }

// Users, Roles and Tokens return the names in order.
func (t *Tables) Users() []string { return slices.Sorted(maps.Keys(t.users)) }

// Roles returns the names of the roles in order.
func (t *Tables) Roles() []string { return slices.Sorted(maps.Keys(t.roles)) }

// Tokens returns the ids of the tokens in order.
func (t *Tables) Tokens() []string { return slices.Sorted(maps.Keys(t.tokens)) }

// Grants returns what a user may do; the empty name stands for requests without
// credentials. While rights are disabled everybody may do everything.
func (t *Tables) Grants(user string) *Grants {
	if !t.state.Enabled {
		return everything
	}
	if g, ok := t.grants.Load(user); ok {
		return g.(*Grants)
	}
	g, exists := t.compile(user)
	if exists { // whoever invents names must not fill the memory
		t.grants.Store(user, g)
	}
	return g
}

var everything, nothing = &Grants{all: true}, &Grants{}

// Check returns nil if a user may do all that is needed, and otherwise what is missing.
func (t *Tables) Check(user string, needs ...Need) error {
	g := t.Grants(user)
	for _, n := range needs {
		if g.Allow(n) {
			continue
		}
		if user == "" {
			return fmt.Errorf("requests without credentials may not %s; give a token or a password", n)
		}
		return fmt.Errorf("user %q may not %s; ask an administrator for a role that may", user, n)
	}
	return nil
}

// compile works out what a user may do.
func (t *Tables) compile(user string) (g *Grants, exists bool) {
	names := []string{Anonymous}
	if u := t.users[user]; u != nil {
		names = u.Roles
	} else if user != "" || t.roles[Anonymous] == nil {
		return nothing, false
	}
	var roles []*Role
	for _, name := range names {
		if name == Root {
			return everything, true
		}
		if r := t.roles[name]; r != nil {
			roles = append(roles, r)
		}
	}
	return grantsOf(roles), true
}

// clone returns tables that can be changed without changing these. Entries are shared:
// a change replaces them.
func (t *Tables) clone() *Tables {
	return &Tables{
		state: t.state, users: maps.Clone(t.users), roles: maps.Clone(t.roles), tokens: maps.Clone(t.tokens), bySum: maps.Clone(t.bySum),
		sizes: maps.Clone(t.sizes), bytes: t.bytes,
	}
}

// Apply returns the tables after a change, and the rows that differ. The tables stay as
// they are. The error says why the change is refused.
func (t *Tables) Apply(c *Change) (*Tables, []Row, error) {
	if c.Revision != 0 && c.Revision != t.state.Revision {
		return nil, nil, fmt.Errorf("%w: they are at revision %d, the change was made at %d", ErrStale, t.state.Revision, c.Revision)
	}
	after := t.clone()
	rows, err := after.change(c)
	if err != nil {
		return nil, nil, err
	}
	after.state.Revision++
	rows = append(rows, Row{Key: stateRow, Value: mustJSON(&after.state)})
	for _, r := range rows {
		after.resize(r)
	}
	if err := after.validate(); err != nil {
		return nil, nil, err
	}
	return after, rows, nil
}

// resize counts a row that was stored or deleted.
func (t *Tables) resize(r Row) {
	t.bytes -= t.sizes[r.Key]
	delete(t.sizes, r.Key)
	if r.Value != nil {
		t.sizes[r.Key] = len(r.Key) + len(r.Value)
		t.bytes += t.sizes[r.Key]
	}
}

// change carries out the change, and returns the rows of the entries that differ.
func (t *Tables) change(c *Change) ([]Row, error) {
	switch {
	case c.PutUser != nil:
		return t.putUser(c.PutUser)
	case c.DeleteUser != "":
		return t.deleteUser(c.DeleteUser)
	case c.PutRole != nil:
		return t.putRole(c.PutRole)
	case c.DeleteRole != "":
		return t.deleteRole(c.DeleteRole)
	case c.PutToken != nil:
		return t.putToken(c.PutToken)
	case c.DeleteToken != "":
		return t.deleteToken(c.DeleteToken)
	case c.Enable || c.Disable:
		t.state.Enabled = c.Enable
		return nil, nil
	case len(c.RotateKey) > 0:
		t.state.Keys = append([][]byte{c.RotateKey}, t.state.Keys...)
		t.state.Keys = t.state.Keys[:min(2, len(t.state.Keys))]
		return nil, nil
	}
	return nil, errors.New("the change of rights is empty")
}

func (t *Tables) putUser(u *User) ([]Row, error) {
	if err := u.Validate(); err != nil {
		return nil, err
	}
	put := *u
	put.Roles = slices.Compact(slices.Sorted(slices.Values(u.Roles)))
	for _, name := range put.Roles {
		if t.roles[name] == nil && name != Root {
			return nil, fmt.Errorf("role %q does not exist; make it first", name)
		}
	}
	t.users[put.Name] = &put
	return []Row{userRow(&put)}, nil
}

func (t *Tables) deleteUser(name string) ([]Row, error) {
	if t.users[name] == nil {
		return nil, fmt.Errorf("user %q does not exist", name)
	}
	delete(t.users, name)
	rows := []Row{{Key: "u/" + name}}
	for _, id := range t.Tokens() {
		if token := t.tokens[id]; token.User == name {
			t.dropToken(token)
			rows = append(rows, Row{Key: "t/" + id})
		}
	}
	return rows, nil
}

func (t *Tables) putRole(r *Role) ([]Row, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	put := *r
	put.Capabilities = slices.Compact(slices.Sorted(slices.Values(r.Capabilities)))
	t.roles[put.Name] = &put
	return []Row{{Key: "r/" + put.Name, Value: mustJSON(&put)}}, nil
}

// deleteRole takes the role from its users as well.
func (t *Tables) deleteRole(name string) ([]Row, error) {
	if t.roles[name] == nil {
		return nil, fmt.Errorf("role %q does not exist", name)
	}
	delete(t.roles, name)
	rows := []Row{{Key: "r/" + name}}
	for _, user := range t.Users() {
		u := t.users[user]
		i := slices.Index(u.Roles, name)
		if i < 0 {
			continue
		}
		without := *u
		without.Roles = slices.Delete(slices.Clone(u.Roles), i, i+1)
		t.users[user] = &without
		rows = append(rows, userRow(&without))
	}
	return rows, nil
}

func userRow(u *User) Row { return Row{Key: "u/" + u.Name, Value: mustJSON(u)} }

func (t *Tables) putToken(token *Token) ([]Row, error) {
	if err := token.validate(); err != nil {
		return nil, err
	}
	if t.users[token.User] == nil {
		return nil, fmt.Errorf("user %q does not exist", token.User)
	}
	if t.tokens[token.ID] != nil || t.bySum[token.Sum] != nil {
		return nil, fmt.Errorf("token %q exists already", token.ID)
	}
	put := *token
	t.tokens[put.ID], t.bySum[put.Sum] = &put, &put
	return []Row{{Key: "t/" + put.ID, Value: mustJSON(&put)}}, nil
}

func (t *Tables) deleteToken(id string) ([]Row, error) {
	token := t.tokens[id]
	if token == nil {
		return nil, fmt.Errorf("token %q does not exist", id)
	}
	t.dropToken(token)
	return []Row{{Key: "t/" + id}}, nil
}

func (t *Tables) dropToken(token *Token) {
	delete(t.tokens, token.ID)
	delete(t.bySum, token.Sum)
}

// ErrNoRootUser and ErrNoRootRole are why rights cannot be enabled, or why root cannot go
// while they are.
var (
	ErrNoRootUser = errors.New(`rights need a user "root"; make one with a password first`)
	ErrNoRootRole = errors.New(`rights need the role "root" for the user "root"; grant it first`)
)

// validate reports what is wrong with the tables as a whole.
func (t *Tables) validate() error {
	var problems []error
	for _, n := range []struct {
		what       string
		have, most int
	}{{"users", len(t.users), MaxUsers}, {"roles", len(t.roles), MaxRoles}, {"tokens", len(t.tokens), MaxTokens}} {
		if n.have > n.most {
			problems = append(problems, fmt.Errorf("there are %d %s, but the limit is %d; delete some first", n.have, n.what, n.most))
		}
	}
	if t.bytes > MaxBytes {
		problems = append(problems, fmt.Errorf("users, roles, and tokens take %d bytes, but the limit is %d; delete some first", t.bytes, MaxBytes))
	}
	root := t.users[Root]
	switch {
	case !t.state.Enabled:
	case root == nil:
		problems = append(problems, ErrNoRootUser)
	case !slices.Contains(root.Roles, Root):
		problems = append(problems, ErrNoRootRole)
	}
	return errors.Join(problems...)
}
