package kvstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/layout"
	"github.com/kvd-io/kvd/internal/kvstore/ticket"
)

// Limits of leases and of what is bound to them.
const (
	// MaxLeaseKeys is the largest number of keys and of places in lock queues that
	// one lease may have. Its end removes them in one revision.
	MaxLeaseKeys = MaxRangeDelete
	// MaxTTLMillis is the longest time to live of a lease, about 285 years.
	MaxTTLMillis = 9_000_000_000_000
	// MaxLeaseNameBytes is the longest name of a lease.
	MaxLeaseNameBytes = 1024
	// maxChosenID is the largest id that the store chooses: JSON numbers are exact
	// up to it.
	maxChosenID = 1<<53 - 1
)

// leaseOwner says for what a lease was made.
type leaseOwner byte

const (
	ownedByUser leaseOwner = 0 // it was granted
	// ownedByKey is a lease that a write with a TTL made for its key. It has no
	// other key, and ends with the binding: nobody else knows of it.
	ownedByKey leaseOwner = 1
	// ownedByLock is a lease that a lock request made. It ends when the lock is given
	// up, and with it whatever the holder has bound to it.
	ownedByLock leaseOwner = 2
	// ownedByDelay is a lease that keeps a lock closed after the lease of its holder has
	// ended. It has no keys, and nobody can hold anything with it.
	ownedByDelay leaseOwner = 3
)

// leaseRow is a lease as its table has it.
type leaseRow struct {
	Lease
	seq uint64 // counts.sequence at the grant
	// keys and tickets count what is bound to the lease.
	keys, tickets uint64
	owner         leaseOwner
}

// counts is the one row of table n. It has the counter from which ids and tokens come,
// and figures that would otherwise need a scan.
type counts struct {
	// sequence only grows, over restarts and restores too. Each grant and each
	// ticket takes the next number, so no number has two meanings: a token orders
	// tickets by time, and a sequence number tells two grants of one id apart.
	sequence uint64
	leases   uint64
	locks    uint64 // names with at least one ticket
	tickets  uint64
}

// LeaseChange is a grant, or the end of a lease.
type LeaseChange struct {
	Lease
	// Seq numbers the grants of a cluster in the order of the log.
	Seq   uint64
	Ended bool
}

// LeaseObserver is told about leases by the goroutine that applies.
type LeaseObserver interface {
	// LeasesChanged is called with the changes of a call of Apply, in order, after
	// they became visible.
	LeasesChanged(changes []LeaseChange)
	// LeasesReset is called when the whole state was replaced.
	LeasesReset()
}

// leases is the executor's part for leases. It owns the tables of leases, of their keys,
// and of the counters; locks owns those of the queues. What it does to keys, it does
// through the overlay of the executor.
type leases struct {
	x      *executor
	counts counts // a copy of table n
	draft  leaseDraft
	// changes and woken are those of the current call of Apply.
	changes []LeaseChange
	woken   []uint64
}

// leaseDraft is what the overlay has about leases and locks beside rows.
type leaseDraft struct {
	// counts are the counters after the overlay, if counted is set.
	counted bool
	counts  counts
	bytes   int64         // by how much rows change meta.logical
	changes []LeaseChange // for LeaseObserver
	woken   []uint64      // tokens whose tickets are gone or came to the front
	ending  uint64        // the lease that is being ended, or 0
}

// load reads the counters. The other tables are read as needed.
func (ls *leases) load(x *executor) (err error) {
	*ls = leases{x: x}
	ls.counts, err = readCounts(x.eng)
	return err
}

// take returns the changes and tokens since the last call. They are valid until the
// next call of Apply.
func (ls *leases) take() ([]LeaseChange, []uint64) {
	changes, woken := ls.changes, ls.woken
	ls.changes, ls.woken = ls.changes[:0], ls.woken[:0]
	return changes, woken
}

// leaseID returns the key of a lease in its table, and the prefix of what is bound to it
// in others.
func leaseID(id uint64) []byte { return binary.BigEndian.AppendUint64(nil, id) }

// get returns a lease with the overlay.
func (ls *leases) get(id uint64) (l leaseRow, exists bool, err error) {
	b, exists, err := ls.x.rows.Get(layout.TableLease, leaseID(id))
	if err != nil || !exists {
		return leaseRow{}, false, err
	}
	l, err = decodeLease(id, b)
	return l, err == nil, err
}

// mustGet returns a lease that something is bound to, so that it must exist.
func (ls *leases) mustGet(id uint64) (leaseRow, error) {
	l, exists, err := ls.get(id)
	if err == nil && !exists {
		err = fmt.Errorf("%w: lease %d is bound but does not exist", layout.ErrMalformed, id)
	}
	return l, err
}

func (ls *leases) set(l *leaseRow) { ls.x.rows.Set(layout.TableLease, leaseID(l.ID), l.encode()) }

// count returns the counters with the overlay, for changing.
func (ls *leases) count() *counts {
	if !ls.draft.counted {
		ls.draft.counted, ls.draft.counts = true, ls.counts
	}
	return &ls.draft.counts
}

// logicalBytes is what the quota counts for a lease. What is bound to it counts itself.
func (l *leaseRow) logicalBytes() int64 { return 2*layout.KeyOverheadBytes + int64(len(l.Name)) }

// fits refuses what would exceed the quota. Like a put, it is refused only if it adds
// something.
func (ls *leases) fits(added int64, r *Result) bool {
	used, q := ls.used(), ls.x.settings.QuotaBytes
	if q > 0 && used+added > q {
		ls.x.refused = max(ls.x.refused, added)
		r.Refuse(NoSpace, "the store holds %d bytes and the quota is %d: delete keys, or raise quota_bytes in the settings", used, q)
		return false
	}
	return true
}

// used returns what the quota counts, with the overlay.
func (ls *leases) used() int64 { return ls.x.now.Logical + ls.x.overlay.logical + ls.draft.bytes }

// grantOp runs OpLeaseGrant.
func (ls *leases) grantOp(c *Command, r *Result) error {
	l := leaseRow{Lease: Lease{ID: c.Lease, TTLMillis: c.TTLMillis}, owner: ownedByUser}
	if c.Grant != nil {
		l.LeaseOptions = *c.Grant
	}
	return ls.grant(&l, r)
}

// own makes a lease for a key or a lock.
func (ls *leases) own(c *Command, owner leaseOwner, r *Result) (id uint64, err error) {
	if c.Lease != 0 || c.KeepLease || c.TTLMillis < 0 {
		r.Refuse(Invalid, "a time to live creates its own lease, so it must be positive and cannot be combined with another lease")
		return 0, nil
	}
	l := leaseRow{Lease: Lease{TTLMillis: c.TTLMillis}, owner: owner}
	l.LockDelayMillis = c.LockDelayMillis()
	err = ls.grant(&l, r)
	return l.ID, err
}

// grant creates the lease, with an id of the store's choice if it has none.
func (ls *leases) grant(l *leaseRow, r *Result) error {
	switch {
	case l.ID > math.MaxInt64 || l.TTLMillis < 0 || l.LockDelayMillis < 0:
		r.Refuse(Invalid, "lease id, time to live, and lock delay must be from 0 to 2^63-1")
		return nil
	case l.TTLMillis > MaxTTLMillis || l.LockDelayMillis > MaxTTLMillis || len(l.Name) > MaxLeaseNameBytes:
		r.Refuse(TooLarge, "a lease lives for at most %d seconds, as does a lock delay, and its name has at most %d bytes", int64(MaxTTLMillis/1000), MaxLeaseNameBytes)
		return nil
	case !ls.fits(l.logicalBytes(), r):
		return nil
	}
	if exists, err := ls.number(l); err != nil || exists {
		if exists {
			r.Refuse(LeaseExists, "lease %d already exists", l.ID)
		}
		return err
	}
	ls.add(l)
	lease := l.Lease
	r.Lease = &lease
	return nil
}

// add adds the row of a lease that has its number.
func (ls *leases) add(l *leaseRow) {
	ls.set(l)
	ls.count().leases++
	ls.draft.bytes += l.logicalBytes()
	ls.draft.changes = append(ls.draft.changes, LeaseChange{Lease: l.Lease, Seq: l.seq})
}

// number gives a lease its number in the sequence, which is its id too unless a client
// chose one. Numbers whose id a client has taken are skipped. It reports whether the
// id that the client chose exists.
func (ls *leases) number(l *leaseRow) (exists bool, err error) {
	n := ls.count()
	if n.sequence++; l.ID != 0 {
		l.seq = n.sequence
		_, exists, err = ls.x.rows.Get(layout.TableLease, leaseID(l.ID))
		return exists, err
	}
	for ; ; n.sequence++ {
		if _, taken, err := ls.x.rows.Get(layout.TableLease, leaseID(n.sequence)); err != nil {
			return false, err
		} else if !taken {
			break
		}
	}
	if n.sequence > maxChosenID {
		return false, fmt.Errorf("the sequence of ids and tokens is exhausted at %d", n.sequence)
	}
	l.ID, l.seq = n.sequence, n.sequence
	return false, nil
}

// of returns the lease that a write of a key binds it to: a new one, the one that
// the command names, or the one it has. A refusal is in the result.
func (ls *leases) of(c *Command, before *keyState, r *Result) (uint64, error) {
	switch {
	case c.TTLMillis != 0:
		return ls.own(c, ownedByKey, r)
	case c.Lease != 0 && c.KeepLease:
		r.Refuse(Invalid, "a write cannot both keep the lease of the key and name another one")
		return 0, nil
	case c.Lease != 0:
		return c.Lease, ls.bindable(c.Lease, before.lease, r)
	case c.KeepLease || c.Op != OpPut:
		return before.lease, nil
	}
	return 0, nil
}

// bindable refuses a lease that a key cannot be bound to, unless it is already.
func (ls *leases) bindable(id, before uint64, r *Result) error {
	if id == before {
		return nil
	}
	l, exists, err := ls.get(id)
	switch {
	case err != nil:
		return err
	case !exists:
		r.Refuse(LeaseNotFound, "lease %d does not exist", id)
	case l.reserved(r):
	default:
		l.roomForOne(r)
	}
	return nil
}

// reserved refuses a lease that was made for something else than what clients bind to it.
func (l *leaseRow) reserved(r *Result) bool {
	switch l.owner {
	case ownedByKey:
		r.Refuse(LeaseNotFound, "lease %d was created by a write with a time to live and is for that key alone", l.ID)
	case ownedByDelay:
		r.Refuse(LeaseNotFound, "lease %d only keeps a lock closed until its lock delay is over", l.ID)
	default:
		return false
	}
	return true
}

// roomForOne refuses to bind more to a lease than its end may remove at once.
func (l *leaseRow) roomForOne(r *Result) bool {
	if l.keys+l.tickets < MaxLeaseKeys {
		return true
	}
	r.Refuse(TooLarge, "lease %d has %d keys and places in lock queues, the limit of a lease; use several leases", l.ID, l.keys+l.tickets)
	return false
}

// bind keeps the table of the keys of leases when a key changes its lease. 0 is none.
func (ls *leases) bind(key string, before, after uint64) error {
	if before != 0 {
		ls.x.rows.Delete(layout.TableLeaseKey, append(leaseID(before), key...))
		if before != ls.draft.ending {
			if err := ls.unbound(before); err != nil {
				return err
			}
		}
	}
	if after == 0 {
		return nil
	}
	l, err := ls.mustGet(after)
	if err != nil {
		return err
	}
	ls.x.rows.Set(layout.TableLeaseKey, append(leaseID(after), key...), []byte{})
	l.keys++
	ls.set(&l)
	return nil
}

// unbound counts a key less. A lease that was made for the key ends with the binding.
func (ls *leases) unbound(id uint64) error {
	l, err := ls.mustGet(id)
	if err != nil {
		return err
	}
	if l.keys--; l.owner == ownedByKey {
		ls.remove(&l)
		return nil
	}
	ls.set(&l)
	return nil
}

// remove removes the row of a lease to which nothing is bound anymore.
func (ls *leases) remove(l *leaseRow) {
	ls.x.rows.Delete(layout.TableLease, leaseID(l.ID))
	ls.count().leases--
	ls.draft.bytes -= l.logicalBytes()
	ls.draft.changes = append(ls.draft.changes, LeaseChange{Lease: l.Lease, Seq: l.seq, Ended: true})
}

// revokeOp runs OpLeaseRevoke.
func (ls *leases) revokeOp(c *Command, r *Result) error {
	l, exists, err := ls.get(c.Lease)
	if err != nil {
		return err
	}
	if !exists {
		r.Refuse(LeaseNotFound, "lease %d does not exist", c.Lease)
		return nil
	}
	return ls.end(&l, r)
}

// expireOp runs OpLeaseExpire. Only the leader of the entry's own term knows the
// deadlines that hold: one of an earlier term does not know what was promised since
// (package lessor, T2). A lease that was granted after the leader decided is another
// lease with the same id (T4). The keys of each lease are a revision of their own.
func (ls *leases) expireOp(c *Command, e *Entry, r *Result) error {
	if c.Term != e.Term {
		r.Outcome = Ignored
		return nil
	}
	for _, id := range c.Leases {
		l, exists, err := ls.get(id)
		if err != nil {
			return err
		}
		if !exists || l.seq > c.Sequence {
			continue
		}
		if err := ls.end(&l, r); err != nil {
			return err
		}
		if err := ls.x.commitOverlay(); err != nil {
			return err
		}
	}
	return nil
}

// end ends a lease: its keys go, or lose their lease, in the order of keys, and its
// places in lock queues become free.
func (ls *leases) end(l *leaseRow, r *Result) error {
	keys, err := ls.boundTo(layout.TableLeaseKey, l.ID)
	if err != nil {
		return err
	}
	ls.draft.ending = l.ID
	for _, key := range keys {
		if err := ls.endBinding(l, key); err != nil {
			return err
		}
	}
	if l.AtEnd == LeaseDeletes && len(keys) > 0 {
		r.Deleted += uint64(len(keys))
		r.KV.ModRevision = ls.x.next()
	}
	if err := ls.locks().leave(l); err != nil {
		return err
	}
	ls.draft.ending = 0
	ls.remove(l)
	return nil
}

// boundTo returns what a table has for a lease, in order.
func (ls *leases) boundTo(table byte, id uint64) (keys [][]byte, err error) {
	err = ls.x.rows.Each(table, leaseID(id), func(key, _ []byte) bool {
		keys = append(keys, bytes.Clone(key[leaseIDLen:]))
		return true
	})
	return keys, err
}

const leaseIDLen = 8

// endBinding does to a key what the end of its lease does.
func (ls *leases) endBinding(l *leaseRow, key []byte) error {
	m, err := ls.x.lookup(key)
	if err != nil {
		return err
	}
	s := ls.x.state(m)
	if s.lease != l.ID {
		return fmt.Errorf("%w: a key of lease %d is bound to lease %d", layout.ErrMalformed, l.ID, s.lease)
	}
	if l.AtEnd == LeaseDeletes {
		return ls.x.draft(m, &layout.Version{Deleted: true})
	}
	value, err := ls.x.value(m)
	if err != nil {
		return err
	}
	return ls.x.draft(m, &layout.Version{Create: s.create, Version: s.version + 1, Attributes: s.attributes, Value: bytes.Clone(value)})
}

// commit makes the counters of the overlay current, and keeps what others have to know.
func (ls *leases) commit() {
	d := &ls.draft
	if d.counted {
		ls.counts = d.counts
		ls.x.rows.Set(layout.TableCounts, nil, ls.counts.encode())
	}
	ls.x.now.Logical += d.bytes
	ls.changes = append(ls.changes, d.changes...)
	ls.woken = append(ls.woken, d.woken...)
	ls.drop()
}

// drop forgets the draft.
func (ls *leases) drop() {
	d := &ls.draft
	d.counted, d.bytes, d.ending = false, 0, 0
	d.changes, d.woken = d.changes[:0], d.woken[:0]
}

// rowBytes is what the quota counts for a row. Its key begins with the table.
func rowBytes(key, value []byte) (int64, error) {
	switch key[0] {
	case layout.TableLease:
		l, err := decodeLease(0, value)
		return l.logicalBytes(), err
	case layout.TableTicket:
		return ticket.RowBytes(key[1:], value)
	}
	return 0, nil
}

// checkLeaseRow refuses a row that none of the functions here would write. It is for rows
// from outside, in a body.
func checkLeaseRow(key, value []byte) (err error) {
	n := len(key) - 1
	ok := true
	switch key[0] {
	case layout.TableLease:
		ok = n == leaseIDLen
		_, err = decodeLease(0, value)
	case layout.TableLeaseKey:
		ok = n > leaseIDLen && len(value) == 0
	case layout.TableCounts:
		ok = n == 0
		_, err = decodeCounts(value)
	default:
		ok, err = ticket.CheckRow(key, value)
	}
	if err == nil && !ok {
		err = fmt.Errorf("%w: row of %d bytes in table %q", layout.ErrMalformed, n, key[0])
	}
	return err
}

func readCounts(r engine.Reader) (counts, error) {
	b, err := r.Get(nil, []byte{layout.TableCounts})
	if errors.Is(err, engine.ErrNotFound) {
		return counts{}, nil
	}
	if err != nil {
		return counts{}, fmt.Errorf("read counters: %w", err)
	}
	return decodeCounts(b)
}

func (l *leaseRow) encode() []byte {
	b := binary.AppendVarint([]byte{layout.RecordVersion}, l.TTLMillis)
	for _, n := range []uint64{l.seq, l.keys, l.tickets} {
		b = binary.AppendUvarint(b, n)
	}
	b = append(b, byte(l.owner), byte(l.AtEnd))
	b = binary.AppendVarint(b, l.LockDelayMillis)
	return append(b, l.Name...)
}

func decodeLease(id uint64, b []byte) (leaseRow, error) {
	d, err := layout.OpenRecord("lease", b)
	if err != nil {
		return leaseRow{}, err
	}
	l := leaseRow{Lease: Lease{ID: id, TTLMillis: d.Varint()}, seq: d.Uvarint(), keys: d.Uvarint(), tickets: d.Uvarint()}
	l.owner, l.AtEnd = leaseOwner(d.Byte()), LeaseEnd(d.Byte())
	l.LockDelayMillis = d.Varint()
	l.Name = string(d.Rest())
	if d.Failed || l.owner > ownedByDelay || l.AtEnd > LeaseReleases {
		return leaseRow{}, fmt.Errorf("%w: lease record", layout.ErrMalformed)
	}
	return l, nil
}

func (n *counts) fields() []*uint64 { return []*uint64{&n.sequence, &n.leases, &n.locks, &n.tickets} }

func (n *counts) encode() []byte {
	b := []byte{layout.RecordVersion}
	for _, v := range n.fields() {
		b = binary.AppendUvarint(b, *v)
	}
	return b
}

func decodeCounts(b []byte) (n counts, err error) {
	d, err := layout.OpenRecord("counts", b)
	if err != nil {
		return counts{}, err
	}
	for _, v := range n.fields() {
		*v = d.Uvarint()
	}
	if d.Failed || len(d.B) > 0 {
		return counts{}, fmt.Errorf("%w: counts record", layout.ErrMalformed)
	}
	return n, nil
}
