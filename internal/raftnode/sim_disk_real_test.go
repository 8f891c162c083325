package raftnode

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/roster"
)

// The simulator proves as much as its disk is like a real one. Here the same sequences of
// saves, snapshots, crashes, and starts happen to the model and to datadir.Log on a real
// file system. Both must come back with the same snapshot, hard state, and entries.
//
// A crash of the real log is a copy of its directory in which the save that was under way
// has reached the disk in part: up to some entry, or with a page missing in the middle.

// diskPair is a model and the log that it is a model of.
type diskPair struct {
	t     *testing.T
	rng   *rand.Rand
	model *modelDisk
	real  *datadir.Log
	dir   string

	hs      *raftpb.HardState
	base    uint64   // of the log
	terms   []uint64 // of the entries after it
	newest  uint64   // snapshot
	crashes map[string]int
	// taken has the indexes of received snapshots that a crash has left without effect.
	// What was committed there has one term, so no snapshot of another one comes after.
	taken map[uint64]bool
}

var diskOwner = datadir.Owner{MemberID: 1, ClusterID: simCluster}

// TestModelDiskAgainstLog runs random sequences on both.
func TestModelDiskAgainstLog(t *testing.T) {
	before := wal.SegmentSizeBytes
	wal.SegmentSizeBytes = 64 << 10
	t.Cleanup(func() { wal.SegmentSizeBytes = before })
	first, runs := simSeeds(t, 12)
	crashes := make(map[string]int)
	for seed := first; seed < first+runs; seed++ {
		p := &diskPair{t: t, rng: rand.New(rand.NewPCG(seed, 2)), crashes: crashes, taken: make(map[uint64]bool), hs: new(raftpb.HardState)}
		p.model = &modelDisk{last: new(raftpb.HardState), observed: func(*raftpb.HardState, []*raftpb.Entry) {}}
		p.dir = t.TempDir()
		p.open()
		p.bootstrap()
		for range 40 {
			p.step()
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		}
		if err := p.real.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("crashes: %v", crashes)
	for _, kind := range []string{"idle", "torn save", "page lost in a save", "whole save", "snapshot without its file", "snapshot without its commit"} {
		if runs >= 12 && crashes[kind] == 0 {
			t.Errorf("no crash of this kind: %s", kind)
		}
	}
}

// open opens the real log, and compares what it has.
func (p *diskPair) open() {
	p.t.Helper()
	d, real, err := datadir.OpenLog(zap.NewNop(), p.dir, diskOwner)
	if err != nil {
		p.t.Fatalf("the model starts, and the log does not: %v", err)
	}
	p.real = d
	if len(p.model.records) == 0 {
		return
	}
	model, err := p.model.load()
	if err != nil {
		p.t.Fatalf("the log starts, and the model does not: %v", err)
	}
	if a, b := model.snapshot.GetMetadata(), real.Snapshot.GetMetadata(); a.GetIndex() != b.GetIndex() || a.GetTerm() != b.GetTerm() {
		p.t.Errorf("the model begins with snapshot %d of term %d, the log with %d of term %d", a.GetIndex(), a.GetTerm(), b.GetIndex(), b.GetTerm())
	}
	if !proto.Equal(model.hs, real.HardState) {
		p.t.Errorf("the model has the hard state %v, the log %v", model.hs, real.HardState)
	}
	if !slices.EqualFunc(model.entries, real.Entries, func(a, b *raftpb.Entry) bool { return proto.Equal(a, b) }) {
		p.t.Errorf("the model has %s, the log %s", describeEntries(model.entries), describeEntries(real.Entries))
	}
	p.hs = real.HardState
	p.base = real.Snapshot.GetMetadata().GetIndex()
	p.newest = p.base
	p.terms = nil
	for _, e := range real.Entries {
		p.terms = append(p.terms, e.GetTerm())
	}
}

func describeEntries(ents []*raftpb.Entry) string {
	var words []string
	for _, e := range ents {
		words = append(words, fmt.Sprintf("%d/%d", e.GetTerm(), e.GetIndex()))
	}
	return fmt.Sprint(words)
}

func (p *diskPair) last() uint64 { return p.base + uint64(len(p.terms)) }

// bootstrap is what Open does to an empty directory.
func (p *diskPair) bootstrap() {
	p.saveSnapshot(InitialIndex, initialTerm)
	p.base, p.newest = InitialIndex, InitialIndex
	p.hs = &raftpb.HardState{Term: new(uint64(initialTerm)), Vote: new(uint64(0)), Commit: new(uint64(InitialIndex))}
	p.save(p.hs, nil)
}

func (p *diskPair) save(hs *raftpb.HardState, entries []*raftpb.Entry) {
	p.t.Helper()
	if a, b := p.model.Save(hs, entries), p.real.Save(hs, entries); a != nil || b != nil {
		p.t.Fatalf("save: the model: %v; the log: %v", a, b)
	}
}

func (p *diskPair) saveSnapshot(index, term uint64) {
	p.t.Helper()
	s := p.snapshot(index, term)
	if a, b := p.model.SaveSnapshot(s), p.real.SaveSnapshot(s); a != nil || b != nil {
		p.t.Fatalf("save a snapshot: the model: %v; the log: %v", a, b)
	}
}

func (p *diskPair) snapshot(index, term uint64) *raftpb.Snapshot {
	return roster.NewSnapshot(index, term, roster.New(simCluster, []roster.Member{simMember(1)}).Membership())
}

// step does one thing.
func (p *diskPair) step() {
	p.t.Helper()
	switch n := p.rng.IntN(20); {
	case n < 7:
		p.save(p.draft())
	case n < 9: // a commit index alone
		p.hs = p.state(p.hs.GetTerm(), p.hs.GetVote(), p.hs.GetCommit()+p.rng.Uint64N(p.last()-p.hs.GetCommit()+1))
		p.save(p.hs, nil)
	case n < 11: // a vote
		p.hs = p.state(p.hs.GetTerm()+1, 1+p.rng.Uint64N(3), p.hs.GetCommit())
		p.save(p.hs, nil)
	case n < 13: // a checkpoint
		if index := p.hs.GetCommit(); index > p.newest && index > p.base && !p.taken[index] {
			p.saveSnapshot(index, p.terms[index-p.base-1])
			p.newest = index
		}
	case n < 14: // a received snapshot
		p.install(func(s *raftpb.Snapshot) { p.saveSnapshot(s.GetMetadata().GetIndex(), s.GetMetadata().GetTerm()) })
	case n < 15:
		p.idle()
	case n < 18:
		p.cutSave()
	case n < 19:
		p.install(p.cutSnapshot)
	default:
		if err := p.real.Purge(2); err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p *diskPair) state(term, vote, commit uint64) *raftpb.HardState {
	return &raftpb.HardState{Term: new(term), Vote: new(vote), Commit: new(commit)}
}

// draft makes entries, sometimes over uncommitted ones, and a hard state or none.
func (p *diskPair) draft() (*raftpb.HardState, []*raftpb.Entry) {
	term, first := p.hs.GetTerm(), p.last()+1
	var hs *raftpb.HardState
	if p.rng.IntN(4) == 0 {
		term++
		first -= p.rng.Uint64N(p.last() - p.hs.GetCommit() + 1)
		hs = p.state(term, 0, p.hs.GetCommit())
		p.hs = hs
	}
	p.terms = p.terms[:first-p.base-1]
	var ents []*raftpb.Entry
	for range 1 + p.rng.IntN(5) {
		data := make([]byte, p.rng.IntN(900))
		for i := range data {
			data[i] = byte(1 + p.rng.IntN(255))
		}
		ents = append(ents, &raftpb.Entry{Index: new(p.last() + 1), Term: new(term), Type: raftpb.EntryNormal.Enum(), Data: data})
		p.terms = append(p.terms, term)
	}
	return hs, ents
}

// install receives a snapshot from beyond the commit index.
func (p *diskPair) install(save func(*raftpb.Snapshot)) {
	index, term := p.hs.GetCommit()+1+p.rng.Uint64N(p.last()-p.hs.GetCommit()+10), p.hs.GetTerm()+1
	for p.taken[index] {
		index++
	}
	p.base, p.newest, p.terms = index, index, nil
	p.hs = p.state(term, 0, index)
	save(p.snapshot(index, term))
}

// idle crashes between two saves.
func (p *diskPair) idle() {
	p.t.Helper()
	p.crashes["idle"]++
	p.restart(readFiles(p.t, p.dir), len(p.model.records), 0)
}

// restart continues from what a crash has left of either.
func (p *diskPair) restart(files map[string][]byte, records, entries int) {
	p.t.Helper()
	if err := p.real.Close(); err != nil {
		p.t.Fatal(err)
	}
	p.model.cut(records, entries)
	p.dir = writeFiles(p.t, files)
	p.open()
}

// cutSave crashes during a save.
func (p *diskPair) cutSave() {
	p.t.Helper()
	hs, ents := p.draft()
	before, records := readFiles(p.t, p.dir), len(p.model.records)
	p.save(hs, ents)
	after := readFiles(p.t, p.dir)
	name := lastSegment(after)
	whole, old := after[name], before[name]
	if old == nil || p.rng.IntN(6) == 0 { // it began a segment, or only the process died
		p.crashes["whole save"]++
		p.restart(after, records+1, 0)
		return
	}
	frames := framesFrom(whole, written(old))
	if len(frames) != len(ents)+2 {
		p.t.Fatalf("a save of %d entries has %d frames", len(ents), len(frames)-1)
	}
	// A disk writes sectors whole, or not.
	start, end := frames[0], frames[len(frames)-1]
	sector := start/diskSector + p.rng.IntN((end-1)/diskSector-start/diskSector+1)
	lost, until := max(start, sector*diskSector), end
	kind := "torn save"
	if p.rng.IntN(2) == 0 {
		kind, until = "page lost in a save", min(end, (sector+1)*diskSector)
	}
	damaged := slices.Clone(whole)
	clear(damaged[lost:until])
	keep := 0
	for keep < len(frames)-1 && slices.Equal(damaged[frames[keep]:frames[keep+1]], whole[frames[keep]:frames[keep+1]]) {
		keep++
	}
	if keep == len(frames)-1 {
		p.t.Fatal("nothing is damaged")
	}
	p.crashes[kind]++
	after[name] = damaged
	p.restart(after, records, keep)
}

const diskSector = 512

// cutSnapshot crashes during the save of a received snapshot.
func (p *diskPair) cutSnapshot(s *raftpb.Snapshot) {
	p.t.Helper()
	before, records, unwritten := readFiles(p.t, p.dir), len(p.model.records), p.model.unwritten
	index, term := s.GetMetadata().GetIndex(), s.GetMetadata().GetTerm()
	p.saveSnapshot(index, term)
	after := readFiles(p.t, p.dir)
	name := lastSegment(after)
	whole, old := after[name], before[name]
	frames := framesFrom(whole, written(old))
	if old == nil || len(frames) < 3 {
		p.crashes["whole snapshot"]++
		p.restart(after, len(p.model.records), 0)
		return
	}
	commit := frames[len(frames)-2] // where the hard state begins that makes it valid
	record := frames[len(frames)-3]
	p.taken[index] = true
	files := maps.Clone(after)
	files["watermark"] = before["watermark"]
	switch p.rng.IntN(2) {
	case 0:
		p.crashes["snapshot without its file"]++
		clear(whole[record:])
		if unwritten {
			records++
		}
		maps.DeleteFunc(files, func(f string, _ []byte) bool { return strings.HasSuffix(f, ".snap") && before[f] == nil })
	default:
		p.crashes["snapshot without its commit"]++
		clear(whole[commit:])
		if unwritten {
			records++
		}
		records++
	}
	p.restart(files, records, 0)
}

// written is where the frames of a segment end.
func written(b []byte) int {
	frames := framesFrom(b, 0)
	return frames[len(frames)-1]
}

// framesFrom returns where the frames of a segment begin, from one of them on, and the
// end of the last.
func framesFrom(b []byte, at int) []int {
	out := []int{at}
	for at+8 <= len(b) {
		word := binary.LittleEndian.Uint64(b[at:])
		if word == 0 {
			break
		}
		size := int(word & (1<<56 - 1))
		if word>>63 != 0 {
			size += int(word >> 56 & 7)
		}
		at += 8 + size
		out = append(out, at)
	}
	return out
}

func lastSegment(files map[string][]byte) (name string) {
	for f := range files {
		if strings.HasSuffix(f, ".wal") {
			name = max(name, f)
		}
	}
	return name
}

func readFiles(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := make(map[string][]byte)
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() || strings.HasSuffix(path, ".tmp") {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		files[name], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func writeFiles(t *testing.T, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, b := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
