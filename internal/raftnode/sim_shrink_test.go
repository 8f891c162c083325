package raftnode

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// A run that went red is made smaller until nothing more can be left out, because what
// is left is what somebody has to understand: first the members, then faults, harms, and
// requests. Runs of one plan are the same; a smaller plan is another run, in which the
// same invariant has to break.

// shrinkRuns and shrinkEvents bound what shrinking takes: about a minute.
const (
	shrinkRuns   = 400
	shrinkEvents = 10_000_000
)

// runner runs a seed with a plan, and everything that belongs to the end of the run.
type runner func(plan plan, j *journal) *sim

// shrunk is the smallest run that was found.
type shrunk struct {
	before, after *sim
	runs          int
	events        uint64
}

func (r *shrunk) exhausted() bool { return r.runs >= shrinkRuns || r.events >= shrinkEvents }

// shrink makes a run smaller. It returns nil if the run does not go red.
func shrink(run runner) *shrunk {
	first := run(plan{}, new(journal))
	if first.violation == nil {
		return nil
	}
	r := &shrunk{before: first, after: first}
	try := func(p plan) bool {
		if r.exhausted() {
			return false
		}
		r.runs++
		s := run(p, new(journal))
		r.events += s.serial
		if s.violation == nil || breach(s.violation) != breach(first.violation) {
			return false
		}
		r.after = s
		return true
	}
	p := plan{members: len(first.initial)}
	if first.now < p.length() {
		p.millis = first.now/milli + 1
	}
	for members := 1; members < p.members; members++ {
		if q := (plan{members: members, millis: p.millis}); try(q) {
			p = q
			break
		}
	}
	for units := reached(r.after); ; {
		kept := minimize(units, func(only []unit) bool { return try(p.with(only)) })
		p = r.after.plan
		p.millis = min(p.length(), r.after.now)/milli + 1
		if len(kept) == len(units) || r.exhausted() {
			return r
		}
		units = kept
	}
}

// with returns the plan with certain units only.
func (p plan) with(only []unit) plan {
	p.only = make(map[unit]bool, len(only))
	for _, u := range only {
		p.only[u] = true
	}
	return p
}

// reached returns the units that took place.
func reached(s *sim) []unit {
	out := slices.DeleteFunc(slices.Clone(s.units), func(u unit) bool { return s.plan.only != nil && !s.plan.only[u] })
	// Faults first: there are few of them, and each brings much about.
	rank := map[unitKind]int{unitHarm: 0, unitFault: 1, unitAct: 2}
	slices.SortStableFunc(out, func(a, b unit) int { return cmp.Compare(rank[a.kind], rank[b.kind]) })
	return out
}

// minimize returns a part of the items that is still red, and of which no single item
// can be left out, unless red refuses to look at more of them (delta debugging).
func minimize[T any](items []T, red func([]T) bool) []T {
	if len(items) == 0 || red(nil) {
		return nil
	}
	for size := (len(items) + 1) / 2; ; size = (size + 1) / 2 {
		for from := 0; from < len(items); {
			rest := slices.Concat(items[:from], items[min(from+size, len(items)):])
			if len(rest) < len(items) && red(rest) {
				items = rest
			} else {
				from += size
			}
		}
		if size == 1 {
			return items
		}
	}
}

// breach is what a violation breaks, for example S5: the word before the first colon.
func breach(err error) string {
	name, _, _ := strings.Cut(err.Error(), ":")
	name, _, _ = strings.Cut(name, " ")
	return name
}

// String tells what is left, and how to see it again.
func (r *shrunk) String() string {
	s := r.after
	var words []string
	for _, u := range reached(s) {
		words = append(words, u.String())
	}
	return fmt.Sprintf("shrunk in %d runs: from %d members, %d units and %d lines of trace to %d members, %d units and %d lines:\n%s"+
		"replay: KVD_SIM_SEED=%d KVD_SIM_MEMBERS=%d KVD_SIM_MILLIS=%d KVD_SIM_ONLY=%s",
		r.runs, len(r.before.initial), len(reached(r.before)), len(r.before.journal.lines),
		len(s.initial), len(words), len(s.journal.lines), s.journal, s.seed, len(s.initial), s.plan.length()/milli, strings.Join(words, ","))
}

// report fails a test with the smallest run that shows what went wrong.
func report(t *testing.T, s *sim, run runner) {
	t.Helper()
	text := fmt.Sprintf("seed %d (%d members; %s), at %d ms: %v\nreplay: KVD_SIM_SEED=%d go test -count=1 -run '^%s$' ./internal/raftnode\n%s",
		s.seed, len(s.initial), s.ailments, s.now/milli, s.violation, s.seed, t.Name(), s.describe())
	switch wanted, _ := environment(t, "KVD_SIM_SHRINK", 1); {
	case wanted == 0:
		t.Fatal(text)
	case s.plan.only != nil: // somebody looks at what was shrunk before
		s = run(s.plan, new(journal))
		t.Fatalf("%s\n%s", text, s.journal)
	default:
		t.Fatalf("%s\n%s go test -count=1 -run '^%s$' ./internal/raftnode", text, shrink(run), t.Name())
	}
}

// TestMinimize: what is left is red, and nothing of it can be left out.
func TestMinimize(t *testing.T) {
	for _, want := range [][]int{nil, {0}, {63}, {7, 8}, {0, 31, 32, 63}, {1, 2, 3, 5, 8, 13, 21, 34, 55}} {
		items := make([]int, 64)
		for i := range items {
			items[i] = i
		}
		runs := 0
		got := minimize(items, func(only []int) bool {
			runs++
			return !slices.ContainsFunc(want, func(w int) bool { return !slices.Contains(only, w) })
		})
		if !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		if runs > 250 {
			t.Errorf("%v took %d runs", want, runs)
		}
	}
}
