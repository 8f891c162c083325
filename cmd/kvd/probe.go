package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"

	"github.com/kvd-io/kvd/internal/settings"
)

// probeFiles are the certificates by which a health check and a node recognize
// each other.
type probeFiles struct {
	ca, cert, key string // from the command line; "" if not given
	own, ownKey   string // the node's own, from its settings
	authorization string // the header; "" for none
}

// client returns a client for the endpoint, which may be a Unix socket.
func (f *probeFiles) client(endpoint string) (*http.Client, error) {
	t := &http.Transport{DisableKeepAlives: true, ForceAttemptHTTP2: true}
	if path, ok := settings.IsUnix(endpoint); ok {
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
	}
	var err error
	t.TLSClientConfig, err = f.config()
	return &http.Client{Transport: t}, err
}

// config trusts the authority that was given, else exactly the node's own
// certificate, else the authorities of the system.
func (f *probeFiles) config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	switch {
	case f.ca != "":
		text, err := os.ReadFile(f.ca)
		if err != nil {
			return nil, fmt.Errorf("--cacert: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("--cacert: %s has no PEM certificate", f.ca)
		}
	case f.own != "":
		if err := f.expectOwn(c); err != nil {
			return nil, err
		}
	}
	return c, f.show(c)
}

// expectOwn accepts exactly the node's own certificate. Its names do not matter:
// it need not name the loopback address that a health check uses.
func (f *probeFiles) expectOwn(c *tls.Config) error {
	own, err := tls.LoadX509KeyPair(f.own, f.ownKey)
	if err != nil {
		return fmt.Errorf("KVD_TLS_CERT_FILE: %w", err)
	}
	c.InsecureSkipVerify = true // VerifyConnection, below, is stricter
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if !bytes.Equal(s.PeerCertificates[0].Raw, own.Certificate[0]) {
			return fmt.Errorf("the server presented a certificate other than the one in %s", f.own)
		}
		return nil
	}
	return nil
}

// show sets the certificate to present to a server that asks for one.
func (f *probeFiles) show(c *tls.Config) error {
	cert, key := f.cert, f.key
	if cert == "" && key == "" {
		cert, key = f.own, f.ownKey
	}
	if (cert == "") != (key == "") {
		return errors.New("--cert and --key must be given together")
	}
	if cert == "" {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return fmt.Errorf("load client certificate: %w", err)
	}
	c.Certificates = []tls.Certificate{pair}
	return nil
}
