package raftnode

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
)

// plan says how much of a seed's run happens. The zero value is all of it.
type plan struct {
	members int           // 0: as many as the seed chooses
	millis  int64         // how long things go wrong; 0: for twenty seconds
	only    map[unit]bool // the units that happen; nil: all
}

// length is how long things go wrong.
func (p plan) length() int64 {
	if p.millis == 0 {
		return 20 * second
	}
	return p.millis * milli
}

// unit is a part of a run that can be left out: a fault, a kind of harm that comes to
// messages and files all the time, or what a client does in one go.
type unit struct {
	kind   unitKind
	client int // of an act; otherwise 0
	number int
}

type unitKind string

const (
	unitFault unitKind = "fault"
	unitHarm  unitKind = "harm"
	unitAct   unitKind = "act"
)

func (u unit) String() string {
	if u.kind == unitAct {
		return fmt.Sprintf("%s-%d.%d", u.kind, u.client, u.number)
	}
	return fmt.Sprintf("%s-%d", u.kind, u.number)
}

// happens reports whether a unit is part of the run.
func (s *sim) happens(u unit) bool {
	s.units = append(s.units, u)
	return s.plan.only == nil || s.plan.only[u]
}

// source returns the source of choices of a unit.
func (s *sim) source(u unit) *rand.Rand {
	kind := uint64(len(u.kind))
	return rand.New(rand.NewPCG(s.seed^kind<<56, uint64(u.client)<<32|uint64(u.number)))
}

// planOf reads the plan that somebody wants to see again: KVD_SIM_MEMBERS,
// KVD_SIM_MILLIS, and KVD_SIM_ONLY, as the report of a failure prints them.
func planOf(t testing.TB) plan {
	t.Helper()
	members, _ := environment(t, "KVD_SIM_MEMBERS", 0)
	millis, _ := environment(t, "KVD_SIM_MILLIS", 0)
	p := plan{members: int(members), millis: int64(millis)}
	text, chosen := os.LookupEnv("KVD_SIM_ONLY")
	if !chosen {
		return p
	}
	p.only = make(map[unit]bool)
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' }) {
		u, err := parseUnit(word)
		if err != nil {
			t.Fatalf("KVD_SIM_ONLY: %v", err)
		}
		p.only[u] = true
	}
	return p
}

func parseUnit(word string) (u unit, err error) {
	kind, rest, _ := strings.Cut(word, "-")
	u.kind = unitKind(kind)
	switch u.kind {
	case unitAct:
		_, err = fmt.Sscanf(rest, "%d.%d", &u.client, &u.number)
	case unitFault, unitHarm:
		_, err = fmt.Sscanf(rest, "%d", &u.number)
	default:
		err = fmt.Errorf("there is no kind %q", kind)
	}
	if err != nil {
		return u, fmt.Errorf("%q is not a unit (for example, fault-3 or act-1.20): %w", word, err)
	}
	return u, nil
}
