package node

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/lessor"
)

// run carries out a command that must succeed.
func (m *testNode) run(t *testing.T, cmd kvstore.Command) kvstore.Result {
	t.Helper()
	var r kvstore.Result
	eventually(t, "command", func() bool {
		var err error
		r, err = m.Do(testContext(t), &cmd, nil)
		return err == nil
	})
	if r.Outcome != kvstore.OK {
		t.Fatalf("%+v: outcome %d: %s", cmd, r.Outcome, r.Detail)
	}
	return r
}

// leaderOf returns the member that leads.
func leaderOf(t *testing.T, members []*testNode) (leader *testNode) {
	t.Helper()
	eventually(t, "a leader", func() bool {
		for _, m := range members {
			if own := m.member.Load(); own != nil && own.leads() {
				leader = m
				return true
			}
		}
		return false
	})
	return leader
}

// TestLeasesOfACluster: a lease is kept alive through any member, ends when it no longer
// is, and takes its keys along.
func TestLeasesOfACluster(t *testing.T) {
	members := startCluster(t, 3, nil)
	granted := members[0].run(t, kvstore.Command{Op: kvstore.OpLeaseGrant, TTLMillis: 1}).Lease
	if min := members[0].member.Load().leases.minTTLMillis(); granted.TTLMillis != min {
		t.Fatalf("a TTL of 1 ms became %d ms, want %d", granted.TTLMillis, min)
	}
	members[1].run(t, kvstore.Command{Op: kvstore.OpPut, Key: []byte("a"), Lease: granted.ID})
	from := time.Now()
	for i := 0; time.Since(from) < 3*time.Duration(granted.TTLMillis)*time.Millisecond; i++ {
		at, err := members[i%3].AskLease(testContext(t), granted.ID, true)
		if err != nil || at.TTL.Milliseconds() != granted.TTLMillis {
			t.Fatalf("keep-alive through member %d: %+v, %v", i%3+1, at, err)
		}
	}
	if at, err := members[2].AskLease(testContext(t), granted.ID, false); err != nil || at.Remaining <= 0 || at.Remaining > at.TTL {
		t.Fatalf("%+v, %v", at, err)
	}
	eventually(t, "the end of the lease", func() bool {
		_, _, err := members[0].Store().Get([]byte("a"), 0)
		return errors.Is(err, kvstore.ErrKeyNotFound)
	})
	for _, m := range members {
		if _, err := m.AskLease(testContext(t), granted.ID, true); code(err) != api.LeaseNotFound {
			t.Errorf("keep-alive of an ended lease through member %d: %v", m.cfg.ID, err)
		}
	}
}

// TestLeaseSurvivesLeaders: the leader is stopped again and again, and the lease is
// promised time by one after the other.
func TestLeaseSurvivesLeaders(t *testing.T) {
	members := startCluster(t, 3, nil)
	granted := members[0].run(t, kvstore.Command{Op: kvstore.OpLeaseGrant, TTLMillis: 3000}).Lease
	leader := leaderOf(t, members)
	if err := leader.end(t); err != nil {
		t.Fatal(err)
	}
	var rest []*testNode
	for _, m := range members {
		if m != leader {
			rest = append(rest, m)
		}
	}
	for _, m := range rest { // as soon as there is a leader again, and within the TTL
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		if at, err := m.AskLease(ctx, granted.ID, true); err != nil || at.TTL != 3*time.Second {
			t.Errorf("keep-alive through member %d: %+v, %v", m.cfg.ID, at, err)
		}
		cancel()
	}
	eventually(t, "the end of the lease", func() bool {
		_, err := rest[0].Store().Lease(granted.ID)
		return errors.Is(err, kvstore.ErrLeaseNotFound)
	})
}

// TestKeepAliveWithoutQuorum: a leader that nobody follows anymore promises nothing.
func TestKeepAliveWithoutQuorum(t *testing.T) {
	members := startCluster(t, 3, nil)
	granted := members[0].run(t, kvstore.Command{Op: kvstore.OpLeaseGrant, TTLMillis: 60_000}).Lease
	leader := leaderOf(t, members)
	for _, m := range members {
		if m != leader {
			_ = m.end(t)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if at, err := leader.AskLease(ctx, granted.ID, true); err == nil {
		t.Errorf("without a quorum the answer is %+v", at)
	} else if c := code(err); c != api.NoLeader && c != api.Timeout {
		t.Errorf("%v", err)
	}
}

// TestDeposedOfficeProvesNothing: the proof is about the term in which the lessor moved the
// deadlines.
func TestDeposedOfficeProvesNothing(t *testing.T) {
	members := startCluster(t, 3, nil)
	leader := leaderOf(t, members)
	office := leaseOffice{leader.member.Load()}
	term := office.Tenure()
	if err := office.Prove(testContext(t), term); term == 0 || err != nil {
		t.Fatalf("term %d: %v", term, err)
	}
	if err := leader.TransferLeader(testContext(t), leader.cfg.ID%3+1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another leader", func() bool { return office.Tenure() == 0 })
	if err := office.Prove(testContext(t), term); !errors.Is(err, lessor.ErrNotLeader) {
		t.Errorf("a barrier through the new leader proves the old one's office: %v", err)
	}
}

// TestExpiriesAndPuts: many leases that end together do not stall puts, and all end.
func TestExpiriesAndPuts(t *testing.T) {
	const leases = 2000
	m := startCluster(t, 1, nil)[0]
	var commands [][]byte
	for i := range leases {
		commands = append(commands, m.Encode(nil, &kvstore.Command{Op: kvstore.OpLeaseGrant, Lease: uint64(i + 1), TTLMillis: 500}))
		commands = append(commands, m.Encode(nil, &kvstore.Command{Op: kvstore.OpPut, Key: []byte{byte(i), byte(i >> 8)}, Lease: uint64(i + 1)}))
	}
	for len(commands) > 0 {
		n := min(len(commands), 500)
		if _, err := m.DoGroup(testContext(t), commands[:n], nil); err != nil {
			t.Fatal(err)
		}
		commands = commands[n:]
	}
	var writer sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	writer.Go(func() {
		for ctx.Err() == nil {
			if _, err := m.Do(ctx, &kvstore.Command{Op: kvstore.OpPut, Key: []byte("written"), Value: []byte("x")}, nil); err != nil && ctx.Err() == nil {
				t.Errorf("a put while leases end: %v", err)
			}
		}
	})
	eventually(t, "the end of all leases", func() bool { return m.Store().Counts().Leases == 0 })
	cancel()
	writer.Wait()
	if n := m.Store().Stats().Keys; n > 1 {
		t.Errorf("%d keys are left", n)
	}
	eventually(t, "the figure", func() bool { return m.member.Load().leases.lessor.Expired() == leases })
}
