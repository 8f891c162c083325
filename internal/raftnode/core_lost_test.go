package raftnode

import (
	"errors"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// A leader that has seen more acknowledged than the log holds is proof that the
// log is not the member's.
func TestLostLogIsNoticed(t *testing.T) {
	heartbeat := func(term, commit uint64) *raftpb.Message {
		return &raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: new(term), Commit: new(commit)}
	}
	const term, last, ticks = 5, 100, 10
	for _, c := range []struct {
		name string
		m    *raftpb.Message
		want bool
	}{
		{"within the log", heartbeat(term, last), false},
		{"beyond the log", heartbeat(term, last+1), true},
		{"beyond the log, from a leader not heard before", heartbeat(term+1, last+1), true},
		{"from a leader of old", heartbeat(term-1, last+1), false},
		{"another message", &raftpb.Message{Type: raftpb.MsgApp.Enum(), Term: new(uint64(term)), Commit: new(uint64(last + 1))}, false},
	} {
		var l lostLog
		var err error
		for range lostLogTimeouts*ticks + 1 {
			if err == nil {
				err = l.note(c.m, term, last, ticks)
			}
		}
		if noticed := errors.Is(err, ErrRefused); noticed != c.want {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
