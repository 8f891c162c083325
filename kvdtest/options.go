package kvdtest

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/certs"
)

// Option changes how nodes are started.
type Option func(*options)

type options struct{ tls, unix bool }

// TLS makes clients and members use TLS, with certificates of an authority that is made
// for the test. The nodes demand a certificate of their clients; Node.TLS has one.
func TLS() Option { return func(o *options) { o.tls = true } }

// UnixSocket makes the nodes serve clients on unix sockets.
func UnixSocket() Option { return func(o *options) { o.unix = true } }

// identity has the certificates of a cluster.
type identity struct {
	clients, members *certs.Bundle
	client           *tls.Config // of a client of the nodes
}

// newIdentity makes an authority, and one certificate for all members and clients.
func newIdentity(t testing.TB) *identity {
	t.Helper()
	notAfter := time.Now().Add(24 * time.Hour)
	authority, err := certs.NewAuthority("kvdtest", notAfter)
	if err != nil {
		t.Fatalf("kvdtest: make an authority: %v", err)
	}
	cert, key, err := authority.Issue(certs.Order{Name: "kvdtest", Hosts: []string{"127.0.0.1", "localhost"}, NotAfter: notAfter})
	if err != nil {
		t.Fatalf("kvdtest: %v", err)
	}
	dir := t.TempDir()
	files := certs.Files{Cert: filepath.Join(dir, "node.crt"), Key: filepath.Join(dir, "node.key"), CA: filepath.Join(dir, "ca.crt")}
	for name, text := range map[string][]byte{files.Cert: cert, files.Key: key, files.CA: authority.CertPEM} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatalf("kvdtest: %v", err)
		}
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatalf("kvdtest: %v", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority.CertPEM)
	return &identity{
		clients: load(t, certs.Config{Name: "clients", Files: files, ClientAuth: certs.Require, Protocols: []string{"h2", "http/1.1"}}),
		members: load(t, certs.Config{Name: "members", Files: files, ClientAuth: certs.Require, Mutual: true, Protocols: []string{"http/1.1"}}),
		client:  &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool, MinVersion: tls.VersionTLS13},
	}
}

func load(t testing.TB, cfg certs.Config) *certs.Bundle {
	t.Helper()
	b, err := certs.Load(cfg)
	if err != nil {
		t.Fatalf("kvdtest: %v", err)
	}
	return b
}
