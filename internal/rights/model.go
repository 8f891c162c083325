package rights

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Root is the name of the role that may do everything, which exists without being made,
// and of the user who must have it.
const Root = "root"

// Anonymous is the role of requests without credentials. If it does not exist, they may
// do nothing.
const Anonymous = "anonymous"

// The limits of the tables. They are read into memory on every member.
const (
	MaxBytes       = 16 << 20 // of all rows
	MaxNameBytes   = 256
	MaxUsers       = 10_000
	MaxRoles       = 10_000
	MaxTokens      = 100_000
	MaxUserTokens  = 1_000 // of a user
	MaxPermissions = 1_000 // of a role
	MaxUserRoles   = 100   // of a user
	MaxHashBytes   = 256
	// MaxHashCost is the highest cost of a bcrypt hash. Every attempt to log in costs the
	// node as much work, and each step doubles it: at 14, about a second.
	MaxHashCost   = 14
	MaxLabelBytes = 256
)

// Access is what a permission allows, as bits.
type Access uint8

// The kinds of access.
const (
	Read      Access = 1
	Write     Access = 2
	ReadWrite        = Read | Write
)

// String returns read, write, or readwrite.
func (a Access) String() string {
	switch a {
	case Read:
		return "read"
	case Write:
		return "write"
	case ReadWrite:
		return "readwrite"
	}
	return fmt.Sprintf("access %d", uint8(a))
}

// MarshalText implements encoding.TextMarshaler.
func (a Access) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *Access) UnmarshalText(text []byte) error {
	for _, known := range []Access{Read, Write, ReadWrite} {
		if string(text) == known.String() {
			*a = known
			return nil
		}
	}
	return fmt.Errorf("access is %q, but must be read, write, or readwrite", text)
}

// Space is what the names of a permission are names of.
type Space uint8

// The spaces.
const (
	Keys  Space = 0
	Locks Space = 1
)

// String returns key or lock.
func (s Space) String() string {
	if s == Locks {
		return "lock"
	}
	return "key"
}

// MarshalText implements encoding.TextMarshaler.
func (s Space) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Space) UnmarshalText(text []byte) error {
	switch string(text) {
	case "key":
		*s = Keys
	case "lock":
		*s = Locks
	default:
		return fmt.Errorf("space is %q, but must be key or lock", text)
	}
	return nil
}

// Capability is a right that is about no key.
type Capability string

// The capabilities.
const (
	Members  Capability = "members"  // change the membership, hand over the leadership
	Settings Capability = "settings" // change the replicated settings
	Backup   Capability = "backup"   // read the whole state
	Operate  Capability = "operate"  // compact, see and change how nodes run
	Auth     Capability = "auth"     // see and change users, roles, tokens
)

// Capabilities are all capabilities.
var Capabilities = []Capability{Members, Settings, Backup, Operate, Auth}

// Permission allows access to names: to Key alone if RangeEnd is empty, to all names
// from Key on if RangeEnd is one zero byte, and otherwise to [Key, RangeEnd).
type Permission struct {
	Access   Access `json:"access"`
	Space    Space  `json:"space"`
	Key      []byte `json:"key"`
	RangeEnd []byte `json:"range_end,omitempty"`
}

// Same reports whether two permissions are about the same names.
func (p Permission) Same(o Permission) bool {
	return p.Space == o.Space && bytes.Equal(p.Key, o.Key) && bytes.Equal(p.RangeEnd, o.RangeEnd)
}

// Range returns the names that the permission is about.
func (p Permission) Range() Range {
	switch {
	case len(p.RangeEnd) == 0:
		return Single(p.Key)
	case len(p.RangeEnd) == 1 && p.RangeEnd[0] == 0:
		return From(p.Key)
	}
	return Range{Start: p.Key, End: p.RangeEnd}
}

// Validate reports what is wrong with the permission.
func (p Permission) Validate() error {
	r := p.Range()
	switch {
	case p.Access == 0 || p.Access > ReadWrite:
		return fmt.Errorf("%s is unknown; use read, write, or readwrite", p.Access)
	case p.Space > Locks:
		return fmt.Errorf("space %d is unknown; use key or lock", p.Space)
	case len(p.Key) == 0:
		return fmt.Errorf("the %s of a permission is empty", p.Space)
	case r.End != nil && bytes.Compare(r.Start, r.End) >= 0:
		return fmt.Errorf("the range of a permission ends before it begins: %q to %q", r.Start, r.End)
	}
	return nil
}

// User is who asks.
type User struct {
	Name string `json:"name"`
	// Hash is the bcrypt hash of the password. A user without one cannot log in with
	// a password.
	Hash  []byte   `json:"hash,omitempty"`
	Roles []string `json:"roles,omitempty"` // sorted
}

// Role is a set of rights under a name.
type Role struct {
	Name         string       `json:"name"`
	Permissions  []Permission `json:"permissions,omitempty"`
	Capabilities []Capability `json:"capabilities,omitempty"` // sorted
}

// Token is a credential that a user hands to a program. Only the hash of its secret is
// stored.
type Token struct {
	ID    string `json:"id"`
	User  string `json:"user"`
	Label string `json:"label,omitempty"`
	// Sum is the SHA-256 of the secret.
	Sum [32]byte `json:"sum"`
	// Created and Expires are Unix times in milliseconds; an Expires of 0 means never.
	Created int64 `json:"created"`
	Expires int64 `json:"expires,omitempty"`

	// used is the minute of the last use, in Unix minutes, which this process alone knows:
	// it is not stored. All tables with this token share it.
	used *atomic.Int64
}

// Use notes that the token was used. A use in the minute of the last one costs a load.
func (t *Token) Use(now time.Time) {
	if minute := now.Unix() / 60; t.used != nil && t.used.Load() < minute {
		t.used.Store(minute)
	}
}

// LastUsed returns the minute in which this process last saw the token used; the zero time
// if it has not.
func (t *Token) LastUsed() time.Time {
	if t.used == nil || t.used.Load() == 0 {
		return time.Time{}
	}
	return time.Unix(60*t.used.Load(), 0)
}

// validName refuses names that could not be shown, or sent in a header.
func validName(what, name string) error {
	switch {
	case name == "":
		return fmt.Errorf("the name of a %s is empty", what)
	case len(name) > MaxNameBytes:
		return fmt.Errorf("the name of a %s has %d bytes, but the limit is %d", what, len(name), MaxNameBytes)
	case strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\uFFFD' }):
		return fmt.Errorf("the name of a %s has characters that cannot be printed", what)
	}
	return nil
}

// Validate reports everything that is wrong with the user alone.
func (u *User) Validate() error {
	problems := []error{validName("user", u.Name)}
	// Without a password, the name may be the URI of a client certificate.
	if len(u.Hash) > 0 && strings.Contains(u.Name, ":") {
		problems = append(problems, errors.New("the name of a user with a password has a colon, which basic authentication cannot send"))
	}
	if len(u.Hash) > MaxHashBytes {
		problems = append(problems, fmt.Errorf("the password hash has %d bytes, but the limit is %d", len(u.Hash), MaxHashBytes))
	}
	if len(u.Roles) > MaxUserRoles {
		problems = append(problems, fmt.Errorf("the user has %d roles, but the limit is %d", len(u.Roles), MaxUserRoles))
	}
	for _, name := range u.Roles {
		problems = append(problems, validName("role", name))
	}
	return errors.Join(problems...)
}

// Validate reports everything that is wrong with the role.
func (r *Role) Validate() error {
	problems := []error{validName("role", r.Name)}
	if len(r.Permissions) > MaxPermissions {
		problems = append(problems, fmt.Errorf("the role has %d permissions, but the limit is %d", len(r.Permissions), MaxPermissions))
	}
	for i, p := range r.Permissions {
		problems = append(problems, p.Validate())
		if slices.ContainsFunc(r.Permissions[:i], p.Same) {
			problems = append(problems, fmt.Errorf("the role has two permissions for %s", p.Range()))
		}
	}
	for _, c := range r.Capabilities {
		if !slices.Contains(Capabilities, c) {
			problems = append(problems, fmt.Errorf("capability %q is unknown; there are %q", c, Capabilities))
		}
	}
	return errors.Join(problems...)
}

func (t *Token) validate() error {
	problems := []error{validName("token", t.ID)}
	if len(t.Label) > MaxLabelBytes {
		problems = append(problems, fmt.Errorf("the label of a token has %d bytes, but the limit is %d", len(t.Label), MaxLabelBytes))
	}
	return errors.Join(problems...)
}

// mustJSON encodes plain data, which always encodes, and always to the same bytes.
func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("rights: encode %T: %v", v, err))
	}
	return b
}
