package rights

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// names are all short names over a small alphabet, in order, so that ranges are likely to
// meet.
func names() (out [][]byte) {
	letters := []byte{0, 'a', 'b', 0xff}
	for _, x := range letters {
		out = append(out, []byte{x})
		for _, y := range letters {
			out = append(out, []byte{x, y})
		}
	}
	slices.SortFunc(out, bytes.Compare)
	return out
}

func randomPermission(r *rand.Rand, from [][]byte) Permission {
	p := Permission{Access: Access(1 + r.IntN(3)), Space: Space(r.IntN(2)), Key: from[r.IntN(len(from))]}
	switch r.IntN(5) {
	case 0:
		p.RangeEnd = []byte{0}
	case 1, 2, 3:
		p.RangeEnd = from[r.IntN(len(from))]
	}
	return p
}

// has says by the definition whether a permission covers a name.
func has(p Permission, access Access, space Space, name []byte) bool {
	if p.Access&access != access || p.Space != space {
		return false
	}
	switch {
	case len(p.RangeEnd) == 0:
		return bytes.Equal(p.Key, name)
	case bytes.Equal(p.RangeEnd, []byte{0}):
		return bytes.Compare(p.Key, name) <= 0
	}
	return bytes.Compare(p.Key, name) <= 0 && bytes.Compare(name, p.RangeEnd) < 0
}

// TestGrantsAreTheUnion compares single names with the definition (R1).
func TestGrantsAreTheUnion(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	all := names()
	for range 500 {
		var role Role
		for range r.IntN(6) {
			role.Permissions = append(role.Permissions, randomPermission(r, all))
		}
		half := len(role.Permissions) / 2
		g := grantsOf([]*Role{{Permissions: role.Permissions[:half]}, {Permissions: role.Permissions[half:]}})
		for _, name := range all {
			for _, access := range []Access{Read, Write} {
				for _, space := range []Space{Keys, Locks} {
					want := slices.ContainsFunc(role.Permissions, func(p Permission) bool { return has(p, access, space, name) })
					if got := g.Allow(Need{Access: access, Space: space, Range: Single(name)}); got != want {
						t.Fatalf("%v: %s %s %q is %v, want %v", role.Permissions, access, space, name, got, want)
					}
				}
			}
		}
	}
}

// TestRangesAreCoveredWhole: a range is allowed exactly if the ranges of the permissions
// leave no gap in it.
func TestRangesAreCoveredWhole(t *testing.T) {
	p := func(key, end string) Permission {
		return Permission{Access: ReadWrite, Key: []byte(key), RangeEnd: []byte(end)}
	}
	for _, c := range []struct {
		permissions []Permission
		start, end  string // an end of "" is open
		want        bool
	}{
		{[]Permission{p("a", "c"), p("c", "e")}, "a", "e", true},
		{[]Permission{p("a", "c"), p("d", "e")}, "a", "e", false},
		{[]Permission{p("a", "d"), p("b", "e")}, "a", "e", true},
		{[]Permission{p("b", "c"), p("a", "e")}, "a", "e", true},
		{[]Permission{p("a", "c")}, "a", "c\x00", false},
		{[]Permission{p("a", "c"), p("c", "")}, "a", "c\x00", true},
		{[]Permission{p("a", "c"), p("c", "")}, "a", "d", false},
		{[]Permission{p("a", "\x00")}, "a", "", true},
		{[]Permission{p("a", "\xff")}, "a", "", false},
		{[]Permission{p("\x00", "\x00")}, "", "", true},
		{[]Permission{p("a", "\x00")}, "", "", false},
		{[]Permission{p("b", "c")}, "a", "b\x01", false},
		{nil, "a", "b", false},
		{nil, "b", "a", true}, // no name is in it
	} {
		need := Need{Access: Read, Range: Range{Start: []byte(c.start)}}
		if c.end != "" {
			need.Range.End = []byte(c.end)
		}
		if got := grantsOf([]*Role{{Permissions: c.permissions}}).Allow(need); got != c.want {
			t.Errorf("%v: %s is %v, want %v", c.permissions, need, got, c.want)
		}
	}
}

// must applies a change that has to succeed.
func must(t testing.TB, tables *Tables, c Change) *Tables {
	t.Helper()
	after, _, err := tables.Apply(&c)
	if err != nil {
		t.Fatalf("%+v: %v", c, err)
	}
	return after
}

func withRoot(t testing.TB) *Tables {
	t.Helper()
	tables := must(t, New(), Change{PutUser: &User{Name: Root, Hash: []byte("h"), Roles: []string{Root}}})
	return must(t, tables, Change{Enable: true})
}

// TestRootStays holds R4.
func TestRootStays(t *testing.T) {
	if _, _, err := New().Apply(&Change{Enable: true}); !errors.Is(err, ErrNoRootUser) {
		t.Errorf("without root: %v", err)
	}
	tables := must(t, New(), Change{PutUser: &User{Name: Root}})
	if _, _, err := tables.Apply(&Change{Enable: true}); !errors.Is(err, ErrNoRootRole) {
		t.Errorf("without the role: %v", err)
	}
	tables = withRoot(t)
	for _, c := range []Change{{DeleteUser: Root}, {PutUser: &User{Name: Root}}} {
		if _, _, err := tables.Apply(&c); err == nil {
			t.Errorf("%+v is carried out", c)
		}
	}
	tables = must(t, tables, Change{Disable: true})
	must(t, tables, Change{DeleteUser: Root})
}

// TestStepsOfAChange: what a change has takes effect together, once, or not at all.
func TestStepsOfAChange(t *testing.T) {
	root := &User{Name: Root, Hash: []byte("h"), Roles: []string{Root}}
	tables := must(t, New(), Change{Revision: 1, PutUser: root, RotateKey: []byte("key"), Enable: true})
	if !tables.Enabled() || tables.User(Root) == nil || len(tables.Keys()) != 1 || tables.Revision() != 2 {
		t.Errorf("%+v", tables.state)
	}
	for _, c := range []Change{
		{},
		{Revision: 2},
		{Enable: true, Disable: true},
		{PutUser: &User{Name: "ann", Roles: []string{"missing"}}, Disable: true},
		{PutUser: &User{Name: "ann"}, DeleteUser: Root},
		{DeleteRole: "missing", Disable: true},
	} {
		before := tables.state
		if after, rows, err := tables.Apply(&c); err == nil || after != nil || rows != nil {
			t.Errorf("%+v: %+v, %v", c, rows, err)
		}
		if tables.state.Revision != before.Revision || !tables.Enabled() || tables.User("ann") != nil {
			t.Errorf("%+v has left %+v", c, tables.state)
		}
	}
	tables = must(t, tables, Change{PutRole: &Role{Name: "team"}, PutUser: &User{Name: "ann"}})
	if tables.Role("team") == nil || tables.User("ann") == nil {
		t.Error("a step of the change is missing")
	}
}

// TestWhoMayWhat goes through the kinds of users.
func TestWhoMayWhat(t *testing.T) {
	tables := withRoot(t)
	write := Need{Access: Write, Range: Single([]byte("a/1"))}
	if err := tables.Check("", write); err == nil || !strings.Contains(err.Error(), `write key "a/1"`) {
		t.Errorf("without credentials: %v", err)
	}
	tables = must(t, tables, Change{PutRole: &Role{Name: "team", Permissions: []Permission{{Access: ReadWrite, Key: []byte("a/"), RangeEnd: []byte("a0")}}, Capabilities: []Capability{Backup}}})
	tables = must(t, tables, Change{PutUser: &User{Name: "ann", Roles: []string{"team"}}})
	for _, c := range []struct {
		user string
		need Need
		want bool
	}{
		{"ann", write, true},
		{"ann", Need{Access: ReadWrite, Range: Range{Start: []byte("a/"), End: []byte("a0")}}, true},
		{"ann", Need{Access: Read, Range: From([]byte("a/"))}, false},
		{"ann", Need{Access: Write, Space: Locks, Range: Single([]byte("a/1"))}, false},
		{"ann", Need{Capability: Backup}, true},
		{"ann", Need{Capability: Auth}, false},
		{"bob", write, false},
		{Root, Need{Capability: Auth}, true},
		{Root, Need{Access: ReadWrite, Range: From(nil)}, true},
	} {
		if err := tables.Check(c.user, c.need); (err == nil) != c.want {
			t.Errorf("%s, %s: %v", c.user, c.need, err)
		}
	}
	tables = must(t, tables, Change{PutRole: &Role{Name: Anonymous, Permissions: []Permission{{Access: Read, Key: []byte("a/1")}}}})
	if err := tables.Check("", Need{Access: Read, Range: Single([]byte("a/1"))}); err != nil {
		t.Error(err)
	}
	tables = must(t, tables, Change{DeleteRole: "team"})
	if err := tables.Check("ann", write); err == nil || len(tables.User("ann").Roles) != 0 {
		t.Errorf("after the role is gone: %v, %v", tables.User("ann"), err)
	}
	tables = must(t, tables, Change{Disable: true})
	if err := tables.Check("", write); err != nil {
		t.Errorf("while rights are disabled: %v", err)
	}
}

// history applies random changes, of which many are refused.
func history(t *testing.T, r *rand.Rand, check func(before, after *Tables, rows []Row, err error)) {
	t.Helper()
	tables := New()
	name := func() string { return []string{"a", "b", "c", Root, Anonymous, "bad\x01"}[r.IntN(6)] }
	for range 400 {
		var c Change
		switch r.IntN(10) {
		case 0, 1:
			c.PutUser = &User{Name: name(), Hash: []byte{byte(r.IntN(256))}, Roles: []string{name(), name()}[:r.IntN(3)]}
			c.KeepPassword = r.IntN(2) == 0
		case 8:
			c.SetPassword = &Password{User: name(), Hash: []byte{byte(r.IntN(256))}}
		case 2, 3:
			c.PutRole = &Role{Name: name(), Permissions: []Permission{randomPermission(r, names()), randomPermission(r, names())}[:r.IntN(3)]}
		case 4:
			c.PutToken = &Token{ID: name(), User: name(), Sum: [32]byte{byte(r.IntN(9))}}
		case 5:
			c.DeleteUser = name()
		case 6:
			c.DeleteRole = name()
		case 7:
			c.DeleteToken = name()
		default:
			switch r.IntN(3) {
			case 0:
				c.Enable = true
			case 1:
				c.Disable = true
			default:
				c.RotateKey = []byte{byte(r.IntN(256))}
			}
		}
		if r.IntN(4) == 0 {
			c.Revision = tables.Revision() - uint64(r.IntN(2))
		}
		decoded, err := DecodeChange(EncodeChange(&c))
		if err != nil || !bytes.Equal(EncodeChange(decoded), EncodeChange(&c)) {
			t.Fatalf("%+v: %+v, %v", c, decoded, err)
		}
		after, rows, err := tables.Apply(decoded)
		check(tables, after, rows, err)
		if err == nil {
			tables = after
		}
	}
}

// TestRowsAreTheTables: the rows that changes return, loaded, are the tables, and changes
// survive being encoded. A refused change changes nothing (R2), and every other one raises
// the revision by one (R3).
func TestRowsAreTheTables(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	stored := make(map[string]Row)
	history(t, rand.New(rand.NewPCG(seed, 2)), func(before, after *Tables, rows []Row, err error) {
		if err != nil {
			mustEqual(t, before, load(t, stored))
			return
		}
		for _, r := range rows {
			if r.Value == nil {
				delete(stored, r.Key)
			} else if stored[r.Key] = r; CheckRow(r) != nil {
				t.Fatalf("%s: %v", r.Value, CheckRow(r))
			}
		}
		if after.Revision() != before.Revision()+1 {
			t.Fatalf("revision %d follows %d", after.Revision(), before.Revision())
		}
		mustEqual(t, after, load(t, stored))
	})
}

// load loads the rows of a test. Empty tables have none.
func load(t *testing.T, stored map[string]Row) *Tables {
	t.Helper()
	tables, err := Load(slices.Collect(maps.Values(stored)))
	if err != nil {
		t.Fatal(err)
	}
	return tables
}

func mustEqual(t *testing.T, got, want *Tables) {
	t.Helper()
	for _, pair := range [][2]any{{got.state, want.state}, {got.users, want.users}, {got.roles, want.roles}, {got.tokens, want.tokens}, {got.sizes, want.sizes}} {
		if got, want := mustJSON(pair[0]), mustJSON(pair[1]); !bytes.Equal(got, want) {
			t.Fatalf("%s, want %s", got, want)
		}
	}
	if fmt.Sprint(got.keys) != fmt.Sprint(want.keys) {
		t.Fatalf("keys %v, want %v", got.keys, want.keys)
	}
	if got.bytes != want.bytes || len(got.bySum) != len(want.tokens) {
		t.Fatalf("%d bytes, %d sums; want %d, %d", got.bytes, len(got.bySum), want.bytes, len(want.tokens))
	}
}

// TestEditsAreCountedAsInEtcd: enabling, tokens and keys are no edits.
func TestEditsAreCountedAsInEtcd(t *testing.T) {
	tables := New()
	for i, c := range []struct {
		change Change
		edit   bool
	}{
		{Change{PutUser: &User{Name: Root, Roles: []string{Root}}}, true},
		{Change{SetPassword: &Password{User: Root, Hash: []byte("h")}}, true},
		{Change{PutRole: &Role{Name: "team"}}, true},
		{Change{Enable: true}, false},
		{Change{RotateKey: []byte("key")}, false},
		{Change{PutToken: &Token{ID: "t", User: Root}}, false},
		{Change{DeleteToken: "t"}, false},
		{Change{DeleteRole: "team"}, true},
		{Change{Disable: true}, true},
		{Change{DeleteUser: Root}, true},
	} {
		before := tables.Edits()
		tables = must(t, tables, c.change)
		if want := before + map[bool]uint64{true: 1}[c.edit]; tables.Edits() != want || tables.Revision() != uint64(i+2) {
			t.Errorf("%+v: edits %d, revision %d; want %d, %d", c.change, tables.Edits(), tables.Revision(), want, i+2)
		}
	}
}

// TestRefusedRows: what Apply does not produce is not loaded.
func TestRefusedRows(t *testing.T) {
	for _, r := range []Row{
		{Key: "x/a", Value: []byte("{}")},
		{Key: "u/a", Value: []byte(`{"name":"b"}`)},
		{Key: "u/a", Value: []byte(`{"name":"a","roles":[]}`)},
		{Key: "u/a", Value: []byte(`{"name":"a"} `)},
		{Key: "u/a", Value: []byte(`{`)},
		{Key: "r/a", Value: []byte(`{"name":"a","permissions":[{"access":"none","space":"key","key":"YQ=="}]}`)},
		{Key: "s", Value: []byte(`{"enabled":1}`)},
	} {
		if err := CheckRow(r); !errors.Is(err, ErrRow) {
			t.Errorf("%s: %v", r.Value, err)
		}
	}
}

// TestTheTablesAreBounded: what would not fit is refused, and names the limit.
func TestTheTablesAreBounded(t *testing.T) {
	tables := New()
	long := strings.Repeat("x", 4000)
	for i := 0; ; i++ {
		role := Role{Name: fmt.Sprint("r", i)}
		for j := range MaxPermissions {
			role.Permissions = append(role.Permissions, Permission{Access: Read, Key: fmt.Append(nil, long, j)})
		}
		after, _, err := tables.Apply(&Change{PutRole: &role})
		if err != nil {
			if !strings.Contains(err.Error(), fmt.Sprint(MaxBytes)) || tables.bytes > MaxBytes {
				t.Errorf("%d bytes: %v", tables.bytes, err)
			}
			return
		}
		tables = after
	}
}

// A refusal names what was asked for as it was asked for.
func TestNeedText(t *testing.T) {
	span := func(start, end string) Range { return Range{Start: []byte(start), End: []byte(end)} }
	for _, c := range []struct {
		need Need
		want string
	}{
		{Need{Access: Write, Range: Single([]byte("a"))}, `write key "a"`},
		{Need{Access: Read, Range: From(nil)}, `read all keys`},
		{Need{Access: Read, Range: From([]byte{0})}, `read all keys`},
		{Need{Access: Read, Range: From([]byte("b"))}, `read keys from "b" on`},
		{Need{Access: ReadWrite, Range: span("a/", "a0")}, `read and write keys with the prefix "a/"`},
		{Need{Access: Read, Range: span("a\xff\xff", "b")}, `read keys with the prefix "a\xff\xff"`},
		{Need{Access: Read, Range: span("a\xff/", "b")}, `read keys from "a\xff/" to "b"`},
		{Need{Access: Read, Range: span("a", "c")}, `read keys from "a" to "c"`},
		{Need{Access: Read, Range: span("ab", "b")}, `read keys from "ab" to "b"`},
		{Need{Access: Read, Range: span("", "b")}, `read keys from "" to "b"`},
		{Need{Access: Write, Space: Locks, Range: span("job", "joc")}, `write locks with the prefix "job"`},
	} {
		if got := c.need.String(); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}
