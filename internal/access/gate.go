package access

import (
	"context"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore/command"
	"github.com/kvd-io/kvd/internal/kvstore/guard"
	"github.com/kvd-io/kvd/internal/rights"
)

const (
	// DefaultTTL is how long a login token is taken by default.
	DefaultTTL = 5 * time.Minute
	// keyLife is the age at which the next login replaces the signing key. Tokens signed
	// with the previous key remain valid.
	keyLife = 24 * time.Hour
)

// Options configure a Gate. Functions are required unless their comment allows nil.
type Options struct {
	// Tables returns the newest users, roles and tokens; nil while they are not known,
	// and then everything is refused.
	Tables func() *rights.Tables
	// Changed returns a channel that is closed when Tables next returns new tables. nil
	// means that nothing waits for changes.
	Changed func() <-chan struct{}
	// EachBound calls fn with the keys of a lease and the locks that it holds or waits for,
	// until it returns false. A lease that does not exist has none.
	EachBound func(lease uint64, fn func(space rights.Space, name []byte) (more bool)) error
	// Change proposes a change of the rights and waits until it is applied. It is used to
	// replace the keys that sign logins; nil means that nobody can log in.
	Change func(ctx context.Context, c *rights.Change) error
	// CertUser is the part of a client certificate that names the user; "" means CertOff.
	CertUser CertUser
	// LocalRoot makes processes of the node's own user root over a Unix socket.
	LocalRoot bool
	// Insecure accepts credentials on connections that cross a network without TLS.
	Insecure bool
	// TTL is how long a login token is valid; 0 means DefaultTTL.
	TTL time.Duration
	// BcryptCost is the cost of the hashes that Hash makes; 0 means the default of bcrypt.
	BcryptCost int
	// Foreign verifies a token that kvd did not sign, and returns its user; may be nil.
	Foreign func(token string) (user string, ok bool)
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Gate authenticates callers and checks their rights. Its methods may be called from any
// goroutine. A nil Gate behaves as if rights were disabled.
type Gate struct {
	opts      Options
	passwords *passwords
}

// New returns a Gate.
func New(opts Options) *Gate {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.TTL == 0 {
		opts.TTL = DefaultTTL
	}
	return &Gate{opts: opts, passwords: newPasswords(opts.BcryptCost, opts.Now)}
}

// Enabled reports whether anything may be refused.
func (g *Gate) Enabled() bool {
	if g == nil {
		return false
	}
	t := g.opts.Tables()
	return t == nil || t.Enabled()
}

// Tables returns the newest users, roles and tokens; nil while they are not known.
func (g *Gate) Tables() *rights.Tables {
	if g == nil {
		return nil
	}
	return g.opts.Tables()
}

// Changed returns a channel that is closed at the next change of the rights. Call Check
// after Changed, so that a change between the two calls is not missed.
func (g *Gate) Changed() <-chan struct{} {
	if g == nil || g.opts.Changed == nil {
		return nil
	}
	return g.opts.Changed()
}

func starting() error {
	return refuse(ErrStarting, api.Starting, "this node does not know the users yet; try again soon or use another node")
}

// Identify returns who sent a request. Invalid credentials are an error, whatever requests
// without credentials may do (C2). While rights are disabled, credentials are ignored.
func (g *Gate) Identify(ctx context.Context, cr *Credentials) (Caller, error) {
	if g == nil {
		return Caller{Proof: Off, Address: cr.Address}, nil
	}
	t := g.opts.Tables()
	if t == nil {
		return Caller{}, starting()
	}
	if !t.Enabled() {
		return Caller{Proof: Off, Address: cr.Address}, nil
	}
	c := Caller{Address: cr.Address, tables: t}
	if err := g.prove(ctx, t, cr, &c); err != nil {
		return Caller{Address: cr.Address, Claimed: c.Claimed}, err
	}
	c.grants = t.Grants(c.User)
	return c, nil
}

// RefuseExposed returns an error if the connection is exposed, unless the operator allows
// that. Both APIs call it for requests whose body or response has a secret.
func (g *Gate) RefuseExposed(exposed bool) error {
	if g == nil || g.opts.Insecure || !exposed {
		return nil
	}
	return refuse(ErrExposed, api.TLSRequired, "this listener has no TLS and can be reached from other machines, so others can read passwords and tokens; "+
		"use an https:// listener, loopback, or a Unix socket of the node, or start it with --insecure-auth if the network is private")
}

// prove authenticates the caller with the first credentials present.
func (g *Gate) prove(ctx context.Context, t *rights.Tables, cr *Credentials, c *Caller) error {
	if cr.Authorization != "" || cr.Token != "" {
		if err := g.RefuseExposed(cr.Exposed); err != nil {
			return err
		}
	}
	switch {
	case cr.Authorization != "":
		return g.authorization(ctx, t, cr.Authorization, c)
	case cr.Token != "":
		token := cr.Token
		if scheme, rest, found := strings.Cut(token, " "); found && strings.EqualFold(scheme, "bearer") {
			token = strings.TrimLeft(rest, " ")
		}
		return g.bearer(t, token, c)
	}
	user, err := g.opts.CertUser.of(t, cr.TLS)
	switch {
	case err != nil:
		return err
	case user != "":
		c.User, c.Proof = user, Certificate
	case cr.SameUser && g.opts.LocalRoot:
		c.User, c.Proof = rights.Root, Socket
	}
	return nil
}

// authorization authenticates the caller with the header Authorization.
func (g *Gate) authorization(ctx context.Context, t *rights.Tables, header string, c *Caller) error {
	scheme, rest, _ := strings.Cut(header, " ")
	rest = strings.Trim(rest, " ")
	switch {
	case strings.EqualFold(scheme, "bearer"):
		return g.bearer(t, rest, c)
	case strings.EqualFold(scheme, "basic"):
		user, password, ok := parseBasic(rest)
		if !ok {
			return unauthenticated(ErrBadCredentials, "the header Authorization has no user and password in the form of Basic: base64 of user:password")
		}
		hash, err := g.passwords.verify(ctx, t, user, password, c.Address)
		if err != nil {
			c.Claimed = user
			return err
		}
		c.User, c.Proof, c.hash = user, Password, hash
		return nil
	}
	return unauthenticated(ErrBadCredentials, "the scheme of the header Authorization must be Bearer or Basic")
}

// parseBasic reads what follows Basic (RFC 7617).
func parseBasic(text string) (user, password string, ok bool) {
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return "", "", false
	}
	return strings.Cut(string(b), ":")
}

// bearer authenticates the caller with a token of any kind.
func (g *Gate) bearer(t *rights.Tables, token string, c *Caller) error {
	if strings.HasPrefix(token, loginPrefix) {
		return g.login(t, token, c)
	}
	// The hash of a guess does not resemble that of a secret, so the time of the lookup
	// reveals nothing.
	if found := t.TokenBySum(Sum(token)); found != nil {
		if found.Expires != 0 {
			c.Expires = time.UnixMilli(found.Expires)
		}
		if g.expired(c) {
			return expired()
		}
		found.Use(g.opts.Now())
		c.User, c.Proof, c.TokenID = found.User, Token, found.ID
		return nil
	}
	if g.opts.Foreign != nil {
		if user, ok := g.opts.Foreign(token); ok && t.User(user) != nil {
			c.User, c.Proof = user, JWT
			return nil
		}
	}
	return unauthenticated(ErrBadToken, "the token is not valid; it may have been revoked, or be incomplete")
}

func (g *Gate) expired(c *Caller) bool { return !c.Expires.IsZero() && !g.opts.Now().Before(c.Expires) }

func expired() error {
	return unauthenticated(ErrBadToken, "the token has expired; make a new one, or log in again")
}

// login authenticates the caller with a login token, whose MAC must be valid (C3).
func (g *Gate) login(t *rights.Tables, token string, c *Caller) error {
	l, payload, sum, err := parseLogin(token)
	if err != nil {
		return unauthenticated(ErrBadToken, "the token is not valid; it is incomplete")
	}
	var hash []byte
	u := t.User(l.user)
	if u != nil {
		hash = u.Hash
	}
	if !signedBy(t.Keys(), payload, hash, sum) || u == nil || len(hash) == 0 {
		return unauthenticated(ErrBadToken, "the token of a login is not valid anymore; the password may have changed since: log in again")
	}
	if g.opts.Now().UnixMilli() >= l.expires {
		return expired()
	}
	c.User, c.Proof, c.Revision, c.hash = l.user, Login, l.revision, hash
	return nil
}

// Login exchanges a password for a token, and returns when it expires.
func (g *Gate) Login(ctx context.Context, user, password, address string) (token string, expires time.Time, err error) {
	t := g.Tables()
	switch {
	case g != nil && t == nil:
		return "", time.Time{}, starting()
	case t == nil || !t.Enabled():
		return "", time.Time{}, refuse(ErrDisabled, api.BadRequest, "rights are disabled, so nobody needs to log in")
	}
	hash, err := g.passwords.verify(ctx, t, user, password, address)
	if err != nil {
		return "", time.Time{}, err
	}
	key, err := g.key(ctx, t)
	if err != nil {
		return "", time.Time{}, err
	}
	expires = g.opts.Now().Add(g.opts.TTL)
	l := login{revision: t.Revision(), expires: expires.UnixMilli(), user: user}
	return l.sign(key, hash), expires, nil
}

// key returns the key to sign with, and replaces one that is missing or old.
func (g *Gate) key(ctx context.Context, t *rights.Tables) ([]byte, error) {
	now := g.opts.Now()
	if keys := t.Keys(); len(keys) > 0 && now.Sub(keyMade(keys[0])) < keyLife {
		return keys[0], nil
	}
	if g.opts.Change == nil {
		return nil, refuse(ErrDisabled, api.NotFound, "this node cannot sign logins")
	}
	// If two members do so at once, the second change fails, and its member uses the key
	// of the first.
	err := g.opts.Change(ctx, &rights.Change{Revision: t.Revision(), RotateKey: NewKey(now)})
	if keys := g.opts.Tables().Keys(); len(keys) > 0 {
		return keys[0], nil // an old key still works
	}
	if err == nil {
		err = fmt.Errorf("the rights changed at the same time")
	}
	return nil, fmt.Errorf("make a key for logins: %w", err)
}

// Hash returns the bcrypt hash of a new password. It shares the CPU limit of comparisons.
func (g *Gate) Hash(ctx context.Context, password string) ([]byte, error) {
	return g.passwords.hash(ctx, password)
}

// judge returns the current rights of the caller, or an error if the credentials are no
// longer valid.
func (g *Gate) judge(c *Caller) (*rights.Tables, *rights.Grants, error) {
	t := g.opts.Tables()
	switch {
	case t == nil:
		return nil, nil, starting()
	case !t.Enabled():
		return t, t.Grants(""), nil
	case g.expired(c):
		return nil, nil, expired()
	case t == c.tables:
		return t, c.grants, nil
	case !c.stands(t):
		return nil, nil, unauthenticated(ErrBadToken, "the credentials of user %q were revoked or changed; log in again, or get a new token", c.User)
	}
	return t, t.Grants(c.User), nil
}

// Still returns nil if the caller's credentials are still valid.
func (g *Gate) Still(c *Caller) error {
	if g == nil {
		return nil
	}
	_, _, err := g.judge(c)
	return err
}

// Check returns nil if the caller has all needed rights. Otherwise the error names the
// missing right and the caller.
func (g *Gate) Check(c *Caller, needs ...rights.Need) error {
	if g == nil {
		return nil
	}
	t, grants, err := g.judge(c)
	if err != nil || grants.All() {
		return err
	}
	for i := range needs {
		if !grants.Allow(needs[i]) {
			return lacking(denied(c, t.Check(c.User, needs[i])), needs[i])
		}
	}
	return nil
}

// CheckRoot returns nil if the caller may do everything.
func (g *Gate) CheckRoot(c *Caller) error {
	if g == nil {
		return nil
	}
	_, grants, err := g.judge(c)
	if err != nil || grants.All() {
		return err
	}
	return denied(c, fmt.Errorf("%s may not do that; only the role root may", who(c)))
}

// who names the caller in a message.
func who(c *Caller) string {
	if c.User == "" {
		return "requests without credentials"
	}
	return fmt.Sprintf("user %q", c.User)
}

// denied returns the refusal of what the rights do not allow: 401 without credentials, 403
// with them.
func denied(c *Caller, why error) error {
	if c.User == "" {
		return unauthenticated(ErrNoCredentials, "%v", why)
	}
	return refuse(ErrDenied, api.PermissionDenied, "%v", why)
}

// lacking adds the missing right to a refusal.
func lacking(err error, n rights.Need) error {
	if r, ok := err.(*refusal); ok {
		r.need, r.known = n, true
	}
	return err
}

// CheckCommand checks a command in the same way as the state machine does when it applies
// it, so that a refused command does not enter the log.
func (g *Gate) CheckCommand(c *Caller, cmd *command.Command) error {
	if g == nil {
		return nil
	}
	t, grants, err := g.judge(c)
	if err != nil || grants.All() {
		return err
	}
	if cmd.Op == command.OpRights {
		if err := t.CheckChange(c.User, cmd.Rights); err != nil {
			return denied(c, err)
		}
		return mayChangeOwn(c, grants, cmd.Rights)
	}
	var few [4]rights.Need
	for _, n := range append(guard.AppendNeeds(few[:0], cmd), rights.Need{}) { // nothing is for strangers
		if !grants.Allow(n) {
			return lacking(denied(c, t.Check(c.User, n)), n)
		}
	}
	for _, lease := range guard.Leases(nil, cmd) {
		if err := g.checkLease(grants, c, lease, rights.Write); err != nil {
			return err
		}
	}
	return nil
}

// mayChangeOwn refuses what everybody may change of their own to a program with a token of
// either kind that lasts, which may only end itself (C7). No command carries how its caller
// proved who it is, so only the door can keep this rule.
func mayChangeOwn(c *Caller, grants *rights.Grants, change *rights.Change) error {
	ends := change.DeleteToken != "" && change.DeleteToken == c.TokenID // which no JWT has
	if c.Proof != Token && c.Proof != JWT || ends || grants.Allow(rights.Need{Capability: rights.Auth}) {
		return nil
	}
	return refuse(ErrDenied, api.PermissionDenied, "a token may not change the password or the tokens of its user %q; log in with the password or a client certificate for that", c.User)
}

// CheckLease judges access to everything that is bound to a lease.
func (g *Gate) CheckLease(c *Caller, lease uint64, a rights.Access) error {
	if g == nil {
		return nil
	}
	_, grants, err := g.judge(c)
	if err != nil {
		return err
	}
	return g.checkLease(grants, c, lease, a)
}

// checkLease does not name the key or lock in its error: the caller may not know of it.
func (g *Gate) checkLease(grants *rights.Grants, c *Caller, lease uint64, a rights.Access) error {
	if grants.All() {
		return nil
	}
	refused := false
	err := g.opts.EachBound(lease, func(space rights.Space, name []byte) (more bool) {
		refused = !grants.Allow(rights.Need{Access: a, Space: space, Range: rights.Single(name)})
		return !refused
	})
	if err != nil {
		return fmt.Errorf("read what is bound to lease %d: %w", lease, err)
	}
	if !refused {
		return nil
	}
	return denied(c, fmt.Errorf("%s may not %s everything that is bound to lease %d; use a lease of your own", who(c), a, lease))
}

// Origin returns the origin of the caller's commands.
func (g *Gate) Origin(c *Caller) command.Origin {
	if !g.Enabled() {
		return command.Origin{}
	}
	o := command.Origin{Principal: c.User}
	if t := g.opts.Tables(); t != nil {
		o.AuthRevision = t.Revision()
	}
	return o
}
