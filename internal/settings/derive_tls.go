package settings

import "slices"

// deriveTLS holds the certificates against the listeners: what is secured
// needs them, what is not must not look as if it were.
func (s *Settings) deriveTLS(p *problemList) {
	s.checkClientTLS(p)
	s.checkClientAuth(p)
	s.checkPeerTLS(p)
}

func (s *Settings) checkClientTLS(p *problemList) {
	needed := s.checkPair(p, "tls-cert-file", "tls-key-file")
	i := slices.IndexFunc(s.ListenClient, isHTTPS)
	switch {
	case i >= 0 && !needed:
		p.add("%s has %s, which needs --tls-cert-file and --tls-key-file", s.Describe("listen-client"), s.ListenClient[i])
	case i < 0 && needed:
		p.add("%s has no https:// URL that would use %s; make one of it, or leave the certificate out",
			s.describeClient(), s.Describe(firstGiven(s, "tls-cert-file", "tls-key-file")))
	case i < 0 && s.Has("tls-ca-file"):
		p.add("%s has no https:// URL that would use %s", s.describeClient(), s.Describe("tls-ca-file"))
	}
}

// checkClientAuth settles whether clients show certificates. A CA alone means
// that they must, or a forgotten switch would leave the door open.
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
		p.add("%s is %s, which needs --tls-ca-file to judge certificates by", s.Describe("tls-client-auth"), s.TLSClientAuth)
	case !asks && s.TLSCAFile != "":
		p.add("%s has no use, since %s is off", s.Describe("tls-ca-file"), s.Describe("tls-client-auth"))
	case s.TLSCRLFile != "" && !asks:
		p.add("%s has no use without --tls-ca-file: no certificate of a client is looked at", s.Describe("tls-crl-file"))
	}
}

func (s *Settings) checkPeerTLS(p *problemList) {
	certificates := []string{"peer-cert-file", "peer-key-file", "peer-ca-file"}
	given := firstGiven(s, append(certificates, "peer-crl-file")...)
	secure := slices.ContainsFunc(s.peerURLs(), func(u peerURL) bool { return isHTTPS(u.url) })
	for _, name := range certificates {
		if s.Has(name) {
			continue
		}
		if secure || given != "" {
			p.add("--%s is missing: members with https:// URLs need certificate, key and CA all three, since each checks the other", name)
		}
	}
	if given != "" && !secure {
		p.add("%s has no use: no member's URL begins with https:// (--listen-peer, --advertise-peer, --cluster)", s.Describe(given))
	}
	if isHTTPS(s.ListenPeer) != isHTTPS(s.AdvertisePeer[0]) {
		p.add("%s is %s, but %s is %s: one of them has TLS, the other has not", s.Describe("listen-peer"), s.ListenPeer,
			s.Describe("advertise-peer"), s.AdvertisePeer[0])
	}
	s.checkExposure(p)
}

// peerURL is an address between members, and the setting that has it.
type peerURL struct{ setting, url string }

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

// checkExposure refuses to let members talk in the clear where others hear
// and speak: the peer port takes whatever raft's messages say.
func (s *Settings) checkExposure(p *problemList) {
	if s.InsecurePeers {
		return
	}
	for _, u := range s.peerURLs() {
		if !isHTTPS(u.url) && !isLoopback(u.url) {
			p.add("%s has %s, where members would talk without TLS beyond this machine; use https:// with --peer-cert-file, --peer-key-file and --peer-ca-file, "+
				"or say --insecure-peers if nobody else can reach that network", s.Describe(u.setting), u.url)
			return
		}
	}
}

// checkPair reports a certificate without its key or the reverse, and returns
// whether one of them was given.
func (s *Settings) checkPair(p *problemList, cert, key string) bool {
	switch {
	case s.Has(cert) && !s.Has(key):
		p.add("%s needs its key: --%s", s.Describe(cert), key)
	case s.Has(key) && !s.Has(cert):
		p.add("%s needs its certificate: --%s", s.Describe(key), cert)
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

// firstGiven is the first of the settings that was given, or "".
func firstGiven(s *Settings, names ...string) string {
	for _, name := range names {
		if s.Has(name) {
			return name
		}
	}
	return ""
}
