package rights

import (
	"bytes"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestTablesWithoutSecrets: a table with only the hashes of keys, because it came out of a
// backup, changes the same rows, and refuses the same changes.
func TestTablesWithoutSecrets(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	stored, keys := make(map[string]Row), 0
	history(t, rand.New(rand.NewPCG(seed, 3)), func(before, after *Tables, rows []Row, err error) {
		if err != nil {
			return
		}
		mustEqual(t, before, load(t, stored))
		for _, r := range rows {
			if delete(stored, r.Key); r.Value != nil {
				stored[r.Key] = r
			}
		}
		sealed := maps.Clone(stored)
		for key, r := range sealed {
			if r.Secret {
				r.Value = nil
				sealed[key] = r
			}
		}
		with, without := load(t, stored), load(t, sealed)
		if len(without.Keys()) != 0 || len(with.Keys()) != len(with.keys) || with.bytes != without.bytes {
			t.Fatalf("keys %q without secrets, %q with; %d and %d bytes", without.Keys(), with.Keys(), without.bytes, with.bytes)
		}
		_, left, err1 := with.Apply(&Change{RotateKey: []byte("next")})
		_, right, err2 := without.Apply(&Change{RotateKey: []byte("next")})
		if err1 != nil || err2 != nil || string(mustJSON(left)) != string(mustJSON(right)) {
			t.Fatalf("%s, %v; without secrets %s, %v", mustJSON(left), err1, mustJSON(right), err2)
		}
		keys = max(keys, len(with.keys))
	})
	if keys != 2 {
		t.Errorf("there were %d keys at most, want 2", keys)
	}
}

// TestRestoredTables: a restored cluster has no keys, and a revision that nobody has seen.
func TestRestoredTables(t *testing.T) {
	tables := must(t, New(), Change{PutUser: &User{Name: Root, Roles: []string{Root}}, RotateKey: []byte("key"), Enable: true})
	after, rows := tables.Restored(100)
	if after.Revision() != tables.Revision()+100 || !after.Enabled() || len(after.keys) != 0 || len(tables.Keys()) != 1 {
		t.Errorf("%+v from %+v", after, tables)
	}
	if len(rows) != 2 || rows[0].Value != nil || rows[0].Key != tables.keys[0].row || rows[1].Key != stateRow {
		t.Errorf("rows %+v", rows)
	}
}

// TestForgedKeyRows: a secret is the one that its row is named by.
func TestForgedKeyRows(t *testing.T) {
	good := Row{Key: keyRow(7, []byte("key")), Value: []byte("key"), Secret: true}
	long := bytes.Repeat([]byte("k"), MaxLoginKeyBytes+1)
	for _, c := range []struct {
		row Row
		ok  bool
	}{
		{good, true},
		{Row{Key: good.Key, Secret: true}, true},
		{Row{Key: good.Key, Value: good.Value}, false},
		{Row{Key: good.Key, Value: []byte("other"), Secret: true}, false},
		{Row{Key: good.Key + "0", Value: good.Value, Secret: true}, false},
		{Row{Key: "x" + good.Key, Value: good.Value, Secret: true}, false},
		{Row{Key: "u/ann", Value: mustJSON(&User{Name: "ann"}), Secret: true}, false},
		{Row{Key: keyRow(7, long), Value: long, Secret: true}, false},
	} {
		if err := CheckRow(c.row); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrRow) {
			t.Errorf("%+v: %v", c.row, err)
		}
	}
	if _, _, err := New().Apply(&Change{RotateKey: long}); err == nil {
		t.Error("a key beyond the limit is taken")
	}
	older, newer := keyRow(9, nil), keyRow(1<<40, nil)
	if tables, err := Load([]Row{{Key: newer, Secret: true}, {Key: older, Secret: true}}); err != nil || !slices.Equal([]string{tables.keys[0].row, tables.keys[1].row}, []string{newer, older}) {
		t.Errorf("%+v, %v", tables, err)
	}
}
