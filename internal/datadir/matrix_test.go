package datadir

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/proof"
)

// matrixDir is a directory of a member that was stopped or killed, and what the member
// has promised with it.
type matrixDir struct {
	files   map[string][]byte
	owner   Owner
	last    uint64 // entries up to here were acknowledged
	term    uint64
	vote    uint64
	entries map[uint64]string
	// tail is where the last save begins in the last segment. A crash could have torn
	// it, so damage there may cost it. It is 0 if the watermark covers everything.
	tail int
	// open is what is lost at most, if tail is not 0: the log then ends at least here.
	open uint64
}

// matrixEntries is how many entries a member acknowledges at least.
const matrixEntries = 90

// makeMatrixDir writes a log of several segments with two snapshots and their bodies,
// as a member does: one save for each of its acknowledgments. The directory is that of
// a member which was stopped, or killed right after its last acknowledgment.
func makeMatrixDir(t testing.TB, member uint64, killedNow bool) *matrixDir {
	t.Helper()
	segmentsOf(t, 8<<10)
	path := t.TempDir()
	dir, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	m := &matrixDir{owner: Owner{MemberID: member, ClusterID: 0xabc}, term: 3, vote: member, entries: make(map[uint64]string)}
	if err := dir.Claim(member, m.owner.ClusterID, 0, "m"); err != nil {
		t.Fatal(err)
	}
	l, _, err := OpenLog(zap.NewNop(), path, m.owner)
	if err != nil {
		t.Fatal(err)
	}
	if err := dir.MarkStarted(); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(member, 5))
	for m.last < matrixEntries {
		term := 1 + m.last/25
		n := uint64(1 + rng.IntN(3))
		if killedNow && m.last+n >= matrixEntries {
			if err := l.writeWatermark(); err != nil {
				t.Fatal(err)
			}
			_, _, m.tail = lastSegmentPath(t, path)
			m.open = m.last
		}
		ents := entriesAt(m.last+1, m.last+n, term, 50+rng.IntN(700))
		mustSave(t, l, hardStateAt(term, m.vote, m.last), ents...)
		for _, e := range ents {
			m.entries[e.GetIndex()] = string(e.GetData())
		}
		m.last += n
		m.term = term
		if at := m.last - 2; l.snapshot == 0 && at > 20 || l.snapshot > 0 && l.snapshot < 40 && at > 40 {
			writeFile(t, l.BodyPath(at), fmt.Sprintf("body at %d", at))
			mustSaveSnapshot(t, l, at, l.shape.termAt(at))
		}
	}
	if !killedNow {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	m.files = readTree(t, path)
	if killedNow {
		_ = l.Close()
	}
	if err := dir.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(m.segments()); n < 4 {
		t.Fatalf("%d segments are too few", n)
	}
	return m
}

func (m *matrixDir) segments() []string {
	var out []string
	for name := range m.files {
		if strings.HasSuffix(name, ".wal") {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// used returns the length of a file without the zeros at its end, rounded up to whole
// sectors.
func (m *matrixDir) used(name string) int {
	n := len(bytes.TrimRight(m.files[name], "\x00"))
	return min((n+walSector-1)/walSector*walSector, len(m.files[name]))
}

// matrix counts what became of the cases.
type matrix struct {
	t                          *testing.T
	dir                        string // reused by all cases
	refused, repaired, ignored int
	whole                      map[string][]byte // what dir holds, as far as known
}

// judge opens a directory with the given files. The only verdicts that are allowed: a
// refusal with file, remedy, and an unchanged directory; or everything that was
// promised. tail allows that the last save is missing.
func (x *matrix) judge(what string, m *matrixDir, files map[string][]byte, tail bool) {
	x.t.Helper()
	x.lay(files)
	dir, err := Open(x.dir)
	var l *Log
	var state LogState
	if err == nil {
		l, state, err = OpenLog(zap.NewNop(), x.dir, m.owner)
		err = errors.Join(err, dir.Close())
	}
	var refused *RefusedError
	switch {
	case errors.As(err, &refused):
		x.refused++
		x.judgeRefusal(what, refused, files)
		return
	case err != nil:
		x.t.Errorf("%s: %v, which is no refusal: a start would be tried again and again", what, err)
		return
	}
	x.whole = nil // whatever was repaired
	if problem := m.missing(state, tail); problem != "" {
		x.t.Errorf("%s: opened, and %s", what, problem)
	}
	if state.Repaired != "" {
		x.repaired++
	} else {
		x.ignored++
	}
	if err := l.Close(); err != nil {
		x.t.Errorf("%s: close: %v", what, err)
	}
}

// judgeRefusal checks that a refusal is useful, that the doctor agrees, and D5.
func (x *matrix) judgeRefusal(what string, r *RefusedError, files map[string][]byte) {
	x.t.Helper()
	if !strings.HasPrefix(r.File, x.dir) || r.Reason == "" || r.Remedy == "" {
		x.t.Errorf("%s: the refusal %v names no file, reason, or remedy", what, r)
	}
	report, err := Examine(x.dir)
	report.JudgeMember()
	if err != nil || report.Refused == nil || report.Refused.Reason != r.Reason || report.Refused.Offset != r.Offset {
		x.t.Errorf("%s: a start says %v, the doctor %s, %v", what, r, report.Verdict(), err)
	}
	for name, b := range readTree(x.t, x.dir) {
		if want, ok := files[name]; name != "lock" && (!ok || !bytes.Equal(b, want)) {
			x.t.Errorf("%s: %s was changed by a refused start", what, name)
		}
	}
}

// lay makes the directory hold the files, writing only what differs.
func (x *matrix) lay(files map[string][]byte) {
	x.t.Helper()
	if x.whole == nil {
		if err := os.RemoveAll(x.dir); err != nil {
			x.t.Fatal(err)
		}
		x.whole = map[string][]byte{}
	}
	for name := range x.whole {
		if _, ok := files[name]; !ok {
			if err := os.Remove(filepath.Join(x.dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				x.t.Fatal(err)
			}
		}
	}
	for name, b := range files {
		if old, ok := x.whole[name]; ok && bytes.Equal(old, b) {
			continue
		}
		path := filepath.Join(x.dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, b, 0o600)); err != nil {
			x.t.Fatal(err)
		}
	}
	x.whole = maps.Clone(files)
}

// missing returns what the log lacks of what its member has promised.
func (m *matrixDir) missing(s LogState, tail bool) string {
	least := m.last
	if tail && m.tail > 0 {
		least = m.open
	}
	at := s.Snapshot.GetMetadata().GetIndex()
	if at > 0 && string(s.Snapshot.GetData()) != fmt.Sprintf("snapshot at %d", at) {
		return fmt.Sprintf("the snapshot at %d has the content %q", at, s.Snapshot.GetData())
	}
	if last := lastOf(s); last < least || last > m.last {
		return fmt.Sprintf("the log ends at entry %d; %d were acknowledged", last, least)
	}
	for i, e := range s.Entries {
		if e.GetIndex() != at+1+uint64(i) || string(e.GetData()) != m.entries[e.GetIndex()] {
			return fmt.Sprintf("entry %d after the snapshot at %d is entry %d with the wrong content", i, at, e.GetIndex())
		}
	}
	if hs := s.HardState; hs.GetTerm() != m.term || hs.GetVote() != m.vote {
		return fmt.Sprintf("term %d and vote %d instead of %d and %d", hs.GetTerm(), hs.GetVote(), m.term, m.vote)
	}
	return ""
}

// with returns the files with one of them replaced; nil removes it.
func (m *matrixDir) with(name string, b []byte) map[string][]byte {
	files := maps.Clone(m.files)
	if files[name] = b; b == nil {
		delete(files, name)
	}
	return files
}

// inTail reports whether the range of a file is in the save that a crash may have torn.
func (m *matrixDir) inTail(name string, to int) bool {
	segments := m.segments()
	return m.tail > 0 && name == segments[len(segments)-1] && to > m.tail
}

// TestCorruptionMatrix damages every file of a member in every way that a disk, a
// file system, or a person may. It never loses silently what was acknowledged, and
// never fails in a way in which a supervisor would start it again and again.
//
// Bodies of snapshots and the store are not this package's to judge; package node does.
func TestCorruptionMatrix(t *testing.T) {
	begin := time.Now()
	seed := uint64(begin.UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	x := &matrix{t: t, dir: filepath.Join(t.TempDir(), "data")}
	cases := 0
	for _, killedNow := range []bool{false, true} {
		m, other := makeMatrixDir(t, 7, killedNow), makeMatrixDir(t, 8, killedNow)
		before := x.ignored
		if x.judge("whole", m, m.files, false); x.ignored != before+1 {
			t.Fatal("an undamaged directory is not taken as it is")
		}
		for _, name := range slices.Sorted(maps.Keys(m.files)) {
			if name == "lock" || strings.HasSuffix(name, ".snap.db") {
				continue
			}
			for what, c := range m.damages(name, other, rng) {
				x.judge(fmt.Sprintf("killed %v, %s: %s", killedNow, name, what), m, c.files, c.tail)
				cases++
			}
			if t.Failed() {
				return
			}
		}
		// All of another member's files under this one's settings, and the log alone.
		x.judge("the log of another member", m, m.swapped(other, "wal"), false)
		x.judge("the snapshots of another member", m, m.swapped(other, "snap"), false)
		cases += 2
	}
	t.Logf("%d cases in %v: %d refused, %d repaired, %d without effect", cases, time.Since(begin).Round(time.Millisecond), x.refused, x.repaired, x.ignored)
	if x.refused < cases/2 || x.repaired == 0 || x.ignored == 0 {
		t.Error("the cases do not cover the verdicts")
	}
	proof.Record(t, proof.Result{
		Suite: "corruption matrix: log and identity", Runs: int64(cases), Seconds: time.Since(begin).Seconds(), Promises: []string{"fails safe"},
		Replay: "go test -run '^TestCorruptionMatrix$' ./internal/datadir",
	})
}

// damage is one case.
type damage struct {
	files map[string][]byte
	tail  bool
}

// damages yields everything that may happen to one file.
func (m *matrixDir) damages(name string, other *matrixDir, rng *rand.Rand) func(yield func(string, damage) bool) {
	whole := m.files[name]
	used := m.used(name)
	edit := func(f func(b []byte) []byte) map[string][]byte { return m.with(name, f(bytes.Clone(whole))) }
	return func(yield func(string, damage) bool) {
		for at := 0; at < used; at += walSector {
			end := min(at+walSector, len(whole))
			zeroed := edit(func(b []byte) []byte { clear(b[at:end]); return b })
			if !bytes.Equal(zeroed[name], whole) && !yield(fmt.Sprintf("sector at %d zeroed", at), damage{zeroed, m.inTail(name, end)}) {
				return
			}
			if !yield(fmt.Sprintf("cut at %d", at), damage{m.with(name, whole[:at:at]), m.inTail(name, used)}) {
				return
			}
			garbage := edit(func(b []byte) []byte {
				for i := at; i < end; i++ {
					b[i] = byte(rng.Uint32())
				}
				return b
			})
			if !yield(fmt.Sprintf("garbage in the sector at %d", at), damage{garbage, false}) {
				return
			}
			if at > 0 {
				repeated := edit(func(b []byte) []byte { copy(b[at:end], whole[at-walSector:at]); return b })
				if !yield(fmt.Sprintf("sector at %d written to its successor", at-walSector), damage{repeated, false}) {
					return
				}
			}
		}
		flips := min(used*8, 120)
		for range flips {
			at, bit := rng.IntN(max(used, 1)), rng.IntN(8)
			if at >= len(whole) {
				continue
			}
			if !yield(fmt.Sprintf("bit %d of byte %d flipped", bit, at), damage{edit(func(b []byte) []byte { b[at] ^= 1 << bit; return b }), false}) {
				return
			}
		}
		_ = yield("removed", damage{m.with(name, nil), false}) &&
			yield("emptied", damage{m.with(name, []byte{}), false}) &&
			yield("all zeros", damage{m.with(name, make([]byte, len(whole))), false}) &&
			yield("grown", damage{edit(func(b []byte) []byte { return append(b, "something behind the end"...) }), false}) &&
			(other.files[name] == nil || yield("that of another member", damage{m.with(name, other.files[name]), false}))
	}
}

// swapped takes the files below a directory from another member.
func (m *matrixDir) swapped(other *matrixDir, below string) map[string][]byte {
	files := maps.Clone(m.files)
	for name := range m.files {
		if strings.HasPrefix(name, below+string(filepath.Separator)) {
			delete(files, name)
		}
	}
	for name, b := range other.files {
		if strings.HasPrefix(name, below+string(filepath.Separator)) {
			files[name] = b
		}
	}
	return files
}

// TestCorruptionMatrixOfOlderCopies: each file, and each set of files, is rolled back to
// a copy from earlier in the life of the member.
func TestCorruptionMatrixOfOlderCopies(t *testing.T) {
	segmentsOf(t, 8<<10)
	path := t.TempDir()
	dir, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	owner := Owner{MemberID: 7, ClusterID: 0xabc}
	if err := dir.Claim(7, owner.ClusterID, 0, "m"); err != nil {
		t.Fatal(err)
	}
	m := &matrixDir{owner: owner, vote: 7, entries: make(map[uint64]string)}
	var history []map[string][]byte
	l, _, err := OpenLog(zap.NewNop(), path, owner)
	if err == nil {
		err = dir.MarkStarted()
	}
	if err != nil {
		t.Fatal(err)
	}
	for m.last < 60 {
		m.last++
		m.term = 1 + m.last/20
		e := entryAt(m.last, m.term, 400)
		mustSave(t, l, hardStateAt(m.term, 7, m.last-1), e)
		m.entries[m.last] = string(e.GetData())
		if m.last == 25 || m.last == 45 {
			mustSaveSnapshot(t, l, m.last-3, l.shape.termAt(m.last-3))
		}
		if m.last%10 == 5 {
			if err := l.writeWatermark(); err != nil {
				t.Fatal(err)
			}
			history = append(history, readTree(t, path))
		}
	}
	if err := errors.Join(l.Close(), dir.Close()); err != nil {
		t.Fatal(err)
	}
	m.files = readTree(t, path)
	x := &matrix{t: t, dir: filepath.Join(t.TempDir(), "data")}
	cases := 0
	for n, old := range history {
		for name := range old {
			if name != "lock" && !bytes.Equal(old[name], m.files[name]) {
				x.judge(fmt.Sprintf("%s as of copy %d", name, n), m, m.with(name, old[name]), false)
				cases++
			}
		}
		older := &matrixDir{files: old}
		x.judge(fmt.Sprintf("the log as of copy %d", n), m, m.swapped(older, "wal"), false)
		x.judge(fmt.Sprintf("the snapshots as of copy %d", n), m, m.swapped(older, "snap"), false)
		cases += 2
	}
	t.Logf("%d cases: %d refused, %d repaired, %d without effect", cases, x.refused, x.repaired, x.ignored)
	if x.refused == 0 || x.ignored == 0 {
		t.Error("the cases do not cover the verdicts")
	}
	proof.Record(t, proof.Result{Suite: "corruption matrix: log and identity", Runs: int64(cases), Promises: []string{"fails safe"}})
}

// TestControlCorruptionMatrix: a log that ends early, under a judge that knows what was
// acknowledged, is noticed, so the matrix is not blind.
func TestControlCorruptionMatrix(t *testing.T) {
	m := makeMatrixDir(t, 7, false)
	dir := writeTree(t, t.TempDir(), m.files)
	_, state := mustOpenLog(t, dir)
	for what, f := range map[string]func(*LogState){
		"the last entry is missing": func(s *LogState) { s.Entries = s.Entries[:len(s.Entries)-1] },
		"the vote is forgotten":     func(s *LogState) { s.HardState = hardStateAt(m.term, 0, 1) },
		"the term goes back":        func(s *LogState) { s.HardState = hardStateAt(m.term-1, m.vote, 1) },
		"another content":           func(s *LogState) { s.Entries[0] = entryAt(s.Entries[0].GetIndex(), 1, 5) },
	} {
		begin := time.Now()
		changed := state
		changed.Entries = slices.Clone(state.Entries)
		f(&changed)
		if m.missing(changed, false) == "" {
			t.Errorf("not noticed: %s", what)
			continue
		}
		proof.Caught(t, "corruption matrix: log and identity", "after damage, "+what, 1, begin)
	}
}
