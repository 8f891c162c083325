package raftnode

import (
	"sync"
	"time"
)

// recency knows as of when the state machine is complete: it keeps the times of
// the core's questions (witness) until their answers are applied. It is safe for
// concurrent use; the node loop notes, and anybody asks.
//
// It keeps two proofs that wait for the apply loop, the oldest and the newest. Under a
// lag that lasts, the answer is therefore up to twice the true age, and never less
// than it. A node that applies minutes behind would otherwise keep a proof for each
// heartbeat of that time.
type recency struct {
	mu struct {
		sync.Mutex             // held for a few comparisons of times
		asked        time.Time // of the question in progress
		next, newest proof     // that wait; next.at is zero if there are none
		confirmed    time.Time
	}
}

// proof says that nothing after the index was committed at that time.
type proof struct {
	index uint64
	at    time.Time
}

// note takes what the core found out. An answer in the effects belongs to the
// question before them.
func (r *recency) note(out *effects, now time.Time, applied uint64) {
	if out.proved == 0 && !out.asks {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if out.proved != 0 {
		r.addLocked(proof{out.proved, r.mu.asked}, applied)
	}
	if out.asks {
		r.mu.asked = now
	}
}

// confirm takes a time at which everything that was committed is applied now.
func (r *recency) confirm(at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if at.After(r.mu.confirmed) {
		r.mu.confirmed = at
	}
}

func (r *recency) addLocked(p proof, applied uint64) {
	r.settleLocked(applied)
	r.mu.newest = p
	if r.mu.next.at.IsZero() {
		r.mu.next = p
	}
	r.settleLocked(applied)
}

// settleLocked takes the proofs that the applied index fulfills.
func (r *recency) settleLocked(applied uint64) {
	for !r.mu.next.at.IsZero() && r.mu.next.index <= applied {
		r.mu.confirmed = r.mu.next.at
		if r.mu.next == r.mu.newest {
			r.mu.next = proof{}
		} else {
			r.mu.next = r.mu.newest
		}
	}
}

// confirmed returns the latest time of which it is certain that everything that was
// committed then is applied now; zero if there is none.
func (r *recency) confirmed(applied uint64) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settleLocked(applied)
	return r.mu.confirmed
}
