package main

import (
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

const (
	maxValueLimit   = 64 << 20
	minQuota        = 1 << 20
	maxCatchUpBytes = 4 << 30
	maxElection     = 50 * time.Second
	minElectionBeat = 5 // heartbeats in an election timeout, at least
)

// derive fills in what follows from the settings that were given, and reports
// those that contradict each other.
func (s *settings) derive(p *problemList) {
	s.deriveClient(p)
	s.derivePeer(p)
	s.deriveNames(p)
	s.checkLimits(p)
}

func (s *settings) deriveClient(p *problemList) {
	if s.has("port") {
		short := "http://127.0.0.1:" + strconv.FormatUint(s.port, 10)
		if s.has("listen-client") && s.listenClient != short {
			p.add("%s means %s, but %s says %s", s.describe("port"), short, s.describe("listen-client"), s.listenClient)
		}
		s.listenClient = short
	}
	if s.listenClient == "" {
		s.listenClient = defaultClientURL
	}
	if !s.has("advertise-client") && !isWildcard(s.listenClient) {
		s.advertiseClient = []string{s.listenClient}
	}
}

// derivePeer finds this node's own peer URLs and its place in the cluster.
func (s *settings) derivePeer(p *problemList) {
	switch {
	case len(s.joinURLs) > 0:
		if s.has("cluster") {
			p.add("%s asks a running cluster for its members, so that %s has no meaning; leave one out", s.describe("join"), s.describe("cluster"))
		}
	case s.has("cluster"):
		s.placeInCluster(p)
	case s.join:
		p.add("%s alone needs --cluster with the URLs of all members, this one included; or give it the URL of a member", s.describe("join"))
	case s.id > 1:
		p.add("%s is %d, which needs --cluster with at least %d URLs", s.describe("id"), s.id, s.id)
	}
	if s.listenPeer == "" {
		s.listenPeer = defaultPeerURL
	}
	if len(s.advertisePeer) == 0 {
		s.advertisePeer = []string{s.listenPeer}
	}
	if i := slices.IndexFunc(s.advertisePeer, isWildcard); i >= 0 {
		p.add("%s is an address that other members cannot connect to; say with --advertise-peer which one they can", s.advertisePeer[i])
	}
	if s.listenPeer == s.listenClient {
		p.add("clients and peers cannot both be served on %s: %s, %s", s.listenPeer, s.describe("listen-client"), s.describe("listen-peer"))
	}
	if !s.has("cluster") && len(s.joinURLs) == 0 {
		s.id = 1
		s.cluster = s.advertisePeer[:1]
	}
}

// placeInCluster finds the own URL in the list of members.
func (s *settings) placeInCluster(p *problemList) {
	if s.id == 0 {
		if len(s.cluster) > 1 {
			p.add("%s lists %d URLs; say with --id which one is this node's (1 to %d)", s.describe("cluster"), len(s.cluster), len(s.cluster))
			return
		}
		s.id = 1
	}
	if s.id > uint64(len(s.cluster)) {
		p.add("%s is %d, but %s lists %d URLs", s.describe("id"), s.id, s.describe("cluster"), len(s.cluster))
		return
	}
	own := s.cluster[s.id-1]
	if len(s.advertisePeer) == 0 {
		s.advertisePeer = []string{own}
	} else if !slices.Contains(s.advertisePeer, own) {
		p.add("%s names %s as the URL of member %d, which %s does not have", s.describe("cluster"), own, s.id, s.describe("advertise-peer"))
	}
	if s.listenPeer == "" {
		s.listenPeer = own
	}
}

func (s *settings) deriveNames(p *problemList) {
	if s.dataDir == "" {
		if s.id == 0 {
			p.add("%s lets the cluster choose the id, so that there is no default directory; say --data-dir (or --id)", s.describe("join"))
			return
		}
		s.dataDir = filepath.Join(defaultDataRoot, strconv.FormatUint(s.id, 10))
	}
	if s.name == "" && s.id != 0 {
		s.name = fmt.Sprintf("kvd%d", s.id)
	}
}

func (s *settings) checkLimits(p *problemList) {
	if s.maxValueBytes < 1 || s.maxValueBytes > maxValueLimit {
		p.add("%s is %d, but must be between 1 and 64MiB", s.describe("max-value-bytes"), s.maxValueBytes)
	}
	if s.quotaBytes != 0 && s.quotaBytes < minQuota {
		p.add("%s is %d, but must be 0 (no quota) or at least 1MiB", s.describe("quota"), s.quotaBytes)
	}
	if s.checkpointBytes < 1 || s.catchUpBytes < 1 || s.catchUpBytes > maxCatchUpBytes {
		p.add("%s and %s must be at least 1, the latter at most 4GiB", s.describe("checkpoint-bytes"), s.describe("catch-up-bytes"))
	}
	if s.heartbeat < time.Millisecond {
		p.add("%s is %v, but must be at least 1ms", s.describe("heartbeat-interval"), s.heartbeat)
		return
	}
	if s.election < minElectionBeat*s.heartbeat {
		p.add("%s is %v, but must be at least %d times the %v of %s", s.describe("election-timeout"), s.election,
			minElectionBeat, s.heartbeat, s.describe("heartbeat-interval"))
	}
	if s.election > maxElection {
		p.add("%s is %v, but must be at most %v", s.describe("election-timeout"), s.election, maxElection)
	}
}

// electionTicks is the election timeout in heartbeats, rounded up.
func (s *settings) electionTicks() int {
	return int((s.election + s.heartbeat - 1) / s.heartbeat)
}

// isWildcard reports whether the URL's host stands for all addresses of the
// machine, which is no address to connect to.
func isWildcard(text string) bool {
	ip, err := netip.ParseAddr(hostOf(text).Hostname())
	return err == nil && ip.IsUnspecified()
}

// hostOf parses a URL that parseURL let pass.
func hostOf(text string) *url.URL {
	u, err := url.Parse(text)
	if err != nil {
		return &url.URL{}
	}
	return u
}
