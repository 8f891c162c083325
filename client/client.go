package client

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Config configures a Client. Only Endpoints is required.
type Config struct {
	// Endpoints are the client URLs of the cluster's nodes, for example
	// http://127.0.0.1:12380, https://kvd1.example.com:12380, or
	// unix:///run/kvd/client.sock.
	Endpoints []string
	// TLS configures https endpoints; nil means the system's authorities and no
	// client certificate.
	TLS *tls.Config
	// Credentials: at most one of Token, TokenFile, and User with Password. A certificate in
	// TLS or a Unix socket authenticates the client without them. Token is the secret of a
	// token, and TokenFile a file with one, which is read again when it changes. With User
	// and Password, the client logs in, and logs in again before its token expires.
	Token          string
	TokenFile      string
	User, Password string
	// HTTP2 speaks HTTP/2 to http and unix endpoints, too. With https it is always
	// offered.
	HTTP2 bool
	// AttemptTimeout bounds the silence of a node within one attempt, 6 s by default.
	// It is what a node that hangs costs before the next one is tried. With the
	// default, a node that is alive gives its reason first.
	AttemptTimeout time.Duration
}

// Client is a client of one cluster. It is safe for concurrent use.
type Client struct {
	sender
}

// defaultAttempt is longer than the default of the parameter timeout: a node that
// finds no leader says so, and then it is certain that nothing was done.
const defaultAttempt = 6 * time.Second

// New returns a client. It does not connect yet.
func New(cfg Config) (*Client, error) {
	if len(cfg.Endpoints) == 0 {
		return nil, errors.New("kvd client: no endpoints; give the client URL of at least one node")
	}
	var id [12]byte
	_, _ = rand.Read(id[:]) // never fails
	c := &Client{sender{attempt: cfg.AttemptTimeout, keyPrefix: hex.EncodeToString(id[:])}}
	var err error
	if c.credentials, err = newCredentials(&cfg); err != nil {
		return nil, err
	}
	if c.attempt <= 0 {
		c.attempt = defaultAttempt
	}
	for _, text := range cfg.Endpoints {
		e, err := newEndpoint(text, &cfg)
		if err != nil {
			return nil, fmt.Errorf("kvd client: endpoint %q: %w", text, err)
		}
		c.endpoints = append(c.endpoints, e)
	}
	return c, nil
}

// endpoint is one node with its connections.
type endpoint struct {
	base      string // scheme and host
	http      *http.Client
	transport *http.Transport
}

func newEndpoint(text string, cfg *Config) (*endpoint, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, err
	}
	t := newTransport(cfg)
	e := &endpoint{base: u.Scheme + "://" + u.Host, transport: t, http: &http.Client{Transport: t}}
	switch {
	case u.Scheme == "unix" && u.Host == "" && u.Path != "":
		path := u.Path
		e.base, t.Proxy = "http://localhost", nil
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("the scheme must be http, https, or unix")
	case u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil:
		return nil, errors.New("expected only a scheme and a host with a port, for example http://127.0.0.1:12380")
	}
	return e, nil
}

func newTransport(cfg *Config) *http.Transport {
	t := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		TLSClientConfig:     cfg.TLS.Clone(), // net/http changes it
		DisableCompression:  true,
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     90 * time.Second,
		Protocols:           new(http.Protocols),
		// All requests share a connection then, so a dead one must be noticed.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 10 * time.Second},
	}
	t.Protocols.SetHTTP2(true)
	t.Protocols.SetHTTP1(!cfg.HTTP2)
	t.Protocols.SetUnencryptedHTTP2(cfg.HTTP2)
	return t
}

// Close closes idle connections. Requests in progress go on.
func (c *Client) Close() {
	for _, e := range c.endpoints {
		e.transport.CloseIdleConnections()
	}
}
