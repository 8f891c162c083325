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

// modelDisk is a raftlog.Disk with the crash semantics of etcd's WAL: saves that
// change neither term, vote nor entries are written but not synced, and a
// crash keeps what was synced and a random part of the rest. Within a record
// the entries come before the hard state.
type modelDisk struct {
	records []diskRecord
	synced  int // records that survive any crash
	// image is the content of the synced records.
	image diskImage
	last  *raftpb.HardState // written

	failing bool // the next write fails
	half    bool // one of a snapshot fails before its record, not after

	// Planted bugs.
	lies     bool // says that it synced
	noVote   bool // does not write votes
	observed func(entries []*raftpb.Entry)
}

func (d *modelDisk) Save(hs *raftpb.HardState, entries []*raftpb.Entry) error {
	if d.failing {
		return errModelDisk
	}
	d.observed(entries)
	prev := d.last
	d.write(hs, entries)
	if raft.MustSync(d.last, prev, len(entries)) {
		d.sync()
	}
	return nil
}

// write adds a record without syncing it.
func (d *modelDisk) write(hs *raftpb.HardState, entries []*raftpb.Entry) {
	r := diskRecord{}
	if hs != nil {
		d.last = hs
		r.hs = proto.Clone(hs).(*raftpb.HardState)
		if d.noVote {
			r.hs.Vote = new(uint64(0))
		}
	}
	for _, e := range entries {
		r.entries = append(r.entries, proto.Clone(e).(*raftpb.Entry))
	}
	d.records = append(d.records, r)
}

// SaveSnapshot writes the record, and then a commit index that makes it valid.
func (d *modelDisk) SaveSnapshot(s *raftpb.Snapshot) error {
	if d.failing && d.half {
		return errModelDisk
	}
	meta := s.GetMetadata()
	d.records = append(d.records, diskRecord{snapshot: proto.Clone(s).(*raftpb.Snapshot)})
	d.sync()
	if d.failing {
		return errModelDisk
	}
	d.write(&raftpb.HardState{
		Term:   new(max(d.last.GetTerm(), meta.GetTerm())),
		Vote:   new(d.last.GetVote()),
		Commit: new(max(d.last.GetCommit(), meta.GetIndex())),
	}, nil)
	d.sync()
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

// crash leaves what a power cut leaves.
func (d *modelDisk) crash(rng *rand.Rand) {
	rest := d.records[d.synced:]
	keep := rng.IntN(len(rest) + 1)
	torn := keep < len(rest) && len(rest[keep].entries) > 0 && rng.IntN(2) == 0
	d.records = d.records[:d.synced+keep]
	if torn {
		r := rest[keep]
		d.records = append(d.records, diskRecord{entries: r.entries[:rng.IntN(len(r.entries)+1)]})
	}
	d.failing = false
	d.image, d.last = diskImage{}, new(raftpb.HardState)
	d.sync() // as the first thing after opening
	if d.image.hs != nil {
		d.last = d.image.hs
	}
	d.synced = len(d.records)
}

// diskState is what is read back at boot.
type diskState struct {
	snapshot *raftpb.Snapshot
	hs       *raftpb.HardState
	entries  []*raftpb.Entry
}

// load reads the records like etcd's WAL does: from the newest snapshot that
// the hard state says is committed.
func (d *modelDisk) load() (diskState, error) {
	var st diskState
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
	last := st.snapshot.GetMetadata().GetTerm()
	if n := len(st.entries); n > 0 {
		last = st.entries[n-1].GetTerm()
	}
	// As a start does, and durably, before raft sees it.
	if raised := datadir.RaiseTerm(st.hs, last); raised != st.hs {
		st.hs = raised
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
