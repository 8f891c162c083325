// Package certs keeps the certificate, key, authorities and revocation list of
// a listener, and of those who connect to its like, the way the files have
// them now.
//
// Every handshake uses the newest files that were good, and connections that
// live on are held against them again whenever they change: a connection whose
// certificate was revoked, or whose authority is no longer trusted, is closed.
// What changed is found by looking at the files every second, which also
// works where a directory is swapped as a whole by a symbolic link, as
// Kubernetes does. Files that do not fit together, a certificate that is
// written before its key for one, are counted and logged, and what was good
// stays in use.
package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// ClientAuth is whether those who connect show a certificate.
type ClientAuth uint8

const (
	// Off does not ask for a certificate.
	Off ClientAuth = iota
	// Request asks for one, and refuses one that is not good.
	Request
	// Require lets nobody in without one.
	Require
)

func (a ClientAuth) tls() tls.ClientAuthType {
	return [...]tls.ClientAuthType{tls.NoClientCert, tls.VerifyClientCertIfGiven, tls.RequireAndVerifyClientCert}[a]
}

// pollInterval is how soon a change of the files is noticed.
const pollInterval = time.Second

// Config describes a Bundle.
type Config struct {
	// Name says in logs whose certificates these are.
	Name string
	Files
	MinVersion uint16 // as in crypto/tls; 0 means TLS 1.2
	ClientAuth ClientAuth
	// Protocols are offered by ALPN, the best first.
	Protocols []string
	// Mutual says that the certificate is shown on both ends of connections
	// with equals: it must serve for both, and be good by its own authorities;
	// and so must those of the others, so that no mere client gets in.
	Mutual bool
	// Hosts are names and addresses that the certificate must have.
	Hosts  []string
	Logger *zap.Logger // nil: silent
}

// Bundle is what the files held when they last were good. It is safe for
// concurrent use.
type Bundle struct {
	cfg     Config
	log     *zap.Logger
	server  *tls.Config // the same for all connections, so that sessions resume
	current atomic.Pointer[material]

	reloads  atomic.Uint64
	failures atomic.Uint64
	refusals atomic.Uint64
	// refusalLogged is the second, since 1970, of the last line about one.
	refusalLogged atomic.Int64

	load struct {
		sync.Mutex
		seen     [fileKinds]fileState
		contents contents
		problem  string // of the last attempt, so that it is logged once
	}
	conns struct {
		sync.Mutex
		open map[*tracked]check
	}
}

// Load reads the files. Everything that is wrong with them is an error here;
// later it only keeps them from being taken over.
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

// NotAfter is when the certificate expires.
func (b *Bundle) NotAfter() time.Time { return b.current.Load().cert.Leaf.NotAfter }

// Counts are of events since the start.
type Counts struct {
	Reloads  uint64 // changed files that were taken over
	Failures uint64 // changed files that were not
	Refusals uint64 // certificates of others that were revoked or no longer trusted
}

// Counts returns what happened so far.
func (b *Bundle) Counts() Counts {
	return Counts{Reloads: b.reloads.Load(), Failures: b.failures.Load(), Refusals: b.refusals.Load()}
}

// Watch takes over the files whenever they change, until the context ends.
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

// poll looks whether the files changed. A mistake is logged when it appears,
// not each time it is looked at.
func (b *Bundle) poll() {
	changed, err := b.reload(true)
	switch {
	case err != nil:
		b.log.Warn("the changed certificates are not good, and the ones before stay in use", zap.Error(err))
	case changed:
		b.logNew()
	}
}

// Reload takes over the files now. An error says why what was in use before
// stays in use.
func (b *Bundle) Reload() error {
	changed, err := b.reload(false)
	if changed {
		b.logNew()
	}
	return err
}

func (b *Bundle) logNew() {
	m := b.current.Load()
	b.log.Info("certificates were taken over", zap.Time("not_after", m.cert.Leaf.NotAfter), zap.Int("authorities", len(m.authorities)), zap.Int("revoked", m.revoked.size()))
	b.warn(m)
}

// warn says what is good enough to be used and still needs a person.
func (b *Bundle) warn(m *material) {
	now := time.Now()
	if leaf := m.cert.Leaf; now.After(leaf.NotAfter) {
		b.log.Error("the certificate has expired: everybody will refuse it", zap.String("file", b.cfg.Cert), zap.Time("not_after", leaf.NotAfter))
	}
	if next := m.revoked.nextUpdate; !next.IsZero() && now.After(next) {
		b.log.Warn("the revocation list should have been replaced; it stays in force", zap.String("file", b.cfg.CRL), zap.Time("next_update", next))
	}
}

// reload reads the files, if they look different or ifChanged is false, and
// takes them over. With ifChanged, a problem is reported only the first time.
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

// failed counts a problem once, however often the same files are looked at.
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

// refuseStep keeps a certificate that works from being replaced by one that
// does not, where only the comparison shows it.
func (b *Bundle) refuseStep(m *material) error {
	old, now := b.current.Load(), time.Now()
	if old != nil && now.After(m.cert.Leaf.NotAfter) && now.Before(old.cert.Leaf.NotAfter) {
		return fmt.Errorf("%s: the certificate expired on %s", b.cfg.Cert, m.cert.Leaf.NotAfter.Format(time.DateOnly))
	}
	return nil
}

// looksChanged compares the files with what was seen last.
func (b *Bundle) looksChanged() bool {
	changed := false
	for i, name := range b.cfg.names() {
		now := stateOf(name)
		changed = changed || !now.same(b.load.seen[i]) || now.unsettled()
		b.load.seen[i] = now
	}
	return changed
}

// errNoCertificate is for a connection whose other side showed none.
var errNoCertificate = errors.New("no certificate was shown")
