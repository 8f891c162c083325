package rights

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
)

// FuzzChange applies arbitrary changes to the tables, by ann, who may change some rights,
// and by root. A change has one encoding; the rows that it returns are the tables; and ann
// gives and takes nothing that she does not have (R6).
func FuzzChange(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 30 {
		c := randomEdit(r)
		f.Add(EncodeChange(&c), r.Uint64())
	}
	for _, c := range []Change{
		{SetPassword: &Password{User: "bob", Hash: []byte("h")}}, {RotateKey: []byte("k"), Enable: true}, {Disable: true, Revision: 9}, {PutToken: &Token{ID: "t", User: "ann", Expires: 1}, DeleteUser: "ann"},
		{PutUser: &User{Name: "ann", Roles: []string{"r1", "r1"}}, KeepPassword: true},
	} {
		f.Add(EncodeChange(&c), uint64(7))
	}
	f.Add([]byte(`{"put_user":{"name":"a","Name":"b"}}`), uint64(0))
	all := needs()
	f.Fuzz(func(t *testing.T, text []byte, seed uint64) {
		c, err := DecodeChange(text)
		if err != nil {
			return
		}
		if !bytes.Equal(EncodeChange(c), text) {
			t.Fatalf("%q is encoded as %q", text, EncodeChange(c))
		}
		tables := randomTables(t, rand.New(rand.NewPCG(seed, 4)))
		stored := rowsOf(tables)
		after, rows, err := tables.Apply(c)
		if err != nil {
			mustEqual(t, tables, load(t, stored)) // R2
			return
		}
		for _, row := range rows {
			switch {
			case row.Value == nil:
				delete(stored, row.Key)
			case CheckRow(row) != nil:
				t.Fatalf("%s: %v", row.Value, CheckRow(row))
			default:
				stored[row.Key] = row
			}
		}
		mustEqual(t, after, load(t, stored))
		if tables.CheckChange("ann", c) == nil && c.PutToken == nil {
			checkGains(t, tables, after, all, text)
		}
	})
}

// rowsOf returns the rows of the tables.
func rowsOf(tables *Tables) map[string]Row {
	out := map[string]Row{stateRow: {Key: stateRow, Value: mustJSON(&tables.state)}}
	for name, u := range tables.users {
		out["u/"+name] = userRow(u)
	}
	for name, r := range tables.roles {
		out["r/"+name] = Row{Key: "r/" + name, Value: mustJSON(r)}
	}
	return out
}

// checkGains checks that ann may herself do what anybody gained or lost by a change of hers.
func checkGains(t *testing.T, before, after *Tables, all []Need, text []byte) {
	for _, user := range append(after.Users(), append(before.Users(), "")...) {
		for _, n := range all {
			if before.Grants(user).Allow(n) != after.Grants(user).Allow(n) && !before.Grants("ann").Allow(n) {
				t.Fatalf("ann, who may not %s, has changed whether %q may: %s", n, user, text)
			}
		}
	}
}

// FuzzRow: a row that is accepted is what the entry in it is written as, so that two
// replicas cannot read one row differently, and it survives being loaded.
func FuzzRow(f *testing.F) {
	for _, rows := range []map[string]Row{rowsOf(randomTables(f, rand.New(rand.NewPCG(3, 4)))), {}} {
		for _, row := range rows {
			f.Add(row.Key, row.Value, row.Secret)
		}
	}
	secret := []byte("secret")
	f.Add(keyRow(7, secret), secret, true)
	f.Add("t/x", mustJSON(&Token{ID: "x", User: "ann", Created: 1}), false)
	f.Add("u/a/b", []byte(`{"name":"a/b"}`), false)
	f.Add("s", []byte(`{"enabled":true,"revision":1,"edits":0}`), false)
	f.Fuzz(func(t *testing.T, key string, value []byte, secret bool) {
		row := Row{Key: key, Value: value, Secret: secret}
		tables, err := Load([]Row{row})
		if (err == nil) != (CheckRow(row) == nil) {
			t.Fatalf("%q=%q: %v, but %v", key, value, err, CheckRow(row))
		}
		if err != nil || secret {
			return
		}
		again := rowsOf(tables)
		for _, token := range tables.tokens {
			again["t/"+token.ID] = Row{Key: "t/" + token.ID, Value: mustJSON(token)}
		}
		if got := again[key]; !bytes.Equal(got.Value, value) {
			t.Fatalf("%q=%q is written as %q", key, value, got.Value)
		}
		if tables.state.Enabled { // whatever is in it, nobody but root may do everything
			for _, name := range tables.Users() {
				if g := tables.Grants(name); g.All() && !slices.Contains(tables.User(name).Roles, Root) {
					t.Fatalf("%q may do everything", name)
				}
			}
		}
	})
}

// FuzzGrants compares the rights of roles with arbitrary ranges with the definition, name by
// name, and those of a range with the rights to each name in it (R1).
func FuzzGrants(f *testing.F) {
	f.Add([]byte("a"), []byte{}, []byte("b"), []byte{0}, []byte("a"), []byte("c"), uint8(0o77))
	f.Add([]byte("a"), []byte("b"), []byte("b"), []byte("c"), []byte("a"), []byte("b\x00"), uint8(0o11))
	f.Add([]byte("a"), []byte("a\xff"), []byte("a\xff"), []byte{}, []byte("a"), []byte("a\xff\x00"), uint8(0o33))
	f.Add([]byte{0}, []byte{0}, []byte{0xff}, []byte{}, []byte{}, []byte{}, uint8(0o21))
	f.Fuzz(func(t *testing.T, key1, end1, key2, end2, start, end []byte, kinds uint8) {
		permissions := []Permission{
			{Access: Access(kinds & 3), Space: Space(kinds >> 2 & 1), Key: key1, RangeEnd: end1},
			{Access: Access(kinds >> 3 & 3), Space: Space(kinds >> 5 & 1), Key: key2, RangeEnd: end2},
		}
		permissions = slices.DeleteFunc(permissions, func(p Permission) bool { return p.Validate() != nil })
		g := grantsOf([]*Role{{Permissions: permissions}})
		asked := Range{Start: start, End: end, One: kinds&0x40 != 0}
		if kinds&0x80 != 0 {
			asked.End = nil
		}
		// The rights change at these names alone, or right behind them.
		var all [][]byte
		for _, b := range [][]byte{key1, end1, key2, end2, start, end, {0}, {0xff, 0xff}} {
			all = append(all, b, append(bytes.Clone(b), 0), append(bytes.Clone(b), 0xff))
		}
		for _, access := range []Access{Read, Write} {
			for _, space := range []Space{Keys, Locks} {
				whole := true
				for _, name := range all {
					want := slices.ContainsFunc(permissions, func(p Permission) bool { return has(p, access, space, name) })
					if got := g.Allow(Need{Access: access, Space: space, Range: Single(name)}); got != want && len(name) > 0 {
						t.Fatalf("%v: %s %s %q is %v, want %v", permissions, access, space, name, got, want)
					}
					whole = whole && (want || len(name) == 0 || !within(asked, name))
				}
				if got := g.Allow(Need{Access: access, Space: space, Range: asked}); got != whole && len(start) > 0 {
					t.Fatalf("%v: %s %s %s is %v, want %v", permissions, access, space, asked, got, whole)
				}
			}
		}
	})
}

// within says by the definition whether a range has a name.
func within(r Range, name []byte) bool {
	if r.One {
		return bytes.Equal(r.Start, name)
	}
	return bytes.Compare(r.Start, name) <= 0 && (r.End == nil || bytes.Compare(name, r.End) < 0)
}
