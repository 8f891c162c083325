package access

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/kvstore/command"
	"github.com/kvd-io/kvd/internal/rights"
)

// bench is a Gate before tables that a test changes, with a clock of its own.
type bench struct {
	t      *testing.T
	tables *rights.Tables
	gate   *Gate
	now    time.Time
	keys   map[uint64][]string // of leases
}

func newBench(t *testing.T, opts Options) *bench {
	t.Helper()
	b := &bench{t: t, tables: rights.New(), now: time.UnixMilli(1_700_000_000_000), keys: map[uint64][]string{}}
	opts.Tables = func() *rights.Tables { return b.tables }
	opts.Now = func() time.Time { return b.now }
	opts.BcryptCost = bcrypt.MinCost
	opts.Change = func(_ context.Context, c *rights.Change) error { b.apply(c); return nil }
	opts.EachBound = func(lease uint64, fn func(rights.Space, []byte) bool) error {
		for _, key := range b.keys[lease] {
			if !fn(rights.Keys, []byte(key)) {
				break
			}
		}
		return nil
	}
	b.gate = New(opts)
	return b
}

func (b *bench) apply(changes ...*rights.Change) {
	b.t.Helper()
	for _, c := range changes {
		after, _, err := b.tables.Apply(c)
		if err != nil {
			b.t.Fatal(err)
		}
		b.tables = after
	}
}

func (b *bench) user(name, password string, roles ...string) {
	b.t.Helper()
	u := rights.User{Name: name, Roles: roles}
	if password != "" {
		hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		if err != nil {
			b.t.Fatal(err)
		}
		u.Hash = hash
	}
	b.apply(&rights.Change{PutUser: &u})
}

func (b *bench) role(name string, a rights.Access, key, end string) {
	b.t.Helper()
	b.apply(&rights.Change{PutRole: &rights.Role{Name: name, Permissions: []rights.Permission{{Access: a, Key: []byte(key), RangeEnd: []byte(end)}}}})
}

// enable makes the users that the tests are about: root, and ann who may read and write
// what begins with a.
func (b *bench) enable() {
	b.t.Helper()
	b.role("as", rights.ReadWrite, "a", "b")
	b.user(rights.Root, "secret", rights.Root)
	b.user("ann", "pa:ss", "as")
	b.apply(&rights.Change{Enable: true})
}

func (b *bench) token(id, user string, expires time.Time) string {
	b.t.Helper()
	secret, sum := NewSecret()
	token := &rights.Token{ID: id, User: user, Sum: sum}
	if !expires.IsZero() {
		token.Expires = expires.UnixMilli()
	}
	b.apply(&rights.Change{PutToken: token})
	return secret
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

func certificate(leaf x509.Certificate) *tls.ConnectionState {
	return &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{&leaf}}}
}

const address = "192.0.2.1:4000"

// TestIdentify: each kind of credentials, right and wrong (C1, C2).
func TestIdentify(t *testing.T) {
	b := newBench(t, Options{CertUser: CertCN, LocalRoot: true})
	if c, err := b.gate.Identify(t.Context(), &Credentials{Authorization: "Bearer wrong", Address: address}); err != nil || c.Proof != Off || c.User != "" || b.gate.Enabled() {
		t.Errorf("while rights are disabled: %+v, %v", c, err)
	}
	b.enable()
	b.apply(&rights.Change{PutRole: &rights.Role{Name: rights.Anonymous}}) // which must not help
	secret, old, gone := b.token("t1", "ann", time.Time{}), b.token("t2", "ann", b.now), b.token("t3", "ann", time.Time{})
	b.apply(&rights.Change{DeleteToken: "t3"})
	login, _, err := b.gate.Login(t.Context(), "ann", "pa:ss", address)
	if err != nil {
		t.Fatal(err)
	}
	cn := func(name string) *tls.ConnectionState {
		return certificate(x509.Certificate{Subject: pkix.Name{CommonName: name}})
	}
	for _, c := range []struct {
		name  string
		give  Credentials
		user  string
		proof Proof
		err   error
	}{
		{"none", Credentials{}, "", None, nil},
		{"token", Credentials{Authorization: "Bearer " + secret}, "ann", Token, nil},
		{"token, lower case", Credentials{Authorization: "bearer  " + secret}, "ann", Token, nil},
		{"token of etcd", Credentials{Token: secret}, "ann", Token, nil},
		{"token of etcd with bearer", Credentials{Token: "Bearer " + secret}, "ann", Token, nil},
		{"expired", Credentials{Authorization: "Bearer " + old}, "", None, ErrBadToken},
		{"revoked", Credentials{Authorization: "Bearer " + gone}, "", None, ErrBadToken},
		{"wrong token", Credentials{Authorization: "Bearer " + secret[:len(secret)-1]}, "", None, ErrBadToken},
		{"no token", Credentials{Authorization: "Bearer "}, "", None, ErrBadToken},
		{"login", Credentials{Authorization: "Bearer " + login}, "ann", Login, nil},
		{"login of etcd", Credentials{Token: login}, "ann", Login, nil},
		{"forged login", Credentials{Authorization: "Bearer " + (&login2).sign(b.tables.Keys()[0][:39], b.tables.User("root").Hash)}, "", None, ErrBadToken},
		{"password", Credentials{Authorization: basic("ann", "pa:ss")}, "ann", Password, nil},
		{"wrong password", Credentials{Authorization: basic("ann", "pa")}, "", None, ErrBadPassword},
		{"unknown user", Credentials{Authorization: basic("bob", "pa:ss")}, "", None, ErrBadPassword},
		{"not basic", Credentials{Authorization: "Basic x"}, "", None, ErrBadCredentials},
		{"no colon", Credentials{Authorization: "Basic " + base64.StdEncoding.EncodeToString([]byte("ann"))}, "", None, ErrBadCredentials},
		{"scheme", Credentials{Authorization: "Digest x"}, "", None, ErrBadCredentials},
		{"certificate", Credentials{TLS: cn("ann")}, "ann", Certificate, nil},
		{"unknown certificate", Credentials{TLS: cn("bob")}, "", None, ErrBadCertificate},
		{"certificate without a name", Credentials{TLS: cn("")}, "", None, nil},
		{"certificate that nobody verified", Credentials{TLS: &tls.ConnectionState{PeerCertificates: cn("ann").VerifiedChains[0]}}, "", None, nil},
		{"socket", Credentials{SameUser: true}, rights.Root, Socket, nil},
		{"token before certificate", Credentials{TLS: cn("root"), SameUser: true, Authorization: "Bearer " + secret}, "ann", Token, nil},
		{"wrong token with certificate", Credentials{TLS: cn("root"), SameUser: true, Authorization: "Bearer x"}, "", None, ErrBadToken},
	} {
		c.give.Address = address
		got, err := b.gate.Identify(t.Context(), &c.give)
		if got.User != c.user || got.Proof != c.proof || !errors.Is(err, c.err) || got.Address != address {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
		var e *api.Error
		if err != nil && (!errors.As(err, &e) || e.Code != api.Unauthenticated || strings.Contains(err.Error(), "pa:ss") || strings.Contains(err.Error(), secret[:12])) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	for _, cr := range []Credentials{{Authorization: "Bearer " + secret}, {Token: secret}, {Authorization: basic("ann", "pa:ss")}, {Authorization: "Bearer wrong"}} {
		cr.Exposed = true
		var e *api.Error
		if c, err := b.gate.Identify(t.Context(), &cr); c.User != "" || !errors.Is(err, ErrExposed) || !errors.As(err, &e) || e.Code != api.TLSRequired || !strings.Contains(e.Detail, "--insecure-auth") {
			t.Errorf("in the clear: %+v, %v", c, err)
		}
	}
	if c, err := b.gate.Identify(t.Context(), &Credentials{Exposed: true}); err != nil || c.Proof != None {
		t.Errorf("without credentials, in the clear: %+v, %v", c, err)
	}
	b.gate.opts.Insecure = true
	if c, err := b.gate.Identify(t.Context(), &Credentials{Exposed: true, Authorization: "Bearer " + secret}); err != nil || c.User != "ann" {
		t.Errorf("in the clear, as the operator allows: %+v, %v", c, err)
	}
	b.gate.opts.LocalRoot = false
	if c, err := b.gate.Identify(t.Context(), &Credentials{SameUser: true}); err != nil || c.User != "" {
		t.Errorf("a socket without LocalRoot: %+v, %v", c, err)
	}
}

var login2 = login{revision: 1, expires: 1 << 60, user: rights.Root}

// TestCertUser: each kind of name in a certificate.
func TestCertUser(t *testing.T) {
	b := newBench(t, Options{})
	b.enable()
	b.user("spiffe://x/ann", "")
	b.user("ann@x", "")
	one, other := &url.URL{Scheme: "spiffe", Host: "x", Path: "/ann"}, &url.URL{Scheme: "https", Host: "y"}
	leaf := x509.Certificate{Subject: pkix.Name{CommonName: "ann"}, URIs: []*url.URL{one}, EmailAddresses: []string{"ann@x"}}
	for kind, want := range map[CertUser]string{CertCN: "ann", CertURI: "spiffe://x/ann", CertEmail: "ann@x", CertOff: "", "": ""} {
		if got, err := kind.of(b.tables, certificate(leaf)); got != want || err != nil {
			t.Errorf("%q: %q, %v", kind, got, err)
		}
	}
	leaf.URIs = append(leaf.URIs, other)
	if got, err := CertURI.of(b.tables, certificate(leaf)); got != "" || !errors.Is(err, ErrBadCertificate) {
		t.Errorf("two names: %q, %v", got, err)
	}
}

// TestLoginToken: until when a login is taken (C3).
func TestLoginToken(t *testing.T) {
	b := newBench(t, Options{TTL: time.Minute})
	if _, _, err := b.gate.Login(t.Context(), "ann", "pa:ss", address); !errors.Is(err, ErrDisabled) {
		t.Errorf("while rights are disabled: %v", err)
	}
	b.enable()
	login := func() string {
		t.Helper()
		token, expires, err := b.gate.Login(t.Context(), "ann", "pa:ss", address)
		if err != nil || !expires.Equal(b.now.Add(time.Minute)) {
			t.Fatal(expires, err)
		}
		return token
	}
	good := func(token string) bool {
		c, err := b.gate.Identify(t.Context(), &Credentials{Authorization: "Bearer " + token})
		if err != nil && !errors.Is(err, ErrBadToken) {
			t.Fatal(err)
		}
		return err == nil && c.User == "ann" && c.Revision > 0
	}
	token := login()
	keys := len(b.tables.Keys())
	b.role("other", rights.Read, "x", "")
	if !good(token) || keys != 1 {
		t.Errorf("after a change that is not about it; %d keys", keys)
	}
	b.now = b.now.Add(time.Minute)
	if good(token) {
		t.Error("after its end")
	}
	token = login()
	b.user("ann", "pa:ss", "as") // the same password is another hash
	if good(token) {
		t.Error("with another password")
	}
	b.now = b.now.Add(keyLife)
	if _ = login(); len(b.tables.Keys()) != 2 {
		t.Errorf("%d keys after a day", len(b.tables.Keys()))
	}
	token = login()
	b.apply(&rights.Change{RotateKey: NewKey(b.now)})
	if !good(token) {
		t.Error("after a new key")
	}
	b.apply(&rights.Change{RotateKey: NewKey(b.now)})
	if good(token) {
		t.Error("after two new keys")
	}
	token = login()
	for i := range len(token) {
		for _, with := range []string{"A", "\n", ""} {
			if changed := token[:i] + with + token[i+1:]; changed != token && good(changed) {
				t.Fatalf("%q is taken for %q", changed, token)
			}
		}
	}
	b.apply(&rights.Change{DeleteUser: "ann"})
	if good(token) {
		t.Error("of a user who was deleted")
	}
}

// TestStill: which credentials outlive which change.
func TestStill(t *testing.T) {
	b := newBench(t, Options{CertUser: CertCN, LocalRoot: true})
	b.enable()
	secret := b.token("t1", "ann", b.now.Add(time.Hour))
	login, _, err := b.gate.Login(t.Context(), "ann", "pa:ss", address)
	if err != nil {
		t.Fatal(err)
	}
	callers := map[Proof]*Caller{}
	for _, cr := range []Credentials{
		{}, {Authorization: "Bearer " + secret}, {Authorization: "Bearer " + login}, {Authorization: basic("ann", "pa:ss")},
		{TLS: certificate(x509.Certificate{Subject: pkix.Name{CommonName: "ann"}})}, {SameUser: true},
	} {
		c, err := b.gate.Identify(t.Context(), &cr)
		if err != nil {
			t.Fatal(err)
		}
		callers[c.Proof] = &c
	}
	expect := func(when string, ended ...Proof) {
		t.Helper()
		for proof, c := range callers {
			want := false
			for _, p := range ended {
				want = want || p == proof
			}
			if err := b.gate.Still(c); (err != nil) != want {
				t.Errorf("%s: %q: %v", when, proof, err)
			}
		}
	}
	b.role("other", rights.Read, "x", "")
	expect("another role")
	before, now := b.tables, b.now
	b.apply(&rights.Change{DeleteToken: "t1"})
	expect("the token is deleted", Token)
	b.tables, b.now = before, now.Add(time.Hour)
	expect("the token has expired", Token)
	b.now = now
	b.user("ann", "other", "as")
	expect("another password", Login, Password)
	b.apply(&rights.Change{DeleteUser: "ann"})
	expect("the user is deleted", Login, Password, Token)
	b.apply(&rights.Change{Disable: true})
	expect("rights are disabled")
}

// TestCheck: what a refusal says.
func TestCheck(t *testing.T) {
	b := newBench(t, Options{})
	b.enable()
	b.keys[7] = []string{"a1", "b1"}
	secret := b.token("t1", "ann", time.Time{})
	ann, err := b.gate.Identify(t.Context(), &Credentials{Authorization: "Bearer " + secret})
	if err != nil {
		t.Fatal(err)
	}
	byPassword := ann
	byPassword.Proof = Password
	byPassword.hash = b.tables.User("ann").Hash
	nobody := Caller{Proof: Off} // let in before rights were enabled
	put := func(key string, lease uint64) *command.Command {
		return &command.Command{Op: command.OpPut, Key: []byte(key), Lease: lease}
	}
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"own key", b.gate.CheckCommand(&ann, put("a", 0)), ""},
		{"own lease", b.gate.CheckCommand(&ann, put("a", 8)), ""},
		{"key", b.gate.CheckCommand(&ann, put("b", 0)), `permission_denied: user "ann" may not write key "b"; ask an administrator for a role that allows it`},
		{"lease", b.gate.CheckCommand(&ann, put("a", 7)), `permission_denied: user "ann" may not write everything that is bound to lease 7; use a lease of your own`},
		{"reading a lease", b.gate.CheckLease(&ann, 7, rights.Read), `permission_denied: user "ann" may not read everything that is bound to lease 7; use a lease of your own`},
		{"capability", b.gate.Check(&ann, rights.Need{Capability: rights.Backup}), `permission_denied: user "ann" may not use the capability "backup"; ask an administrator for a role that allows it`},
		{"rights", b.gate.CheckCommand(&ann, &command.Command{Op: command.OpRights, Rights: &rights.Change{DeleteUser: "root"}}), `permission_denied: user "ann" may not use the capability "auth"; ask an administrator for a role that allows it`},
		{"own password", b.gate.CheckCommand(&byPassword, &command.Command{Op: command.OpRights, Rights: &rights.Change{SetPassword: &rights.Password{User: "ann", Hash: []byte("h")}}}), ""},
		{"nobody", b.gate.CheckCommand(&nobody, put("a", 0)), `unauthenticated: requests without credentials may not write key "a"; provide a token or a password`},
		{"nobody's lease", b.gate.CheckLease(&nobody, 7, rights.Write), `unauthenticated: requests without credentials may not write everything that is bound to lease 7; use a lease of your own`},
	} {
		if got := fmt.Sprint(c.err); c.err != nil && got != c.want || c.err == nil && c.want != "" {
			t.Errorf("%s: %v, want %s", c.name, c.err, c.want)
		}
	}
	var none *Gate
	if err := errors.Join(none.Check(&nobody, rights.Need{Capability: rights.Auth}), none.CheckCommand(&nobody, put("a", 7)), none.CheckLease(&nobody, 7, rights.Read), none.Still(&nobody)); err != nil {
		t.Errorf("without a gate: %v", err)
	}
	b.tables = nil
	if err := b.gate.Check(&ann); !errors.Is(err, ErrStarting) {
		t.Errorf("while the rights are not known: %v", err)
	}
}

// TestTokensDoNotChangeTheirUser: what a leaked token can do ends with the token.
func TestTokensDoNotChangeTheirUser(t *testing.T) {
	b := newBench(t, Options{Foreign: func(token string) (string, bool) { return strings.CutPrefix(token, "signed elsewhere for ") }})
	b.enable()
	b.apply(&rights.Change{PutRole: &rights.Role{Name: "lead", Capabilities: []rights.Capability{rights.Auth}}}, &rights.Change{PutUser: &rights.User{Name: "lea", Roles: []string{"lead"}}})
	changes := func(user string) []*rights.Change {
		return []*rights.Change{
			{SetPassword: &rights.Password{User: user, Hash: []byte("hash")}},
			{PutToken: &rights.Token{ID: "more", User: user}},
			{DeleteToken: user + "-other"},
			{DeleteToken: user},
		}
	}
	for user, permitted := range map[string][]bool{"ann": {false, false, false, true}, "lea": {true, true, true, true}} {
		b.token(user+"-other", user, time.Time{})
		c, err := b.gate.Identify(t.Context(), &Credentials{Authorization: "Bearer " + b.token(user, user, time.Time{})})
		if err != nil {
			t.Fatal(err)
		}
		foreign, err := b.gate.Identify(t.Context(), &Credentials{Token: "signed elsewhere for " + user})
		if err != nil || foreign.Proof != JWT {
			t.Fatal(err, foreign.Proof)
		}
		loggedIn := c
		loggedIn.Proof, loggedIn.TokenID = Certificate, ""
		for i, change := range changes(user) {
			cmd := &command.Command{Op: command.OpRights, Rights: change}
			if err := b.gate.CheckCommand(&c, cmd); (err == nil) != permitted[i] || err != nil && !errors.Is(err, ErrDenied) {
				t.Errorf("%s with a token, change %d: %v", user, i, err)
			}
			if err := b.gate.CheckCommand(&foreign, cmd); (err == nil) != (user == "lea") || err != nil && !errors.Is(err, ErrDenied) {
				t.Errorf("%s with a JSON Web Token, change %d: %v", user, i, err)
			}
			if err := b.gate.CheckCommand(&loggedIn, cmd); err != nil {
				t.Errorf("%s with a certificate, change %d: %v", user, i, err)
			}
		}
	}
}

// TestLastUsed: what has used a token is remembered to the minute, whatever else changes.
func TestLastUsed(t *testing.T) {
	b := newBench(t, Options{})
	b.enable()
	secret := b.token("t", "ann", time.Time{})
	use := func(how string, ok bool) {
		t.Helper()
		if _, err := b.gate.Identify(t.Context(), &Credentials{Authorization: "Bearer " + how}); (err == nil) != ok {
			t.Error(err)
		}
	}
	use(secret+"x", false)
	if got := b.tables.Token("t").LastUsed(); !got.IsZero() {
		t.Errorf("before its first use: %v", got)
	}
	use(secret, true)
	first := b.tables.Token("t").LastUsed()
	if since := b.now.Sub(first); since < 0 || since >= time.Minute || first.Second() != 0 {
		t.Errorf("used at %v, remembered as %v", b.now, first)
	}
	b.user("bob", "") // other tables
	b.now = b.now.Add(time.Minute)
	if got := b.tables.Token("t").LastUsed(); got != first {
		t.Errorf("after another change: %v", got)
	}
	use(secret, true)
	if got := b.tables.Token("t").LastUsed(); got != first.Add(time.Minute) {
		t.Errorf("a minute later: %v", got)
	}
	b.now = b.now.Add(-time.Hour)
	if use(secret, true); b.tables.Token("t").LastUsed() != first.Add(time.Minute) {
		t.Error("a clock that jumped back takes it back")
	}
}

// FuzzAuthorization: nothing but what was given out is taken, in one form only (C3).
func FuzzAuthorization(f *testing.F) {
	tables := rights.New()
	hash, err := bcrypt.GenerateFromPassword([]byte("x"), bcrypt.MinCost)
	if err != nil {
		f.Fatal(err)
	}
	key := append(make([]byte, keyTimeBytes), "a key that everybody knows"...)
	for _, c := range []*rights.Change{
		{PutUser: &rights.User{Name: rights.Root, Roles: []string{rights.Root}, Hash: hash}},
		{PutToken: &rights.Token{ID: "t", User: rights.Root, Sum: Sum("kvd_known")}},
		{RotateKey: key}, {Enable: true},
	} {
		if tables, _, err = tables.Apply(c); err != nil {
			f.Fatal(err)
		}
	}
	g := New(Options{Tables: func() *rights.Tables { return tables }, Now: func() time.Time { return time.UnixMilli(1000) }})
	g.passwords.compare = func(_, password []byte) error {
		if string(password) != "x" {
			return bcrypt.ErrMismatchedHashAndPassword
		}
		return nil
	}
	good := login{revision: 3, expires: 2000, user: rights.Root}
	for _, header := range []string{"", "Bearer kvd_known", "Bearer " + good.sign(key, hash), basic(rights.Root, "x"), "Basic", "bearer  kvdl_AQMA.", "Basic Og==", "Digest a=b"} {
		f.Add(header)
	}
	f.Fuzz(func(t *testing.T, header string) {
		if l, payload, sum, err := parseLogin(header); err == nil && string(l.payload()) == string(payload) {
			b64 := base64.RawURLEncoding
			if again := loginPrefix + b64.EncodeToString(payload) + "." + b64.EncodeToString(sum); again != header {
				t.Errorf("%q is taken for %q", header, again)
			}
		}
		g.passwords.mu.pauses = newPauses()
		c, err := g.Identify(t.Context(), &Credentials{Authorization: header})
		_, rest, _ := strings.Cut(header, " ")
		rest = strings.Trim(rest, " ")
		user, password, _ := parseBasic(rest)
		switch {
		case err != nil || header == "":
			if c.User != "" {
				t.Errorf("%q is %+v, %v", header, c, err)
			}
		case rest == "kvd_known" && c.Proof == Token && c.TokenID == "t":
		case rest == good.sign(key, hash) && c.Proof == Login:
		case user == rights.Root && password == "x" && c.Proof == Password:
		default:
			if l, _, _, err := parseLogin(rest); err != nil || rest != l.sign(key, hash) { // a key that everybody knows
				t.Errorf("%q is %+v", header, c)
			}
		}
	})
}
