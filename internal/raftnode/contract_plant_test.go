package raftnode

import (
	"bytes"
	"maps"
	"math"
	"strings"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/rights"
	"github.com/kvd-io/kvd/internal/roster"
)

// Bugs are planted in front of the store, by running other commands than those of the
// log, and around the hub.

// plantedEntry is an entry as a machine with a planted bug runs it.
type plantedEntry struct {
	Entry
	own []int // where the commands of the log are among those that run
}

// results returns the results of the commands of the log.
func (p *plantedEntry) results() []*kvstore.Result {
	out := make([]*kvstore.Result, len(p.own))
	for i, at := range p.own {
		out[i] = p.Results[at].(*kvstore.Result)
	}
	return out
}

// plant returns an entry as a machine runs it. A nil machine is that of the replica that
// judges: it shares what is wrong with all members, but not what is wrong with one.
func (w *contractWorld) plant(m *storeMachine, e *Entry) plantedEntry {
	p := plantedEntry{Entry: *e}
	p.Commands = nil
	for _, b := range e.Commands {
		before, b := w.plantCommand(m, e, b)
		if before != nil {
			p.Commands = append(p.Commands, before)
		}
		p.own = append(p.own, len(p.Commands))
		p.Commands = append(p.Commands, b)
	}
	return p
}

// plantCommand returns what runs instead of a command, and what runs before it.
func (w *contractWorld) plantCommand(m *storeMachine, e *Entry, b []byte) (before, instead []byte) {
	switch w.s.opts.bug {
	case bugLeaseEndedByDeposed, bugLockWithoutLease, bugOnceBySequence, bugOnceNotInSnapshot, bugRightsAtTheDoor, bugCompareByValue,
		bugIgnoreLeaseDropsIt, bugNestedJudgedLate:
	default:
		return nil, b
	}
	c, err := kvstore.DecodeCommand(b)
	if err != nil {
		return nil, b
	}
	switch bug := w.s.opts.bug; {
	case bug == bugLeaseEndedByDeposed && c.Op == kvstore.OpLeaseExpire:
		c.Term = e.Term // no matter who proposed it
	case bug == bugLockWithoutLease && c.Op == kvstore.OpLock && c.Lease != 0:
		// As if it were enough that the lease existed when the request was made.
		return kvstore.EncodeCommand(nil, &kvstore.Command{Op: kvstore.OpLeaseGrant, Lease: c.Lease, TTLMillis: 2000}), b
	case bug == bugRightsAtTheDoor && c.Origin.Principal == guest:
		c.Origin.Principal = rights.Root // it was let in
	case bug == bugCompareByValue && c.Op == kvstore.OpTxn:
		w.compareByValue(c.Txn)
	case bug == bugIgnoreLeaseDropsIt:
		dropLease(&c)
	case bug == bugNestedJudgedLate && c.Op == kvstore.OpTxn:
		judgeLate(c.Txn, nil)
	case bug == bugOnceBySequence && c.Idempotency != nil:
		_, sequence, _ := strings.Cut(c.Idempotency.Key, "/")
		c.Idempotency.Key = sequence
	case bug == bugOnceNotInSnapshot && m != nil && c.Idempotency != nil && w.truth.keyAt[c.Idempotency.Key] <= m.restored:
		c.Idempotency.Key += "~" // the member has forgotten the first one
	}
	return nil, kvstore.EncodeCommand(nil, &c)
}

// compareByValue lets transactions compare the value of a pair instead of the revision of
// its last change. The replica that judges is the first to run an entry; what it finds
// counts for all.
func (w *contractWorld) compareByValue(t *kvstore.Txn) {
	for i := range t.If {
		q := &t.If[i]
		if q.Target != kvstore.CompareModRevision || !bytes.Equal(q.Key, swapped) || q.Number == 0 {
			continue
		}
		value, known := w.swaps[q.Number]
		if !known {
			if kv, _, err := w.truth.store.Get(q.Key, q.Number); err == nil {
				value = kv.Value
			}
			w.swaps[q.Number] = value
		}
		if value != nil {
			q.Target, q.Value, q.Number = kvstore.CompareValue, value, 0
		}
	}
}

// dropLease makes puts that keep the lease of their key drop it.
func dropLease(c *kvstore.Command) {
	c.KeepLease = false
	if c.Txn == nil {
		return
	}
	for _, branch := range [][]kvstore.Command{c.Txn.Then, c.Txn.Else} {
		for i := range branch {
			dropLease(&branch[i])
		}
	}
}

// judgeLate lets the transactions in a transaction compare the values that were put before
// them in it.
func judgeLate(t *kvstore.Txn, before map[string][]byte) {
	for i := range t.If {
		q := &t.If[i]
		value, changed := before[string(q.Key)]
		if !changed || q.Range || q.Target != kvstore.CompareValue {
			continue
		}
		holds := q.Holds(&kvstore.KV{Value: value})
		q.Target, q.Number, q.Value, q.Relation = kvstore.CompareVersion, math.MaxUint64, nil, kvstore.Equal
		if holds {
			q.Relation = kvstore.NotEqual
		}
	}
	for _, branch := range [][]kvstore.Command{t.Then, t.Else} {
		known := make(map[string][]byte)
		maps.Copy(known, before)
		for i := range branch {
			switch c := &branch[i]; {
			case c.Op == kvstore.OpPut && !c.KeepValue:
				known[string(c.Key)] = c.Value
			case c.Op == kvstore.OpTxn:
				judgeLate(c.Txn, known)
			}
		}
	}
}

// plantForesight shows the changes of entries to the watches of a member when they are
// written to its log, and not when they are committed.
func (m *storeMachine) plantForesight() {
	if m.w.s.opts.bug != bugWatchBeforeCommit {
		return
	}
	observed := m.n.disk.observed
	m.n.disk.observed = func(hs *raftpb.HardState, entries []*raftpb.Entry) {
		observed(hs, entries)
		if m.n.up && len(entries) > 0 && entries[0].GetIndex() == m.store.Position().Index+1 {
			if err := m.foresee(entries); err != nil {
				m.w.s.violate("plant a bug: %v", err)
			}
		}
	}
}

// foresee applies entries to a copy of the store, whose changes go to the hub.
func (m *storeMachine) foresee(entries []*raftpb.Entry) error {
	_, body := m.n.body()
	if body == nil {
		return nil
	}
	sight := foresight{m}
	store, err := kvstore.Open(engine.NewMemory(), kvstore.Options{Observer: sight})
	if err != nil {
		return err
	}
	if err := store.Restore(bytes.NewReader(body)); err != nil {
		return err
	}
	v, err := store.View()
	if err != nil {
		return err
	}
	records, err := v.Records()
	if err != nil {
		return err
	}
	members, err := roster.Load(records)
	if err != nil {
		return err
	}
	for _, e := range entries {
		verdict, err := members.Apply(e)
		if err != nil {
			return err
		}
		own := Entry{Index: e.GetIndex(), Term: e.GetTerm(), Commands: verdict.Commands, Records: verdict.Records}
		if err := store.Apply([]Entry{own}); err != nil {
			return err
		}
	}
	return nil
}

// foresight passes changes on to the hub of a member.
type foresight struct{ m *storeMachine }

func (f foresight) Applied(changes []kvstore.Change, show func()) {
	show()
	for len(changes) > 0 && changes[0].Revision <= f.m.foreseen {
		changes = changes[1:]
	}
	if len(changes) > 0 {
		f.m.foreseen = changes[len(changes)-1].Revision
		f.m.hub.Applied(changes, func() {})
	}
}

func (f foresight) Reset(show func()) { show() }
