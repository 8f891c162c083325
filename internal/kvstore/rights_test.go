package kvstore

import (
	"bytes"
	"testing"

	"github.com/kvd-io/kvd/internal/rights"
)

// withRights applies what enables rights, with the user ann, who may write below a/.
func withRights(t *testing.T, s *Store) {
	t.Helper()
	for _, c := range []rights.Change{
		{PutUser: &rights.User{Name: rights.Root, Hash: []byte("hash"), Roles: []string{rights.Root}}},
		{PutRole: &rights.Role{Name: "team", Permissions: []rights.Permission{{Access: rights.ReadWrite, Key: []byte("a/"), RangeEnd: []byte("a0")}}}},
		{PutUser: &rights.User{Name: "ann", Roles: []string{"team"}}},
		{PutToken: &rights.Token{ID: "t1", User: "ann", Sum: [32]byte{1}}},
		{RotateKey: []byte("key")},
		{Enable: true},
	} {
		if r := changeRights(t, s, "", c); r.Outcome != OK {
			t.Fatalf("%+v: %+v", c, r)
		}
	}
}

func changeRights(t *testing.T, s *Store, by string, c rights.Change) Result {
	t.Helper()
	return do(t, s, Command{Op: OpRights, Rights: &c, Origin: Origin{Principal: by}})[0]
}

func putAs(user, key string) Command {
	return Command{Op: OpPut, Key: []byte(key), Value: []byte("v"), Origin: Origin{Principal: user, AuthRevision: 1}}
}

// TestQueuedWriteOfARevokedUser: what is behind a revocation in the log is judged by it,
// even in the same entry, and leaves no trace.
func TestQueuedWriteOfARevokedUser(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		withRights(t, s)
		revision := s.Revision()
		results := do(t, s,
			putAs("ann", "a/1"),
			putAs("ann", "b"),
			Command{Op: OpRights, Rights: &rights.Change{DeleteRole: "team"}, Origin: Origin{Principal: "ann"}},
			Command{Op: OpRights, Rights: &rights.Change{DeleteUser: "ann"}, Origin: Origin{Principal: rights.Root}},
			putAs("ann", "a/2"),
			putAs("", "a/3"),
			putAs(rights.Root, "b"),
		)
		for i, want := range []Outcome{OK, PermissionDenied, PermissionDenied, OK, PermissionDenied, PermissionDenied, OK} {
			if results[i].Outcome != want {
				t.Errorf("command %d: %+v, want outcome %d", i, results[i], want)
			}
		}
		if got := s.Revision(); got != revision+2 {
			t.Errorf("revision %d, want two more than %d", got, revision)
		}
		if s.Rights().Token("t1") != nil {
			t.Error("the token of the user is still there")
		}
	})
}

// TestPermissionComesBeforeRecords: a refusal is not recorded for the idempotency key, and
// a record does not answer somebody who has lost the right since.
func TestPermissionComesBeforeRecords(t *testing.T) {
	s := newStore(t, "memory")
	withRights(t, s)
	put := putAs("ann", "b")
	put.Idempotency = &Idempotency{Key: "k"}
	if r := do(t, s, put)[0]; r.Outcome != PermissionDenied {
		t.Fatalf("%+v", r)
	}
	changeRights(t, s, rights.Root, rights.Change{PutRole: &rights.Role{Name: "team", Permissions: []rights.Permission{{Access: rights.Write, Key: []byte("b")}}}})
	if r := do(t, s, put)[0]; r.Outcome != OK || r.Replayed {
		t.Fatalf("with the right: %+v", r)
	}
	changeRights(t, s, rights.Root, rights.Change{DeleteRole: "team"})
	if r := do(t, s, put)[0]; r.Outcome != PermissionDenied {
		t.Errorf("without the right again: %+v", r)
	}
}

// TestLeasesOfOthers: a lease with a key that the user may not write can neither be used
// nor ended by it.
func TestLeasesOfOthers(t *testing.T) {
	s := newStore(t, "memory")
	withRights(t, s)
	grant := Command{Op: OpLeaseGrant, Lease: 7, TTLMillis: 60_000, Origin: Origin{Principal: "ann"}}
	bound := putAs("ann", "a/1")
	bound.Lease = 7
	foreign := putAs(rights.Root, "b")
	foreign.Lease = 7
	revoke := Command{Op: OpLeaseRevoke, Lease: 7, Origin: Origin{Principal: "ann"}}
	results := do(t, s, grant, bound, foreign, bound, revoke)
	for i, want := range []Outcome{OK, OK, OK, PermissionDenied, PermissionDenied} {
		if results[i].Outcome != want {
			t.Errorf("command %d: %+v, want outcome %d", i, results[i], want)
		}
	}
}

// TestGuardSurvives: rights are in the hash, and come back after a restart and out of a
// body.
func TestGuardSurvives(t *testing.T) {
	e := newEngine(t, "memory")
	s := openStore(t, e, Options{})
	_, before := s.StateHash()
	withRights(t, s)
	if _, after := s.StateHash(); after == before {
		t.Error("rights do not change the state hash")
	}
	checkHash(t, s)
	var body bytes.Buffer
	v := mustGet[*View](t)(s.View())
	mustGet[int64](t)(v.WriteTo(&body))
	must(t, v.Close())
	restored := newStore(t, "pebble")
	must(t, restored.Restore(&body))
	checkHash(t, restored)
	for name, s := range map[string]*Store{"restored": restored, "opened again": openStore(t, e, Options{})} {
		tables := s.Rights()
		if !tables.Enabled() || tables.Revision() != 7 || tables.Token("t1") == nil || len(tables.Keys()) != 1 {
			t.Errorf("%s: %+v", name, tables)
		}
		if r := do(t, s, putAs("ann", "b"))[0]; r.Outcome != PermissionDenied {
			t.Errorf("%s: %+v", name, r)
		}
		if r := do(t, s, putAs("ann", "a/1"))[0]; r.Outcome != OK {
			t.Errorf("%s: %+v", name, r)
		}
	}
	// What kvd itself proposes is never refused.
	if r := do(t, s, Command{Op: OpTick, Term: 1, ElapsedMillis: 5})[0]; r.Outcome != OK {
		t.Errorf("tick: %+v", r)
	}
}

// TestStaleChange: a change against other tables is refused, and says so.
func TestStaleChange(t *testing.T) {
	s := newStore(t, "memory")
	withRights(t, s)
	revision := s.Rights().Revision()
	c := rights.Change{Revision: revision - 1, DeleteUser: "ann"}
	if r := changeRights(t, s, rights.Root, c); r.Outcome != PreconditionFailed || s.Rights().User("ann") == nil {
		t.Errorf("%+v", r)
	}
	c.Revision = revision
	if r := changeRights(t, s, rights.Root, c); r.Outcome != OK || s.Rights().User("ann") != nil {
		t.Errorf("%+v", r)
	}
}
