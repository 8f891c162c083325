package etcdapi_test

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/certs"
	"github.com/kvd-io/kvd/internal/etcdapi/etcdtest"
)

// clientTLS returns the certificates of a node that asks its clients for theirs, who trusts
// them, and what makes the certificate of a client.
func clientTLS(t *testing.T) (bundle *certs.Bundle, trust *tls.Config, issue func(name string) tls.Certificate) {
	t.Helper()
	end := time.Now().Add(time.Hour)
	ca := must[*certs.Authority](t)(certs.NewAuthority("test", end))
	cert, key, err := ca.Issue(certs.Order{Name: "node", Hosts: []string{"127.0.0.1"}, NotAfter: end})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := certs.Files{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), CA: filepath.Join(dir, "ca.pem")}
	for name, data := range map[string][]byte{files.Cert: cert, files.Key: key, files.CA: ca.CertPEM} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	bundle = must[*certs.Bundle](t)(certs.Load(certs.Config{Name: "clients", Files: files, ClientAuth: certs.Request, Protocols: []string{"h2", "http/1.1"}}))
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.CertPEM)
	return bundle, &tls.Config{RootCAs: roots}, func(name string) tls.Certificate {
		cert, key, err := ca.Issue(certs.Order{Name: name, NotAfter: end})
		if err != nil {
			t.Fatal(err)
		}
		return must[tls.Certificate](t)(tls.X509KeyPair(cert, key))
	}
}

// TestConnectionsProveWho: a certificate names its user on every kind of connection, a
// password comes before it, and on a Unix socket the node's own user is root.
func TestConnectionsProveWho(t *testing.T) {
	bundle, trust, issue := clientTLS(t)
	n := etcdtest.Start(t, 1, &etcdtest.Config{
		Listen: "https://127.0.0.1:0,unix://" + filepath.Join(t.TempDir(), "etcd.sock"), Bundle: bundle,
	})[0]
	ctx := t.Context()
	connect := func(url string, secure *tls.Config, password string) *clientv3.Client {
		cfg := clientv3.Config{Endpoints: []string{url}, TLS: secure, Logger: zap.NewNop(), DialTimeout: 10 * time.Second}
		if password != "" {
			cfg.Username, cfg.Password = "root", password
		}
		c := must[*clientv3.Client](t)(clientv3.New(cfg))
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	socket := connect(n.All[1], nil, "")
	addUser(ctx, t, socket, "ann", grant{"a", "", rw})
	enable(ctx, t, socket)
	if _, err := socket.Put(ctx, "anything", "1"); err != nil {
		t.Errorf("the node's own user: %v", err)
	}
	for _, protocols := range [][]string{nil, {"h2", "http/1.1"}} { // gRPC's transport, and that of net/http
		with := func(name string) *tls.Config {
			cfg := trust.Clone()
			cfg.NextProtos = protocols
			if name != "" {
				cfg.Certificates = []tls.Certificate{issue(name)}
			}
			return cfg
		}
		for _, c := range []struct {
			who, password, key string
			want               error
		}{
			{"ann", "", "a", nil},
			{"ann", "", "b", rpctypes.ErrPermissionDenied},
			{"ann", "root-secret", "b", nil},
			{"stranger", "", "a", rpctypes.ErrPermissionDenied},
			{"", "", "a", rpctypes.ErrUserEmpty},
		} {
			_, err := connect(n.All[0], with(c.who), c.password).Put(ctx, c.key, "1")
			if wantErr(t, err, c.want); t.Failed() {
				t.Fatalf("as %q with password %q, %v", c.who, c.password, protocols)
			}
		}
	}
}
