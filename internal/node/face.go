package node

import (
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/roster"
)

// Face is a node as the faces for clients of other protocols see it: what kvd's own face
// asks, and what their protocols say about members beyond that.
type Face struct{ *Node }

// Roster returns the membership as this node has applied it, without asking anybody.
func (f Face) Roster() ([]api.Member, error) {
	m, err := f.serving()
	if err != nil {
		return nil, err
	}
	var out []api.Member
	for _, rm := range m.replica.Membership().Members {
		out = append(out, m.describe(rm))
	}
	return out, nil
}

// IsLearner reports whether this node is a member without a vote.
func (f Face) IsLearner() bool {
	m := f.member.Load()
	if m == nil {
		return false
	}
	self, ok := m.replica.Membership().Member(m.id)
	return ok && self.Learner
}

// Term returns raft's current term as this node knows it; 0 before it has a place.
func (f Face) Term() uint64 {
	m := f.member.Load()
	if m == nil {
		return 0
	}
	return m.replica.Position().Term
}

// SortLeases sorts leases by when they end, if this node leads.
func (f Face) SortLeases(ids []uint64) {
	if m := f.member.Load(); m != nil {
		m.leases.lessor.SortByDeadline(ids)
	}
}

// RenewLease is AskLease for a keep-alive, without waiting: done gets the outcome, at the
// latest soon after the given time has passed. It may be called at once, and must not wait.
func (f Face) RenewLease(lease uint64, within time.Duration, done func(api.LeaseTime, error)) {
	m, err := f.serving()
	if err != nil {
		done(api.LeaseTime{}, err)
		return
	}
	m.leases.renew(lease, within, done)
}

// facesOf returns the URLs for clients of other protocols than kvd's own.
func facesOf(cfg *Config) map[string][]string {
	if len(cfg.AdvertiseEtcd) == 0 {
		return nil
	}
	return map[string][]string{roster.FaceEtcd: cfg.AdvertiseEtcd}
}
