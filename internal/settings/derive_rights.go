package settings

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kvd-io/kvd/internal/memberurl"
)

// The bounds of the settings of rights.
const (
	minTokenTTL   = time.Second
	maxTokenTTL   = 24 * time.Hour
	minBcryptCost = 4
	maxBcryptCost = 14 // of package access, which compares no hash that costs more
	// minAuditSize is the unit in which the audit log is rotated.
	minAuditSize = 1 << 20
)

// JWT says whose JSON Web Tokens are taken beside kvd's own. The zero value takes none.
type JWT struct {
	Method  string // as RFC 7518 names it
	KeyFile string // PEM with the public key, a certificate, or the private key
	// TTL is how long the token of a login is valid; 0 leaves that to --auth-token-ttl.
	TTL time.Duration
}

// ParseJWT reads the value of --auth-token in etcd's form.
func ParseJWT(text string) (j JWT, _ error) {
	kind, options, _ := strings.Cut(text, ",")
	switch {
	case text == "simple":
		return j, nil
	case kind != "jwt":
		return j, fmt.Errorf("%q is neither simple nor jwt,sign-method=METHOD,pub-key=FILE", text)
	}
	private := ""
	for option := range strings.SplitSeq(options, ",") {
		name, value, _ := strings.Cut(option, "=")
		var err error
		switch {
		case name == "sign-method":
			j.Method = value
		case name == "pub-key":
			j.KeyFile = value
		case name == "priv-key": // kvd signs its own tokens, and the public key is in it
			private = value
		case name == "ttl":
			j.TTL, err = time.ParseDuration(value)
		default:
			err = errors.New("there are sign-method, pub-key, priv-key, and ttl")
		}
		if err != nil {
			return JWT{}, fmt.Errorf("%q is not an option of jwt: %w", option, err)
		}
	}
	j.KeyFile = cmp.Or(j.KeyFile, private)
	switch {
	case j.Method == "":
		return JWT{}, errors.New("jwt needs sign-method, the one of the signer (for example, sign-method=RS256)")
	case j.KeyFile == "":
		return JWT{}, errors.New("jwt needs pub-key, the file with the public key of the signer")
	}
	return j, nil
}

func parseAuthToken(text string) (string, error) {
	_, err := ParseJWT(text)
	return text, err
}

// checkRights checks the settings of users and their credentials.
func (s *Settings) checkRights(p *problemList) {
	if j, _ := ParseJWT(s.AuthToken); j.TTL != 0 && firstGiven(s, "auth-token-ttl") == "" { // it was checked
		s.AuthTokenTTL = j.TTL
	}
	if s.AuthTokenTTL < minTokenTTL || s.AuthTokenTTL > maxTokenTTL {
		p.add("%s is %v, but must be from %v to %v", s.Describe("auth-token-ttl"), s.AuthTokenTTL, minTokenTTL, maxTokenTTL)
	}
	if s.BcryptCost < minBcryptCost || s.BcryptCost > maxBcryptCost {
		p.add("%s is %d, but must be from %d to %d", s.Describe("bcrypt-cost"), s.BcryptCost, minBcryptCost, maxBcryptCost)
	}
}

// checkAudit reports settings of an audit log that is not written, and of one whose
// operator must not believe that it is strict or bounded.
func (s *Settings) checkAudit(p *problemList) {
	names := []string{"audit-log-max-size", "audit-log-max-age", "audit-log-max-backups", "audit-keys", "audit-strict"}
	if given := firstGiven(s, names...); given != "" && s.AuditLog == "" {
		p.add("%s has no effect without --audit-log, the file to write", s.Describe(given))
	}
	if s.AuditMaxSize < minAuditSize {
		p.add("%s is %d, but must be at least %s", s.Describe("audit-log-max-size"), s.AuditMaxSize, showSize(minAuditSize))
	}
}

// Exposed returns the URLs at which clients would send credentials in the clear to
// another machine.
func (s *Settings) Exposed() (urls []string) {
	for _, list := range [][]string{s.ListenClient, s.ListenEtcd, s.ListenMetrics} {
		for _, u := range list {
			if _, unix := IsUnix(u); !unix && !isHTTPS(u) && !memberurl.OnThisMachine(u) {
				urls = append(urls, u)
			}
		}
	}
	return urls
}
