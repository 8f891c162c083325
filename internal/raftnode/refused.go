package raftnode

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
)

// refusedStarts remembers the members whose last start was refused by the replicas:
// a process with the wrong directory. It lasts until a start of that member is
// accepted, or for refusedFor: the late start of a process that has ended long ago
// is refused, too, and nothing is wrong then. The apply loop writes it.
type refusedStarts struct {
	lg *zap.Logger
	mu struct {
		sync.Mutex                         // held by the apply loop, and by requests for the status
		why        map[uint64]refusedStart // by member
	}
}

type refusedStart struct {
	at  time.Time
	why error
}

const refusedFor = time.Hour

func (s *refusedStarts) note(starts []startApplied) {
	for _, st := range starts {
		id := st.start.Member
		s.mu.Lock()
		if st.err == nil {
			delete(s.mu.why, id)
		} else if st.start.Boot != "" { // the refusal of an admission goes to its joiner
			if s.mu.why == nil {
				s.mu.why = make(map[uint64]refusedStart)
			}
			// Or the table would grow with every id that somebody tries.
			maps.DeleteFunc(s.mu.why, func(_ uint64, r refusedStart) bool { return time.Since(r.at) >= refusedFor })
			s.mu.why[id] = refusedStart{time.Now(), st.err}
			s.lg.Warn("the start of a member was refused", zap.Uint64("member", id), zap.Uint64("index", st.index), zap.Error(st.err))
		}
		s.mu.Unlock()
	}
}

// list returns a line for each such member.
func (s *refusedStarts) list() (out []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(s.mu.why)) {
		if r := s.mu.why[id]; time.Since(r.at) < refusedFor {
			out = append(out, fmt.Sprintf("start_refused: a process was not allowed to act as member %d: %v", id, r.why))
		}
	}
	return out
}
