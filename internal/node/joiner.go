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

const (
	// askPause is how long a starting node waits between two rounds of
	// questions.
	askPause = 200 * time.Millisecond
	// askTimeout bounds one round. A machine that is down may not even refuse
	// connections.
	askTimeout = 2 * time.Second
	// roundsPerLine is how many rounds pass between two log lines that say what
	// the node is waiting for.
	roundsPerLine = 25
)

// joiner finds the place of a data directory in a cluster. It ends when it has
// found one; the rest of the node's life belongs to the member.
//
// A directory with a log goes on with that log. A directory without one is
// dangerous: its member may have voted and acknowledged writes before, with a
// log that is gone. So such a node first asks the others (N1):
//
//  1. If a majority of the initial members, itself included, has nothing
//     committed and has not voted yet, it bootstraps the cluster. A member that
//     has voted but has nothing committed counts for neither side: this node
//     may have been the one that elected it.
//  2. If a cluster exists, the cluster must commit, without this node's vote,
//     that the member belongs to this directory (its nonce). If another
//     directory of the same member was there first, this one is refused: it
//     cannot keep the promises of the other.
//  3. Otherwise it waits and asks again.
//
// A joiner belongs to the goroutine that calls find.
type joiner struct {
	cfg   *Config
	lg    *zap.Logger
	dir   *datadir.Dir
	calls *peerCaller
	// finder asks client URLs for the members. Unlike calls it may use plain
	// HTTP: client ports may be without TLS where members have it.
	finder *http.Client

	self identity
	// publish makes self visible to the calls of other members.
	publish func(identity)
}

// place is where a joiner's search ended: what the replica needs beside the
// settings.
type place struct {
	identity
	nonce   string
	initial []raftnode.Member // of a cluster that is being bootstrapped
	known   []raftnode.Member // to talk to until the membership has been received
}

func newJoiner(n *Node, dir *datadir.Dir) *joiner {
	plain := n.peering.security()
	plain.SecureOnly = false
	return &joiner{
		cfg:     &n.cfg,
		lg:      n.lg,
		dir:     dir,
		calls:   n.calls,
		finder:  &http.Client{Transport: callTransport(plain), Timeout: callTimeout},
		self:    *n.identity.Load(),
		publish: func(self identity) { n.identity.Store(&self) },
	}
}

// find returns the directory's place. It waits for other members as long as it
// has to.
func (j *joiner) find(ctx context.Context) (place, error) {
	recorded, known := j.dir.Identity()
	if known {
		if err := j.checkIdentity(recorded); err != nil {
			return place{}, err
		}
		j.become(identity{Member: recorded.MemberID, Cluster: recorded.ClusterID, Original: recorded.Original})
	}
	var at place
	var err error
	if known && j.dir.HasLog() {
		at.initial = j.initialMembers()
	} else if at, err = j.findWithoutLog(ctx); err != nil {
		return place{}, err
	}
	recorded, _ = j.dir.Identity()
	at.identity, at.nonce = j.self, recorded.Nonce
	return at, nil
}

func (j *joiner) become(self identity) {
	j.self = self
	j.publish(self)
}

// byURL reports whether the node asks an existing cluster to add it.
func (j *joiner) byURL() bool { return len(j.cfg.JoinURLs) > 0 }

// checkIdentity compares the settings with what the directory says it is.
func (j *joiner) checkIdentity(recorded datadir.Identity) error {
	dir := absolute(j.cfg.DataDir)
	wanted := j.self.Cluster // the one that the settings name
	switch {
	case j.cfg.ID != 0 && recorded.MemberID != j.cfg.ID:
		return fmt.Errorf("%w: %s belongs to member %d, but --id is %d", ErrConfig, dir, recorded.MemberID, j.cfg.ID)
	// A recovered cluster has a new id; its members may still be started with
	// the settings of the original one.
	case !j.cfg.Join && !j.byURL() && len(j.cfg.Initial) > 0 && recorded.ClusterID != wanted && recorded.Original != wanted:
		return fmt.Errorf("%w: %s belongs to cluster %016x, but --cluster and --cluster-token name cluster %016x; use another --data-dir, or the settings that the cluster was created with",
			ErrConfig, dir, recorded.ClusterID, wanted)
	}
	return nil
}

func (j *joiner) initialMembers() []raftnode.Member {
	if j.cfg.Join || j.byURL() {
		return nil
	}
	var out []raftnode.Member
	for _, p := range j.cfg.Initial {
		out = append(out, raftnode.Member{ID: p.ID, Name: p.Name, PeerURLs: []string{p.URL}})
	}
	return out
}

// findWithoutLog bootstraps or joins. datadir.Open has refused a directory whose
// member has taken part and has lost its log.
func (j *joiner) findWithoutLog(ctx context.Context) (place, error) {
	if j.byURL() {
		return j.joinByURL(ctx)
	}
	for round := 0; ; round++ {
		answers := j.askInitial(ctx)
		if err := j.refuseRecovered(answers); err != nil {
			return place{}, err
		}
		existing, fresh := j.judge(answers)
		switch {
		case existing != nil:
			return j.join(ctx, *existing)
		case !j.cfg.Join && fresh > len(j.cfg.Initial)/2:
			j.lg.Info("bootstrapping a new cluster", zap.Int("members", len(j.cfg.Initial)), zap.String("cluster", hex(j.self.Cluster)))
			return place{initial: j.initialMembers()}, j.dir.Claim(j.self.Member, j.self.Cluster, j.cfg.Name)
		}
		if round%roundsPerLine == 0 {
			j.lg.Info("waiting for other members", zap.Int("answered", fresh-1), zap.Int("needed", len(j.cfg.Initial)/2), zap.Bool("join", j.cfg.Join))
		}
		if err := pause(ctx, askPause); err != nil {
			return place{}, err
		}
	}
}

// pause waits, and returns why if the context ends first.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// initialAnswer is what a member said about its cluster.
type initialAnswer struct {
	url  string
	info info
}

// askInitial asks the other initial members, all at once.
func (j *joiner) askInitial(ctx context.Context) []initialAnswer {
	var others []string
	for _, p := range j.cfg.Initial {
		if p.ID != j.self.Member && !slices.Contains(j.cfg.AdvertisePeer, p.URL) {
			others = append(others, p.URL)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	answered := make(chan *initialAnswer, len(others))
	for _, u := range others {
		go func() {
			in, err := j.calls.info(ctx, u)
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

// judge looks for a cluster that exists, and counts the members, including this
// one, for which none has begun.
func (j *joiner) judge(answers []initialAnswer) (existing *initialAnswer, fresh int) {
	fresh = 1
	for i, a := range answers {
		switch {
		case !j.cfg.Join && a.info.ClusterID != j.self.Cluster:
			j.lg.Warn("this URL belongs to another cluster", zap.String("url", a.url), zap.String("cluster", hex(a.info.ClusterID)))
		case a.info.Committed:
			existing = &answers[i]
		case a.info.Term <= 1:
			fresh++
		}
	}
	return existing, fresh
}

// refuseRecovered refuses to bootstrap the cluster of these settings a second
// time, beside the one that was recovered from it.
func (j *joiner) refuseRecovered(answers []initialAnswer) error {
	for _, a := range answers {
		if a.info.Original == j.self.Cluster && !j.cfg.Join {
			return fmt.Errorf("%w: the cluster that --cluster names lost its quorum and was recovered by member %d as cluster %016x; to join that one, start with an empty directory and --join %s, without --cluster and --id",
				ErrRefused, a.info.MemberID, a.info.ClusterID, a.url)
		}
	}
	return nil
}

// join asks a member of an existing cluster to bind this directory to the
// member id.
func (j *joiner) join(ctx context.Context, at initialAnswer) (place, error) {
	j.become(identity{Member: j.self.Member, Cluster: at.info.ClusterID, Original: j.self.Original})
	if slices.Contains(at.info.Removed, j.self.Member) {
		return place{}, ErrRemoved
	}
	if err := j.dir.Claim(j.self.Member, j.self.Cluster, j.cfg.Name); err != nil {
		return place{}, err
	}
	if err := j.beAdmitted(ctx, at.url); err != nil {
		return place{}, err
	}
	j.lg.Info("admitted to the cluster", zap.Uint64("id", j.self.Member), zap.String("cluster", hex(j.self.Cluster)))
	return place{known: at.info.Members}, nil
}

// beAdmitted repeats the join request until the cluster has decided.
func (j *joiner) beAdmitted(ctx context.Context, url string) error {
	recorded, _ := j.dir.Identity()
	id := j.self.Member
	for round := 0; ; round++ {
		err := j.calls.admit(ctx, url, joinRequest{Member: id, ClusterID: j.self.Cluster, Nonce: recorded.Nonce})
		switch {
		case err == nil:
			return nil
		case errors.Is(err, raftnode.ErrMemberRemoved):
			return fmt.Errorf("%w: %w", ErrRemoved, err)
		case errors.Is(err, raftnode.ErrMemberExists):
			return fmt.Errorf("%w: member %d has taken part with another data directory, and this empty one cannot keep the promises made there; remove the member and add it again under a new id: curl -X DELETE …/v1/members/%d, then POST …/v1/members", ErrRefused, id, id)
		case errors.Is(err, raftnode.ErrMemberNotFound):
			if round%roundsPerLine == 0 {
				j.lg.Info("waiting to be added to the cluster: POST /v1/members on one of its members", zap.Uint64("id", id))
			}
		case errors.Is(err, raftnode.ErrBadMember), errors.Is(err, errIdentity):
			return fmt.Errorf("%w: %w", ErrConfig, err)
		default:
			if round%roundsPerLine == 0 {
				j.lg.Info("waiting to be admitted", zap.Error(err))
			}
		}
		if err := pause(ctx, askPause); err != nil {
			return err
		}
	}
}

// joinByURL finds the cluster behind a client or peer URL, has this node added
// to it unless it already is a member, and joins.
func (j *joiner) joinByURL(ctx context.Context) (place, error) {
	for round := 0; ; round++ {
		at, err := j.findCluster(ctx)
		if err == nil {
			if err = j.ensureMember(ctx, at); err == nil {
				return j.join(ctx, at)
			}
		}
		if final(err) {
			return place{}, fmt.Errorf("join the cluster: %w", err)
		}
		if round%roundsPerLine == 0 {
			j.lg.Info("waiting to join the cluster", zap.Strings("urls", j.cfg.JoinURLs), zap.Error(err))
		}
		if err := pause(ctx, askPause); err != nil {
			return place{}, err
		}
	}
}

// final reports whether asking again cannot change the answer.
func final(err error) bool {
	return errors.Is(err, raftnode.ErrMemberRemoved) || errors.Is(err, raftnode.ErrMemberExists) || errors.Is(err, raftnode.ErrBadMember) || errors.Is(err, errIdentity)
}

// findCluster asks the join URLs. A client URL leads to the peer URLs.
func (j *joiner) findCluster(ctx context.Context) (initialAnswer, error) {
	var problems []error
	for _, u := range j.cfg.JoinURLs {
		urls, err := j.peerURLsBehind(ctx, u)
		if err != nil {
			urls = []string{u}
		}
		for _, pu := range urls {
			in, err := j.calls.info(ctx, pu)
			if err == nil && in.Committed {
				return initialAnswer{url: pu, info: in}, nil
			}
			if err == nil {
				err = fmt.Errorf("%s: its cluster has not been bootstrapped yet", pu)
			}
			problems = append(problems, err)
		}
	}
	return initialAnswer{}, fmt.Errorf("no member answered: %w", errors.Join(problems...))
}

// peerURLsBehind asks a client URL for the members.
func (j *joiner) peerURLsBehind(ctx context.Context, clientURL string) ([]string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(clientURL, "/")+"/v1/members", nil)
	if err != nil {
		return nil, err
	}
	resp, err := j.finder.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var answer struct {
		Members []api.Member `json:"members"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(nil, resp.Body, maxCallBytes)).Decode(&answer); err != nil {
		return nil, fmt.Errorf("decode the members from %s (status %d): %w", clientURL, resp.StatusCode, err)
	}
	var urls []string
	for _, m := range answer.Members {
		urls = append(urls, m.PeerURLs...)
	}
	if len(urls) == 0 {
		return nil, fmt.Errorf("%s lists no members", clientURL)
	}
	return urls, nil
}

// ensureMember finds this node in the membership by its id or peer URL, or has
// it added, and takes over its id.
func (j *joiner) ensureMember(ctx context.Context, at initialAnswer) error {
	id := j.self.Member
	for _, m := range at.info.Members {
		if m.ID == id || id == 0 && sharesURL(m.PeerURLs, j.cfg.AdvertisePeer) {
			j.takeID(m.ID)
			return nil
		}
	}
	add := raftnode.Change{Kind: raftnode.AddMember, Member: raftnode.Member{
		ID: id, Name: j.cfg.Name, PeerURLs: j.cfg.AdvertisePeer, ClientURLs: j.cfg.AdvertiseClient,
	}}
	err := errors.New("the cluster has no members")
	for _, m := range at.info.Members {
		var added raftnode.Member
		if added, err = j.calls.change(ctx, m.PeerURLs, add); err == nil {
			j.takeID(added.ID)
			return nil
		}
		if final(err) || errors.Is(err, raftnode.ErrUnsafeChange) {
			return err
		}
	}
	return err
}

func (j *joiner) takeID(id uint64) {
	j.become(identity{Member: id, Cluster: j.self.Cluster, Original: j.self.Original})
}

func sharesURL(a, b []string) bool {
	return slices.ContainsFunc(a, func(u string) bool { return slices.Contains(b, u) })
}
