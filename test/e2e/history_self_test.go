package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// sound is a correct history on two keys. The write of "c" was never answered and
// took effect at revision 4.
func sound() *witness {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	a, b := keyPrefix+"a", keyPrefix+"b"
	w := &witness{operations: []*operation{
		{kind: opPut, key: a, value: "a", call: ms(1), end: ms(2), outcome: applied, revision: 2, created: true},
		{kind: opPut, key: b, value: "b", call: ms(3), end: ms(6), outcome: applied, revision: 3, created: true},
		{kind: opPut, key: a, value: "c", call: ms(4), end: ms(9), outcome: unknown},
		{kind: opPut, key: a, value: "d", call: ms(4), end: ms(5), outcome: failed},
		{kind: opGet, key: a, call: ms(7), end: ms(8), outcome: applied, revision: 3, found: true, pair: pair{"a", 2}},
		{kind: opSwap, key: a, value: "e", ifRev: 4, call: ms(10), end: ms(12), outcome: applied, revision: 5},
		{kind: opSwap, key: a, value: "f", ifRev: 4, call: ms(13), end: ms(14), outcome: refused, revision: 5, nowRev: 5},
		{kind: opDelete, key: b, call: ms(15), end: ms(16), outcome: applied, revision: 6, found: true},
		{kind: opDelete, key: b, call: ms(17), end: ms(18), outcome: applied, revision: 6},
		{kind: opList, call: ms(19), end: ms(20), outcome: applied, revision: 6, list: map[string]pair{a: {"e", 5}}},
	}}
	states := map[uint64]map[string]pair{
		2: {a: {"a", 2}},
		3: {a: {"a", 2}, b: {"b", 3}},
		4: {a: {"c", 4}, b: {"b", 3}},
		5: {a: {"e", 5}, b: {"b", 3}},
		6: {a: {"e", 5}},
	}
	w.state = func(revision uint64) (map[string]pair, error) {
		if s, ok := states[revision]; ok {
			return s, nil
		}
		return nil, fmt.Errorf("no revision %d", revision)
	}
	return w
}

// TestWitnessTellsDeletesApart: of two deletes without an answer, only the
// earlier call explains the change.
func TestWitnessTellsDeletesApart(t *testing.T) {
	w := sound()
	w.operations[7].outcome = unknown
	late := *w.operations[7]
	late.call = time.Second
	w.operations = append([]*operation{&late}, w.operations...)
	if problems := w.judge(6); len(problems) > 0 {
		t.Fatal(problems)
	}
}

// TestWitnessSeesViolations plants one fault at a time into a correct history: a
// judge that misses one is worthless.
func TestWitnessSeesViolations(t *testing.T) {
	if problems := sound().judge(6); len(problems) > 0 {
		t.Fatalf("the sound history is refused: %v", problems)
	}
	for name, plant := range map[string]func(ops []*operation){
		"lost acknowledged write":       func(ops []*operation) { ops[7].outcome = unknown; ops[7].kind = opPut; ops[7].value = "lost" },
		"acknowledged beyond the store": func(ops []*operation) { ops[5].revision = 9 },
		"one revision twice":            func(ops []*operation) { ops[1].revision = 2 },
		"applied although refused":      func(ops []*operation) { ops[2].outcome = failed },
		"nobody sent it":                func(ops []*operation) { ops[2].value = "other" },
		"stale read":                    func(ops []*operation) { ops[4].revision, ops[4].call, ops[4].end = 3, 13e6, 14e6 },
		"wrong value":                   func(ops []*operation) { ops[4].pair.Value = "x" },
		"read of nothing":               func(ops []*operation) { ops[4].found, ops[4].pair = false, pair{} },
		"swap that should have failed":  func(ops []*operation) { ops[5].ifRev = 2 },
		"swap that should have worked":  func(ops []*operation) { ops[6].ifRev = 5 },
		"wrong revision in a refusal":   func(ops []*operation) { ops[6].nowRev = 4 },
		"created, but was there":        func(ops []*operation) { ops[5].created = true },
		"deleted nothing":               func(ops []*operation) { ops[8].found, ops[8].revision = true, 7 },
		"incomplete list":               func(ops []*operation) { ops[9].list = nil },
		"effect before its request":     func(ops []*operation) { ops[2].call = 13e6 },
		"unknown swap out of place":     func(ops []*operation) { ops[2].kind, ops[2].ifRev = opSwap, 3 },
		"no revision":                   func(ops []*operation) { ops[8].revision = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			w := sound()
			plant(w.operations)
			if problems := w.judge(6); len(problems) == 0 {
				t.Fatal("the witness sees nothing")
			} else {
				t.Log(strings.Join(problems, "\n"))
			}
		})
	}
}

// TestPorcupineSeesViolations does the same for the second judge.
func TestPorcupineSeesViolations(t *testing.T) {
	history := func(read string) []judged {
		return []judged{
			{Kind: opPut, Key: "a", Value: "1", Call: 1, Return: 2, Known: true},
			{Kind: opPut, Key: "a", Value: "2", Call: 3, Return: 4, Known: true},
			{Kind: opPut, Key: "a", Value: "3", Call: 3, Return: openEnd},
			{Kind: opGet, Key: "a", Value: read, Call: 5, Return: 6, Known: true, Found: true},
			{Kind: opDelete, Key: "a", Call: 7, Return: 8, Known: true, Found: true},
			{Kind: opDelete, Key: "b", Call: 7, Return: 8, Known: true},
		}
	}
	for read, good := range map[string]bool{"2": true, "3": true, "1": false, "4": false} {
		if err := askPorcupine(t, history(read)); (err == nil) != good {
			t.Errorf("a read of %s: %v", read, err)
		}
	}
}

// TestFollowerSeesViolations plants one fault at a time into what a watch saw.
func TestFollowerSeesViolations(t *testing.T) {
	changes := map[uint64]change{2: {key: "a", value: "1"}, 3: {key: "b", value: "2"}, 5: {key: "a", deleted: true}}
	for name, c := range map[string]struct {
		lines string
		wrong bool
	}{
		"nothing is wrong": {lines: `{"type":"put","key":"a","value":"1","mod_revision":2}
{"type":"progress","revision":2}
{"type":"put","key":"b","value":"2","mod_revision":3}
{"type":"delete","key":"a","mod_revision":5}`},
		"told of a compaction": {lines: `{"type":"compacted","compact_revision":3}
{"type":"put","key":"b","value":"2","mod_revision":3}
{"type":"delete","key":"a","mod_revision":5}`},
		"missed one": {wrong: true, lines: `{"type":"put","key":"a","value":"1","mod_revision":2}
{"type":"delete","key":"a","mod_revision":5}`},
		"missed what is behind a compaction": {wrong: true, lines: `{"type":"compacted","compact_revision":3}
{"type":"delete","key":"a","mod_revision":5}`},
		"progress before an event": {wrong: true, lines: `{"type":"put","key":"a","value":"1","mod_revision":2}
{"type":"progress","revision":3}
{"type":"put","key":"b","value":"2","mod_revision":3}
{"type":"delete","key":"a","mod_revision":5}`},
		"one twice": {wrong: true, lines: `{"type":"put","key":"a","value":"1","mod_revision":2}
{"type":"put","key":"a","value":"1","mod_revision":2}
{"type":"put","key":"b","value":"2","mod_revision":3}
{"type":"delete","key":"a","mod_revision":5}`},
		"another value": {wrong: true, lines: `{"type":"put","key":"a","value":"1","mod_revision":2}
{"type":"put","key":"b","value":"3","mod_revision":3}
{"type":"delete","key":"a","mod_revision":5}`},
		"before its time": {wrong: true, lines: `{"type":"put","key":"a","value":"1","mod_revision":2}
{"type":"put","key":"b","value":"2","mod_revision":3}
{"type":"put","key":"a","value":"4","mod_revision":4}
{"type":"delete","key":"a","mod_revision":5}`},
		"compacted where it has been": {wrong: true, lines: `{"type":"put","key":"a","value":"1","mod_revision":2}
{"type":"compacted","compact_revision":2}`},
	} {
		f := newFollower(name, 2, nil)
		for line := range strings.Lines(c.lines) {
			if f.mu.wrong = f.takeLine(line); f.mu.wrong != nil {
				break
			}
		}
		if err := f.judge(changes, 2, 5); (err != nil) != c.wrong {
			t.Errorf("%s: %v", name, err)
		}
	}
}
