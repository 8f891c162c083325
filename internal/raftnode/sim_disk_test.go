package raftnode

import (
	"errors"
	"math/rand/v2"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/datadir"
)

var errModelDisk = errors.New("model disk: input/output error")

// diskRecord is one write to the model of the WAL.
type diskRecord struct {
	hs       *raftpb.HardState
	entries  []*raftpb.Entry
	snapshot *raftpb.Snapshot
}

// modelDisk is a raftlog.Disk with the crash semantics of datadir.Log: a commit index
// alone waits in memory for the next save, and a crash keeps what was synced and a part of
// the save that was under way. Within a save the entries come before the hard state.
// TestModelDiskAgainstLog holds it against the real one.
type modelDisk struct {
	records []diskRecord
	synced  int // records that survive any crash
	// image is the content of the synced records.
	image diskImage
	last  *raftpb.HardState // as of the last save, written or not
	// unwritten is set while the commit index of last is in no record.
	unwritten bool
	end       uint64 // index of the last entry
	newest    uint64 // snapshot

	failing bool // the next write fails
	zeroed  int  // the record that is damaged; 0: none
	half    bool // one of a snapshot fails before its record, not after
	full    bool // no write fits anymore but for
	room    int  // these

	// Planted bugs.
	lies     bool // says that it synced
	noVote   bool // does not write votes
	noRepair bool // does not repair a torn record
	noGuard  bool // reads a log up to its first damage
	observed func(hs *raftpb.HardState, entries []*raftpb.Entry)
}

func (d *modelDisk) Save(hs *raftpb.HardState, entries []*raftpb.Entry) error {
	if d.failing {
		return errModelDisk
	}
	if !d.hasRoom() {
		return errNoRoom
	}
	d.observed(hs, entries)
	if len(entries) > 0 {
		d.end = entries[len(entries)-1].GetIndex()
	}
	if hs = d.bounded(hs); len(entries) == 0 && !raft.MustSync(hs, d.last, 0) {
		d.unwritten = d.unwritten || hs.GetCommit() != d.last.GetCommit()
		d.last = hs
		return nil
	}
	d.write(hs, entries)
	d.sync()
	return nil
}

// bounded limits a commit index to the log, and never takes one back.
func (d *modelDisk) bounded(hs *raftpb.HardState) *raftpb.HardState {
	if raft.IsEmptyHardState(hs) {
		return d.last
	}
	commit := max(min(hs.GetCommit(), d.end), d.last.GetCommit())
	return &raftpb.HardState{Term: new(hs.GetTerm()), Vote: new(hs.GetVote()), Commit: new(commit)}
}

// write adds a record without syncing it. It ends with a hard state, always.
func (d *modelDisk) write(hs *raftpb.HardState, entries []*raftpb.Entry) {
	if hs == nil {
		hs = d.last
	}
	if n := len(entries); n > 0 {
		hs = datadir.RaiseTerm(hs, entries[n-1].GetTerm())
	}
	d.last, d.unwritten = hs, false
	r := diskRecord{hs: proto.Clone(hs).(*raftpb.HardState)}
	if d.noVote {
		r.hs.Vote = new(uint64(0))
	}
	for _, e := range entries {
		r.entries = append(r.entries, proto.Clone(e).(*raftpb.Entry))
	}
	d.records = append(d.records, r)
}

// SaveSnapshot writes the record, and then a commit index that makes it valid. It
// ignores a snapshot that is not newer than the newest.
func (d *modelDisk) SaveSnapshot(s *raftpb.Snapshot) error {
	if d.failing && d.half {
		return errModelDisk
	}
	if !d.hasRoom() {
		return errNoRoom
	}
	meta := s.GetMetadata()
	if meta.GetIndex() <= d.newest {
		return nil
	}
	if d.unwritten {
		d.write(d.last, nil)
		d.sync()
	}
	d.records = append(d.records, diskRecord{snapshot: proto.Clone(s).(*raftpb.Snapshot)})
	d.sync()
	if d.failing {
		return errModelDisk
	}
	vote := d.last.GetVote()
	if meta.GetTerm() > d.last.GetTerm() {
		vote = 0 // a term that is new to the member
	}
	d.write(&raftpb.HardState{
		Term:   new(max(d.last.GetTerm(), meta.GetTerm())),
		Vote:   new(vote),
		Commit: new(max(d.last.GetCommit(), meta.GetIndex())),
	}, nil)
	d.sync()
	d.newest, d.end = meta.GetIndex(), d.image.last
	return nil
}

func (d *modelDisk) sync() {
	for _, r := range d.records[d.image.read:] {
		d.image.add(r)
	}
	if !d.lies {
		d.synced = len(d.records)
	}
}

// tear leaves the entries of the last record, and not its hard state.
func (d *modelDisk) tear() {
	r := &d.records[len(d.records)-1]
	*r = diskRecord{entries: r.entries}
	d.sync()
}

// crash leaves what a power cut leaves. It reports whether something was lost, and
// whether a record is torn.
func (d *modelDisk) crash(rng *rand.Rand) (lost, torn bool) {
	rest := d.records[d.synced:]
	keep := rng.IntN(len(rest) + 1)
	entries := 0
	if keep < len(rest) && rng.IntN(2) == 0 {
		entries = rng.IntN(len(rest[keep].entries) + 1)
	}
	d.cut(d.synced+keep, entries)
	return keep < len(rest), entries > 0
}

// cut leaves the first records, and of the one after them a number of entries.
func (d *modelDisk) cut(records, entries int) {
	rest := d.records[records:]
	d.records = d.records[:records]
	if entries > 0 {
		d.records = append(d.records, diskRecord{entries: rest[0].entries[:entries]})
	}
	d.failing = false
	d.dropUnborn()
	d.image, d.last, d.unwritten, d.newest = diskImage{}, new(raftpb.HardState), false, 0
	d.sync() // as the first thing after opening
	if d.image.hs != nil {
		d.last = d.image.hs
	}
	d.synced = len(d.records)
}

// dropUnborn drops the snapshots that no hard state has made valid. Their files are
// removed at the next start, so they stay without effect when a commit index passes them.
func (d *modelDisk) dropUnborn() {
	commit := uint64(0)
	for _, r := range d.records {
		commit = max(commit, r.hs.GetCommit())
	}
	for i := range d.records {
		if d.records[i].snapshot.GetMetadata().GetIndex() > commit {
			d.records[i].snapshot = nil
		}
	}
}

// diskState is what is read back at boot.
type diskState struct {
	snapshot *raftpb.Snapshot
	hs       *raftpb.HardState
	entries  []*raftpb.Entry
	raised   bool // the term, which a torn save had left behind
}

// load reads the records like etcd's WAL does: from the newest snapshot that
// the hard state says is committed.
func (d *modelDisk) load() (diskState, error) {
	var st diskState
	if err := d.guard(); err != nil {
		return st, err
	}
	for _, r := range d.records {
		if r.hs != nil {
			st.hs = r.hs
		}
	}
	for _, r := range d.records {
		if r.snapshot != nil && r.snapshot.GetMetadata().GetIndex() <= st.hs.GetCommit() {
			st.snapshot = r.snapshot
		}
	}
	start := st.snapshot.GetMetadata().GetIndex()
	for _, r := range d.records {
		for _, e := range r.entries {
			if e.GetIndex() <= start {
				continue
			}
			at := e.GetIndex() - start - 1
			if at > uint64(len(st.entries)) {
				return st, errors.New("model disk: the log has a gap")
			}
			st.entries = append(st.entries[:at], e)
		}
	}
	st.entries = st.entries[:d.logEnd(st.hs.GetCommit(), start)-start]
	d.newest, d.end = start, start+uint64(len(st.entries))
	last := st.snapshot.GetMetadata().GetTerm()
	if n := len(st.entries); n > 0 {
		last = st.entries[n-1].GetTerm()
	}
	// As a start does, and durably, before raft sees it.
	if raised := datadir.RaiseTerm(st.hs, last); raised != st.hs {
		st.hs, st.raised = raised, true
		d.write(raised, nil)
		d.sync()
	}
	return st, nil
}

// logEnd is the index of the last entry that counts. The WAL also returns
// later ones, which entries before the snapshot overwrote or a snapshot
// replaced.
func (d *modelDisk) logEnd(commit, start uint64) uint64 {
	var whole diskImage
	for _, r := range d.records {
		if r.snapshot.GetMetadata().GetIndex() <= commit {
			whole.add(r)
		}
	}
	return max(whole.last, start)
}

// diskImage follows the content of the synced records, cheaply.
type diskImage struct {
	read     int // records seen
	hs       *raftpb.HardState
	snapshot uint64
	terms    map[uint64]uint64 // by index
	last     uint64
}

func (i *diskImage) add(r diskRecord) {
	i.read++
	if i.terms == nil {
		i.terms = make(map[uint64]uint64)
	}
	if r.hs != nil {
		i.hs = r.hs
	}
	if meta := r.snapshot.GetMetadata(); meta != nil {
		if !i.has(meta.GetIndex(), meta.GetTerm()) {
			i.last = meta.GetIndex() // it replaces the log
		}
		i.snapshot = max(i.snapshot, meta.GetIndex())
	}
	for _, e := range r.entries {
		i.terms[e.GetIndex()] = e.GetTerm()
		i.last = e.GetIndex()
	}
}

// has reports whether the entry is durable.
func (i *diskImage) has(index, term uint64) bool {
	return index <= i.snapshot || index <= i.last && i.terms[index] == term
}
