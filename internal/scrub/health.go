package scrub

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore/engine"
)

// repairPace is how often a member with a damaged store checks whether it can be rebuilt.
const repairPace = time.Second

// Health describes the store of a member. Any goroutine may use it. The zero value has no
// damage and no obstacle.
type Health struct {
	scrubber atomic.Pointer[Scrubber]
	damage   atomic.Pointer[error] // what the scrub has found, or nil
	obstacle atomic.Pointer[Obstacle]
}

// Obstacle has the reasons why a store cannot be rebuilt now: because it must not be rebuilt
// again, or because the cluster needs this member. A nil error is no obstacle.
type Obstacle struct{ Rebuild, Quorum error }

// Others describes the members that could help to rebuild a store.
type Others struct {
	Voters  int  // of the cluster
	Others  int  // voters other than this member
	Reached int  // other voters that are reachable
	Votes   bool // this member is a voter
}

// Judge returns the obstacle. It calls room last, which returns an error if the directory has
// no room for another store.
func Judge(o Others, room func() error) (out Obstacle) {
	switch {
	case o.Others == 0:
		out.Rebuild = errors.New("no other member has the data; make a backup (kvd snapshot save), and see \"Damaged store\" in docs/operations.md")
	case o.Reached == 0:
		out.Rebuild = errors.New("no other member can be reached")
	default:
		out.Rebuild = room()
	}
	// If all others are reachable, waiting would not help, even though two voters have no
	// quorum without one of them.
	if o.Votes && o.Reached <= o.Voters/2 && o.Reached < o.Others {
		out.Quorum = fmt.Errorf("only %d of the %d other voters can be reached, and the cluster would lose its quorum", o.Reached, o.Others)
	}
	return out
}

// Note stores the current obstacle for MayRebuild: after the member has ended, it can no
// longer be determined.
func (h *Health) Note(o Obstacle) { h.obstacle.Store(&o) }

// Known returns the last obstacle that Note stored, and whether there was a call of Note.
func (h *Health) Known() (o Obstacle, known bool) {
	p := h.obstacle.Load()
	if p == nil {
		return Obstacle{}, false
	}
	return *p, true
}

// MayRebuild reports whether the last stored obstacle allows a rebuild.
func (h *Health) MayRebuild() bool {
	o, known := h.Known()
	return known && o.Rebuild == nil
}

// Figures returns the figures of the scrubber.
func (h *Health) Figures() Figures { return h.scrubber.Load().Figures() }

// Alarms returns the alarm about damage that is not repaired yet, if any.
func (h *Health) Alarms() []string {
	damage := h.damage.Load()
	if damage == nil {
		return nil
	}
	next := "the store is about to be rebuilt"
	if o, _ := h.Known(); o.Rebuild != nil || o.Quorum != nil {
		next = fmt.Sprintf("it is not rebuilt yet: %v", cmp.Or(o.Rebuild, o.Quorum))
	}
	return []string{fmt.Sprintf("%s: the store has damaged blocks on disk: %v; %s", api.AlarmStoreDamaged, *damage, next)}
}

// Watch runs the scrubber. If it finds damage, Watch calls found, waits until look returns no
// obstacle, and returns the damage. It returns nil when the context ends.
func (h *Health) Watch(ctx context.Context, s *Scrubber, found func(error), look func() Obstacle) error {
	h.scrubber.Store(s)
	err := s.Run(ctx)
	if !engine.IsDamage(err) {
		return nil
	}
	h.damage.Store(&err)
	found(err)
	for {
		o := look()
		h.Note(o)
		if o.Rebuild == nil && o.Quorum == nil {
			return err
		}
		if sleep(ctx, repairPace) != nil {
			return nil
		}
	}
}
