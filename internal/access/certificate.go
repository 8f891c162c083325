package access

import (
	"crypto/tls"

	"github.com/kvd-io/kvd/internal/rights"
)

// CertUser is the part of a client certificate that names its user.
type CertUser string

// The values of CertUser.
const (
	CertOff   CertUser = "off"
	CertCN    CertUser = "cn"        // the common name of the subject
	CertURI   CertUser = "san-uri"   // the URI among the alternative names
	CertEmail CertUser = "san-email" // the email address among them
)

// of returns the user that the verified client certificate of a connection names, or "" if
// there is none.
func (u CertUser) of(t *rights.Tables, state *tls.ConnectionState) (string, error) {
	if state == nil || u == CertOff || u == "" || len(state.VerifiedChains) == 0 || len(state.VerifiedChains[0]) == 0 {
		return "", nil
	}
	leaf := state.VerifiedChains[0][0]
	var names []string
	switch u {
	case CertCN:
		names = []string{leaf.Subject.CommonName}
	case CertURI:
		for _, uri := range leaf.URIs {
			names = append(names, uri.String())
		}
	case CertEmail:
		names = leaf.EmailAddresses
	}
	switch {
	case len(names) > 1:
		return "", unauthenticated(ErrBadCertificate, "the client certificate has %d names of the kind %s (--auth-cert-user), so it does not say which user it is; use one with a single name, or a token", len(names), u)
	case len(names) == 0 || names[0] == "":
		return "", nil
	case t.User(names[0]) == nil:
		return "", unauthenticated(ErrBadCertificate, "the client certificate names user %.256q, who does not exist; add that user, or use a token", names[0])
	}
	return names[0], nil
}
