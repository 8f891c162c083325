package raftlog

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// tape is a Disk and a Log that records what is done to it.
type tape struct {
	*Store
	done []string
	fail string // the prefix of what fails
}

var errTape = errors.New("tape: error")

func newTape() *tape {
	return &tape{Store: New(nil, new(raftpb.HardState), nil, new(raftpb.ConfState))}
}

func (x *tape) note(format string, args ...any) error {
	line := fmt.Sprintf(format, args...)
	if x.fail != "" && strings.HasPrefix(line, x.fail) {
		return errTape
	}
	x.done = append(x.done, line)
	return nil
}

func (x *tape) Save(hs *raftpb.HardState, ents []*raftpb.Entry) error {
	return x.note("save term %d commit %d %s", hs.GetTerm(), hs.GetCommit(), terms(ents))
}

func (x *tape) SaveSnapshot(s *raftpb.Snapshot) error {
	return x.note("snap %d", s.GetMetadata().GetIndex())
}

func (x *tape) install(s *raftpb.Snapshot) error {
	return x.note("install %d", s.GetMetadata().GetIndex())
}

func (x *tape) Append(ents []*raftpb.Entry) {
	_ = x.note("append %s", terms(ents))
	x.Store.Append(ents)
}

func (x *tape) SetHardState(hs *raftpb.HardState) {
	_ = x.note("hard state %d", hs.GetTerm())
	x.Store.SetHardState(hs)
}

func (x *tape) ApplySnapshot(s *raftpb.Snapshot) {
	_ = x.note("log from %d", s.GetMetadata().GetIndex())
	x.Store.ApplySnapshot(s)
}

func (x *tape) appender() *Appender { return &Appender{Disk: x, Log: x, Install: x.install} }

// terms renders entries as index/term.
func terms(ents []*raftpb.Entry) string {
	var out []string
	for _, e := range ents {
		out = append(out, fmt.Sprintf("%d/%d", e.GetIndex(), e.GetTerm()))
	}
	return "[" + strings.Join(out, " ") + "]"
}

func entriesOf(term uint64, from, to uint64) (ents []*raftpb.Entry) {
	for i := from; i <= to; i++ {
		ents = append(ents, &raftpb.Entry{Index: new(i), Term: new(term)})
	}
	return ents
}

// job makes a MsgStorageAppend with one response, which its index identifies.
func job(term, commit uint64, ents []*raftpb.Entry, response uint64) *raftpb.Message {
	m := &raftpb.Message{
		Type: raftpb.MsgStorageAppend.Enum(), Entries: ents,
		Responses: []*raftpb.Message{{Type: raftpb.MsgAppResp.Enum(), Index: new(response)}},
	}
	if term > 0 {
		m.Term, m.Vote, m.Commit = new(term), new(uint64(1)), new(commit)
	}
	return m
}

func withSnapshot(m *raftpb.Message, index, term uint64) *raftpb.Message {
	m.Snapshot = &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index: new(index), Term: new(term), ConfState: &raftpb.ConfState{Voters: []uint64{1}}}}
	return m
}

func TestAppender(t *testing.T) {
	for _, c := range []struct {
		name string
		jobs []*raftpb.Message
		want []string
		log  string // what raft then reads
	}{
		{
			"group commit: one save for all, the last hard state",
			[]*raftpb.Message{job(1, 0, entriesOf(1, 1, 2), 1), job(0, 0, entriesOf(1, 3, 3), 2), job(1, 2, nil, 3)},
			[]string{"save term 1 commit 2 [1/1 2/1 3/1]", "hard state 1", "append [1/1 2/1 3/1]"},
			"[1/1 2/1 3/1]",
		},
		{
			"a later message replaces the tail of an earlier one",
			[]*raftpb.Message{job(1, 0, entriesOf(1, 1, 5), 1), job(2, 0, entriesOf(2, 3, 4), 2), job(2, 0, entriesOf(2, 5, 5), 3)},
			[]string{"save term 2 commit 0 [1/1 2/1 3/2 4/2 5/2]", "hard state 2", "append [1/1 2/1 3/2 4/2 5/2]"},
			"[1/1 2/1 3/2 4/2 5/2]",
		},
		{
			"it replaces everything",
			[]*raftpb.Message{job(1, 0, entriesOf(1, 1, 3), 1), job(2, 0, entriesOf(2, 1, 1), 2)},
			[]string{"save term 2 commit 0 [1/2]", "hard state 2", "append [1/2]"},
			"[1/2]",
		},
		{
			"responses only: nothing is written",
			[]*raftpb.Message{job(0, 0, nil, 1), job(0, 0, nil, 2)},
			nil,
			"[]",
		},
		{
			"a snapshot in the middle: what came before is written before it",
			[]*raftpb.Message{
				job(1, 1, entriesOf(1, 1, 2), 1),
				withSnapshot(job(2, 10, entriesOf(2, 11, 12), 2), 10, 2),
				job(0, 0, entriesOf(2, 13, 13), 3),
			},
			[]string{
				"save term 1 commit 1 [1/1 2/1]", "hard state 1", "append [1/1 2/1]",
				"snap 10", "install 10", "log from 10",
				"save term 2 commit 10 [11/2 12/2 13/2]", "hard state 2", "append [11/2 12/2 13/2]",
			},
			"[11/2 12/2 13/2]",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newTape()
			responses, err := x.appender().Append(c.jobs)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(x.done, c.want) {
				t.Errorf("did\n%s\nwant\n%s", strings.Join(x.done, "\n"), strings.Join(c.want, "\n"))
			}
			for i, r := range responses {
				if r.GetIndex() != uint64(i+1) {
					t.Errorf("response %d comes at place %d", r.GetIndex(), i+1)
				}
			}
			if len(responses) != len(c.jobs) {
				t.Errorf("%d responses to %d messages", len(responses), len(c.jobs))
			}
			first, _ := x.FirstIndex()
			last, _ := x.LastIndex()
			var ents []*raftpb.Entry
			if last >= first {
				if ents, err = x.Entries(first, last+1, 1<<20); err != nil {
					t.Fatal(err)
				}
			}
			if got := terms(ents); got != c.log {
				t.Errorf("log %s, want %s", got, c.log)
			}
		})
	}
}

// TestAppenderAnswersNobodyAfterAnError: whichever write fails, no response
// of the group leaves, and raft's log does not show what may not be durable.
func TestAppenderAnswersNobodyAfterAnError(t *testing.T) {
	for _, fail := range []string{"save", "snap", "install"} {
		x := newTape()
		x.fail = fail
		responses, err := x.appender().Append([]*raftpb.Message{
			withSnapshot(job(2, 10, entriesOf(2, 11, 12), 1), 10, 2),
		})
		if !errors.Is(err, errTape) {
			t.Errorf("%s: error %v", fail, err)
		}
		if err == nil || len(x.done) > 0 && strings.HasPrefix(x.done[len(x.done)-1], "append") {
			t.Errorf("%s: went on: %v, %d responses", fail, x.done, len(responses))
		}
	}
}

// TestAppenderDoesNotTouchTheMessages: raft still reads the entries that the
// group replaces.
func TestAppenderDoesNotTouchTheMessages(t *testing.T) {
	first := entriesOf(1, 1, 5)
	x := newTape()
	if _, err := x.appender().Append([]*raftpb.Message{job(1, 0, first[:3], 1), job(2, 0, entriesOf(2, 2, 3), 2)}); err != nil {
		t.Fatal(err)
	}
	if got := terms(first); got != "[1/1 2/1 3/1 4/1 5/1]" {
		t.Errorf("raft's slice became %s", got)
	}
}
