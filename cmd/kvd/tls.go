package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"sync"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/certs"
	"github.com/kvd-io/kvd/internal/settings"
)

// certificates are those that the node presents to clients and to members, with
// the authorities by which it judges theirs. A bundle is nil without TLS.
type certificates struct {
	clients *certs.Bundle
	members *certs.Bundle
}

// loadCertificates reads the files named by the settings.
func loadCertificates(s *settings.Settings, log *zap.Logger) (c certificates, err error) {
	if s.TLSCertFile != "" {
		c.clients, err = certs.Load(certs.Config{
			Name:       "clients",
			Files:      certs.Files{Cert: s.TLSCertFile, Key: s.TLSKeyFile, CA: s.TLSCAFile, CRL: s.TLSCRLFile},
			MinVersion: s.TLSMinVersion, ClientAuth: clientAuth(s.TLSClientAuth),
			Protocols: []string{"h2", "http/1.1"}, Expected: dialledHosts(s), Logger: log,
		})
		if err != nil {
			return c, usageError{fmt.Errorf("TLS for clients (%s): %w", s.Describe("tls-cert-file"), err)}
		}
	}
	if s.PeerCertFile != "" {
		c.members, err = certs.Load(certs.Config{
			Name:       "members",
			Files:      certs.Files{Cert: s.PeerCertFile, Key: s.PeerKeyFile, CA: s.PeerCAFile, CRL: s.PeerCRLFile},
			MinVersion: s.TLSMinVersion, ClientAuth: certs.Require, Mutual: true, Hosts: hostsOf(s.AdvertisePeer),
			Protocols: []string{"http/1.1"}, Logger: log,
		})
		if err != nil {
			return c, usageError{fmt.Errorf("TLS for members (%s): %w", s.Describe("peer-cert-file"), err)}
		}
	}
	return c, nil
}

// clientAuth translates --tls-client-auth, whose values the settings have checked.
func clientAuth(text string) certs.ClientAuth {
	switch text {
	case "require":
		return certs.Require
	case "request":
		return certs.Request
	}
	return certs.Off
}

// hostsOf returns the hosts of the URLs, without ports.
func hostsOf(urls []string) (hosts []string) {
	for _, text := range urls {
		if u, err := url.Parse(text); err == nil && u.Hostname() != "" {
			hosts = append(hosts, u.Hostname())
		}
	}
	return hosts
}

// dialledHosts returns the hosts under which clients are expected to connect.
// A wildcard (0.0.0.0) is not one of them, and a unix socket has none.
func dialledHosts(s *settings.Settings) (hosts []string) {
	for _, u := range slices.Concat(s.AdvertiseClient, s.ListenClient) {
		if !settings.IsWildcard(u) {
			hosts = append(hosts, hostsOf([]string{u})...)
		}
	}
	return hosts
}

// ownNames returns the names by which browsers may address this node, and others
// over loopback: those that it advertises, those in the settings, and the machine's.
// Requests for any other name are refused, because a web page could have caused them
// (DNS rebinding).
func ownNames(s *settings.Settings) []string {
	names := append(hostsOf(slices.Concat(s.AdvertiseClient, s.ListenClient, s.AdvertisePeer)), s.AllowedHosts...)
	if machine, err := os.Hostname(); err == nil {
		names = append(names, machine)
	}
	return names
}

// all returns the bundles that exist.
func (c certificates) all() (out []*certs.Bundle) {
	for _, b := range []*certs.Bundle{c.clients, c.members} {
		if b != nil {
			out = append(out, b)
		}
	}
	return out
}

// watch loads changed files until the returned function is called.
func (c certificates) watch() (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	for _, b := range c.all() {
		watching.Go(func() { b.Watch(ctx) })
	}
	return func() { cancel(); watching.Wait() }
}

// reload loads changed files immediately, for SIGHUP.
func (c certificates) reload(*settings.Settings) error {
	var problems []error
	for _, b := range c.all() {
		problems = append(problems, b.Reload())
	}
	return errors.Join(problems...)
}
