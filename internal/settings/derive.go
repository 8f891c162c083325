package settings

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/kvd-io/kvd/internal/limits"
	"github.com/kvd-io/kvd/internal/memberurl"
)

const (
	maxCatchUpBytes = 4 << 30 // held in memory
	// maxElection and minElectionBeat bound the election timeout: with a longer
	// one, a lost leader goes unnoticed for minutes; with fewer heartbeats in it,
	// two lost packets cost a leader its office.
	maxElection     = 50 * time.Second
	minElectionBeat = 5 // heartbeat intervals
	// minWatchProgress is etcd's bound.
	minWatchProgress = 100 * time.Millisecond
	// minDeadTimeouts keeps a member that restarts, or a hand-over, from being taken
	// for a death.
	minDeadTimeouts = 5 // election timeouts
)

// derive fills in what follows from the settings that were given, and reports
// contradictions. The order matters: each step uses what the steps before it
// filled in.
func (s *Settings) derive(p *problemList) {
	s.deriveClient(p)
	s.derivePeer(p)
	s.deriveNames(p)
	s.deriveTLS(p)
	s.checkListeners(p)
	s.checkLimits(p)
	s.checkRights(p)
	s.checkAudit(p)
}

// deriveClient settles where clients are served and which URLs they are told.
//
// --port is raftexample's short form. It means loopback, as everything does that a
// node serves without being told otherwise: there is no authentication by default.
func (s *Settings) deriveClient(p *problemList) {
	if s.Has("port") {
		short := []string{"http://127.0.0.1:" + strconv.FormatUint(s.Port, 10)}
		if s.Has("listen-client") && !slices.Equal(s.ListenClient, short) {
			p.add("%s means %s, but %s is %s", s.Describe("port"), short[0], s.Describe("listen-client"), joinURLs(s.ListenClient))
		}
		s.ListenClient = short
	}
	if len(s.ListenClient) == 0 {
		s.ListenClient = []string{DefaultClientURL}
	}
	s.deriveUI()
	if !s.Has("advertise-client") {
		s.AdvertiseClient = reachable(s.ListenClient)
	}
	s.deriveEtcd(p)
}

// deriveEtcd settles what clients of etcd are told and allowed.
func (s *Settings) deriveEtcd(p *problemList) {
	switch {
	case !s.Has("advertise-etcd"):
		s.AdvertiseEtcd = reachable(s.ListenEtcd)
	case len(s.ListenEtcd) == 0:
		p.add("%s has no effect without --listen-etcd: this node does not serve etcd clients", s.Describe("advertise-etcd"))
	}
	// Larger requests by etcd's clients imply larger values.
	if s.Has("max-request-bytes") && !s.Has("max-value-bytes") {
		s.MaxValueBytes = min(s.MaxRequestBytes, limits.MaxValueBytes)
	}
}

// reachable returns the listeners that can be advertised. A socket or a wildcard address
// means nothing to a client on another machine. If only those are left, nothing is
// advertised: no URL is better than one that leads a client to itself.
func reachable(listeners []string) (urls []string) {
	for _, u := range listeners {
		if _, unix := IsUnix(u); !unix && !IsWildcard(u) {
			urls = append(urls, u)
		}
	}
	return urls
}

// deriveUI decides what the web page may do where nobody said so. On this machine,
// anyone who reaches the page can run curl as well. Beyond it, somebody may have the page
// open who only meant to look.
func (s *Settings) deriveUI() {
	if s.UI != "" {
		return
	}
	s.UI = "on"
	for _, u := range s.ListenClient {
		if _, unix := IsUnix(u); !unix && !memberurl.OnThisMachine(u) {
			s.UI = "read"
		}
	}
}

// derivePeer finds the peer URLs of this node and its position in the cluster. There
// are three ways into a cluster: a list of initial members (--cluster), the same list
// for a member that was added (--cluster with --join), and members to ask (--join
// URL). Without any of them, the node is a cluster of one.
func (s *Settings) derivePeer(p *problemList) {
	switch {
	case len(s.JoinURLs) > 0:
		if s.Has("cluster") {
			p.add("%s gets the members from a running cluster and cannot be combined with %s; remove one of them", s.Describe("join"), s.Describe("cluster"))
		}
	case s.Has("cluster"):
		s.placeInCluster(p)
	case s.Join:
		p.add("%s without a value needs --cluster with the URLs of all members, including this one; to be added to a cluster, give it the URL of a member", s.Describe("join"))
	}
	if s.ListenPeer == "" {
		s.ListenPeer = DefaultPeerURL
	}
	if len(s.AdvertisePeer) == 0 {
		s.AdvertisePeer = []string{s.ListenPeer}
	}
	// The URL goes into the replicated membership: members that cannot use it would
	// fail to connect, long after this node has started.
	if i := slices.IndexFunc(s.AdvertisePeer, IsWildcard); i >= 0 {
		p.add("other members cannot connect to %s; set --advertise-peer to a URL that they can reach", s.AdvertisePeer[i])
	}
	if len(s.JoinURLs) == 1 && slices.Contains(s.AdvertisePeer, s.JoinURLs[0]) {
		p.add("%s names only this node; start the first node of a cluster without it, or list the peer URLs of all initial members", s.Describe("join"))
	}
	if !s.Has("cluster") && len(s.JoinURLs) == 0 {
		s.ID = max(s.ID, 1)
		s.Cluster = []Member{{URL: s.AdvertisePeer[0]}}
	}
}

// placeInCluster finds this node in the list of members and takes its URLs from
// there.
func (s *Settings) placeInCluster(p *problemList) {
	if !s.findID(p) {
		return
	}
	own := s.Cluster[s.ID-1].URL
	if len(s.AdvertisePeer) == 0 {
		s.AdvertisePeer = []string{own}
	} else if !slices.Contains(s.AdvertisePeer, own) {
		p.add("%s gives %s as the URL of member %d, but %s does not contain it", s.Describe("cluster"), own, s.ID, s.Describe("advertise-peer"))
	}
	if s.ListenPeer == "" {
		s.ListenPeer = own
	}
}

// findID makes ID, name and list agree. IDs are positions in the list, because
// all members have the same list; with names too, so that adding names to a
// configuration changes no ID.
func (s *Settings) findID(p *problemList) bool {
	named := s.Cluster[0].Name != ""
	place := slices.IndexFunc(s.Cluster, func(m Member) bool { return m.Name == s.Name })
	switch {
	case named && s.Has("name") && place < 0:
		p.add("%s is %q, which is not in %s", s.Describe("name"), s.Name, s.Describe("cluster"))
		return false
	case named && s.Has("name") && s.ID == 0:
		s.ID = uint64(place + 1)
	case s.ID == 0 && len(s.Cluster) > 1:
		by := fmt.Sprintf("--id (1 to %d)", len(s.Cluster))
		if named {
			by = "--name (or --id)"
		}
		p.add("%s has %d members; set %s to say which of them this node is", s.Describe("cluster"), len(s.Cluster), by)
		return false
	case s.ID == 0:
		s.ID = 1
	}
	if s.ID > uint64(len(s.Cluster)) {
		p.add("%s is %d, but the last member in %s is %d", s.Describe("id"), s.ID, s.Describe("cluster"), len(s.Cluster))
		return false
	}
	if name := s.Cluster[s.ID-1].Name; named && s.Name != name {
		if s.Has("name") {
			p.add("%s is %q, but member %d of %s is named %q", s.Describe("name"), s.Name, s.ID, s.Describe("cluster"), name)
		}
		s.Name = name
	}
	return true
}

// deriveNames fills in the data directory and the name. Both contain the ID by
// default: three nodes started in one directory must not share one. A node that asks
// for admission does not know its ID yet, and a directory that was chosen now could
// not be found again at the next start.
func (s *Settings) deriveNames(p *problemList) {
	if s.DataDir == "" {
		if s.ID == 0 && len(s.JoinURLs) == 0 {
			return // findID has reported why
		}
		if s.ID == 0 {
			p.add("%s lets the cluster assign the ID, so there is no default data directory; set --data-dir or --id", s.Describe("join"))
			return
		}
		s.DataDir = filepath.Join(DefaultDataRoot, strconv.FormatUint(s.ID, 10))
	}
	if s.Name == "" && s.ID != 0 {
		s.Name = fmt.Sprintf("kvd%d", s.ID)
	}
}

// checkListeners reports an address that two settings claim. Port 0 means any free
// port, so two of those do not collide.
func (s *Settings) checkListeners(p *problemList) {
	type listener struct{ setting, url string }
	var all []listener
	for _, u := range s.ListenClient {
		all = append(all, listener{"listen-client", u})
	}
	for _, u := range s.ListenEtcd {
		all = append(all, listener{"listen-etcd", u})
	}
	for _, u := range s.ListenMetrics {
		all = append(all, listener{"listen-metrics", u})
	}
	all = append(all, listener{"listen-peer", s.ListenPeer})
	for i, a := range all {
		for _, b := range all[:i] {
			if u := hostOf(a.url); u.Host+u.Path == hostOf(b.url).Host+hostOf(b.url).Path && u.Port() != "0" {
				p.add("%s is used by both %s and %s; give each its own address", a.url, s.Describe(b.setting), s.Describe(a.setting))
			}
		}
	}
	if s.Pprof && len(s.ListenMetrics) == 0 {
		p.add("%s needs --listen-metrics, the only listener that serves profiles", s.Describe("pprof"))
	}
}

// checkLimits checks what a codec cannot know: the bounds of values that have the
// right form. Limits that are cluster settings are checked here too, against the same
// bounds as the store's, because the first node passes them on.
func (s *Settings) checkLimits(p *problemList) {
	if s.MaxValueBytes < 1 || s.MaxValueBytes > limits.MaxValueBytes {
		p.add("%s is %d, but must be from 1 to %s", s.Describe("max-value-bytes"), s.MaxValueBytes, showSize(limits.MaxValueBytes))
	}
	if s.QuotaBytes != 0 && s.QuotaBytes < limits.MinQuotaBytes {
		p.add("%s is %d, but must be 0 (unlimited) or at least %s", s.Describe("quota"), s.QuotaBytes, showSize(limits.MinQuotaBytes))
	}
	if s.MaxInFlight < 1 {
		p.add("%s is 0, but must be at least 1: every request that is being served holds memory", s.Describe("max-inflight"))
	}
	if s.MaxWatches < 1 {
		p.add("%s is 0, but must be at least 1: every watch holds a connection and memory", s.Describe("max-watches"))
	}
	if s.MaxRequestBytes < 1 || s.MaxRequestBytes > limits.MaxValueBytes {
		p.add("%s is %d, but must be from 1 to %s", s.Describe("max-request-bytes"), s.MaxRequestBytes, showSize(limits.MaxValueBytes))
	}
	if s.MaxLearners < 1 {
		p.add("%s is %d, but must be at least 1", s.Describe("max-learners"), s.MaxLearners)
	}
	if s.MaxTxnOps < 1 || s.MaxTxnOps > limits.MaxTxnOps {
		p.add("%s is %d, but must be from 1 to %d", s.Describe("max-txn-ops"), s.MaxTxnOps, limits.MaxTxnOps)
	}
	if s.WatchProgress < minWatchProgress {
		p.add("%s is %v, but must be at least %v", s.Describe("watch-progress-notify-interval"), s.WatchProgress, minWatchProgress)
	}
	if s.Has("request-memory") && s.RequestMemory < limits.MinRequestMemory {
		p.add("%s is %d, but must be at least %s", s.Describe("request-memory"), s.RequestMemory, showSize(limits.MinRequestMemory))
	}
	if s.CheckpointBytes < 1 {
		p.add("%s is %d, but must be at least 1", s.Describe("snapshot-checkpoint-bytes"), s.CheckpointBytes)
	}
	if s.CatchUpBytes < 1 || s.CatchUpBytes > maxCatchUpBytes {
		p.add("%s is %d, but must be from 1 to %s", s.Describe("snapshot-catch-up-bytes"), s.CatchUpBytes, showSize(maxCatchUpBytes))
	}
	s.checkTiming(p)
}

// checkTiming checks raft's two intervals against each other. raft counts in ticks of
// a heartbeat interval, so the ratio is what matters to it.
func (s *Settings) checkTiming(p *problemList) {
	if s.Heartbeat < time.Millisecond { // the ratio would be wrong only because of this
		p.add("%s is %v, but must be at least 1ms", s.Describe("heartbeat-interval"), s.Heartbeat)
		return
	}
	if s.Election < minElectionBeat*s.Heartbeat {
		p.add("%s is %v, but must be at least %d times the %v of %s", s.Describe("election-timeout"), s.Election,
			minElectionBeat, s.Heartbeat, s.Describe("heartbeat-interval"))
	}
	if d := s.RemoveDeadAfter; d != 0 && d < minDeadTimeouts*s.Election {
		p.add("%s is %v, but must be at least %d times %s (%v), or 0s", s.Describe("remove-dead-after"), d, minDeadTimeouts, s.Describe("election-timeout"), s.Election)
	}
	if s.Election > maxElection {
		p.add("%s is %v, but must be at most %v", s.Describe("election-timeout"), s.Election, maxElection)
	}
}
