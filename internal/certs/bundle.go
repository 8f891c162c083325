package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// ClientAuth tells whether clients present a certificate.
type ClientAuth uint8

const (
	// Off asks for no certificate.
	Off ClientAuth = iota
	// Request accepts clients without a certificate, and refuses invalid ones.
	Request
	// Require refuses clients without a certificate.
	Require
)

// tls returns the equivalent in crypto/tls. Request verifies a certificate that is
// presented; crypto/tls's RequestClientCert would not.
func (a ClientAuth) tls() tls.ClientAuthType {
	return [...]tls.ClientAuthType{tls.NoClientCert, tls.VerifyClientCertIfGiven, tls.RequireAndVerifyClientCert}[a]
}

// pollInterval bounds how long a change of the files goes unnoticed.
const pollInterval = time.Second

// Config describes a Bundle.
type Config struct {
	// Name identifies the bundle in the log.
	Name string
	Files
	MinVersion uint16 // as in crypto/tls; 0 means TLS 1.2
	ClientAuth ClientAuth
	// Protocols are offered by ALPN, the preferred one first.
	Protocols []string
	// Mutual is for connections between equals, which present their certificates
	// on both ends. Each certificate must then be valid for servers and for
	// clients, and signed by one of the authorities. Without that, a certificate
	// for clients would let a client in as a member.
	Mutual bool
	// Hosts are names and addresses that the certificate must name.
	Hosts []string
	// Expected are names and addresses of which the certificate should name at
	// least one. It is only a warning otherwise: clients may use yet another name.
	Expected []string
	Logger   *zap.Logger // nil discards everything
}

// Bundle has what the files held when they were last valid. It is safe for concurrent
// use. The package comment tells how it works, and lists the invariants B1 to B4.
type Bundle struct {
	cfg     Config
	log     *zap.Logger
	server  *tls.Config // one for all connections, so that sessions resume across reloads
	current atomic.Pointer[material]

	reloads  atomic.Uint64
	failures atomic.Uint64
	refusals atomic.Uint64
	// refusalLogged is the time of the last line about a refusal, in seconds since
	// 1970.
	refusalLogged atomic.Int64

	// load is held while the files are read, by Watch or Reload.
	load struct {
		sync.Mutex
		seen     [fileKinds]fileState
		contents contents
		problem  string // of the last attempt, so that it is counted and logged once
	}
	// conns is held by each connection while it is registered or removed, and by
	// recheck while it judges all of them.
	conns struct {
		sync.Mutex
		open map[*tracked]check
	}
}

// Load reads the files. It returns an error if they are invalid. Once a Bundle
// exists, invalid files only keep it from changing.
func Load(cfg Config) (*Bundle, error) {
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	if cfg.MinVersion == 0 {
		cfg.MinVersion = tls.VersionTLS12
	}
	b := &Bundle{cfg: cfg, log: cfg.Logger.With(zap.String("certificates", cfg.Name))}
	b.conns.open = make(map[*tracked]check)
	b.server = b.base(nil)
	b.server.GetConfigForClient = b.configFor
	if _, err := b.reload(false); err != nil {
		return nil, err
	}
	b.warn(b.current.Load())
	return b, nil
}

// NotAfter returns the time at which the certificate expires.
func (b *Bundle) NotAfter() time.Time { return b.current.Load().cert.Leaf.NotAfter }

// Counts has numbers of events since Load.
type Counts struct {
	Reloads  uint64 // changed files that were loaded
	Failures uint64 // changed files that were invalid
	Refusals uint64 // certificates of others that were refused
}

// Counts returns the numbers of events so far.
func (b *Bundle) Counts() Counts {
	return Counts{Reloads: b.reloads.Load(), Failures: b.failures.Load(), Refusals: b.refusals.Load()}
}

// Watch loads the files whenever they change, until the context ends.
func (b *Bundle) Watch(ctx context.Context) { b.watch(ctx, pollInterval) }

func (b *Bundle) watch(ctx context.Context, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			b.poll()
		}
	}
}

// poll loads the files if they changed. A problem is logged when it appears, not
// again each time the same files are read.
func (b *Bundle) poll() {
	changed, err := b.reload(true)
	switch {
	case err != nil:
		b.log.Warn("certificates not reloaded; the previous ones stay in use", zap.Error(err))
	case changed:
		b.logNew()
	}
}

// Reload loads the files now, also if they look unchanged. If it returns an error,
// the previous certificates stay in use.
func (b *Bundle) Reload() error {
	changed, err := b.reload(false)
	if changed {
		b.logNew()
	}
	return err
}

func (b *Bundle) logNew() {
	m := b.current.Load()
	b.log.Info("certificates reloaded", zap.Time("not_after", m.cert.Leaf.NotAfter), zap.Int("authorities", len(m.authorities)), zap.Int("revoked", m.revoked.size()))
	b.warn(m)
}

// warn logs what does not keep a material from being used, but needs an operator.
func (b *Bundle) warn(m *material) {
	now := time.Now()
	if leaf := m.cert.Leaf; now.After(leaf.NotAfter) {
		b.log.Error("certificate has expired", zap.String("file", b.cfg.Cert), zap.Time("not_after", leaf.NotAfter))
	}
	if hosts := b.cfg.Expected; len(hosts) > 0 && !slices.ContainsFunc(hosts, func(h string) bool { return m.cert.Leaf.VerifyHostname(h) == nil }) {
		b.log.Warn("the certificate names none of the hosts of this node; clients that verify it will refuse the connection",
			zap.String("file", b.cfg.Cert), zap.Strings("hosts", hosts),
			zap.Strings("certificate_names", m.cert.Leaf.DNSNames), zap.Stringers("certificate_addresses", m.cert.Leaf.IPAddresses))
	}
	if info, err := os.Stat(b.cfg.Key); err == nil && info.Mode().Perm()&0o077 != 0 {
		b.log.Warn("the private key can be read by other users; chmod 600 it, unless its group is trusted",
			zap.String("file", b.cfg.Key), zap.Stringer("mode", info.Mode().Perm()))
	}
	if next := m.revoked.nextUpdate; !next.IsZero() && now.After(next) {
		b.log.Warn("revocation list is past its next update; it stays in force", zap.String("file", b.cfg.CRL), zap.Time("next_update", next))
	}
}

// reload reads the files and makes them current. With ifChanged, it does not read
// files that look unchanged, and returns a problem only the first time.
func (b *Bundle) reload(ifChanged bool) (changed bool, _ error) {
	b.load.Lock()
	defer b.load.Unlock()
	if ifChanged && !b.looksChanged() {
		return false, nil
	}
	c, err := b.cfg.read()
	if err == nil && slices.EqualFunc(c[:], b.load.contents[:], slices.Equal) && b.current.Load() != nil {
		b.load.problem = ""
		return false, nil
	}
	var m *material
	if err == nil {
		m, err = b.cfg.parse(c)
	}
	if err == nil {
		err = b.refuseStep(m)
	}
	if err != nil {
		return false, b.failed(err, ifChanged)
	}
	if b.current.Load() != nil {
		b.reloads.Add(1)
	}
	b.load.contents, b.load.problem = c, ""
	b.current.Store(m)
	b.recheck(m)
	return true, nil
}

// failed counts a problem once, however often the same files are read.
func (b *Bundle) failed(err error, once bool) error {
	if err.Error() == b.load.problem {
		if once {
			return nil
		}
		return err
	}
	b.load.problem = err.Error()
	b.failures.Add(1)
	return err
}

// refuseStep keeps a valid certificate from being replaced by one that has expired.
// By itself an expired certificate is not refused (see Config.judge).
func (b *Bundle) refuseStep(m *material) error {
	old, now := b.current.Load(), time.Now()
	if old != nil && now.After(m.cert.Leaf.NotAfter) && now.Before(old.cert.Leaf.NotAfter) {
		return fmt.Errorf("%s: certificate expired on %s", b.cfg.Cert, m.cert.Leaf.NotAfter.Format(time.DateOnly))
	}
	return nil
}

// looksChanged compares the files with what it saw last.
func (b *Bundle) looksChanged() bool {
	changed := false
	for i, name := range b.cfg.names() {
		now := stateOf(name)
		changed = changed || !now.same(b.load.seen[i]) || now.unsettled()
		b.load.seen[i] = now
	}
	return changed
}

// errNoCertificate refuses a connection whose other side presented none.
var errNoCertificate = errors.New("no certificate was presented")
