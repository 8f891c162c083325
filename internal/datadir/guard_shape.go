package datadir

import "fmt"

// logShape follows which entries a log holds, without the entries: their
// indexes and, run by run, their terms. The boot guard builds it from the
// records. Log continues it, to bound commit indexes and to recognize a
// snapshot that replaces the log.
type logShape struct {
	known    bool   // false until the first entry of a log whose beginning was purged
	base     uint64 // index of the entry before the first
	baseTerm uint64 // of that entry, 0 if it is not known
	last     uint64 // base if there is no entry
	runs     []termRun
}

// termRun is a stretch of entries of one term, up to the next run or last.
type termRun struct{ first, term uint64 }

// termAt returns the term of the entry, or 0 if the log does not say.
func (s *logShape) termAt(index uint64) uint64 {
	if index == s.base {
		return s.baseTerm
	}
	if index > s.last {
		return 0
	}
	for i := len(s.runs) - 1; i >= 0; i-- {
		if index >= s.runs[i].first {
			return s.runs[i].term
		}
	}
	return 0
}

// put adds an entry, which replaces the entries from its index on. If raft would
// never have written the entry there, put changes nothing and returns the
// problem.
func (s *logShape) put(e logEntry) (problem string) {
	if !s.known || e.index <= s.base {
		*s = logShape{known: true, base: e.index - 1, last: e.index - 1}
	}
	if e.index > s.last+1 {
		return fmt.Sprintf("entry %d follows entry %d; the entries in between are missing", e.index, s.last)
	}
	if before := s.termAt(e.index - 1); e.term < before {
		return fmt.Sprintf("entry %d has term %d, but the entry before it has term %d", e.index, e.term, before)
	}
	s.truncate(e.index)
	if n := len(s.runs); n == 0 || s.runs[n-1].term != e.term {
		s.runs = append(s.runs, termRun{first: e.index, term: e.term})
	}
	s.last = e.index
	return ""
}

// truncate drops the entries from the index on.
func (s *logShape) truncate(index uint64) {
	n := len(s.runs)
	for n > 0 && s.runs[n-1].first >= index {
		n--
	}
	s.runs = s.runs[:n]
	s.last = index - 1
}

// continues reports whether the log contains the snapshot's last entry, with
// the same term. Then the entries after it stay.
func (s *logShape) continues(m snapshotRecord) bool {
	return s.known && s.termAt(m.index) == m.term
}

// restart replaces the log by a snapshot.
func (s *logShape) restart(m snapshotRecord) {
	*s = logShape{known: true, base: m.index, baseTerm: m.term, last: m.index}
}

// forget drops the runs that end at or before the index. Nothing asks for terms
// below a purged snapshot, and without this the runs would grow forever.
func (s *logShape) forget(index uint64) {
	n := 0
	for n+1 < len(s.runs) && s.runs[n+1].first <= index {
		n++
	}
	s.runs = s.runs[n:]
}
