package access

import (
	"bytes"
	"context"
	"crypto/tls"
	"time"

	"github.com/kvd-io/kvd/internal/rights"
)

// Proof is how a caller authenticated.
type Proof string

// The proofs.
const (
	None        Proof = ""            // no credentials
	Token       Proof = "token"       // the secret of a token
	Password    Proof = "password"    // a user and password in the request
	Login       Proof = "login"       // a token that a login returned
	JWT         Proof = "jwt"         // a JSON Web Token that was signed elsewhere
	Certificate Proof = "certificate" // a client certificate
	Socket      Proof = "socket"      // a Unix socket, by a process of the node's own user
	Off         Proof = "off"         // rights are disabled, so credentials were ignored
)

// Caller is who sent a request, and how they authenticated. It is immutable, so goroutines
// may share it.
type Caller struct {
	// User is empty for requests without credentials, and while rights are disabled.
	User    string
	Proof   Proof
	TokenID string // of Token
	Address string // where the request came from
	// Claimed is, of a password that was refused, the name it was given for, by whoever
	// sent it. It gives no rights.
	Claimed string
	// Revision is the auth revision at which a Login token was made.
	Revision uint64
	// Expires is when a Token expires; zero for never. It is not set for a Login token:
	// its expiry does not end streams that it began.
	Expires time.Time

	// hash is the hash of the password that authenticated a Password or Login caller.
	hash []byte
	// tables are those by which the caller was identified, and grants its rights in them;
	// nil while rights are disabled.
	tables *rights.Tables
	grants *rights.Grants
}

// stands reports whether the credentials are still valid in newer tables.
func (c *Caller) stands(t *rights.Tables) bool {
	switch c.Proof {
	case Token:
		return t.Token(c.TokenID) != nil
	case Password, Login:
		u := t.User(c.User)
		return u != nil && bytes.Equal(u.Hash, c.hash)
	}
	return true
}

// Credentials are the credentials of a request.
type Credentials struct {
	// Authorization is the header of an HTTP request.
	Authorization string
	// Token is etcd's metadata of that name, with or without "Bearer".
	Token string
	// TLS is nil for a connection without it.
	TLS *tls.ConnectionState
	// SameUser says that the connection is a Unix socket, and its peer a process of the
	// user that the node runs as.
	SameUser bool
	// Exposed says that the connection crosses a network without TLS.
	Exposed bool
	// Address is where the request came from: an IP address, with or without a port.
	Address string
}

type callerKey struct{}

// NewContext returns a context with the caller.
func NewContext(ctx context.Context, c *Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// FromContext returns the caller, or nil.
func FromContext(ctx context.Context) *Caller {
	c, _ := ctx.Value(callerKey{}).(*Caller)
	return c
}
