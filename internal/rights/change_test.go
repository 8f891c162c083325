package rights

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// needs are single rights over a small world, by which users can be compared.
func needs() (out []Need) {
	for _, name := range names() {
		for _, space := range []Space{Keys, Locks} {
			for _, access := range []Access{Read, Write} {
				out = append(out, Need{Access: access, Space: space, Range: Single(name)})
			}
		}
	}
	for _, c := range Capabilities {
		out = append(out, Need{Capability: c})
	}
	return out
}

// TestNobodyGainsByChanging: whatever a user who is not root may change, what anybody has
// afterwards and did not have before, or the other way around, that user may do itself
// (R6). It holds for random tables, users, and changes.
func TestNobodyGainsByChanging(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 4))
	all, made := needs(), 0
	for range 60 {
		tables := randomTables(t, r)
		for range 60 {
			c := randomEdit(r)
			if c.PutToken != nil {
				continue // what a token permits is looked at below
			}
			if tables.CheckChange("ann", &c) != nil {
				continue
			}
			after, _, err := tables.Apply(&c)
			if err != nil {
				continue
			}
			made++
			for _, user := range []string{"", "ann", "bob", "eve", "new"} {
				for _, n := range all {
					if tables.Grants(user).Allow(n) != after.Grants(user).Allow(n) && !tables.Grants("ann").Allow(n) {
						t.Fatalf("ann, who may not %s, has changed whether %q may: %s", n, user, EncodeChange(&c))
					}
				}
			}
		}
	}
	if made < 100 {
		t.Errorf("only %d changes were allowed; the test sees too little", made)
	}
}

// randomTables has ann, who may change rights and something else, and others.
func randomTables(t testing.TB, r *rand.Rand) *Tables {
	t.Helper()
	tables := must(t, withRoot(t), Change{PutRole: &Role{Name: "auth", Capabilities: []Capability{Auth}}})
	for i := range 4 {
		tables = must(t, tables, Change{PutRole: randomRole(r, fmt.Sprint("r", i))})
	}
	for _, user := range []string{"ann", "bob", "eve"} {
		tables = must(t, tables, Change{PutUser: &User{Name: user, Roles: randomRoles(r)}})
	}
	if r.IntN(2) == 0 {
		tables = must(t, tables, Change{PutRole: randomRole(r, Anonymous)})
	}
	return must(t, tables, Change{PutUser: &User{Name: "ann", Roles: append(randomRoles(r), "auth")}})
}

func randomRole(r *rand.Rand, name string) *Role {
	role := &Role{Name: name}
	for len(role.Permissions) < r.IntN(3) {
		role.Permissions = append(role.Permissions, randomPermission(r, names()))
		if role.Validate() != nil {
			role.Permissions = nil
		}
	}
	if r.IntN(3) == 0 {
		role.Capabilities = []Capability{Capabilities[r.IntN(len(Capabilities))]}
	}
	return role
}

func randomRoles(r *rand.Rand) (out []string) {
	for range r.IntN(3) {
		out = append(out, []string{"r0", "r1", "r2", "r3", Root}[r.IntN(4+r.IntN(2))])
	}
	return out
}

// randomEdit is a change that may or may not be allowed.
func randomEdit(r *rand.Rand) (c Change) {
	user := []string{"ann", "bob", "eve", "new", Root}[r.IntN(5)]
	role := []string{"r0", "r1", "r2", "r3", "auth", Anonymous, Root}[r.IntN(7)]
	switch r.IntN(7) {
	case 0, 1:
		c.PutUser = &User{Name: user, Roles: randomRoles(r)}
	case 2:
		c.DeleteUser = user
	case 3, 4:
		c.PutRole = randomRole(r, role)
	case 5:
		c.DeleteRole = role
	default:
		c.PutToken = &Token{ID: "t", User: user}
	}
	return c
}

// TestWhoMayChangeWhat goes through the kinds of changes. Taking over another user is a
// gain that no comparison of rights shows, so passwords and tokens are here.
func TestWhoMayChangeWhat(t *testing.T) {
	tables := withRoot(t)
	onA := Permission{Access: ReadWrite, Key: []byte("a/"), RangeEnd: []byte("a0")}
	onB := Permission{Access: Read, Key: []byte("b")}
	for _, c := range []Change{
		{PutRole: &Role{Name: "a", Permissions: []Permission{onA}}},
		{PutRole: &Role{Name: "b", Permissions: []Permission{onB}}},
		{PutRole: &Role{Name: "auth", Capabilities: []Capability{Auth}}},
		{PutRole: &Role{Name: "backup", Capabilities: []Capability{Backup}}},
		{PutUser: &User{Name: "lead", Roles: []string{"a", "auth"}}},
		{PutUser: &User{Name: "dev", Roles: []string{"a"}}},
		{PutUser: &User{Name: "other", Roles: []string{"b"}}},
		{PutToken: &Token{ID: "dev1", User: "dev", Sum: [32]byte{1}}},
		{PutToken: &Token{ID: "other1", User: "other", Sum: [32]byte{2}}},
	} {
		tables = must(t, tables, c)
	}
	part := Permission{Access: Read, Key: []byte("a/x")}
	for _, c := range []struct {
		user   string
		change Change
		want   string // in the refusal; empty: it is allowed
	}{
		{"dev", Change{SetPassword: &Password{User: "dev"}}, ""},
		{"dev", Change{SetPassword: &Password{User: "lead"}}, `"auth"`},
		{"dev", Change{PutToken: &Token{ID: "x", User: "dev"}}, ""},
		{"dev", Change{PutToken: &Token{ID: "x", User: "other"}}, `"auth"`},
		{"dev", Change{DeleteToken: "dev1"}, ""},
		{"dev", Change{DeleteToken: "other1"}, `"auth"`},
		{"dev", Change{DeleteToken: "unknown"}, `"auth"`},
		{"dev", Change{PutUser: &User{Name: "dev", Roles: []string{"a"}}}, `"auth"`},
		{"dev", Change{DeleteUser: "dev"}, `"auth"`},
		{"dev", Change{SetPassword: &Password{User: "dev"}, Disable: true}, `"auth"`},
		{"", Change{PutToken: &Token{ID: "x"}}, "without credentials"},
		{"gone", Change{SetPassword: &Password{User: "gone"}}, `"auth"`},
		{"lead", Change{PutUser: &User{Name: "new", Roles: []string{"a"}}}, ""},
		{"lead", Change{PutUser: &User{Name: "new", Roles: []string{"auth"}}}, ""},
		{"lead", Change{PutUser: &User{Name: "new", Roles: []string{"b"}}}, `read key "b"`},
		{"lead", Change{PutUser: &User{Name: "new", Roles: []string{Root}}}, "do everything"},
		{"lead", Change{PutUser: &User{Name: "other", Roles: []string{"a"}}}, `user "other"`},
		{"lead", Change{PutUser: &User{Name: Root, Roles: []string{Root}}}, "do everything"},
		{"lead", Change{SetPassword: &Password{User: "dev"}}, ""},
		{"lead", Change{SetPassword: &Password{User: "other"}}, `user "other"`},
		{"lead", Change{SetPassword: &Password{User: Root}}, "do everything"},
		{"lead", Change{DeleteUser: "dev"}, ""},
		{"lead", Change{DeleteUser: Root}, "do everything"},
		{"lead", Change{PutToken: &Token{ID: "x", User: Root}}, "do everything"},
		{"lead", Change{PutRole: &Role{Name: "new", Permissions: []Permission{part}}}, ""},
		{"lead", Change{PutRole: &Role{Name: "new", Permissions: []Permission{part, onB}}}, `role "new"`},
		{"lead", Change{PutRole: &Role{Name: "new", Capabilities: []Capability{Backup}}}, `capability "backup"`},
		{"lead", Change{PutRole: &Role{Name: "b"}}, `role "b"`},
		{"lead", Change{PutRole: &Role{Name: Root}}, "do everything"},
		{"lead", Change{DeleteRole: "a"}, ""},
		{"lead", Change{DeleteRole: "b"}, `role "b"`},
		{"lead", Change{Disable: true}, "do everything"},
		{"lead", Change{RotateKey: []byte{1}}, "do everything"},
		{"lead", Change{PutRole: &Role{Name: "a"}, RotateKey: []byte{1}}, "do everything"},
		{Root, Change{Disable: true}, ""},
		{Root, Change{DeleteUser: "lead"}, ""},
	} {
		err := tables.CheckChange(c.user, &c.change)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q, %s: %v, want %q", c.user, EncodeChange(&c.change), err, c.want)
		}
	}
	if err := New().CheckChange("", &Change{Enable: true}); err != nil {
		t.Errorf("while rights are disabled: %v", err)
	}
}

// TestPasswordsAndRolesApart: roles change without the password, and the password without
// the roles.
func TestPasswordsAndRolesApart(t *testing.T) {
	tables := must(t, New(), Change{PutRole: &Role{Name: "a"}})
	tables = must(t, tables, Change{PutUser: &User{Name: "ann", Hash: []byte("first")}, KeepPassword: true})
	tables = must(t, tables, Change{PutUser: &User{Name: "ann", Roles: []string{"a"}}, KeepPassword: true})
	if u := tables.User("ann"); string(u.Hash) != "first" || len(u.Roles) != 1 {
		t.Errorf("new roles: %+v", u)
	}
	tables = must(t, tables, Change{SetPassword: &Password{User: "ann", Hash: []byte("second")}})
	if u := tables.User("ann"); string(u.Hash) != "second" || len(u.Roles) != 1 {
		t.Errorf("new password: %+v", u)
	}
	tables = must(t, tables, Change{PutUser: &User{Name: "ann"}})
	if u := tables.User("ann"); len(u.Hash) != 0 || len(u.Roles) != 0 {
		t.Errorf("without either: %+v", u)
	}
	for _, c := range []Change{{SetPassword: &Password{User: "bob"}}, {DeleteUser: "bob"}, {DeleteRole: "b"}, {DeleteToken: "t"}, {PutToken: &Token{ID: "t", User: "bob"}}} {
		if _, _, err := tables.Apply(&c); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", EncodeChange(&c), err)
		}
		if c.PutToken == nil && tables.EntryRevision(&c) != 0 {
			t.Errorf("%s: its entry has revision %d", EncodeChange(&c), tables.EntryRevision(&c))
		}
	}
}

// TestPermissionsAreTheGrants: what is shown of grants is all of them, and no more.
func TestPermissionsAreTheGrants(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 5))
	for range 300 {
		g := grantsOf([]*Role{randomRole(r, "a"), randomRole(r, "b"), randomRole(r, "c")})
		shown := &Role{Name: "shown", Permissions: g.Permissions(), Capabilities: g.Capabilities()}
		if err := shown.Validate(); err != nil {
			t.Fatal(err)
		}
		again := grantsOf([]*Role{shown})
		if g.lacks(again) != "" || again.lacks(g) != "" {
			t.Fatalf("%+v is shown as %+v", g, shown)
		}
	}
	if all := grantsOf([]*Role{{Permissions: everything.Permissions(), Capabilities: everything.Capabilities()}}); !all.Allow(Need{Access: ReadWrite, Space: Locks, Range: From(nil)}) {
		t.Errorf("root is shown as %+v", all)
	}
}
