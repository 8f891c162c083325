package kvstore

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

type modelLease struct {
	Lease
	seq   uint64
	owner leaseOwner
}

type modelTicket struct {
	lease, token uint64
	text         string
}

// keysOf returns the keys that are bound to a lease, in order.
func (m *model) keysOf(lease uint64) []string {
	return slices.DeleteFunc(m.live(m.revision), func(key string) bool { return m.now(key).Lease != lease })
}

// leaseLogical is what the quota counts for leases and tickets.
func (m *model) leaseLogical() (n int64) {
	for _, l := range m.leases {
		n += 128 + int64(len(l.Name))
	}
	for name, queue := range m.locks {
		for _, t := range queue {
			n += 192 + int64(3*len(name)+len(t.text))
		}
	}
	return n
}

func (m *model) over(added int64) bool {
	q := m.settings.QuotaBytes
	return q > 0 && m.logical()+added > q
}

func (m *model) grant(l modelLease) (modelLease, Result) {
	switch {
	case l.ID > 1<<63-1 || l.TTLMillis < 0 || l.LockDelayMillis < 0:
		return l, Result{Outcome: Invalid, Detail: "-"}
	case l.TTLMillis > MaxTTLMillis || l.LockDelayMillis > MaxTTLMillis || len(l.Name) > MaxLeaseNameBytes:
		return l, Result{Outcome: TooLarge, Detail: "-"}
	case m.over(128 + int64(len(l.Name))):
		return l, Result{Outcome: NoSpace, Detail: "-"}
	case l.ID != 0 && m.leases[l.ID].seq != 0:
		return l, Result{Outcome: LeaseExists, Detail: "-"}
	}
	m.seq++
	for l.ID == 0 && m.leases[m.seq].seq != 0 {
		m.seq++
	}
	l.seq = m.seq
	if l.ID == 0 {
		l.ID = m.seq
	}
	m.leases[l.ID] = l
	return l, Result{Lease: &l.Lease}
}

func (m *model) ownLease(c *Command, owner leaseOwner) (modelLease, Result) {
	if c.Lease != 0 || c.KeepLease || c.TTLMillis < 0 {
		return modelLease{}, Result{Outcome: Invalid, Detail: "-"}
	}
	l := modelLease{Lease: Lease{TTLMillis: c.TTLMillis}, owner: owner}
	if owner == ownedByLock && c.Grant != nil {
		l.LockDelayMillis = c.Grant.LockDelayMillis
	}
	return m.grant(l)
}

// leaseFor returns the lease that a write binds its key to.
func (m *model) leaseFor(c *Command, old *KV) (uint64, Result) {
	has := uint64(0)
	if old != nil {
		has = old.Lease
	}
	l, known := m.leases[c.Lease]
	switch {
	case c.TTLMillis != 0:
		l, r := m.ownLease(c, ownedByKey)
		return l.ID, r
	case c.Lease != 0 && c.KeepLease:
		return 0, Result{Outcome: Invalid, Detail: "-"}
	case c.Lease != 0 && c.Lease != has && (!known || l.owner == ownedByKey || l.owner == ownedByDelay):
		return 0, Result{Outcome: LeaseNotFound, Detail: "-"}
	case c.Lease != 0:
		return c.Lease, Result{}
	case c.KeepLease || c.Op != OpPut:
		return has, Result{}
	}
	return 0, Result{}
}

// unbound ends a lease that was made for the key that has left it.
func (m *model) unbound(old *KV, now uint64) {
	if old != nil && old.Lease != now && m.leases[old.Lease].owner == ownedByKey {
		delete(m.leases, old.Lease)
	}
}

func (m *model) leaseCommand(c *Command, term uint64) Result {
	switch c.Op {
	case OpLeaseGrant:
		l := modelLease{Lease: Lease{ID: c.Lease, TTLMillis: c.TTLMillis}}
		if c.Grant != nil {
			l.LeaseOptions = *c.Grant
		}
		_, r := m.grant(l)
		return r
	case OpLeaseRevoke:
		if m.leases[c.Lease].seq == 0 {
			return Result{Outcome: LeaseNotFound, Detail: "-"}
		}
		return m.endLease(c.Lease, Result{})
	case OpLeaseExpire:
		return m.expire(c, term)
	case OpLock:
		return m.lock(c)
	}
	return m.unlock(c)
}

func (m *model) expire(c *Command, term uint64) (r Result) {
	if c.Term != term {
		return Result{Outcome: Ignored}
	}
	for _, id := range c.Leases {
		if seq := m.leases[id].seq; seq != 0 && seq <= c.Sequence {
			r = m.endLease(id, r)
		}
	}
	return r
}

func (m *model) endLease(id uint64, r Result) Result {
	l, keys := m.leases[id], m.keysOf(id)
	if len(keys) > 0 {
		m.revision++
	}
	for _, key := range keys {
		if l.AtEnd == LeaseDeletes {
			m.bury(key)
			r.Deleted++
			r.KV.ModRevision = m.revision
			continue
		}
		kv := *m.now(key)
		kv.Lease, kv.ModRevision, kv.Version = 0, m.revision, kv.Version+1
		m.keys[key] = append(m.keys[key], modelVersion{KV: kv})
		m.note(Event{KV: kv})
	}
	for _, name := range slices.Sorted(maps.Keys(m.locks)) {
		if l.LockDelayMillis > 0 && m.locks[name][0].lease == id {
			m.closeFor(name, l.LockDelayMillis)
		} else {
			m.leave(name, id)
		}
	}
	delete(m.leases, id)
	return r
}

// closeFor gives the first place in a queue to the lease of a lock delay.
func (m *model) closeFor(name string, millis int64) {
	for m.seq++; m.leases[m.seq].seq != 0; m.seq++ {
	}
	m.leases[m.seq] = modelLease{Lease: Lease{ID: m.seq, TTLMillis: millis, LeaseOptions: LeaseOptions{Name: "lock delay"}}, seq: m.seq, owner: ownedByDelay}
	m.locks[name] = slices.Clone(m.locks[name])
	m.locks[name][0].lease = m.seq
}

func (m *model) leave(name string, lease uint64) {
	m.locks[name] = slices.DeleteFunc(slices.Clone(m.locks[name]), func(t modelTicket) bool { return t.lease == lease })
	if len(m.locks[name]) == 0 {
		delete(m.locks, name)
	}
}

func (m *model) ticket(name string, i int) *LockTicket {
	t := m.locks[name][i]
	return &LockTicket{Name: []byte(name), Token: t.token, Lease: t.lease, Held: i == 0, Body: []byte(t.text)}
}

func (m *model) lock(c *Command) Result {
	name := string(c.Key)
	queue := m.locks[name]
	place := slices.IndexFunc(queue, func(t modelTicket) bool { return t.lease == c.Lease })
	l, known := m.leases[c.Lease]
	switch {
	case name == "":
		return Result{Outcome: Invalid, Detail: "-"}
	case int64(len(name)) > m.settings.MaxKeyBytes || len(c.Value) > MaxLockTextBytes:
		return Result{Outcome: TooLarge, Detail: "-"}
	case place >= 0 && l.owner == ownedByDelay:
		return Result{Outcome: LeaseNotFound, Detail: "-"}
	case place == 0 || place > 0 && c.Wait:
		return Result{Lock: m.ticket(name, place)}
	case c.TTLMillis == 0 && c.Lease == 0:
		return Result{Outcome: Invalid, Detail: "-"}
	case c.TTLMillis == 0 && (!known || l.owner == ownedByKey || l.owner == ownedByDelay):
		return Result{Outcome: LeaseNotFound, Detail: "-"}
	case len(queue) > 0 && !c.Wait:
		return Result{Outcome: LockHeld, Detail: "-", Lock: m.ticket(name, 0)}
	}
	before := *m // a refusal must not leave the lease behind
	before.leases = maps.Clone(m.leases)
	var r Result
	if c.TTLMillis != 0 {
		if l, r = m.ownLease(c, ownedByLock); r.Outcome != OK {
			return r
		}
	}
	if m.over(192 + int64(3*len(name)+len(c.Value))) {
		m.leases, m.seq = before.leases, before.seq
		return Result{Outcome: NoSpace, Detail: "-"}
	}
	m.seq++
	m.locks[name] = append(slices.Clone(queue), modelTicket{l.ID, m.seq, string(c.Value)})
	r.Lock = m.ticket(name, len(queue))
	return r
}

func (m *model) unlock(c *Command) (r Result) {
	name := string(c.Key)
	place := slices.IndexFunc(m.locks[name], func(t modelTicket) bool { return t.lease == c.Lease })
	switch {
	case name == "":
		return Result{Outcome: Invalid, Detail: "-"}
	case place < 0:
		return Result{Outcome: LockNotFound, Detail: "-"}
	}
	r.Lock = m.ticket(name, place)
	switch {
	case place == 0 && c.OnlyWaiting:
	case m.tickets(c.Lease) == 1 && (m.leases[c.Lease].owner == ownedByLock || m.leases[c.Lease].owner == ownedByDelay):
		l := m.leases[c.Lease]
		l.LockDelayMillis = 0
		m.leases[c.Lease] = l
		r = m.endLease(c.Lease, r)
	default:
		m.leave(name, c.Lease)
	}
	return r
}

// tickets returns in how many queues a lease is.
func (m *model) tickets(lease uint64) (n int) {
	for _, queue := range m.locks {
		if slices.ContainsFunc(queue, func(t modelTicket) bool { return t.lease == lease }) {
			n++
		}
	}
	return n
}

// anyLease returns a lease that exists, more often than not.
func anyLease(rng *rand.Rand, m *model) uint64 {
	known := slices.Sorted(maps.Keys(m.leases))
	if len(known) == 0 || rng.IntN(8) == 0 {
		return rng.Uint64N(m.seq + 3)
	}
	return known[rng.IntN(len(known))]
}

// usedLease returns a lease with keys, if some key of a random choice has one.
func usedLease(rng *rand.Rand, m *model) uint64 {
	for _, key := range m.live(m.revision) {
		if lease := m.now(key).Lease; lease != 0 && rng.IntN(3) == 0 {
			return lease
		}
	}
	return anyLease(rng, m)
}

func randomLeaseCommand(rng *rand.Rand, m *model) Command {
	switch n := rng.IntN(20); {
	case n < 4:
		return randomGrant(rng, m)
	case n < 5:
		return Command{Op: OpLeaseRevoke, Lease: usedLease(rng, m)}
	case n < 7:
		c := Command{Op: OpLeaseExpire, Term: rng.Uint64N(3), Sequence: rng.Uint64N(m.seq + 2)}
		for range rng.IntN(4) {
			c.Leases = append(c.Leases, usedLease(rng, m))
		}
		if rng.IntN(2) == 0 {
			c.Term, c.Sequence = 1, m.seq
		}
		return c
	case n < 14:
		c := Command{Op: OpLock, Key: randomKey(rng)[:1], Value: []byte(fmt.Sprint(rng.IntN(1000))), Wait: rng.IntN(3) > 0}
		if rng.IntN(2) == 0 {
			c.TTLMillis = 1000
		}
		if rng.IntN(3) == 0 {
			c.Grant = &LeaseOptions{LockDelayMillis: rng.Int64N(4) - 1}
		}
		if c.TTLMillis == 0 || rng.IntN(20) == 0 {
			c.Lease = anyLease(rng, m)
		}
		return c
	}
	return randomUnlock(rng, m)
}

func randomGrant(rng *rand.Rand, m *model) Command {
	c := Command{Op: OpLeaseGrant, TTLMillis: rng.Int64N(1000)}
	switch rng.IntN(6) {
	case 0:
		c.Lease = m.seq + rng.Uint64N(4) // in the way of the ids that the store chooses
	case 1:
		c.Lease = 1<<63 - 2 + rng.Uint64N(3)
	case 2:
		c.TTLMillis = MaxTTLMillis + 2 - rng.Int64N(3)
	}
	if rng.IntN(3) == 0 {
		c.Grant = &LeaseOptions{Name: "n", AtEnd: LeaseEnd(rng.IntN(2)), LockDelayMillis: rng.Int64N(3) - 1}
	}
	return c
}

// randomUnlock aims at tickets that exist.
func randomUnlock(rng *rand.Rand, m *model) Command {
	c := Command{Op: OpUnlock, Key: randomKey(rng)[:1], Lease: anyLease(rng, m), OnlyWaiting: rng.IntN(2) == 0}
	if names := slices.Sorted(maps.Keys(m.locks)); len(names) > 0 && rng.IntN(4) > 0 {
		name := names[rng.IntN(len(names))]
		queue := m.locks[name]
		c.Key, c.Lease = []byte(name), queue[rng.IntN(len(queue))].lease
	}
	return c
}

// checkLeases compares leases and what is bound to them with the model.
func (r *replica) checkLeases() {
	r.t.Helper()
	m := r.history.model
	got := mustGet[[]LeaseInfo](r.t)(r.store.Leases(0, 1<<20))
	var want []LeaseInfo
	for _, id := range slices.Sorted(maps.Keys(m.leases)) {
		l := m.leases[id]
		info := LeaseInfo{Lease: l.Lease, Seq: l.seq, Keys: uint64(len(m.keysOf(id)))}
		for _, queue := range m.locks {
			for _, t := range queue {
				if t.lease == id {
					info.Tickets++
				}
			}
		}
		want = append(want, info)
	}
	if !slices.Equal(got, want) {
		r.t.Fatalf("%s: leases\n got %+v\nwant %+v", r.name, got, want)
	}
	for _, l := range want {
		var keys []string
		for _, key := range allKeys(r.t, r.store, l.ID) {
			keys = append(keys, string(key))
		}
		if !slices.Equal(keys, m.keysOf(l.ID)) {
			r.t.Fatalf("%s: keys of lease %d: %q, want %q", r.name, l.ID, keys, m.keysOf(l.ID))
		}
	}
}

// allKeys reads the keys of a lease in pages.
func allKeys(t testing.TB, s *Store, lease uint64) (keys [][]byte) {
	t.Helper()
	for from, more := []byte(nil), true; more; {
		var page [][]byte
		var err error
		page, more, err = s.LeaseKeys(lease, from, 3)
		must(t, err)
		if keys = append(keys, page...); more {
			from = append(page[len(page)-1], 0)
		}
	}
	return keys
}

// allLocks reads the locks in pages.
func allLocks(t testing.TB, s *Store) (locks []LockInfo) {
	t.Helper()
	for from, first := []byte(nil), true; first || from != nil; first = false {
		var page []LockInfo
		var err error
		page, from, err = s.Locks(from, 2)
		must(t, err)
		locks = append(locks, page...)
	}
	return locks
}

// checkLocks compares the queues with the model.
func (r *replica) checkLocks() {
	r.t.Helper()
	m := r.history.model
	locks := allLocks(r.t, r.store)
	tickets := 0
	for i, name := range slices.Sorted(maps.Keys(m.locks)) {
		info, queue, err := r.store.Lock([]byte(name), 1<<20)
		must(r.t, err)
		got := ticketText(&info.Holder)
		for j := range queue {
			got += ticketText(&queue[j])
		}
		want := ""
		for j := range m.locks[name] {
			want += ticketText(m.ticket(name, j))
		}
		if got != want || info.Tickets != uint64(len(m.locks[name])) || i >= len(locks) || ticketText(&locks[i].Holder) != ticketText(&info.Holder) {
			r.t.Fatalf("%s: lock %q:\n got %s %+v\nwant %s", r.name, name, got, info, want)
		}
		tickets += len(m.locks[name])
	}
	want := Counts{Leases: uint64(len(m.leases)), Locks: uint64(len(m.locks)), Waiters: uint64(tickets - len(m.locks))}
	if got := r.store.Counts(); got != want || len(locks) != len(m.locks) || r.store.exec.leases.counts.sequence != m.seq {
		r.t.Fatalf("%s: counts %+v and %d locks, want %+v", r.name, got, len(locks), want)
	}
}

func ticketText(t *LockTicket) string {
	if t == nil {
		return ""
	}
	return fmt.Sprintf("[%q %d lease %d held %t %q]", t.Name, t.Token, t.Lease, t.Held, t.Body) + strayText(t.Body)
}

// TestLeaseModelIsExercised: the random histories reach what they are for.
func TestLeaseModelIsExercised(t *testing.T) {
	rng := testRand(t)
	h := newHistory()
	for range 3000 {
		h.extend(rng)
	}
	seen := make(map[string]int)
	for i, e := range h.entries {
		for j, b := range e.Commands {
			c, err := DecodeCommand(b)
			must(t, err)
			seen[fmt.Sprintf("op %d outcome %d", c.Op, h.want[i][j].Outcome)]++
			if r := h.want[i][j]; c.Op >= OpLeaseRevoke && c.Op <= OpUnlock && r.Deleted > 0 {
				seen[fmt.Sprintf("op %d deletes", c.Op)]++
			}
		}
	}
	for _, what := range []string{
		"op 12 outcome 0", "op 12 outcome 12", "op 13 outcome 0", "op 13 deletes", "op 14 outcome 0", "op 14 outcome 8", "op 14 deletes",
		"op 15 outcome 0", "op 15 outcome 11", "op 15 outcome 13", "op 16 outcome 0", "op 16 outcome 14",
	} {
		if seen[what] < 5 {
			t.Errorf("%s: %d times", what, seen[what])
		}
	}
}
