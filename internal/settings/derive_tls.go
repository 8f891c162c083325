package settings

import (
	"slices"

	"github.com/kvd-io/kvd/internal/memberurl"
)

// deriveTLS compares the certificates with the listeners. An https URL without a
// certificate cannot be served, and a certificate without an https URL is worse
// than none: the operator believes that connections are encrypted.
func (s *Settings) deriveTLS(p *problemList) {
	s.checkClientTLS(p)
	s.checkClientAuth(p)
	s.checkPeerTLS(p)
}

// checkClientTLS checks the certificate for clients. Listeners with and without TLS
// may be mixed, for example https for the network and a unix socket for the machine;
// one https URL is enough to need the certificate.
func (s *Settings) checkClientTLS(p *problemList) {
	needed := s.checkPair(p, "tls-cert-file", "tls-key-file")
	i := slices.IndexFunc(s.ListenClient, isHTTPS)
	etcd := slices.IndexFunc(s.ListenEtcd, isHTTPS)
	switch {
	case i >= 0 && !needed:
		p.add("%s has %s, which needs --tls-cert-file and --tls-key-file", s.Describe("listen-client"), s.ListenClient[i])
	case etcd >= 0 && !needed:
		p.add("%s has %s, which needs --tls-cert-file and --tls-key-file", s.Describe("listen-etcd"), s.ListenEtcd[etcd])
	case etcd >= 0:
	case i < 0 && needed:
		p.add("%s has no https:// URL that uses %s; use https:// or remove the certificate",
			s.describeClient(), s.Describe(firstGiven(s, "tls-cert-file", "tls-key-file")))
	case i < 0 && s.Has("tls-ca-file"):
		p.add("%s has no https:// URL that uses %s; use https:// or remove the CA", s.describeClient(), s.Describe("tls-ca-file"))
	}
}

// checkClientAuth decides whether clients present certificates. A CA alone means
// that they must: if it took a second setting, forgetting that one would let
// everybody in.
func (s *Settings) checkClientAuth(p *problemList) {
	if s.TLSClientAuth == "" {
		s.TLSClientAuth = "off"
		if s.TLSCAFile != "" {
			s.TLSClientAuth = "require"
		}
	}
	asks := s.TLSClientAuth != "off"
	switch {
	case asks && s.TLSCAFile == "":
		p.add("%s is %s, which needs --tls-ca-file to verify certificates", s.Describe("tls-client-auth"), s.TLSClientAuth)
	case !asks && s.TLSCAFile != "":
		p.add("%s has no effect because %s is off", s.Describe("tls-ca-file"), s.Describe("tls-client-auth"))
	case s.TLSCRLFile != "" && !asks:
		p.add("%s has no effect without --tls-ca-file: client certificates are not requested", s.Describe("tls-crl-file"))
	}
}

// checkPeerTLS checks the certificates for members. There is no half way: a member both
// serves and connects, and each side verifies the other, so one https URL anywhere
// needs certificate, key and CA. The cluster's own list counts too: a node that
// listens without TLS among members with TLS could not talk to any of them.
func (s *Settings) checkPeerTLS(p *problemList) {
	certificates := []string{"peer-cert-file", "peer-key-file", "peer-ca-file"}
	given := firstGiven(s, append(certificates, "peer-crl-file")...)
	secure := slices.ContainsFunc(s.peerURLs(), func(u peerURL) bool { return isHTTPS(u.url) })
	for _, name := range certificates {
		if s.Has(name) {
			continue
		}
		if secure || given != "" {
			p.add("--%s is missing: members with https:// URLs verify each other and need a certificate, a key, and a CA", name)
		}
	}
	if given != "" && !secure {
		p.add("%s has no effect: no member has an https:// URL (--listen-peer, --advertise-peer, --cluster)", s.Describe(given))
	}
	if isHTTPS(s.ListenPeer) != isHTTPS(s.AdvertisePeer[0]) {
		p.add("%s is %s, but %s is %s: use https:// in both or in neither", s.Describe("listen-peer"), s.ListenPeer,
			s.Describe("advertise-peer"), s.AdvertisePeer[0])
	}
	s.checkExposure(p)
}

// peerURL is a peer URL and the setting that has it.
type peerURL struct{ setting, url string }

// peerURLs returns the peer URLs of all settings: those of this node, and those that
// it will connect to.
func (s *Settings) peerURLs() []peerURL {
	all := []peerURL{{"listen-peer", s.ListenPeer}}
	for _, m := range s.Cluster {
		all = append(all, peerURL{"cluster", m.URL})
	}
	for _, u := range s.AdvertisePeer {
		all = append(all, peerURL{"advertise-peer", u})
	}
	return all
}

// checkExposure refuses peer traffic without TLS beyond this machine. The peer
// port believes raft's messages: anyone who can send one can write any data, so this
// must be a decision and not a default.
func (s *Settings) checkExposure(p *problemList) {
	if s.InsecurePeers {
		return
	}
	for _, u := range s.peerURLs() {
		if !isHTTPS(u.url) && !memberurl.OnThisMachine(u.url) {
			p.add("%s has %s, which would carry peer traffic without TLS beyond this machine; use https:// with --peer-cert-file, --peer-key-file, and --peer-ca-file, "+
				"or set --insecure-peers if the network is private", s.Describe(u.setting), u.url)
			return
		}
	}
}

// checkPair reports a certificate without its key, or the reverse, and returns
// whether one of them was given.
func (s *Settings) checkPair(p *problemList, cert, key string) bool {
	switch {
	case s.Has(cert) && !s.Has(key):
		p.add("%s needs --%s, the key of the certificate", s.Describe(cert), key)
	case s.Has(key) && !s.Has(cert):
		p.add("%s needs --%s, the certificate of the key", s.Describe(key), cert)
	}
	return s.Has(cert) || s.Has(key)
}

// describeClient names the setting that chose the client listeners.
func (s *Settings) describeClient() string {
	if name := firstGiven(s, "port", "listen-client"); name != "" {
		return s.Describe(name)
	}
	return s.Describe("listen-client")
}

// firstGiven returns the first of the names that was given, or "".
func firstGiven(s *Settings, names ...string) string {
	for _, name := range names {
		if s.Has(name) {
			return name
		}
	}
	return ""
}
