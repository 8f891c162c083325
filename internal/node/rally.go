package node

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/founding"
	"github.com/kvd-io/kvd/internal/repeat"
)

// Nodes that all start with the same --join URL,… and find no cluster found one. Their
// peer URLs in the list are the initial members, in this order, so that the founding is
// the one of ADR 12. Two things differ from --cluster (ADR 18):
//
//   - Where a cluster exists, a node joins it as one that is not in the list would: under
//     an id that the cluster gives, or in the place of the member that it was with
//     another directory. Its position means nothing then.
//   - All nodes of the list must be fresh, not only a majority. A node with a lost disk is
//     fresh, and comes back by itself here; two of three must not found a second cluster
//     while the third, which has the first one, is down. Nor may all three while others call
//     them, which that cluster has got since (founding's F5).

// silentElections is how many election timeouts must pass without a call by a member of a
// cluster before a list founds one. Members that miss another one call it all the time.
const silentElections = 5

// listJoining makes the join URLs the initial members if this node is one of them.
func (cfg *Config) listJoining() {
	at := slices.IndexFunc(cfg.JoinURLs, func(u string) bool { return slices.Contains(cfg.AdvertisePeer, u) })
	if at < 0 || len(cfg.JoinURLs) < 2 || len(cfg.Initial) > 0 {
		return
	}
	for i, u := range cfg.JoinURLs {
		p := Peer{ID: uint64(i + 1), URL: u}
		if i == at {
			p.Name = cfg.Name
		}
		cfg.Initial = append(cfg.Initial, p)
	}
}

// listed reports whether this node may found a cluster with those that it joins.
func (j *joiner) listed() bool { return len(j.cfg.Initial) > 1 }

// ownPlace returns this node's position in the list.
func (j *joiner) ownPlace() uint64 {
	for _, p := range j.cfg.Initial {
		if slices.Contains(j.cfg.AdvertisePeer, p.URL) {
			return p.ID
		}
	}
	return 0
}

// rally joins the cluster of the nodes in the list, or founds one with all of them.
func (j *joiner) rally(ctx context.Context) (place, error) {
	asFounder := identity{Member: j.ownPlace(), Rendezvous: RendezvousID(j.cfg.Token, j.cfg.Initial)}
	name := cmp.Or(j.cfg.Name, fmt.Sprintf("kvd%d", asFounder.Member))
	a := founding.NewAcceptor(asFounder.Member, asFounder.Rendezvous, name, j.dir)
	a.Guard(silentElections * electionTimeout(j.cfg))
	defer a.Close()
	j.publish(asFounder)
	j.found(a)
	f := founding.NewFounder(a, j.founders(), j.seed, j.askFounding)
	for {
		existing, err := j.rallyOnce(ctx, a, f)
		if err != nil {
			return place{}, err
		}
		if c := a.Chosen(); c != nil {
			a.Close()
			j.self, j.cfg.Name = asFounder, name
			return j.begin(c)
		}
		if existing != nil {
			if at, entered, err := j.enter(ctx, a, *existing); entered || err != nil {
				return at, err
			}
		}
		select {
		case <-ctx.Done():
			return place{}, context.Cause(ctx)
		case <-a.Done():
		case <-time.After(askPause):
		}
	}
}

// rallyOnce asks the others once. It returns a cluster that exists, or else makes an
// attempt to found one if all are fresh and it is this node's turn.
func (j *joiner) rallyOnce(ctx context.Context, a *founding.Acceptor, f *founding.Founder) (existing *initialAnswer, err error) {
	var fresh []uint64
	self, _ := a.Fresh()
	rendezvous, answers := RendezvousID(j.cfg.Token, j.cfg.Initial), j.askInitial(ctx)
	for i, in := range answers {
		switch {
		case a.Names(in.info.Charter):
			_, err := a.Handle(founding.Request{Rendezvous: rendezvous, Seed: j.seed, Step: founding.Adopt, Charter: in.info.Charter})
			return nil, err
		case in.info.ClusterID != 0 && len(in.info.Members) > 0:
			existing = &answers[i]
		case in.info.Fresh && in.info.Rendezvous != rendezvous:
			j.warnStranger(in)
		case in.info.Fresh && in.info.MemberID == in.id && in.info.Seed == j.seed:
			fresh = append(fresh, in.id)
		}
	}
	switch {
	case existing != nil:
		return existing, nil
	case a.Other() != "":
		if j.waiting.Due(time.Now(), a.Other()) {
			j.lg.Warn("members of a cluster call this node, but are not in --join: founding no other cluster", zap.String("cluster", a.Other()), zap.String("remedy",
				"if that cluster is to go on, add its members to --join; if not, stop them, or give these nodes other peer URLs"))
		}
	case self && len(fresh)+1 == len(j.cfg.Initial) && f.Turn(fresh):
		return nil, f.Attempt(ctx, fresh)
	case j.waiting.Due(time.Now(), fmt.Sprint("rally", fresh)):
		j.lg.Info("no cluster yet: waiting for all nodes of --join to found one, or for one of them that has one",
			zap.Strings("urls", j.cfg.JoinURLs), zap.Int("answered", len(answers)), zap.Uint64s("fresh", fresh))
	}
	return nil, nil
}

// enter joins a cluster that exists, unless that has to wait. What the directory promised
// as a founder no longer counts: it has no log, and the cluster admits it under an id
// that need not be its position in the list.
func (j *joiner) enter(ctx context.Context, a *founding.Acceptor, at initialAnswer) (_ place, entered bool, _ error) {
	j.self.Member = j.cfg.ID
	if err := j.ensureMember(ctx, at); err != nil {
		return place{}, false, j.waitToJoin(err)
	}
	if a.Close() != nil { // a charter was adopted at this very moment
		return place{}, false, nil
	}
	p, err := j.join(ctx, at)
	return p, true, err
}

// warnOfUnlisted warns, at growing intervals, of voters that are not in the list of a node
// that may found a cluster with those of its list. Nobody of the list would ask them: if all
// disks of the list were lost at once, the list would found an empty cluster beside theirs.
func warnOfUnlisted(m *member, pace *repeat.Pace, now time.Time) {
	list := m.cfg.JoinURLs
	if len(list) < 2 || !sharesURL(list, m.cfg.AdvertisePeer) {
		return
	}
	var missing []string
	for _, other := range m.replica.Membership().Members {
		if !other.Learner && !sharesURL(list, other.PeerURLs) {
			missing = append(missing, other.PeerURLs...)
		}
	}
	if len(missing) == 0 || !pace.Due(now, strings.Join(missing, ",")) {
		return
	}
	m.lg.Warn("voters are missing from --join", zap.Strings("missing", missing), zap.String("remedy",
		fmt.Sprintf("start this node with --join %s at the next opportunity, and likewise all others of the list; if all of the list lost their disks at once, they would found an empty cluster without asking those that are missing",
			strings.Join(append(slices.Clone(list), missing...), ","))))
}
