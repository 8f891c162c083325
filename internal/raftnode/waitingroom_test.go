package raftnode

import (
	"context"
	"errors"
	"testing"
)

// waitingIn returns what the waiting room holds.
func waitingIn(q *waitingRoom) (count, bytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.mu.count, q.mu.bytes
}

// TestWithdrawnProposalsLeaveTheWaitingRoom: without a quorum a batch stays in flight
// and nothing is taken from the waiting room. Requests that give up leave nothing in
// it, and the next one finds room.
func TestWithdrawnProposalsLeaveTheWaitingRoom(t *testing.T) {
	const size, rounds = 1 << 10, 20
	nodes := startNodes(t, 3, func(c *Config) { c.MaxQueueBytes = 4 * size })
	leader := leaderOf(t, nodes)
	for _, n := range without(nodes, leader) {
		n.kill()
	}
	flight := make(chan error, 1)
	ctx, cancel := context.WithCancel(testContext(t))
	go func() {
		_, err := leader.Propose(ctx, make([]byte, size))
		flight <- err
	}()
	inFlight := func() bool {
		is := make(chan bool, 1)
		if err := send(ctx, leader.Replica, leader.callC, func(c *core) { is <- c.proposals.flight != nil }); err != nil {
			t.Fatal(err)
		}
		return <-is
	}
	waitFor(t, "batch in flight", inFlight)
	for range rounds {
		gone, giveUp := context.WithCancel(ctx)
		ended := make(chan error, 4)
		for range 4 {
			go func() {
				_, err := leader.Propose(gone, make([]byte, size))
				ended <- err
			}()
		}
		waitFor(t, "full waiting room", func() bool { n, _ := waitingIn(leader.waiting); return n == 4 })
		if _, err := leader.Propose(ctx, make([]byte, size)); !errors.Is(err, ErrOverloaded) {
			t.Fatalf("a proposal beyond the limit in bytes: %v", err)
		}
		giveUp()
		for range 4 {
			if err := <-ended; !errors.Is(err, ErrOverloaded) && !errors.Is(err, ErrNoLeader) {
				t.Fatalf("a withdrawn proposal: %v", err)
			}
		}
		if count, bytes := waitingIn(leader.waiting); count != 0 || bytes != 0 {
			t.Fatalf("%d proposals with %d bytes are left of requests that gave up", count, bytes)
		}
	}
	cancel()
	if err := <-flight; !errors.Is(err, ErrUnknown) {
		t.Errorf("the proposal in flight: %v", err)
	}
}

// TestWaitingRoomKeepsTheOrder whatever is removed, and counts what it holds.
func TestWaitingRoomKeepsTheOrder(t *testing.T) {
	for _, removed := range []int{0, 1, 2} {
		q := newWaitingRoom(100)
		all := []*proposal{newProposal(make([]byte, 1)), newProposal(make([]byte, 2)), newProposal(make([]byte, 4))}
		for _, p := range all {
			if err := q.put(p); err != nil {
				t.Fatal(err)
			}
		}
		q.remove(all[removed])
		q.remove(all[removed]) // not twice
		if _, bytes := waitingIn(q); bytes != 7-all[removed].size {
			t.Errorf("%d bytes are left without proposal %d", bytes, removed)
		}
		for i, p := range all {
			if i == removed {
				continue
			}
			if got := q.take(); got != p {
				t.Errorf("proposal %d did not come next", i)
			}
		}
		if q.take() != nil {
			t.Error("something is left")
		}
	}
	q := newWaitingRoom(100)
	if err := q.put(newProposal(make([]byte, 1000))); err != nil {
		t.Errorf("a large proposal that is alone: %v", err)
	}
	if err := q.put(newProposal(make([]byte, 1))); !errors.Is(err, ErrOverloaded) {
		t.Errorf("a proposal behind it: %v", err)
	}
}
