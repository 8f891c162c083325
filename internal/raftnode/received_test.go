package raftnode

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/datadir"
)

// TestReceivedBodyIsVerifiedBeforeItIsRecorded: a body with a wrong bit, of the
// wrong size, or of another place in the log is refused and removed, so that the
// next one of the same index takes its place.
func TestReceivedBodyIsVerifiedBeforeItIsRecorded(t *testing.T) {
	dir, atCheckpoint, atEnd := grownLog(t)
	n := mustOpenNode(t, openConfig(t, dir, machineAt(atEnd)))
	state := atCheckpoint.clone()
	state.Index, state.Term = 50, 2
	path := n.disk.BodyPath(50)
	if _, err := datadir.WriteBody(path, &machineView{s: state}); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damaged := func(change func(b []byte) []byte) []byte { return change([]byte(string(whole))) }
	for name, b := range map[string][]byte{
		"a flipped bit": damaged(func(b []byte) []byte { b[len(b)/2] ^= 1; return b }),
		"cut off":       damaged(func(b []byte) []byte { return b[:len(b)-1] }),
		"empty":         {},
	} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := n.received.Check(t.Context(), snapshotAt(50, 2)); err == nil || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the body is still there (%v)", name, err)
		}
	}
	write := func() {
		t.Helper()
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write()
	if err := n.received.Check(t.Context(), snapshotAt(50, 3)); err == nil || !strings.Contains(err.Error(), "term 3") {
		t.Errorf("a body of another term: %v", err)
	}
	write()
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.received.Check(stopped, snapshotAt(50, 2)); !errors.Is(err, context.Canceled) {
		t.Errorf("while stopping: %v", err)
	}
	write()
	if err := n.received.Check(t.Context(), snapshotAt(50, 2)); err != nil {
		t.Errorf("a good body: %v", err)
	}
	// Raft may refer to it now: what another sender's message says cannot remove it.
	if err := n.received.Check(t.Context(), snapshotAt(50, 3)); err == nil {
		t.Error("taken for another snapshot")
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("a body that raft has taken: %v", err)
	}
}
