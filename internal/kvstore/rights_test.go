package kvstore

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore/body"
	"github.com/kvd-io/kvd/internal/kvstore/engine"
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

// TestLeaseOfAForeignLock: ending a lease releases its locks, which is a write of them.
func TestLeaseOfAForeignLock(t *testing.T) {
	s := newStore(t, "memory")
	withRights(t, s)
	by := func(user string, c Command) Command {
		c.Origin = Origin{Principal: user}
		return c
	}
	lock := Command{Op: OpLock, Key: []byte("l"), Lease: 7}
	results := do(t, s,
		by(rights.Root, Command{Op: OpLeaseGrant, Lease: 7, TTLMillis: 60_000}), by(rights.Root, lock),
		by("ann", Command{Op: OpLeaseRevoke, Lease: 7}), by("ann", lock), by(rights.Root, Command{Op: OpLeaseRevoke, Lease: 7}),
	)
	for i, want := range []Outcome{OK, OK, PermissionDenied, PermissionDenied, OK} {
		if results[i].Outcome != want {
			t.Errorf("command %d: %+v, want outcome %d", i, results[i], want)
		}
	}
}

// TestRightsChanged: the channel is closed by a change of rights, and by nothing else.
func TestRightsChanged(t *testing.T) {
	s := newStore(t, "memory")
	changed, before := RightsChanged(s), s.Rights()
	closed := func() bool {
		select {
		case <-changed:
			return true
		default:
			return false
		}
	}
	do(t, s, putAs("", "a"))
	changeRights(t, s, "", rights.Change{DeleteUser: "nobody"})
	if closed() || s.Rights() != before {
		t.Error("a put and a refused change count as changes")
	}
	changeRights(t, s, "", rights.Change{PutUser: &rights.User{Name: "ann"}})
	if !closed() || s.Rights() == before {
		t.Error("the channel is open after a change")
	}
}

// TestRightsAreReported: each change that takes effect is reported with who made it, those
// that are refused are not.
func TestRightsAreReported(t *testing.T) {
	var reports []string
	s := openStore(t, engine.NewMemory(), Options{OnRights: func(did []string, revision uint64, removed int, by Origin) {
		reports = append(reports, fmt.Sprintf("%d %s by %q, %d tokens removed", revision, did, by.Principal, removed))
	}})
	withRights(t, s)
	reports = nil
	changeRights(t, s, "ann", rights.Change{DeleteUser: rights.Root})
	changeRights(t, s, rights.Root, rights.Change{DeleteUser: "nobody"})
	changeRights(t, s, rights.Root, rights.Change{DeleteUser: "ann", PutRole: &rights.Role{Name: "new"}})
	if want := []string{`8 [delete user "ann" put role "new" with 0 permissions and capabilities []] by "root", 1 tokens removed`}; !slices.Equal(reports, want) {
		t.Errorf("reported %q, want %q", reports, want)
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

// TestConditionsOfChanges: an entry has the revision of the rights as its tag, and 0 where
// it does not exist; what does not exist cannot be changed.
func TestConditionsOfChanges(t *testing.T) {
	s := newStore(t, "memory")
	withRights(t, s)
	ann, eve := &rights.User{Name: "ann"}, &rights.User{Name: "eve"}
	if1 := func(kind ConditionKind, revisions ...uint64) []Condition {
		return []Condition{{Kind: kind, Revisions: revisions}}
	}
	revision := s.Rights().Revision()
	for i, c := range []struct {
		change     rights.Change
		conditions []Condition
		want       Outcome
		now        uint64
	}{
		{rights.Change{PutUser: ann}, if1(IfMatch, revision-1), PreconditionFailed, revision},
		{rights.Change{PutUser: eve}, []Condition{{Kind: IfMatch, Any: true}}, PreconditionFailed, 0},
		{rights.Change{PutUser: ann}, []Condition{{Kind: IfNoneMatch, Any: true}}, PreconditionFailed, revision},
		{rights.Change{PutUser: eve}, if1(IfRevision, 0), OK, revision + 1},
		{rights.Change{PutUser: ann}, if1(IfMatch, 3, revision+1), OK, revision + 2},
		{rights.Change{DeleteUser: "nobody"}, nil, KeyNotFound, 0},
	} {
		r := do(t, s, Command{Op: OpRights, Rights: &c.change, Conditions: c.conditions, Origin: Origin{Principal: rights.Root}})[0]
		if r.Outcome != c.want || r.KV.ModRevision != c.now {
			t.Errorf("%d: %+v, want outcome %d at %d", i, r, c.want, c.now)
		}
	}
}

// TestOwnPassword: who has no right to change rights can change what is its own, and
// nothing else.
func TestOwnPassword(t *testing.T) {
	s := newStore(t, "memory")
	withRights(t, s)
	for _, c := range []struct {
		user string
		want Outcome
	}{{"ann", OK}, {rights.Root, PermissionDenied}} {
		if r := changeRights(t, s, "ann", rights.Change{SetPassword: &rights.Password{User: c.user, Hash: []byte("new")}}); r.Outcome != c.want {
			t.Errorf("the password of %s: %+v", c.user, r)
		}
	}
	if u := s.Rights().User("ann"); string(u.Hash) != "new" || len(u.Roles) != 1 {
		t.Errorf("%+v", u)
	}
}

// backupOf is bodyOf without secrets.
func backupOf(t *testing.T, s *Store) []byte {
	t.Helper()
	v := mustGet[*View](t)(s.View())
	var b bytes.Buffer
	mustGet[int64](t)(v.WriteBackup(&b))
	must(t, v.Close())
	return b.Bytes()
}

// contains reports whether the records of a body, decompressed, have some bytes.
func contains(t *testing.T, stored, what []byte) (found bool) {
	t.Helper()
	_, _, err := body.Read(bytes.NewReader(stored), func(string, byte) error { return nil }, func(key, value []byte) error {
		found = found || bytes.Contains(key, what) || bytes.Contains(value, what)
		return nil
	})
	must(t, err)
	return found
}

// TestBackupHasNoSecret: a backup has what a body for a replica has, and is verified by the
// same state hash, but it lacks the keys that sign logins. What is made from it has none,
// and makes its own; replicas are equal at any time.
func TestBackupHasNoSecret(t *testing.T) {
	s := newStore(t, "memory")
	withRights(t, s)
	secret := []byte("0123456789abcdef0123456789abcdef01234567")
	changeRights(t, s, rights.Root, rights.Change{RotateKey: secret})
	replica, backup := bodyOf(t, s), backupOf(t, s)
	if !contains(t, replica, secret) || contains(t, backup, secret) {
		t.Errorf("the key is in the body for replicas: %t; in the backup: %t", contains(t, replica, secret), contains(t, backup, secret))
	}
	if bytes.Contains(backup, secret) {
		t.Error("the key is in the backup as it is stored")
	}
	full, sealed := mustGet[BodyInfo](t)(VerifyBody(bytes.NewReader(replica))), mustGet[BodyInfo](t)(VerifyBody(bytes.NewReader(backup)))
	if full.StateHash != sealed.StateHash || full.Records != sealed.Records || full.Bytes != sealed.Bytes+uint64(len("key")+len(secret)) {
		t.Errorf("backup %+v, want %+v without the keys", sealed, full)
	}

	first, second := newStore(t, "pebble"), newStore(t, "memory")
	for _, r := range []*Store{first, second} {
		must(t, r.Restore(bytes.NewReader(backup)))
		if keys := r.Rights().Keys(); len(keys) > 0 {
			t.Errorf("keys %q out of a backup", keys)
		}
		must(t, r.RaiseCounters())
	}
	before := s.Rights().Revision()
	if got := first.Rights(); got.Revision() != before+RaisedBy || !got.Enabled() || len(got.Keys()) > 0 {
		t.Errorf("rights at %d with keys %q", got.Revision(), got.Keys())
	}
	own := []byte("another key")
	for _, r := range []*Store{first, second} {
		changeRights(t, r, rights.Root, rights.Change{RotateKey: own})
		if keys := r.Rights().Keys(); len(keys) != 1 || !bytes.Equal(keys[0], own) {
			t.Errorf("keys %q", keys)
		}
		checkHash(t, r)
	}
	third := newStore(t, "memory")
	must(t, third.Restore(bytes.NewReader(bodyOf(t, first))))
	if !bytes.Equal(bodyOf(t, first), bodyOf(t, second)) || !bytes.Equal(bodyOf(t, first), bodyOf(t, third)) {
		t.Error("replicas differ")
	}
	if keys := third.Rights().Keys(); len(keys) != 1 || !bytes.Equal(keys[0], own) {
		t.Errorf("keys %q out of a body for replicas", keys)
	}

	// A cluster may also be made from a body for replicas, which lies in a data directory.
	raw := newStore(t, "memory")
	must(t, raw.Restore(bytes.NewReader(replica)))
	if len(raw.Rights().Keys()) != 2 {
		t.Errorf("keys %q", raw.Rights().Keys())
	}
	must(t, raw.RaiseCounters())
	if keys := raw.Rights().Keys(); len(keys) > 0 {
		t.Errorf("keys %q in a restored cluster", keys)
	}
	checkHash(t, raw)
}
