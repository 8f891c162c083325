package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// world has an authority and a directory of files.
type world struct {
	t   *testing.T
	ca  *Authority
	dir string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return &world{t: t, ca: newAuthority(t, "the authority"), dir: t.TempDir()}
}

func newAuthority(t *testing.T, name string) *Authority {
	t.Helper()
	ca, err := NewAuthority(name, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func (w *world) write(name string, data []byte) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// pair writes NAME.pem and NAME-key.pem, signed by ca.
func (w *world) pair(ca *Authority, name string, o Order) *x509.Certificate {
	w.t.Helper()
	if o.NotAfter.IsZero() {
		o.NotAfter = time.Now().Add(time.Hour)
	}
	o.Name = name
	cert, key, err := ca.Issue(o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.write(name+".pem", cert)
	w.write(name+"-key.pem", key)
	return parseOne(w.t, cert)
}

func parseOne(t *testing.T, text []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(text)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// config returns the configuration of a member whose pair was written before.
func (w *world) config(name string) Config {
	return Config{
		Name: name, ClientAuth: Require, Mutual: true,
		Files: Files{
			Cert: filepath.Join(w.dir, name+".pem"), Key: filepath.Join(w.dir, name+"-key.pem"),
			CA: w.write("ca.pem", w.ca.CertPEM),
		},
	}
}

func load(t *testing.T, cfg Config) *Bundle {
	t.Helper()
	b, err := Load(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// revoke writes the revocation list.
func (w *world) revoke(number int64, certs ...*x509.Certificate) string {
	w.t.Helper()
	list, err := w.ca.Revoke(number, time.Now().Add(time.Hour), certs...)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.write("crl.pem", list)
}

// serve echoes what it reads on each connection.
func serve(t *testing.T, b *Bundle) (addr string) {
	t.Helper()
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := b.Listen(raw)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	return l.Addr().String()
}

var errTooLong = errors.New("no answer in time")

// echo returns nil if a byte comes back.
func echo(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errTooLong
	}
	return err
}

// call connects to the address with a bundle.
func call(t *testing.T, b *Bundle, addr string) (net.Conn, error) {
	t.Helper()
	c, err := b.Dial(new(net.Dialer).DialContext)(context.Background(), "tcp", addr)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, echo(c)
}

// clientOf returns the configuration of a plain TLS client with the pair.
func (w *world) clientOf(name string) *tls.Config {
	w.t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(w.ca.CertPEM)
	cfg := &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"}
	if name != "" {
		pair, err := tls.LoadX509KeyPair(filepath.Join(w.dir, name+".pem"), filepath.Join(w.dir, name+"-key.pem"))
		if err != nil {
			w.t.Fatal(err)
		}
		// Presented even if the server asks for certificates of other authorities.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return cfg
}

func dialWith(t *testing.T, cfg *tls.Config, addr string) (*tls.Conn, error) {
	t.Helper()
	c, err := tls.Dial("tcp", addr, cfg)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, echo(c)
}
