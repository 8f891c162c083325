package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/datadir"
	"github.com/kvd-io/kvd/internal/founding"
	"github.com/kvd-io/kvd/internal/repeat"
	"github.com/kvd-io/kvd/internal/roster"
)

const (
	// askPause is how long a starting node waits between two rounds of
	// questions.
	askPause = 200 * time.Millisecond
	// askTimeout bounds one round. A machine that is down may not even refuse
	// connections.
	askTimeout = 2 * time.Second
)

// joiner finds the place of a data directory in a cluster. It ends when it has
// found one; the rest of the node's life belongs to the member.
//
// A directory with a log goes on with that log. A directory without one is
// dangerous: its member may have voted and acknowledged writes before, with a
// log that is gone. So such a node first asks the others (N1):
//
//  1. If a cluster exists, the cluster must commit, without this node's vote,
//     that the member belongs to this directory (its nonce). If another
//     directory of the same member was there first, this one is refused: it
//     cannot keep the promises of the other. A directory that the cluster's
//     charter names belongs to the member already.
//  2. If a majority of the initial members, itself included, is fresh, they found
//     a cluster (founding.go). A member that has a cluster, even one in which
//     nothing was committed yet, is not fresh.
//  3. Otherwise it waits and asks again.
//
// A joiner belongs to the goroutine that calls find.
type joiner struct {
	cfg    *Config
	lg     *zap.Logger
	dir    *datadir.Dir
	calls  *peerCaller
	finder *http.Client // asks client URLs for the members

	self identity
	seed string // the state that the directory was restored with; see datadir.SeedPath
	// publish makes self visible to the calls of other members.
	publish func(identity)
	// found makes an acceptor visible to them.
	found func(*founding.Acceptor)

	strangers map[string]*repeat.Pace // warnings about members of other clusters, by URL
	waiting   repeat.Pace             // lines that say what the node waits for
}

// place is where a joiner's search ended: what the replica needs beside the
// settings.
type place struct {
	identity
	nonce   string
	starts  uint64          // the number of this start of the directory
	initial []roster.Member // of a cluster that this directory founds
	seeded  bool            // that cluster begins with the directory's seed
	known   []roster.Member // to talk to until the membership has been received
}

func newJoiner(n *Node, dir *datadir.Dir) *joiner {
	return &joiner{
		cfg:     &n.cfg,
		lg:      n.lg,
		dir:     dir,
		calls:   n.calls,
		finder:  newFinder(n.peering),
		self:    *n.identity.Load(),
		seed:    dir.Seed(),
		publish: func(self identity) { n.identity.Store(&self) },
		found:   n.acceptor.Store,

		strangers: make(map[string]*repeat.Pace),
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
		self := identity{Member: recorded.MemberID, Cluster: recorded.ClusterID, Rendezvous: recorded.Rendezvous, Original: recorded.Original}
		if self.Rendezvous == 0 && self.Cluster == 0 {
			self.Rendezvous = j.self.Rendezvous // restored for any settings
		}
		if self.Cluster == 0 && j.byURL() {
			self.Member = j.cfg.ID // it promised something as a founder, under its position in a list
		}
		if self.Cluster != 0 && recorded.Founding != nil {
			self.charter = recorded.Founding.Charter
		}
		if j.cfg.Name == "" || j.mayStartAlone(recorded) && recorded.MemberID != j.cfg.ID {
			j.cfg.Name = recorded.Name
		}
		j.become(self)
	}
	var at place
	var err error
	if known && j.dir.HasLog() {
		// If the log is still empty, the member needs somebody to talk to.
		at.initial, at.known = j.initialMembers(), asMembers(j.founders())
	} else if at, err = j.findWithoutLog(ctx, recorded); err != nil {
		return place{}, err
	}
	recorded, _ = j.dir.Identity()
	at.identity, at.nonce, at.starts = j.self, recorded.Nonce, recorded.Starts+1
	at.seeded = len(at.initial) > 0 && recorded.Seed != ""
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
	wanted := j.self.Rendezvous // what the settings yield
	switch {
	case j.cfg.ID != 0 && recorded.MemberID != j.cfg.ID && (j.cfg.IDGiven || !j.mayStartAlone(recorded)):
		return fmt.Errorf("%w: %s belongs to member %d, but --id is %d; start it with --id %d, or use another --data-dir", ErrConfig, dir, recorded.MemberID, j.cfg.ID, recorded.MemberID)
	case !j.cfg.Join && !j.byURL() && !j.mayStartAlone(recorded) && recorded.Rendezvous != 0 && recorded.Rendezvous != wanted:
		why := "start it with the settings that the cluster was founded with, or with --join, or use another --data-dir"
		if recorded.Founding != nil && recorded.Founding.Charter != nil {
			why = fmt.Sprintf("the cluster was founded with other settings: %s; if members have moved, start this one with --join URL, that of another member, in place of --cluster; if the list here is wrong, correct it or use another --data-dir",
				differs(j.founders(), recorded.Founding.Charter.Members))
		}
		return fmt.Errorf("%w: %s belongs to cluster %016x, which --cluster and --cluster-token do not name: %s", ErrConfig, dir, recorded.ClusterID, why)
	}
	return nil
}

// mayStartAlone reports whether the settings need not list the members, because the
// directory's cluster began with this one: it was founded or recovered alone.
func (j *joiner) mayStartAlone(recorded datadir.Identity) bool {
	f := recorded.Founding
	return j.cfg.Alone && (recorded.Original != 0 || f != nil && f.Charter != nil && len(f.Charter.Members) == 1)
}

// initialMembers returns the members with which the directory's cluster began, if
// the directory was there. They are its state at the first log index.
func (j *joiner) initialMembers() []roster.Member {
	recorded, _ := j.dir.Identity()
	if recorded.Founding == nil {
		return nil
	}
	return asMembers(recorded.Founding.Charter.Members)
}

func asMembers(founders []datadir.Founder) (out []roster.Member) {
	for _, f := range founders {
		out = append(out, roster.Member{ID: f.ID, Name: f.Name, PeerURLs: f.PeerURLs, Nonce: f.Nonce})
	}
	return out
}

// findWithoutLog founds a cluster or joins one. datadir.Open has refused a
// directory whose member has taken part and has lost its log.
func (j *joiner) findWithoutLog(ctx context.Context, recorded datadir.Identity) (place, error) {
	switch {
	case recorded.ClusterID != 0 && recorded.Founding != nil: // a crash right after the adoption
		return j.begin(recorded.Founding.Charter)
	case recorded.Seed != "" && recorded.ClusterID == 0 && (j.byURL() || j.cfg.Join):
		return place{}, fmt.Errorf("%w: %s was restored from a backup to begin a new cluster; start it without --join, or join with an empty directory", ErrConfig, absolute(j.cfg.DataDir))
	case j.byURL() && j.listed() && recorded.ClusterID == 0:
		return j.rally(ctx)
	case j.byURL():
		return j.joinByURL(ctx)
	case j.cfg.Join || recorded.ClusterID != 0:
		return j.await(ctx, nil)
	case len(j.cfg.Initial) == 1 && j.cfg.Alone && j.self.Member != 1:
		return place{}, fmt.Errorf("%w: --id is %d, and %s is empty: a new cluster needs --cluster with at least %d URLs", ErrConfig, j.self.Member, absolute(j.cfg.DataDir), j.self.Member)
	case len(j.cfg.Initial) == 1:
		return j.foundAlone()
	}
	a := founding.NewAcceptor(j.self.Member, j.self.Rendezvous, j.cfg.Name, j.dir)
	defer a.Close()
	j.found(a)
	return j.await(ctx, a)
}

// begin takes the place that the charter gives to this directory.
func (j *joiner) begin(c *datadir.Charter) (place, error) {
	j.become(identity{Member: j.self.Member, Cluster: c.ClusterID, Rendezvous: j.self.Rendezvous, charter: c})
	j.lg.Info("cluster founded", zap.String("cluster", hex(c.ClusterID)), zap.Int("members", len(c.Members)))
	return place{initial: j.initialMembers()}, nil
}

// foundAlone founds a cluster with one initial member.
func (j *joiner) foundAlone() (place, error) {
	c := &datadir.Charter{ClusterID: datadir.NewClusterID(), Members: j.founders(), Seed: j.seed}
	c.Members[0].Nonce = j.dir.Nonce()
	if err := j.dir.Adopt(j.self.Member, j.self.Rendezvous, j.cfg.Name, c); err != nil {
		return place{}, err
	}
	return j.begin(c)
}

// founders returns the initial members that the settings list.
func founders(initial []Peer) (out []datadir.Founder) {
	for _, p := range initial {
		out = append(out, datadir.Founder{ID: p.ID, Name: p.Name, PeerURLs: []string{p.URL}})
	}
	return out
}

func (j *joiner) founders() []datadir.Founder { return founders(j.cfg.Initial) }

// await asks the initial members until there is a cluster. If there is an
// acceptor, this member may found it.
func (j *joiner) await(ctx context.Context, a *founding.Acceptor) (place, error) {
	f := founding.NewFounder(a, j.founders(), j.seed, j.askFounding)
	for {
		answers := j.askInitial(ctx)
		if err := cmp.Or(j.refuseRecovered(answers), j.refuseStranger(answers), j.refuseSeed(answers)); err != nil {
			return place{}, err
		}
		existing, fresh := j.judge(answers)
		var err error
		switch {
		case existing != nil && a != nil && a.Names(existing.info.Charter):
			_, err = a.Handle(founding.Request{Rendezvous: j.self.Rendezvous, Seed: j.seed, Step: founding.Adopt, Charter: existing.info.Charter})
		case existing != nil:
			if c := a.Close(); c != nil {
				return j.begin(c)
			}
			return j.join(ctx, *existing)
		case a != nil && f.Turn(fresh):
			err = f.Attempt(ctx, fresh)
		}
		if err != nil {
			return place{}, err
		}
		if c := a.Chosen(); c != nil {
			return j.begin(c)
		}
		if j.waiting.Due(time.Now(), fmt.Sprint(fresh)) {
			j.lg.Info("waiting for other initial members", zap.Int("answered", len(answers)), zap.Uint64s("fresh", fresh),
				zap.Int("needed", len(j.cfg.Initial)/2), zap.Bool("join", j.cfg.Join))
		}
		select {
		case <-ctx.Done():
			return place{}, context.Cause(ctx)
		case <-a.Done():
			return j.begin(a.Chosen())
		case <-time.After(askPause):
		}
	}
}

// askFounding sends a founder's request to other initial members, all at once.
func (j *joiner) askFounding(ctx context.Context, members []uint64, r founding.Request) map[uint64]founding.Answer {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var mu sync.Mutex // guards answers while the calls are under way
	var asked sync.WaitGroup
	answers := make(map[uint64]founding.Answer)
	for _, p := range j.cfg.Initial {
		if !slices.Contains(members, p.ID) {
			continue
		}
		asked.Go(func() {
			if a, err := j.calls.founding(ctx, p.URL, r); err == nil { // the next attempt asks the others again
				mu.Lock()
				defer mu.Unlock()
				answers[p.ID] = a
			}
		})
	}
	asked.Wait()
	return answers
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
	id   uint64 // of the member at this URL, according to the settings; 0 with --join URL
	url  string
	info info
}

// askInitial asks the other initial members, all at once.
func (j *joiner) askInitial(ctx context.Context) []initialAnswer {
	var others []Peer
	for _, p := range j.cfg.Initial {
		if p.ID != j.self.Member && !slices.Contains(j.cfg.AdvertisePeer, p.URL) {
			others = append(others, p)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	answered := make(chan *initialAnswer, len(others))
	for _, p := range others {
		go func() {
			in, err := j.calls.info(ctx, p.URL)
			if err != nil {
				answered <- nil
				return
			}
			answered <- &initialAnswer{id: p.ID, url: p.URL, info: in}
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

// judge looks for a cluster that exists, and for the fresh members that this one may
// found a cluster with. Beside a member that was restored from a backup, empty ones
// found none: it would be an empty cluster in the place of the restored one.
func (j *joiner) judge(answers []initialAnswer) (existing *initialAnswer, fresh []uint64) {
	restored := false
	for i, a := range answers {
		switch {
		case !j.cfg.Join && a.info.Rendezvous != j.self.Rendezvous:
			j.warnStranger(a)
		case a.info.ClusterID != 0 && j.foreign(a):
		case a.info.ClusterID != 0:
			if existing == nil || a.info.Committed {
				existing = &answers[i]
			}
		case a.info.Fresh && a.info.Seed != j.seed:
			j.warnSeed(a)
			restored = restored || a.info.Seed != ""
		case a.info.Fresh && a.info.MemberID == a.id:
			fresh = append(fresh, a.id)
		case a.info.Fresh && j.waiting.Due(time.Now(), a.url):
			j.lg.Warn("the URL of one member is answered by another: compare --id, --listen-peer, and --cluster of both",
				zap.String("url", a.url), zap.Uint64("member", a.id), zap.Uint64("answered_by", a.info.MemberID))
		}
	}
	if restored && j.seed == "" {
		fresh = nil
	}
	return existing, fresh
}

// warnStranger says why a member at one of the listed URLs is not one to found a
// cluster with, and what to do about it.
func (j *joiner) warnStranger(a initialAnswer) {
	pace := j.strangers[a.url]
	if pace == nil {
		pace = new(repeat.Pace)
		j.strangers[a.url] = pace
	}
	theirs := a.info.Initial
	if a.info.Charter != nil {
		theirs = a.info.Charter.Members
	}
	what := "a member that listens at one of the URLs in --cluster was started with other settings: " + differs(j.founders(), theirs)
	if pace.Due(time.Now(), what) {
		j.lg.Warn(what, zap.String("url", a.url), zap.Uint64("its_id", a.info.MemberID), zap.String("its_cluster", hex(a.info.ClusterID)))
	}
}

// differs compares the list of initial members here with that of another member.
// Their settings yield different rendezvous ids.
func differs(ours, theirs []datadir.Founder) string {
	here, there := listURLs(ours), listURLs(theirs)
	switch {
	case len(there) == 0:
		return "its --cluster differs from that of this node; start both with the same list"
	case slices.Equal(here, there):
		return "its --cluster-token is different; start both with the same token"
	case slices.Equal(slices.Sorted(slices.Values(here)), slices.Sorted(slices.Values(there))):
		return fmt.Sprintf("its --cluster lists the same URLs in another order (%s), but the order gives each member its id; use the same order everywhere", strings.Join(there, ","))
	}
	return fmt.Sprintf("its --cluster lists %s; start all initial members with the same list, and later ones with --join", strings.Join(there, ","))
}

// listURLs returns the URLs of founders in the order of their ids.
func listURLs(founders []datadir.Founder) (urls []string) {
	for _, f := range slices.SortedFunc(slices.Values(founders), func(a, b datadir.Founder) int { return cmp.Compare(a.ID, b.ID) }) {
		urls = append(urls, strings.Join(f.PeerURLs, "+"))
	}
	return urls
}

// refuseStranger ends the search if a cluster that was founded with other settings
// lists this node as a member that was added to it.
func (j *joiner) refuseStranger(answers []initialAnswer) error {
	for _, a := range answers {
		if j.cfg.Join || a.info.Rendezvous == j.self.Rendezvous || a.info.ClusterID == 0 {
			continue
		}
		for _, m := range a.info.Members {
			if sharesURL(m.PeerURLs, j.cfg.AdvertisePeer) {
				return fmt.Errorf("%w: cluster %016x, which answers at %s, exists already and lists %s as its member %d; "+
					"to join it, start this node with --join (and --id %d)", ErrConfig, a.info.ClusterID, a.url, strings.Join(m.PeerURLs, ","), m.ID, m.ID)
			}
		}
	}
	return nil
}

// refuseRecovered refuses to found the cluster of these settings a second
// time, beside the one that was recovered from it.
func (j *joiner) refuseRecovered(answers []initialAnswer) error {
	for _, a := range answers {
		if a.info.Original != 0 && a.info.Rendezvous == j.self.Rendezvous && !j.cfg.Join && j.self.Cluster == 0 {
			return fmt.Errorf("%w: the cluster that --cluster names lost its quorum and was recovered by member %d as cluster %016x; to join that one, start with an empty directory and --join %s, without --cluster and --id",
				ErrRefused, a.info.MemberID, a.info.ClusterID, a.url)
		}
	}
	return nil
}

// join asks a member of an existing cluster to bind this directory to the
// member id.
func (j *joiner) join(ctx context.Context, at initialAnswer) (place, error) {
	j.become(identity{Member: j.self.Member, Cluster: at.info.ClusterID, Rendezvous: at.info.Rendezvous})
	if slices.Contains(at.info.Removed, j.self.Member) {
		return place{}, ErrRemoved
	}
	if err := j.checkURLs(at.info.Members); err != nil {
		return place{}, err
	}
	j.cfg.Name = cmp.Or(j.cfg.Name, nameOf(at.info.Members, j.self.Member), fmt.Sprintf("kvd%d", j.self.Member))
	if err := j.dir.Claim(j.self.Member, j.self.Cluster, j.self.Rendezvous, j.cfg.Name); err != nil {
		return place{}, err
	}
	if err := j.beAdmitted(ctx, at); err != nil {
		return place{}, err
	}
	j.lg.Info("admitted to the cluster", zap.Uint64("id", j.self.Member), zap.String("cluster", hex(j.self.Cluster)))
	// A member that is just starting knows the cluster, but not its members yet.
	known := at.info.Members
	if len(known) == 0 {
		known = asMembers(j.founders())
	}
	return place{known: known}, nil
}

// nameOf returns the name that a member was added with, "" if it has none.
func nameOf(members []roster.Member, id uint64) string {
	for i := range members {
		if members[i].ID == id {
			return members[i].Name
		}
	}
	return ""
}

// checkURLs refuses to join under other URLs than those that were announced to the
// cluster: the members would look for this node in the wrong place.
func (j *joiner) checkURLs(members []roster.Member) error {
	for _, m := range members {
		if m.ID == j.self.Member && len(m.PeerURLs) > 0 && !sharesURL(m.PeerURLs, j.cfg.AdvertisePeer) {
			announced, here := strings.Join(m.PeerURLs, ","), strings.Join(j.cfg.AdvertisePeer, ",")
			return fmt.Errorf("%w: the cluster expects member %d at %s, but this node would be reached at %s; start it with --listen-peer (or --advertise-peer) %s, "+
				"or tell the cluster: curl -X PUT …/v1/members/%d -d '{\"peer_urls\":[\"%s\"]}'", ErrConfig, m.ID, announced, here, announced, m.ID, here)
		}
	}
	return nil
}

// beAdmitted repeats the join request until the cluster has decided. It asks one
// member after the other: the first may be gone by now.
func (j *joiner) beAdmitted(ctx context.Context, at initialAnswer) error {
	recorded, _ := j.dir.Identity()
	id := j.self.Member
	urls := []string{at.url}
	for _, m := range at.info.Members {
		if m.ID != id && !slices.Contains(m.PeerURLs, at.url) {
			urls = append(urls, m.PeerURLs...)
		}
	}
	begin := time.Now()
	for round := 0; ; round++ {
		err := j.calls.admit(ctx, urls[round%len(urls)], joinRequest{Member: id, ClusterID: j.self.Cluster, Nonce: recorded.Nonce})
		switch {
		case err == nil:
			return nil
		case errors.Is(err, roster.ErrMemberRemoved):
			return fmt.Errorf("%w: %w", ErrRemoved, err)
		case errors.Is(err, roster.ErrMemberExists):
			return fmt.Errorf("%w: member %d has taken part with another data directory, and this empty one cannot keep the promises made there; remove the member and add it again under a new id: curl -X DELETE …/v1/members/%d on another member, then POST …/v1/members", ErrRefused, id, id)
		case errors.Is(err, roster.ErrMemberNotFound):
			if j.waiting.Due(time.Now(), "added") {
				j.lg.Info("waiting to be added to the cluster: POST /v1/members on one of its members", zap.Uint64("id", id))
			}
		case errors.Is(err, roster.ErrBadMember), errors.Is(err, errIdentity):
			return fmt.Errorf("%w: %w", ErrConfig, err)
		default:
			if j.waiting.Due(time.Now(), "admitted") {
				level := zap.InfoLevel // an election may be under way
				if time.Since(begin) > leaderPatience {
					level = zap.WarnLevel
				}
				j.lg.Log(level, "waiting to be admitted: a quorum of the members must agree", zap.Strings("asked", urls), zap.Error(err),
					zap.String("remedy", "start the members that have data; if a quorum of them is lost for good, stop this one, turn a directory that is left into a cluster of one with kvd recover, and start this one with an empty directory and --join"))
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
	for {
		at, err := j.findCluster(ctx)
		if err == nil {
			err = j.ensureMember(ctx, at)
		}
		if err == nil {
			return j.join(ctx, at)
		}
		if err := j.waitToJoin(err); err != nil {
			return place{}, err
		}
		if err := pause(ctx, askPause); err != nil {
			return place{}, err
		}
	}
}

// waitToJoin returns an error if asking again cannot change the answer, and otherwise
// says now and then what the node waits for.
func (j *joiner) waitToJoin(err error) error {
	if final(err) {
		return fmt.Errorf("join the cluster: %w", err)
	}
	if j.waiting.Due(time.Now(), "join") {
		j.lg.Info("waiting to join the cluster", zap.Strings("urls", j.cfg.JoinURLs), zap.Error(err))
	}
	return nil
}

// final reports whether asking again cannot change the answer.
func final(err error) bool {
	return errors.Is(err, roster.ErrMemberRemoved) || errors.Is(err, roster.ErrMemberExists) || errors.Is(err, roster.ErrBadMember) || errors.Is(err, errIdentity)
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
			if err == nil && in.ClusterID != 0 && len(in.Members) > 0 {
				return initialAnswer{url: pu, info: in}, nil
			}
			if err == nil {
				err = fmt.Errorf("%s: its cluster has not been founded yet", pu)
			}
			problems = append(problems, err)
		}
	}
	return initialAnswer{}, errors.Join(problems...)
}

// peerURLsBehind asks a client URL for the members.
func (j *joiner) peerURLsBehind(ctx context.Context, clientURL string) ([]string, error) {
	b, err := askBehind(ctx, j.finder, clientURL)
	if err != nil {
		return nil, err
	}
	urls := b.peerURLs()
	if len(urls) == 0 {
		return nil, fmt.Errorf("%s lists no members", clientURL)
	}
	return urls, nil
}

// ensureMember finds this node in the membership by its id or peer URL, or has
// it added, and takes over its id.
func (j *joiner) ensureMember(ctx context.Context, at initialAnswer) error {
	id := j.self.Member
	add := roster.Change{Kind: roster.AddMember, By: roster.Requester{RequestID: "join", Client: j.cfg.ListenPeer}, Member: roster.Member{
		ID: id, Name: j.cfg.Name, PeerURLs: j.cfg.AdvertisePeer, ClientURLs: j.cfg.AdvertiseClient,
	}}
	for _, m := range at.info.Members {
		switch {
		case id == 0 && j.lost(m):
			add.Kind, add.Replaces = roster.ReplaceMember, m.ID
		case m.ID == id || id == 0 && sharesURL(m.PeerURLs, j.cfg.AdvertisePeer):
			j.takeID(m.ID)
			return nil
		}
	}
	err := errors.New("the cluster has no members")
	for _, m := range at.info.Members {
		var added roster.Member
		if added, err = j.calls.change(ctx, m.PeerURLs, add); err == nil {
			j.takeID(added.ID)
			return nil
		}
		if final(err) || errors.Is(err, roster.ErrUnsafeChange) {
			return err
		}
	}
	return err
}

// lost reports whether a member was this node with another directory: it has the same
// peer URL and the same name. Nobody else can answer at that URL, so the other directory
// is gone, or its process is down and cannot come back beside this one. Without a name
// that somebody chose, a machine that got the address of another would pass for it.
func (j *joiner) lost(m roster.Member) bool {
	return m.Nonce != "" && m.Nonce != j.dir.Nonce() && j.cfg.Name != "" && (m.Name == "" || m.Name == j.cfg.Name) && sharesURL(m.PeerURLs, j.cfg.AdvertisePeer)
}

func (j *joiner) takeID(id uint64) {
	j.become(identity{Member: id, Cluster: j.self.Cluster, Rendezvous: j.self.Rendezvous})
}

func sharesURL(a, b []string) bool {
	return slices.ContainsFunc(a, func(u string) bool { return slices.Contains(b, u) })
}
