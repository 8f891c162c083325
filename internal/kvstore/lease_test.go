package kvstore

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/ticket"
)

func grant(id uint64, millis int64) Command {
	return Command{Op: OpLeaseGrant, Lease: id, TTLMillis: millis}
}

func revoke(id uint64) Command { return Command{Op: OpLeaseRevoke, Lease: id} }

// expire is what the leader of the entries' term proposes.
func expire(asOf uint64, ids ...uint64) Command {
	return Command{Op: OpLeaseExpire, Term: 1, Sequence: asOf, Leases: ids}
}

func putBound(key string, lease uint64) Command {
	c := put(key, "v")
	c.Lease = lease
	return c
}

func putTTL(key string, millis int64) Command {
	c := put(key, "v")
	c.TTLMillis = millis
	return c
}

// only applies one command and returns its result, which must have the outcome.
func only(t *testing.T, s *Store, want Outcome, c Command) Result {
	t.Helper()
	r := do(t, s, c)[0]
	if r.Outcome != want {
		t.Fatalf("%+v: outcome %d (%s), want %d", c, r.Outcome, r.Detail, want)
	}
	return r
}

// leaseIDs returns the leases that exist.
func leaseIDs(t *testing.T, s *Store) (ids []uint64) {
	t.Helper()
	for _, l := range mustGet[[]LeaseInfo](t)(s.Leases(0, 1000)) {
		ids = append(ids, l.ID)
	}
	return ids
}

// TestLeaseEndIsOneRevision: the keys go in their order, whatever the order of the puts,
// and a lease without keys raises no revision.
func TestLeaseEndIsOneRevision(t *testing.T) {
	o := &observed{}
	s := openStore(t, engine.NewMemory(), Options{Observer: o})
	defer s.Close()
	o.store = s
	do(t, s, grant(5, 1000), grant(6, 1000), putBound("b", 5), putBound("a", 5), putBound("c", 6), put("d", "stays"))
	o.heard = nil
	do(t, s, revoke(5))
	want := []string{"at 5:", `revision 6 deleted true ["a"="" create 0 mod 6 version 0 lease 0] previous [nothing] deleted true ["b"="" create 0 mod 6 version 0 lease 0] previous [nothing]`, "shown 6"}
	if fmt.Sprint(o.heard) != fmt.Sprint(want) {
		t.Errorf("heard %q", o.heard)
	}
	do(t, s, grant(7, 1000))
	if r := only(t, s, OK, revoke(7)); r.Revision != 6 || r.Deleted != 0 {
		t.Errorf("the end of a lease without keys: %+v", r)
	}
	checkCounters(t, s)
}

// TestExpiryOfDeposedLeader: its clock and what it knows of keep-alives do not count
// anymore. The entries are of term 1.
func TestExpiryOfDeposedLeader(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		do(t, s, grant(5, 1000), putBound("a", 5))
		late := expire(100, 5)
		late.Term = 0
		only(t, s, Ignored, late)
		late.Term = 2
		only(t, s, Ignored, late)
		if got := contentOf(t, s); len(got) != 1 || len(leaseIDs(t, s)) != 1 {
			t.Fatalf("an expiry of another term left %q, leases %v", got, leaseIDs(t, s))
		}
		only(t, s, OK, expire(100, 5, 77))
		if got := contentOf(t, s); len(got) != 0 || len(leaseIDs(t, s)) != 0 {
			t.Errorf("after the expiry there are %q, leases %v", got, leaseIDs(t, s))
		}
	})
}

// TestExpiryMeansAGrant: the id was granted again while the expiry was on its way.
func TestExpiryMeansAGrant(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		do(t, s, grant(5, 1000))
		seq := mustGet[LeaseInfo](t)(s.Lease(5)).Seq
		do(t, s, revoke(5), grant(5, 2000), putBound("a", 5), expire(seq, 5))
		if l, err := s.Lease(5); err != nil || l.TTLMillis != 2000 || l.Keys != 1 {
			t.Errorf("the new lease: %+v, %v", l, err)
		}
	})
}

// TestExpiriesAreSeparateRevisions: leases that end in one entry have nothing to do with
// each other.
func TestExpiriesAreSeparateRevisions(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		do(t, s, grant(5, 1000), grant(6, 1000), grant(7, 1000), putBound("a", 5), putBound("b", 7))
		before := s.Revision()
		if r := only(t, s, OK, expire(100, 5, 6, 7)); r.Revision != before+2 || r.Deleted != 2 {
			t.Errorf("%+v after revision %d", r, before)
		}
	})
}

// TestOwnLease: a lease that a write made for its key ends with the binding, and takes no
// other key.
func TestOwnLease(t *testing.T) {
	for name, unbind := range map[string]Command{
		"put": put("a", "2"), "put with a new one": putTTL("a", 5), "delete": remove("a"), "delete range": deleteRange("a", "b"),
		"bind": putBound("a", 1000), "txn": txnOf(Txn{Then: []Command{remove("a")}}), "expiry": expire(100, 2),
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, "pebble")
			do(t, s, grant(1000, 1000))
			r := only(t, s, OK, putTTL("a", 30_000))
			if r.Lease == nil || r.Lease.ID != 2 || r.Lease.TTLMillis != 30_000 || r.KV.Lease != 2 {
				t.Fatalf("%+v", r)
			}
			only(t, s, LeaseNotFound, putBound("b", 2))
			only(t, s, LeaseNotFound, Command{Op: OpLock, Key: []byte("l"), Lease: 2})
			only(t, s, OK, putBound("a", 2)) // it has it already
			do(t, s, incr("n", 1), Command{Op: OpAppend, Key: []byte("a"), Value: []byte("x")})
			if l, err := s.Lease(2); err != nil || l.Keys != 1 {
				t.Fatalf("an append must keep the lease: %+v, %v", l, err)
			}
			only(t, s, OK, unbind)
			if _, err := s.Lease(2); err != ErrLeaseNotFound { //nolint:errorlint // as documented
				t.Errorf("the lease is still there: %v", err)
			}
			checkCounters(t, s)
		})
	}
}

// TestRefusedWriteMakesNoLease: everything of a command that is refused is undone.
func TestRefusedWriteMakesNoLease(t *testing.T) {
	s := newStore(t, "memory")
	do(t, s, put("n", "x"))
	large := putTTL("a", 1000)
	large.Value = make([]byte, DefaultSettings().MaxValueBytes+1)
	only(t, s, TooLarge, large)
	notANumber := incr("n", 1)
	notANumber.TTLMillis = 1000
	only(t, s, NotANumber, notANumber)
	only(t, s, Invalid, func() Command { c := putTTL("a", 1000); c.Lease = 1; return c }())
	only(t, s, Invalid, putTTL("a", -1))
	only(t, s, NotANumber, txnOf(Txn{Then: []Command{putTTL("a", 1000), incr("n", 1)}}))
	if ids, n := leaseIDs(t, s), s.exec.leases.counts; len(ids) > 0 || n != (counts{}) {
		t.Errorf("leases %v, counts %+v", ids, n)
	}
	checkCounters(t, s)
}

// TestChosenIDs: the store steps over ids that clients took, and never chooses one twice.
func TestChosenIDs(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		do(t, s, grant(3, 1), grant(1<<63-1, 1))
		only(t, s, LeaseExists, grant(3, 1))
		only(t, s, Invalid, grant(1<<63, 1))
		only(t, s, TooLarge, grant(0, MaxTTLMillis+1))
		for _, want := range []uint64{4, 5} { // the two grants took 1 and 2; 3 is taken
			if r := only(t, s, OK, grant(0, 1)); r.Lease.ID != want {
				t.Errorf("the store chose %d, want %d", r.Lease.ID, want)
			}
			only(t, s, OK, revoke(want))
		}
	})
}

// TestLeaseIsBounded: its end must fit into one revision.
func TestLeaseIsBounded(t *testing.T) {
	s := newStore(t, "memory")
	commands := []Command{grant(5, 1000), {Op: OpLock, Key: []byte("l"), Lease: 5}}
	for i := range MaxLeaseKeys - 1 {
		commands = append(commands, putBound(fmt.Sprint(i), 5))
	}
	for _, r := range do(t, s, commands...) {
		if r.Outcome != OK {
			t.Fatalf("%+v", r)
		}
	}
	only(t, s, TooLarge, putBound("one too many", 5))
	only(t, s, TooLarge, Command{Op: OpLock, Key: []byte("m"), Lease: 5})
	before := s.Revision()
	if r := only(t, s, OK, revoke(5)); r.Deleted != MaxLeaseKeys-1 || r.Revision != before+1 {
		t.Errorf("%+v", r)
	}
	checkCounters(t, s)
}

// TestReleasingLease: keys of such a lease stay, without it.
func TestReleasingLease(t *testing.T) {
	onBothEngines(t, func(t *testing.T, s *Store) {
		c := grant(5, 1000)
		c.Grant = &LeaseOptions{AtEnd: LeaseReleases}
		do(t, s, c, putBound("a", 5))
		if r := only(t, s, OK, revoke(5)); r.Deleted != 0 || r.Revision != 3 {
			t.Errorf("%+v", r)
		}
		if got := contentOf(t, s); fmt.Sprint(got) != `["a"="v" create 2 mod 3 version 2 lease 0]` {
			t.Errorf("%q", got)
		}
		checkCounters(t, s)
	})
}

// heardLeases is a LeaseObserver that lists what it is told, and checks that it can be
// read by then.
type heardLeases struct {
	t     *testing.T
	store *Store
	heard []string
}

func (h *heardLeases) LeasesChanged(changes []LeaseChange) {
	for _, c := range changes {
		h.heard = append(h.heard, fmt.Sprintf("%d seq %d ended %t", c.ID, c.Seq, c.Ended))
		if _, err := h.store.Lease(c.ID); (err == nil) == c.Ended {
			h.t.Errorf("lease %d when its observer is told: %v", c.ID, err)
		}
	}
}

func (h *heardLeases) LeasesReset() { h.heard = append(h.heard, "reset") }

func TestLeaseObserver(t *testing.T) {
	h := &heardLeases{t: t}
	s := openStore(t, engine.NewMemory(), Options{Leases: h})
	defer s.Close()
	h.store = s
	do(t, s, grant(50, 1000), grant(50, 1000), putTTL("a", 1000))
	do(t, s, remove("a"), Command{Op: OpLock, Key: []byte("l"), TTLMillis: 1000})
	do(t, s, putBound("a", 50), Command{Op: OpUnlock, Key: []byte("l"), Lease: 3}, expire(100, 50))
	must(t, s.Restore(bytes.NewReader(bodyOf(t, s))))
	want := []string{"50 seq 1 ended false", "2 seq 2 ended false", "2 seq 2 ended true", "3 seq 3 ended false", "3 seq 3 ended true", "50 seq 1 ended true", "reset"}
	if fmt.Sprint(h.heard) != fmt.Sprint(want) {
		t.Errorf("heard %q", h.heard)
	}
}

// TestLeasesSurvive: a restart reads nothing but the counters, and a body has all of it.
func TestLeasesSurvive(t *testing.T) {
	fs := vfs.NewMem()
	s := openStore(t, openPebble(t, fs), Options{})
	do(t, s, grant(0, 1000), putBound("a", 1), Command{Op: OpLock, Key: []byte("l"), Lease: 1, Value: []byte("me")})
	body := bodyOf(t, s)
	must(t, s.Close())
	s = openStore(t, openPebble(t, fs), Options{})
	defer s.Close()
	other := newStore(t, "memory")
	must(t, other.Restore(bytes.NewReader(body)))
	for _, s := range []*Store{s, other} {
		if r := only(t, s, OK, grant(0, 1000)); r.Lease.ID != 3 {
			t.Errorf("the next id is %d", r.Lease.ID)
		}
		info, _, err := s.Lock([]byte("l"), 1)
		if err != nil || info.Holder.Token != 2 || string(info.Holder.Body) != "me" {
			t.Errorf("%+v, %v", info, err)
		}
		only(t, s, OK, expire(100, 1))
		if got := contentOf(t, s); len(got) != 0 || s.Counts() != (Counts{Leases: 1}) {
			t.Errorf("%q, %+v", got, s.Counts())
		}
		checkCounters(t, s)
	}
}

// TestForeignRows: rows that no store writes are refused in a body.
func TestForeignRows(t *testing.T) {
	l := leaseRow{}
	for _, row := range []struct {
		key   string
		value []byte
	}{
		{"l1234567", l.encode()}, {"l12345678", nil}, {"k12345678", nil}, {"k12345678a", []byte{1}}, {"n1", (&counts{}).encode()},
		{"n", []byte{1}}, {"o", (&ticket.Head{First: 1, Tickets: 1}).Encode()}, {"oa", (&ticket.Head{}).Encode()}, {"p12345678", ticket.EncodeToken(1)},
		{"p12345678a", nil}, {"qa\x00\x0212345678", (&ticket.Row{Lease: 1}).Encode()}, {"qa\x00\x0112345678", (&ticket.Row{}).Encode()},
	} {
		_, scanned := rowBytes([]byte(row.key), row.value)
		if err := checkLeaseRow([]byte(row.key), row.value); err == nil && scanned == nil {
			t.Errorf("row %q = %x passes", row.key, row.value)
		}
	}
}

// TestLongestLease: the limit itself is allowed.
func TestLongestLease(t *testing.T) {
	s := newStore(t, "memory")
	if r := only(t, s, OK, grant(7, MaxTTLMillis)); r.Lease == nil || r.Lease.TTLMillis != MaxTTLMillis {
		t.Errorf("%+v", r.Lease)
	}
}
