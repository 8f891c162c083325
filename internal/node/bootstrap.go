package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/raftnode"
)

// askPause is how long a starting node waits between two rounds of questions.
const askPause = 200 * time.Millisecond

// findPlace brings the node to where it may run raft: with its own log where
// there is one, as part of a new cluster, or admitted to one that exists.
//
// A directory without a log is dangerous: its member may have voted and
// acknowledged before, with a log that is gone. So such a node first asks the
// others. It bootstraps only once a majority of the initial members (itself
// included) has nothing committed and has not voted yet. Where a cluster
// exists, the cluster has to commit, without this node's vote, that the
// member belongs to this directory (its nonce); another directory of the same
// member was there first, and is refused.
func (n *Node) findPlace(ctx context.Context, dir *datadir.Dir) (*raftnode.Replica, error) {
	cfg := n.raftConfig()
	identity, known := dir.Identity()
	if known {
		if err := n.checkIdentity(identity); err != nil {
			return nil, err
		}
		n.id, n.clusterID = identity.MemberID, identity.ClusterID
		n.original.Store(identity.Original)
	}
	var err error
	if known && dir.HasLog() {
		cfg.Initial = n.initialMembers()
	} else {
		cfg, err = n.admission(ctx, dir, identity, cfg)
		if err != nil {
			return nil, err
		}
	}
	identity, _ = dir.Identity()
	cfg.ID, cfg.ClusterID, cfg.Nonce = n.id, n.clusterID, identity.Nonce
	r, err := raftnode.Open(cfg)
	if err != nil {
		return nil, err
	}
	if err := dir.MarkAdmitted(); err != nil {
		return nil, err
	}
	n.raft.Store(r)
	n.setPeerHandler(r.Handler(n.handlers()))
	return r, nil
}

func (n *Node) raftConfig() raftnode.Config {
	return raftnode.Config{
		Dir:                n.cfg.DataDir,
		Name:               n.cfg.Name,
		PeerURLs:           n.cfg.AdvertisePeer,
		ClientURLs:         n.cfg.AdvertiseClient,
		StateMachine:       machine{n.store},
		Logger:             n.lg,
		Lookup:             n.lookup,
		Security:           n.security(),
		Observer:           n.cfg.Observer,
		TickInterval:       n.cfg.TickInterval,
		ElectionTicks:      n.cfg.ElectionTicks,
		CheckpointBytes:    n.cfg.CheckpointBytes,
		CheckpointInterval: n.cfg.CheckpointInterval,
		CatchUpBytes:       n.cfg.CatchUpBytes,
	}
}

// checkIdentity holds the settings against what the directory says it is.
func (n *Node) checkIdentity(identity datadir.Identity) error {
	switch {
	case identity.State == datadir.StateRemoved:
		return fmt.Errorf("%w: %s belongs to member %d, which was removed from the cluster; its id never returns. Add the machine under a new id and start it with an empty directory",
			ErrRefused, describeDir(n.cfg.DataDir), identity.MemberID)
	case n.cfg.ID != 0 && identity.MemberID != n.cfg.ID:
		return fmt.Errorf("%w: %s belongs to member %d, but --id says %d", ErrConfig, describeDir(n.cfg.DataDir), identity.MemberID, n.cfg.ID)
	case !n.cfg.Join && len(n.cfg.JoinURLs) == 0 && len(n.cfg.Initial) > 0 && identity.ClusterID != n.clusterID && identity.Original != n.clusterID:
		return fmt.Errorf("%w: %s belongs to cluster %016x, but --cluster and --cluster-token name cluster %016x. Use another --data-dir, or the settings the cluster was made with",
			ErrConfig, describeDir(n.cfg.DataDir), identity.ClusterID, n.clusterID)
	}
	return nil
}

func (n *Node) initialMembers() []raftnode.Member {
	if n.cfg.Join || len(n.cfg.JoinURLs) > 0 {
		return nil
	}
	var out []raftnode.Member
	for _, p := range n.cfg.Initial {
		out = append(out, raftnode.Member{ID: p.ID, Name: p.Name, PeerURLs: []string{p.URL}})
	}
	return out
}

// admission finds out, without a log, what to do, and does it.
func (n *Node) admission(ctx context.Context, dir *datadir.Dir, identity datadir.Identity, cfg raftnode.Config) (raftnode.Config, error) {
	if identity.State == datadir.StateAdmitted {
		return cfg, &datadir.RefusedError{
			File:   describeDir(n.cfg.DataDir),
			Reason: "the directory belongs to a member that has taken part, but its log is gone",
			Remedy: datadir.RemoveAndReAdd,
		}
	}
	if len(n.cfg.JoinURLs) > 0 {
		return n.joinByURL(ctx, dir, cfg)
	}
	for round := 0; ; round++ {
		answers := n.askInitial(ctx)
		if err := n.refuseRecovered(answers); err != nil {
			return cfg, err
		}
		existing, fresh := n.judge(answers)
		switch {
		case existing != nil:
			return n.join(ctx, dir, *existing, cfg)
		case !n.cfg.Join && fresh > len(n.cfg.Initial)/2:
			n.lg.Info("bootstrapping a new cluster", zap.Int("members", len(n.cfg.Initial)), zap.String("cluster", fmt.Sprintf("%016x", n.clusterID)))
			cfg.Initial = n.initialMembers()
			return cfg, dir.Claim(n.id, n.clusterID, n.cfg.Name)
		}
		if round%25 == 0 {
			n.lg.Info("waiting for other members", zap.Int("answered", fresh-1), zap.Int("needed", len(n.cfg.Initial)/2), zap.Bool("join", n.cfg.Join))
		}
		if err := pause(ctx, askPause); err != nil {
			return cfg, err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// answer is what one of the initial URLs said.
type initialAnswer struct {
	url  string
	info info
}

// askInitial asks the other initial URLs, all at once.
func (n *Node) askInitial(ctx context.Context) []initialAnswer {
	var others []string
	for _, p := range n.cfg.Initial {
		if p.ID != n.id && !slices.Contains(n.cfg.AdvertisePeer, p.URL) {
			others = append(others, p.URL)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	answered := make(chan *initialAnswer, len(others))
	for _, u := range others {
		go func() {
			in, err := n.peers.info(ctx, u)
			if err != nil {
				answered <- nil
				return
			}
			answered <- &initialAnswer{url: u, info: in}
		}()
	}
	var out []initialAnswer
	for range others {
		if a := <-answered; a != nil {
			out = append(out, *a)
		}
	}
	return out
}

// judge looks for a cluster that exists, and counts the members (this one
// included) for which none has begun. One that votes already but has nothing
// committed counts for neither: this node may have voted with it.
func (n *Node) judge(answers []initialAnswer) (existing *initialAnswer, fresh int) {
	fresh = 1
	for i, a := range answers {
		switch {
		case !n.cfg.Join && a.info.ClusterID != n.clusterID:
			n.lg.Warn("this URL belongs to another cluster", zap.String("url", a.url), zap.String("cluster", fmt.Sprintf("%016x", a.info.ClusterID)))
		case a.info.Committed:
			existing = &answers[i]
		case a.info.Term <= 1:
			fresh++
		}
	}
	return existing, fresh
}

// refuseRecovered refuses to begin the cluster of these settings once more,
// beside what was recovered of it.
func (n *Node) refuseRecovered(answers []initialAnswer) error {
	for _, a := range answers {
		if a.info.Original == n.clusterID && !n.cfg.Join {
			return fmt.Errorf("%w: the cluster that --cluster names lost its quorum, and was recovered by member %d as cluster %016x. Join that one, with an empty directory: --join %s, and --cluster and --id left out",
				ErrRefused, a.info.MemberID, a.info.ClusterID, a.url)
		}
	}
	return nil
}

// join asks a member of an existing cluster to bind this directory to the
// member id, and prepares to take part.
func (n *Node) join(ctx context.Context, dir *datadir.Dir, at initialAnswer, cfg raftnode.Config) (raftnode.Config, error) {
	n.clusterID = at.info.ClusterID
	if slices.Contains(at.info.Removed, n.id) {
		return cfg, ErrRemoved
	}
	if err := dir.Claim(n.id, n.clusterID, n.cfg.Name); err != nil {
		return cfg, err
	}
	identity, _ := dir.Identity()
	if err := n.beAdmitted(ctx, at.url, identity); err != nil {
		return cfg, err
	}
	n.lg.Info("admitted to the cluster", zap.Uint64("id", n.id), zap.String("cluster", fmt.Sprintf("%016x", n.clusterID)))
	cfg.Known = at.info.Members
	return cfg, nil
}

// beAdmitted repeats the question until the cluster has decided.
func (n *Node) beAdmitted(ctx context.Context, url string, identity datadir.Identity) error {
	for round := 0; ; round++ {
		err := n.peers.admit(ctx, url, admission{Member: n.id, ClusterID: n.clusterID, Nonce: identity.Nonce})
		switch {
		case err == nil:
			return nil
		case errors.Is(err, raftnode.ErrMemberRemoved):
			return fmt.Errorf("%w: %w", ErrRemoved, err)
		case errors.Is(err, raftnode.ErrMemberExists):
			return fmt.Errorf("%w: member %d has taken part from another data directory, whose promises this empty one cannot keep. Remove the member and add it again under a new id: curl -X DELETE …/v1/members/%d, then POST …/v1/members", ErrRefused, n.id, n.id)
		case errors.Is(err, raftnode.ErrMemberNotFound):
			if round%25 == 0 {
				n.lg.Info("waiting to be added to the cluster: POST /v1/members on one of its members", zap.Uint64("id", n.id))
			}
		case errors.Is(err, raftnode.ErrBadMember), errors.Is(err, errIdentity):
			return fmt.Errorf("%w: %w", ErrConfig, err)
		default:
			if round%25 == 0 {
				n.lg.Info("waiting to be admitted", zap.Error(err))
			}
		}
		if err := pause(ctx, askPause); err != nil {
			return err
		}
	}
}

// joinByURL finds the cluster behind a client or peer URL, has this node added
// to it unless it is a member already, and joins.
func (n *Node) joinByURL(ctx context.Context, dir *datadir.Dir, cfg raftnode.Config) (raftnode.Config, error) {
	for round := 0; ; round++ {
		at, err := n.findCluster(ctx)
		if err == nil {
			if err = n.ensureMember(ctx, at); err == nil {
				return n.join(ctx, dir, at, cfg)
			}
		}
		if refused := decided(err); refused {
			return cfg, fmt.Errorf("join the cluster: %w", err)
		}
		if round%25 == 0 {
			n.lg.Info("waiting to join the cluster", zap.Strings("urls", n.cfg.JoinURLs), zap.Error(err))
		}
		if err := pause(ctx, askPause); err != nil {
			return cfg, err
		}
	}
}

// decided reports whether asking again is pointless.
func decided(err error) bool {
	return errors.Is(err, raftnode.ErrMemberRemoved) || errors.Is(err, raftnode.ErrMemberExists) || errors.Is(err, raftnode.ErrBadMember) || errors.Is(err, errIdentity)
}

// findCluster asks the join URLs; one that is a client URL names the peers.
func (n *Node) findCluster(ctx context.Context) (initialAnswer, error) {
	var problems []error
	for _, u := range n.cfg.JoinURLs {
		urls, err := n.peerURLsBehind(ctx, u)
		if err != nil {
			urls = []string{u}
		}
		for _, pu := range urls {
			in, err := n.peers.info(ctx, pu)
			if err == nil && in.Committed {
				return initialAnswer{url: pu, info: in}, nil
			}
			problems = append(problems, err)
		}
	}
	return initialAnswer{}, fmt.Errorf("no member answers: %w", errors.Join(problems...))
}

// peerURLsBehind asks a client URL for the members.
func (n *Node) peerURLsBehind(ctx context.Context, clientURL string) ([]string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(clientURL, "/")+"/v1/members", nil)
	if err != nil {
		return nil, err
	}
	resp, err := n.finder.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var answer struct {
		Members []api.Member `json:"members"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(nil, resp.Body, maxCallBytes)).Decode(&answer); err != nil {
		return nil, fmt.Errorf("%s answers %d: %w", clientURL, resp.StatusCode, err)
	}
	var urls []string
	for _, m := range answer.Members {
		urls = append(urls, m.PeerURLs...)
	}
	if len(urls) == 0 {
		return nil, fmt.Errorf("%s names no members", clientURL)
	}
	return urls, nil
}

// ensureMember finds this node in the membership by its id or peer URL, or
// has it added, and takes over its id.
func (n *Node) ensureMember(ctx context.Context, at initialAnswer) error {
	for _, m := range at.info.Members {
		if m.ID == n.id || n.id == 0 && sharesURL(m.PeerURLs, n.cfg.AdvertisePeer) {
			n.id = m.ID
			return nil
		}
	}
	add := raftnode.Change{Kind: raftnode.AddMember, Member: raftnode.Member{
		ID: n.id, Name: n.cfg.Name, PeerURLs: n.cfg.AdvertisePeer, ClientURLs: n.cfg.AdvertiseClient,
	}}
	err := errors.New("the cluster has no members")
	for _, m := range at.info.Members {
		var added raftnode.Member
		if added, err = n.peers.change(ctx, m.PeerURLs, add); err == nil {
			n.id = added.ID
			return nil
		}
		if decided(err) || errors.Is(err, raftnode.ErrUnsafeChange) {
			return err
		}
	}
	return err
}

func sharesURL(a, b []string) bool {
	return slices.ContainsFunc(a, func(u string) bool { return slices.Contains(b, u) })
}

// lookup finds the URLs of a member that this node has not heard of yet, by
// asking the members it knows.
func (n *Node) lookup(ctx context.Context, id uint64) ([]string, bool) {
	r := n.raft.Load()
	if r == nil {
		return nil, false
	}
	for _, m := range r.Membership().Members {
		if m.ID == n.id {
			continue
		}
		for _, u := range m.PeerURLs {
			in, err := n.peers.info(ctx, u)
			if err != nil || in.ClusterID != n.clusterID {
				continue
			}
			for _, found := range in.Members {
				if found.ID == id && len(found.PeerURLs) > 0 {
					return found.PeerURLs, true
				}
			}
		}
	}
	return nil, false
}
