package e2e

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// operation is one request of a load and its outcome.
type operation struct {
	worker int
	kind   kind
	key    string
	value  string // of a put; no two operations write the same value
	ifRev  uint64 // of a compare-and-swap; 0 requires the key to be absent
	call   time.Duration
	end    time.Duration // both since the history began

	outcome  outcome
	revision uint64 // at which the answer was computed
	// From the answer.
	created bool
	found   bool // get: the key has a value; delete: it had one
	pair    pair // get
	list    map[string]pair
	nowRev  uint64 // of a refused swap: the current revision of the key
}

type kind int

const (
	opGet kind = iota
	opList
	opPut
	opSwap // a conditional put
	opDelete
)

func (k kind) String() string { return [...]string{"get", "list", "put", "swap", "delete"}[k] }

func (k kind) writes() bool { return k >= opPut }

type outcome int

const (
	// applied: acknowledged, with its result.
	applied outcome = iota
	// refused: the condition of a swap did not hold.
	refused
	// failed: kvd promised that nothing was applied, or no byte was sent.
	failed
	// unknown: may have taken effect once, at any time.
	unknown
)

func (o outcome) String() string { return [...]string{"applied", "refused", "failed", "unknown"}[o] }

// pair is a value and the revision that wrote it.
type pair struct {
	Value       string
	ModRevision uint64
}

func (o *operation) String() string {
	return fmt.Sprintf("%v %s=%q if %d by worker %d from %v to %v: %v at revision %d (found %v, %+v)",
		o.kind, o.key, o.value, o.ifRev, o.worker, o.call, o.end, o.outcome, o.revision, o.found, o.pair)
}

// effective reports whether the operation raised the revision.
func (o *operation) effective() bool {
	return o.outcome == applied && o.kind.writes() && (o.kind != opDelete || o.found)
}

// change is the effect of one revision.
type change struct {
	key     string
	value   string
	deleted bool
	by      *operation
}

// witness judges a history by the revisions in the answers. Replayed in revision
// order, every answer must be correct, and an operation that began after another
// had ended must not have a smaller revision.
//
// For revisions that nobody acknowledged, it asks the store what they did.
// Exactly one operation with an unknown outcome must explain each of them.
type witness struct {
	operations []*operation
	// state asks the store for all keys as of a revision.
	state func(revision uint64) (map[string]pair, error)
	// seen has changes that watches saw. What is there, the store is not asked for.
	seen map[uint64]change

	changes   map[uint64]change
	timelines map[string][]uint64 // key → its revisions, ascending
	problems  []string
	settled   int // operations with an unknown outcome that took effect
}

// firstRevision is the revision of the empty store.
const firstRevision = 1

// maxProblems bounds a report.
const maxProblems = 20

func (w *witness) problem(format string, args ...any) {
	if len(w.problems) < maxProblems {
		w.problems = append(w.problems, fmt.Sprintf(format, args...))
	}
}

// judge checks the history of a store that started empty and is now at revision
// last.
func (w *witness) judge(last uint64) []string {
	w.changes, w.timelines = make(map[uint64]change), make(map[string][]uint64)
	w.collectAcknowledged(last)
	w.settle(last)
	w.buildTimelines()
	for _, o := range w.operations {
		w.checkAnswer(o)
	}
	w.checkRealTime()
	w.checkState(last)
	return w.problems
}

func (w *witness) collectAcknowledged(last uint64) {
	for _, o := range w.operations {
		if !o.effective() {
			continue
		}
		if other, taken := w.changes[o.revision]; taken {
			w.problem("two writes were acknowledged with one revision:\n  %v\n  %v", o, other.by)
		}
		if o.revision > last || o.revision <= firstRevision {
			w.problem("the store is at revision %d in the end, which does not hold the acknowledged %v", last, o)
		}
		w.changes[o.revision] = change{key: o.key, value: o.value, deleted: o.kind == opDelete, by: o}
	}
}

// settle determines what the unacknowledged revisions did, and which operations
// caused them.
func (w *witness) settle(last uint64) {
	byValue := make(map[string]*operation)
	deletes := make(map[string][]*operation)
	// All deletes of a key look alike: whatever one call explains, an earlier
	// one explains too, so the earliest comes first.
	byCall := slices.SortedFunc(slices.Values(w.operations), func(a, b *operation) int { return cmp.Compare(a.call, b.call) })
	for _, o := range byCall {
		switch {
		case o.kind == opPut || o.kind == opSwap:
			byValue[o.value] = o
		case o.kind == opDelete && o.outcome == unknown:
			deletes[o.key] = append(deletes[o.key], o)
		}
	}
	for revision := uint64(firstRevision + 1); revision <= last; revision++ {
		if _, known := w.changes[revision]; known {
			continue
		}
		c, err := w.changeAt(revision)
		if err != nil {
			w.problem("revision %d, which nobody acknowledged: %v", revision, err)
			continue
		}
		w.attribute(revision, c, byValue, deletes)
	}
}

// attribute finds the operation behind a change. Its outcome must be unknown,
// and it can explain only one change.
func (w *witness) attribute(revision uint64, c change, byValue map[string]*operation, deletes map[string][]*operation) {
	if c.deleted {
		if len(deletes[c.key]) == 0 {
			w.problem("revision %d deleted %s, and no delete of it is unaccounted for", revision, c.key)
			return
		}
		c.by, deletes[c.key] = deletes[c.key][0], deletes[c.key][1:]
	} else {
		c.by = byValue[c.value]
		delete(byValue, c.value) // nothing is left to explain a second appearance
	}
	switch {
	case c.by == nil || c.by.key != c.key:
		w.problem("revision %d wrote %s=%q, which nobody sent, or which was applied before", revision, c.key, c.value)
	case c.by.outcome != unknown:
		w.problem("revision %d is the effect of an operation that was said to have none, or another one: %v", revision, c.by)
	default:
		w.settled++
		c.by.revision = revision
		w.changes[revision] = c
	}
}

// changeAt compares the store before and after a revision.
func (w *witness) changeAt(revision uint64) (change, error) {
	if c, ok := w.seen[revision]; ok {
		return c, nil
	}
	after, err := w.state(revision)
	if err != nil {
		return change{}, err
	}
	before := map[string]pair{}
	if revision-1 > firstRevision {
		if before, err = w.state(revision - 1); err != nil {
			return change{}, err
		}
	}
	for key, p := range after {
		if p.ModRevision == revision {
			return change{key: key, value: p.Value}, nil
		}
	}
	for key := range before {
		if _, there := after[key]; !there {
			return change{key: key, deleted: true}, nil
		}
	}
	return change{}, fmt.Errorf("it changed nothing")
}

func (w *witness) buildTimelines() {
	for revision, c := range w.changes {
		w.timelines[c.key] = append(w.timelines[c.key], revision)
	}
	for _, revisions := range w.timelines {
		slices.Sort(revisions)
	}
}

// at returns a key as of a revision, by replay.
func (w *witness) at(key string, revision uint64) (pair, bool) {
	revisions := w.timelines[key]
	i, exact := slices.BinarySearch(revisions, revision)
	if !exact {
		i--
	}
	if i < 0 {
		return pair{}, false
	}
	c := w.changes[revisions[i]]
	if c.deleted {
		return pair{}, false
	}
	return pair{c.value, revisions[i]}, true
}

// checkAnswer compares one answer with the replay.
func (w *witness) checkAnswer(o *operation) {
	if o.outcome == failed {
		return
	}
	if o.outcome == unknown {
		w.checkUnknown(o)
		return
	}
	if o.revision == 0 {
		w.problem("an answer names no revision: %v", o)
		return
	}
	basis := o.revision // the revision whose state the operation saw
	if o.effective() {
		basis--
	}
	saw, there := w.at(o.key, basis)
	switch o.kind {
	case opGet:
		if there != o.found || saw != o.pair {
			w.problem("the replay has %v %+v at revision %d: %v", there, saw, basis, o)
		}
	case opList:
		w.checkList(o)
	case opPut, opSwap:
		w.checkWrite(o, saw, there)
	case opDelete:
		if there != o.found {
			w.problem("the replay has %v %+v at revision %d: %v", there, saw, basis, o)
		}
	}
}

// checkUnknown checks the condition of an effect that was never acknowledged.
func (w *witness) checkUnknown(o *operation) {
	if o.revision == 0 || o.kind != opSwap {
		return
	}
	if saw, _ := w.at(o.key, o.revision-1); saw.ModRevision != o.ifRev {
		w.problem("the condition did not hold, the key was at %d: %v", saw.ModRevision, o)
	}
}

func (w *witness) checkWrite(o *operation, saw pair, there bool) {
	if o.kind == opSwap && (saw.ModRevision == o.ifRev) != (o.outcome == applied) {
		w.problem("the condition was judged wrongly, the key was at %d: %v", saw.ModRevision, o)
	}
	if o.outcome == refused && o.nowRev != saw.ModRevision {
		w.problem("the refusal names revision %d, the key was at %d: %v", o.nowRev, saw.ModRevision, o)
	}
	if o.outcome == applied && o.created == there {
		w.problem("created is %v, the replay has %v %+v before: %v", o.created, there, saw, o)
	}
}

func (w *witness) checkList(o *operation) {
	w.compareState(fmt.Sprintf("%v", o), o.list, o.revision)
}

func (w *witness) checkState(last uint64) {
	state, err := w.state(last)
	if err != nil {
		w.problem("read the final state: %v", err)
		return
	}
	w.compareState("the final state", state, last)
}

// compareState compares all keys at once.
func (w *witness) compareState(what string, have map[string]pair, revision uint64) {
	want := 0
	for key := range w.timelines {
		p, there := w.at(key, revision)
		if there {
			want++
		}
		if have[key] != p {
			w.problem("%s: %s is %+v, the replay has %+v at revision %d", what, key, have[key], p, revision)
		}
	}
	if len(have) != want {
		w.problem("%s: %d keys, the replay has %d at revision %d", what, len(have), want, revision)
	}
}

// checkRealTime walks the operations in the order of their calls, with the
// greatest revision that had been answered by then. An effect whose operation
// was never answered has a start, but no end.
func (w *witness) checkRealTime() {
	var begun, ended []*operation
	for _, o := range w.operations {
		if o.revision == 0 || o.outcome == failed {
			continue
		}
		begun = append(begun, o)
		if o.outcome != unknown {
			ended = append(ended, o)
		}
	}
	slices.SortFunc(begun, func(a, b *operation) int { return cmp.Compare(a.call, b.call) })
	slices.SortFunc(ended, func(a, b *operation) int { return cmp.Compare(a.end, b.end) })
	var newest *operation
	for _, o := range begun {
		for len(ended) > 0 && ended[0].end < o.call {
			if newest == nil || ended[0].revision > newest.revision {
				newest = ended[0]
			}
			ended = ended[1:]
		}
		if newest == nil {
			continue
		}
		if o.revision < newest.revision || w.changes[o.revision].by == o && o.revision == newest.revision {
			w.problem("real time goes backwards:\n  %v\n  %v", newest, o)
		}
	}
}

// stateOf asks a member for all keys at a revision.
func stateOf(m *member) func(uint64) (map[string]pair, error) {
	return func(revision uint64) (map[string]pair, error) {
		a := get(m, fmt.Sprintf("/v1/kv?prefix=%s&revision=%d&timeout=20s", keyPrefix, revision))
		if a.err != nil || a.status != 200 {
			return nil, fmt.Errorf("list at revision %d: %v", revision, a)
		}
		return decodeList(a.body)
	}
}

// decodeList parses the response to a list; the keys of the load are plain text.
func decodeList(body string) (map[string]pair, error) {
	var doc struct {
		KVs []struct {
			Key         string `json:"key"`
			Value       string `json:"value"`
			ModRevision uint64 `json:"mod_revision"`
		} `json:"kvs"`
		Next string `json:"next"`
	}
	if err := json.Unmarshal([]byte(body), &doc); err != nil {
		return nil, err
	}
	if doc.Next != "" {
		return nil, fmt.Errorf("the list has another page")
	}
	out := make(map[string]pair, len(doc.KVs))
	for _, kv := range doc.KVs {
		out[kv.Key] = pair{kv.Value, kv.ModRevision}
	}
	return out, nil
}
