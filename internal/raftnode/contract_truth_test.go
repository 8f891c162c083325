package raftnode

import (
	"strconv"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/kvstore/engine"
)

// truth is a replica that judges the others. It applies each committed entry as soon as
// any member has it, never crashes, and installs nothing. What it knows beyond that is
// what clients were told.
type truth struct {
	w       *contractWorld
	store   *kvstore.Store
	changes []kvstore.Change // changes[i] is revision i+2
	results map[uint64][]*kvstore.Result
	ranAt   map[uint64]uint64 // the index of each command, by its number
	keyAt   map[string]uint64 // the index at which an idempotency key came first

	leases map[uint64]*leaseFate
	tokens map[uint64]uint64 // the lease of each ticket, by token
	// ticketAt is the index at which each ticket was made.
	ticketAt map[uint64]uint64
	newest   uint64            // the newest token
	holder   map[string]uint64 // the last known holder of each lock
	closed   map[uint64]int64  // until when the lock of a token is closed by a lock delay
	guest    guestRights
	guestAt  []guestSince
	granting map[uint64]bool       // the ids that the entry grants which is applied
	heard    []kvstore.LeaseChange // of that entry
}

// leaseFate is what is known about a lease.
type leaseFate struct {
	// promised is until when its owner may rely on it, unless it has given it up.
	promised int64
	givenUp  bool
	ended    int64 // 0: it exists
	endIndex uint64
}

func newTruth(w *contractWorld) *truth {
	t := &truth{
		w: w, results: make(map[uint64][]*kvstore.Result), ranAt: make(map[uint64]uint64), keyAt: make(map[string]uint64),
		leases: make(map[uint64]*leaseFate), tokens: make(map[uint64]uint64), ticketAt: make(map[uint64]uint64), holder: make(map[string]uint64), granting: make(map[uint64]bool), closed: make(map[uint64]int64),
	}
	store, err := kvstore.Open(engine.NewMemory(), kvstore.Options{Observer: t, Leases: t})
	if err != nil {
		w.s.violate("open the store that judges: %v", err)
	}
	t.store = store
	return t
}

// Applied collects the changes.
func (t *truth) Applied(changes []kvstore.Change, show func()) {
	show()
	for _, c := range changes {
		if want := uint64(len(t.changes)) + 2; c.Revision != want {
			t.w.s.violate("revision %d follows %d", c.Revision, want-1)
		}
		t.changes = append(t.changes, c)
	}
}

func (t *truth) Reset(show func()) { show() }
func (t *truth) LeasesReset()      {}

// LeasesChanged checks X3: no lease ends before the time that was promised.
func (t *truth) LeasesChanged(changes []kvstore.LeaseChange) {
	t.heard = append(t.heard, changes...)
	for _, c := range changes {
		f := t.fate(c.ID)
		if !c.Ended {
			if f.ended != 0 && t.granting[c.ID] { // somebody wanted its id again
				t.leases[c.ID] = new(leaseFate)
			}
			continue
		}
		f.ended, f.endIndex = t.w.s.now, t.store.Position().Index
		t.w.stats.leasesEnded++
		t.checkPromise(c.ID)
	}
}

func (t *truth) fate(lease uint64) *leaseFate {
	f := t.leases[lease]
	if f == nil {
		f = new(leaseFate)
		t.leases[lease] = f
	}
	return f
}

// promise notes what the owner of a lease was told.
func (t *truth) promise(lease uint64, until int64) {
	f := t.fate(lease)
	f.promised = max(f.promised, until)
	t.checkPromise(lease)
}

func (t *truth) checkPromise(lease uint64) {
	if f := t.leases[lease]; f.ended != 0 && !f.givenUp && f.ended < f.promised {
		t.w.s.violate("X3: lease %d ended at %d ms, and was promised until %d ms", lease, f.ended/milli, f.promised/milli)
	}
}

// apply takes an entry, if it is new.
func (t *truth) apply(e *Entry) error {
	index := t.store.Position().Index
	if e.Index <= index {
		return nil
	}
	commands := make([]kvstore.Command, len(e.Commands))
	clear(t.granting)
	for i, b := range e.Commands {
		c, err := kvstore.DecodeCommand(b)
		if err != nil {
			return err
		}
		commands[i] = c
		t.noteCommand(&c, e.Index)
	}
	t.observeCommands(commands)
	group := t.w.plant(nil, e)
	run := []Entry{group.Entry}
	run[0].WantResults = true
	before := t.store.Revision()
	t.heard = t.heard[:0]
	if err := t.store.Apply(run); err != nil {
		return err
	}
	group.Results = run[0].Results
	t.results[e.Index] = group.results()
	t.w.etcd.begin(commands, t.results[e.Index], t.heard)
	for i, r := range t.results[e.Index] {
		t.checkTicket(&commands[i], r, e.Index)
		t.checkRights(&commands[i], r, e.Index)
		t.followEtcd(&commands[i], r)
		t.observeResult(&commands[i], r)
	}
	t.checkEtcd(before)
	t.checkHolders()
	return nil
}

// numberOf returns the number of a command; 0: it has none.
func numberOf(c *kvstore.Command) uint64 {
	id, _ := strconv.ParseUint(c.Origin.RequestID, 10, 64)
	return id
}

func (t *truth) noteCommand(c *kvstore.Command, index uint64) {
	id := numberOf(c)
	if id == 0 {
		t.w.s.violate("entry %d has a command without a number: %+v", index, c)
	}
	if before := t.ranAt[id]; before != 0 {
		t.w.s.violate("S7: command %d ran in entry %d and again in entry %d", id, before, index)
	}
	t.ranAt[id] = index
	if c.Op == kvstore.OpLeaseGrant {
		t.granting[c.Lease] = true
	}
	if k := c.Idempotency; k != nil && t.keyAt[k.Key] == 0 {
		t.keyAt[k.Key] = index
	}
}

// checkTicket checks X4: a ticket has a lease that exists, and tokens grow.
func (t *truth) checkTicket(c *kvstore.Command, r *kvstore.Result, index uint64) {
	if c.Op != kvstore.OpLock || r.Outcome != kvstore.OK || r.Replayed {
		return
	}
	ticket := r.Lock
	if f := t.leases[ticket.Lease]; f == nil || f.ended != 0 && f.endIndex < index {
		t.w.s.violate("X4: entry %d gives lock %q token %d to lease %d, which does not exist", index, ticket.Name, ticket.Token, ticket.Lease)
	}
	switch lease, again := t.tokens[ticket.Token]; {
	case again && lease != ticket.Lease:
		t.w.s.violate("X4: token %d belongs to lease %d and to lease %d", ticket.Token, lease, ticket.Lease)
	case !again && ticket.Token <= t.newest:
		t.w.s.violate("X4: token %d comes after token %d", ticket.Token, t.newest)
	}
	if t.tokens[ticket.Token] == 0 {
		t.tokens[ticket.Token], t.ticketAt[ticket.Token] = ticket.Lease, index
	}
	t.newest = max(t.newest, ticket.Token)
}

// checkHolders checks that the token of each next holder is greater, and that there is
// none before a lock delay is over.
func (t *truth) checkHolders() {
	locks, _, err := t.store.Locks(nil, 100)
	if err != nil {
		t.w.s.violate("list locks: %v", err)
	}
	for _, l := range locks {
		name := string(l.Holder.Name)
		if before := t.holder[name]; l.Holder.Token != before && t.w.s.now < t.closed[before] {
			t.w.s.violate("X5: lock %q goes to token %d at %d ms, and is closed until %d ms", name, l.Holder.Token, t.w.s.now/milli, t.closed[before]/milli)
		}
		if t.closed[l.Holder.Token] == 0 && l.Holder.Lease != t.tokens[l.Holder.Token] {
			t.noteClosed(&l.Holder)
		}
		t.w.s.reachIf(lockPassedOn, t.holder[name] != 0 && l.Holder.Token > t.holder[name])
		if l.Holder.Token < t.holder[name] {
			t.w.s.violate("X4: lock %q went from token %d back to token %d", name, t.holder[name], l.Holder.Token)
		}
		t.holder[name] = l.Holder.Token
	}
}

// noteClosed notes that a lock is held by the lease of a lock delay.
func (t *truth) noteClosed(holder *kvstore.LockTicket) {
	delay, err := t.store.Lease(holder.Lease)
	if err != nil {
		t.w.s.violate("X4: lock %q is held by lease %d: %v", holder.Name, holder.Lease, err)
	}
	t.closed[holder.Token] = t.w.s.now + t.w.promised(delay.TTLMillis*milli)
	t.w.stats.delays++
	t.w.s.reach(lockDelayed)
}

// eventsOf returns the events of a revision that a watch wants.
func (t *truth) eventsOf(revision uint64, wants func(*kvstore.Event) bool) (out []kvstore.Event) {
	for _, e := range t.changes[revision-2].Events {
		if wants(&e) {
			out = append(out, e)
		}
	}
	return out
}
