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

// ErrNotFound is wrapped by the refusal of a change of what does not exist.
var ErrNotFound = errors.New("not found")

// Change is a change of the tables. The fields that are set take effect in the order of the
// struct, all or none: one change can add the first user and enable rights.
type Change struct {
	// Revision is the revision of the tables that the change was made against; 0 means
	// any. A change of an entry is the whole entry, so a change against other tables
	// could undo what another one did.
	Revision uint64 `json:"revision,omitempty"`

	PutUser *User `json:"put_user,omitempty"`
	// KeepPassword leaves the password of PutUser as it is, whatever it is when the
	// change is applied, so that a change of roles need not know it.
	KeepPassword bool `json:"keep_password,omitempty"`
	// SetPassword changes nothing but the hash of a user who exists.
	SetPassword *Password `json:"set_password,omitempty"`
	DeleteUser  string    `json:"delete_user,omitempty"`
	PutRole     *Role     `json:"put_role,omitempty"`
	DeleteRole  string    `json:"delete_role,omitempty"`
	PutToken    *Token    `json:"put_token,omitempty"`
	DeleteToken string    `json:"delete_token,omitempty"`
	Enable      bool      `json:"enable,omitempty"`
	Disable     bool      `json:"disable,omitempty"`
	// RotateKey is the key that signs the tokens of logins from now on.
	RotateKey []byte `json:"rotate_key,omitempty"`
}

// Password is the new password of a user, hashed; an empty Hash removes it.
type Password struct {
	User string `json:"user"`
	Hash []byte `json:"hash,omitempty"`
}

// edits reports whether etcd would count the change.
func (c *Change) edits() bool {
	return c.PutUser != nil || c.SetPassword != nil || c.DeleteUser != "" || c.PutRole != nil || c.DeleteRole != "" || c.Disable
}

// State is the part of the tables that is there once.
type State struct {
	Enabled  bool   `json:"enabled"`
	Revision uint64 `json:"revision"`
	// Edits is the number of changes of users and roles, and of times that rights were
	// disabled: what etcd counts.
	Edits uint64 `json:"edits,omitempty"`
}

// Row is an entry as it is stored. A nil Value means that the entry is gone.
type Row struct {
	Key   string // the kind and the name: u/NAME, r/NAME, t/ID, k/REVISION/HASH, or s
	Value []byte
	// Secret means that backups lack Value, and that Key says which one it is.
	Secret bool
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
	keys   []loginKey     // the newest first, and the one before
	sizes  map[string]int // of the rows without keys in bytes, by key
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

// Edits is the revision as etcd counts it, from 1: enabling rights does not raise it, nor do
// changes of tokens and keys, which etcd does not have. It is only shown to etcd clients.
func (t *Tables) Edits() uint64 { return 1 + t.state.Edits }

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
	if exists { // unknown names must not fill the memory
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
			return fmt.Errorf("requests without credentials may not %s; provide a token or a password", n)
		}
		return fmt.Errorf("user %q may not %s; ask an administrator for a role that allows it", user, n)
	}
	return nil
}

// compile works out what a user may do.
func (t *Tables) compile(user string) (g *Grants, exists bool) {
	if u := t.users[user]; u != nil {
		return t.union(u.Roles), true
	}
	if user != "" || t.roles[Anonymous] == nil {
		return nothing, false
	}
	return t.union([]string{Anonymous}), true
}

// union returns the rights of a user with these roles.
func (t *Tables) union(names []string) *Grants {
	var roles []*Role
	for _, name := range names {
		if name == Root {
			return everything
		}
		if r := t.roles[name]; r != nil {
			roles = append(roles, r)
		}
	}
	return grantsOf(roles)
}

// clone returns tables that can be changed without changing these. Entries are shared:
// a change replaces them.
func (t *Tables) clone() *Tables {
	return &Tables{
		state: t.state, users: maps.Clone(t.users), roles: maps.Clone(t.roles), tokens: maps.Clone(t.tokens), bySum: maps.Clone(t.bySum),
		keys: t.keys, sizes: maps.Clone(t.sizes), bytes: t.bytes,
	}
}

// EntryRevision returns the revision of the tables if the entry of a change exists, and
// otherwise 0. Conditions of a change compare with it: entries have no revisions of their own.
func (t *Tables) EntryRevision(c *Change) uint64 {
	exists := true
	switch {
	case c.Enable || c.Disable: // it is about the state, also if it makes root in the same step
	case c.PutUser != nil:
		exists = t.users[c.PutUser.Name] != nil
	case c.SetPassword != nil:
		exists = t.users[c.SetPassword.User] != nil
	case c.DeleteUser != "":
		exists = t.users[c.DeleteUser] != nil
	case c.PutRole != nil:
		exists = t.roles[c.PutRole.Name] != nil
	case c.DeleteRole != "":
		exists = t.roles[c.DeleteRole] != nil
	case c.PutToken != nil:
		exists = t.tokens[c.PutToken.ID] != nil
	case c.DeleteToken != "":
		exists = t.tokens[c.DeleteToken] != nil
	}
	if !exists {
		return 0
	}
	return t.state.Revision
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
	if c.edits() {
		after.state.Edits++
	}
	rows = append(rows, Row{Key: stateRow, Value: mustJSON(&after.state)})
	for _, r := range rows {
		after.resize(r)
	}
	if err := after.validate(); err != nil {
		return nil, nil, err
	}
	return after, rows, nil
}

// resize counts a row that was stored or deleted. Secrets are few, and do not count: where
// they are missing, the same change must be refused or not.
func (t *Tables) resize(r Row) {
	if r.Secret {
		return
	}
	t.bytes -= t.sizes[r.Key]
	delete(t.sizes, r.Key)
	if r.Value != nil {
		t.sizes[r.Key] = len(r.Key) + len(r.Value)
		t.bytes += t.sizes[r.Key]
	}
}

// change carries out the change, and returns the rows of the entries that differ.
func (t *Tables) change(c *Change) (rows []Row, err error) {
	step := func(changed []Row, wrong error) {
		rows, err = append(rows, changed...), errors.Join(err, wrong)
	}
	if c.PutUser != nil {
		step(t.putUser(c.PutUser, c.KeepPassword))
	}
	if c.SetPassword != nil {
		step(t.setPassword(c.SetPassword))
	}
	if c.DeleteUser != "" {
		step(t.deleteUser(c.DeleteUser))
	}
	if c.PutRole != nil {
		step(t.putRole(c.PutRole))
	}
	if c.DeleteRole != "" {
		step(t.deleteRole(c.DeleteRole))
	}
	if c.PutToken != nil {
		step(t.putToken(c.PutToken))
	}
	if c.DeleteToken != "" {
		step(t.deleteToken(c.DeleteToken))
	}
	switch {
	case c.Enable && c.Disable:
		return nil, errors.New("the change of rights both enables and disables them")
	case c.Enable || c.Disable:
		t.state.Enabled = c.Enable
	case len(rows)+len(c.RotateKey) == 0 && err == nil:
		return nil, errors.New("the change of rights is empty")
	}
	if len(c.RotateKey) > 0 {
		step(t.rotate(c.RotateKey))
	}
	return rows, err
}

func (t *Tables) putUser(u *User, keepPassword bool) ([]Row, error) {
	put := *u
	if old := t.users[u.Name]; keepPassword && old != nil {
		put.Hash = old.Hash
	}
	if err := put.Validate(); err != nil {
		return nil, err
	}
	put.Roles = slices.Compact(slices.Sorted(slices.Values(u.Roles)))
	for _, name := range put.Roles {
		if t.roles[name] == nil && name != Root {
			return nil, fmt.Errorf("role %q does not exist; make it first", name)
		}
	}
	t.users[put.Name] = &put
	return []Row{userRow(&put)}, nil
}

func (t *Tables) setPassword(p *Password) ([]Row, error) {
	old := t.users[p.User]
	if old == nil {
		return nil, noSuch("user", p.User)
	}
	put := *old
	put.Hash = p.Hash
	return t.putUser(&put, false)
}

// noSuch returns the error for an entry that does not exist.
func noSuch(what, name string) error { return &missing{what, name} }

// missing is an ErrNotFound with a name.
type missing struct{ what, name string }

func (m *missing) Error() string { return fmt.Sprintf("%s %q does not exist", m.what, m.name) }

func (m *missing) Is(target error) bool { return target == ErrNotFound }

func (t *Tables) deleteUser(name string) ([]Row, error) {
	if t.users[name] == nil {
		return nil, noSuch("user", name)
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
		return nil, noSuch("role", name)
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
