package node

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/datadir"
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
//     while the third, which has the first one, is down.

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
	asFounder := identity{Member: j.ownPlace(), Rendezvous: rendezvousID(j.cfg.Token, j.cfg.Initial)}
	name := cmp.Or(j.cfg.Name, fmt.Sprintf("kvd%d", asFounder.Member))
	a := newAcceptor(asFounder, name, j.dir)
	defer a.close()
	j.publish(asFounder)
	j.found(a)
	f := &founder{self: a, initial: j.founders(), seed: j.seed, ask: j.askFounding, draw: datadir.NewClusterID, patience: somePatience()}
	for {
		existing, err := j.rallyOnce(ctx, a, f)
		if err != nil {
			return place{}, err
		}
		if c := a.chosen(); c != nil {
			a.close()
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
		case <-a.done():
		case <-time.After(askPause):
		}
	}
}

// rallyOnce asks the others once. It returns a cluster that exists, or else makes an
// attempt to found one if all are fresh and it is this node's turn.
func (j *joiner) rallyOnce(ctx context.Context, a *acceptor, f *founder) (existing *initialAnswer, err error) {
	var fresh []uint64
	answers := j.askInitial(ctx)
	for i, in := range answers {
		switch {
		case a.names(in.info.Charter):
			_, err := a.handle(foundingRequest{Rendezvous: a.self.Rendezvous, Seed: j.seed, Step: stepAdopt, Charter: in.info.Charter})
			return nil, err
		case in.info.ClusterID != 0 && len(in.info.Members) > 0:
			existing = &answers[i]
		case in.info.Fresh && in.info.Rendezvous != a.self.Rendezvous:
			j.warnStranger(in)
		case in.info.Fresh && in.info.MemberID == in.id && in.info.Seed == j.seed:
			fresh = append(fresh, in.id)
		}
	}
	switch {
	case existing != nil:
		return existing, nil
	case len(fresh)+1 == len(j.cfg.Initial) && f.turn(fresh):
		return nil, f.attempt(ctx, fresh)
	case j.waiting.Due(time.Now(), fmt.Sprint("rally", fresh)):
		j.lg.Info("no cluster yet: waiting for all nodes of --join to found one, or for one of them that has one",
			zap.Strings("urls", j.cfg.JoinURLs), zap.Int("answered", len(answers)), zap.Uint64s("fresh", fresh))
	}
	return nil, nil
}

// enter joins a cluster that exists, unless that has to wait. What the directory promised
// as a founder no longer counts: it has no log, and the cluster admits it under an id
// that need not be its position in the list.
func (j *joiner) enter(ctx context.Context, a *acceptor, at initialAnswer) (_ place, entered bool, _ error) {
	j.self.Member = j.cfg.ID
	if err := j.ensureMember(ctx, at); err != nil {
		return place{}, false, j.waitToJoin(err)
	}
	if a.close() != nil { // a charter was adopted at this very moment
		return place{}, false, nil
	}
	p, err := j.join(ctx, at)
	return p, true, err
}
