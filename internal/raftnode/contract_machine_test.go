package raftnode

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/kvstore/engine"
	"github.com/kvd-io/kvd/internal/kvstore/engine/crashdisk"
	"github.com/kvd-io/kvd/internal/lessor"
	"github.com/kvd-io/kvd/internal/watch"
)

// storeMachine is the real store as the state machine of a simulated member, with the
// hub of its watches and the time of its leases. The engine is mostly the one in memory,
// and what a disk would keep over a crash is a snapshot body, which Flush makes. In some
// worlds it is Pebble, on a disk whose power is cut. Nothing of it becomes durable but by
// Flush, which waits for that, so a seed always gives the same run there, too.
type storeMachine struct {
	w       *contractWorld
	n       *simNode
	store   *kvstore.Store
	hub     *watch.Hub
	lessor  *lessor.Lessor
	etcd    *etcdFace // of this life; nil: nobody has called it yet
	durable []byte
	disk    *crashdisk.Disk        // nil: the engine is in memory
	files   engine.Verifier        // of the engine on it
	met     *atomic.Pointer[error] // the damage that the engine has met
	// expiring is set while the end of leases is proposed.
	expiring bool

	// Of planted bugs.
	restored uint64 // the index of the last snapshot that was installed
	foreseen uint64 // the newest revision that watches got before it was committed
}

func (w *contractWorld) newMachine(n *simNode) simMachine {
	m := &storeMachine{w: w, n: n}
	if n.s.opts.onDisk && !n.s.opts.memory {
		m.disk = crashdisk.New()
	}
	m.open()
	m.plantForesight()
	return m
}

// open begins a new life of the member.
func (m *storeMachine) open() {
	m.restored, m.foreseen, m.expiring, m.etcd = 0, 0, false, nil
	m.hub = watch.New(watch.Options{WindowBytes: m.w.windowBytes})
	m.lessor = lessor.New(simTable{m}, simOffice{m}, m.n.clock, func(error) {})
	opts := kvstore.Options{CacheEntries: 32, HotBytes: 16 << 10, Observer: simFeed{m}, Leases: simLeases{m}}
	eng, err := m.engine()
	var store *kvstore.Store
	if err == nil {
		store, err = kvstore.Open(eng, opts)
	}
	if engine.IsDamage(err) { // the next start will be refused
		damage := err
		m.met.Store(&damage)
		if eng != nil {
			_ = eng.Close()
		}
		store, err = kvstore.Open(engine.NewMemory(), opts)
	}
	if err == nil && m.durable != nil {
		err = store.Restore(bytes.NewReader(m.durable))
	}
	if err != nil {
		m.w.s.violate("member %d: open the store: %v", m.n.id, err)
	}
	m.store = store
	m.hub.Attach(simSource{m})
}

func (m *storeMachine) engine() (engine.Engine, error) {
	if m.disk == nil {
		return engine.NewMemory(), nil
	}
	met := new(atomic.Pointer[error])
	m.met = met
	eng, err := m.disk.Open(kvstore.Comparer(), func(err error) { met.Store(&err) })
	if err == nil {
		m.files = eng.(engine.Verifier)
	}
	return eng, err
}

// crash loses what was not flushed.
func (m *storeMachine) crash() {
	if m.disk != nil {
		m.disk.Cut(m.n.s.source(unit{kind: unitHarm, client: int(m.n.id), number: m.n.boots}))
		m.w.s.reach(crashOfPebble)
	}
	m.close()
	m.open()
}

// rot flips a bit in the first block of one of Pebble's tables.
func (m *storeMachine) rot(rng *rand.Rand) bool {
	if m.disk == nil {
		return false // nothing is stored that anybody reads before a start
	}
	_, files, err := m.files.Files()
	if err != nil {
		m.w.s.violate("member %d: list the files: %v", m.n.id, err)
	}
	files = slices.DeleteFunc(files, func(f engine.File) bool { return !strings.HasSuffix(f.Name, ".sst") })
	if len(files) == 0 {
		return false
	}
	if err := m.disk.Rot(files[rng.IntN(len(files))].Name, rng.IntN(16), rng.IntN(8)); err != nil {
		m.w.s.violate("member %d: rot: %v", m.n.id, err)
	}
	return true
}

func (m *storeMachine) scrub() error {
	if m.disk == nil {
		return nil
	}
	_, files, err := m.files.Files()
	for _, f := range files {
		err = errors.Join(err, m.files.Verify(f, func(int) error { return nil }))
	}
	m.w.s.reachIf(rotOfPebble, err != nil)
	return err
}

func (m *storeMachine) failed() error {
	if m.disk == nil {
		return nil
	}
	if err := m.met.Load(); err != nil {
		m.w.s.reach(rotOfPebble)
		return *err
	}
	return nil
}

// close lets go of files and goroutines.
func (m *storeMachine) close() {
	if m.disk == nil || m.store == nil {
		return
	}
	if err := m.store.Close(); err != nil && m.failed() == nil {
		m.w.s.violate("member %d: close the store: %v", m.n.id, err)
	}
}

func (m *storeMachine) position() (index, term uint64) {
	p := m.store.Position()
	return p.Index, p.Term
}

func (m *storeMachine) hash() uint64 {
	_, hash := m.store.StateHash()
	return hash
}

func (m *storeMachine) ran(id uint64) bool { return m.w.truth.ranAt[id] != 0 }

func (m *storeMachine) verify(body io.Reader) error {
	_, err := kvstore.VerifyBody(body)
	return err
}

// Apply executes the entries, one by one or in one call: it must make no difference.
func (m *storeMachine) Apply(entries []Entry) error {
	step := 1
	if m.w.s.chance(0.5) {
		step = len(entries)
	}
	for ; len(entries) > 0; entries = entries[step:] {
		if err := m.applyStep(entries[:step]); err != nil {
			return err
		}
	}
	return nil
}

func (m *storeMachine) applyStep(entries []Entry) error {
	run, groups := make([]Entry, len(entries)), make([]plantedEntry, len(entries))
	for i := range entries {
		if err := m.w.truth.apply(&entries[i]); err != nil {
			return fmt.Errorf("the replica that judges: %w", err)
		}
		groups[i] = m.w.plant(m, &entries[i])
		run[i] = groups[i].Entry
	}
	if err := m.store.Apply(run); err != nil {
		return err
	}
	for i := range entries {
		if entries[i].WantResults {
			groups[i].Results = run[i].Results
			m.takeResults(&entries[i], groups[i].results())
		}
	}
	if !m.w.blindToState {
		m.n.s.observeRun(m.n, &entries[len(entries)-1], m.hash())
	}
	return nil
}

// takeResults checks the results against those of the replica that judges (X0).
func (m *storeMachine) takeResults(e *Entry, results []*kvstore.Result) {
	for i, r := range results {
		if want := m.w.truth.results[e.Index][i]; !m.w.blindToState && !reflect.DeepEqual(r, want) {
			m.w.s.violate("X0: command %d of entry %d has the result %+v at member %d, want %+v", i, e.Index, r, m.n.id, want)
		}
		e.Results = append(e.Results, machineResult{index: e.Index, value: r})
	}
}

func (m *storeMachine) View() (View, error) { return m.store.View() }

func (m *storeMachine) Durable() (View, error) { return nil, nil }

func (m *storeMachine) Flush() error {
	if m.n.s.opts.memory {
		return nil
	}
	if m.disk != nil {
		return m.flushToDisk()
	}
	v, err := m.store.View()
	if err != nil {
		return err
	}
	var body bytes.Buffer
	_, err = v.WriteTo(&body)
	m.durable = body.Bytes()
	return errors.Join(err, v.Close())
}

// flushToDisk waits until a crash would not cost anything that was applied.
func (m *storeMachine) flushToDisk() error {
	for {
		if err := m.store.Flush(); err != nil {
			return err
		}
		v, err := m.store.Durable()
		if err != nil {
			return err
		}
		index, _ := v.Position()
		if err := v.Close(); err != nil || index == m.store.Position().Index {
			return err
		}
		runtime.Gosched() // Pebble writes in the background
	}
}

func (m *storeMachine) Restore(r io.Reader) error {
	if err := m.store.Restore(r); err != nil {
		return err
	}
	m.restored = m.store.Position().Index
	m.observeRestored()
	return m.Flush()
}

func (m *storeMachine) Maintain() (more bool, err error) { return m.store.Maintain() }

// simFeed passes changes on to the hub.
type simFeed struct{ m *storeMachine }

func (f simFeed) Applied(changes []kvstore.Change, show func()) {
	for len(changes) > 0 && changes[0].Revision <= f.m.foreseen {
		changes = changes[1:] // a planted bug has delivered it
	}
	f.m.hub.Applied(changes, show)
}

func (f simFeed) Reset(show func()) { f.m.hub.Reset(show) }

// simSource is the store as the hub reads it.
type simSource struct{ m *storeMachine }

func (s simSource) Revision() uint64        { return s.m.store.Revision() }
func (s simSource) CompactRevision() uint64 { return s.m.store.CompactRevision() }

func (s simSource) Get(key []byte, revision uint64) (kvstore.KV, uint64, error) {
	return s.m.store.Get(key, revision)
}

func (s simSource) Changes(ctx context.Context, from uint64, fn func(kvstore.Change) (bool, error)) (uint64, error) {
	s.m.w.stats.diskReads++
	s.m.w.s.reach(watchFromDisk)
	if s.m.w.s.opts.bug == bugSlowWatcherSkipped {
		return s.m.store.Revision(), nil // as if nothing had happened
	}
	return s.m.store.Changes(ctx, from, fn)
}

// simLeases passes what happens to leases on to the lessor.
type simLeases struct{ m *storeMachine }

func (o simLeases) LeasesReset() { o.m.lessor.Reset() }

func (o simLeases) LeasesChanged(changes []kvstore.LeaseChange) {
	out := make([]lessor.Change, len(changes))
	for i, c := range changes {
		out[i] = lessor.Change{Lease: timedLease(&c.Lease, c.Seq), Ended: c.Ended}
	}
	o.m.lessor.Changed(out)
}

func timedLease(l *kvstore.Lease, seq uint64) lessor.Lease {
	return lessor.Lease{ID: l.ID, TTL: time.Duration(l.TTLMillis) * time.Millisecond, Seq: seq}
}

// simTable is the table of leases as the lessor reads it.
type simTable struct{ m *storeMachine }

func (t simTable) Leases(after uint64, limit int) ([]lessor.Lease, error) {
	page, err := t.m.store.Leases(after, limit)
	out := make([]lessor.Lease, len(page))
	for i := range page {
		out[i] = timedLease(&page[i].Lease, page[i].Seq)
	}
	return out, err
}

func (t simTable) LeaseKeys(id uint64) (int, error) {
	l, err := t.m.store.Lease(id)
	if errors.Is(err, kvstore.ErrLeaseNotFound) {
		return 0, nil
	}
	return int(l.Keys + l.Tickets), err
}

// simOffice is the member's part in the cluster. The simulator takes the steps of the
// lessor itself, so nothing waits here.
type simOffice struct{ m *storeMachine }

func (o simOffice) Tenure() uint64 {
	if c := o.m.n.core; c.lead == o.m.n.id && o.m.store.Position().Term == c.term {
		return c.term
	}
	return 0
}

var errNotInSteps = errors.New("the simulator does not wait")

func (o simOffice) Prove(context.Context, uint64) error                    { return errNotInSteps }
func (o simOffice) Expire(context.Context, uint64, uint64, []uint64) error { return errNotInSteps }
