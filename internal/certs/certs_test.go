package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

var loopback = []string{"127.0.0.1"}

// badCertificates writes certificates that nobody may accept, as NAME.pem of w.
func badCertificates(w *world) (names []string, crl string) {
	w.pair(w.ca, "expired", Order{Hosts: loopback, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)})
	w.pair(newAuthority(w.t, "the authority"), "other authority", Order{Hosts: loopback})
	revoked := w.pair(w.ca, "revoked", Order{Hosts: loopback})
	return []string{"expired", "other authority", "revoked"}, w.revoke(1, revoked)
}

func TestBadCertificatesAreRefusedByListeners(t *testing.T) {
	w := newWorld(t)
	w.pair(w.ca, "server", Order{Hosts: loopback})
	w.pair(w.ca, "good", Order{})
	names, crl := badCertificates(w)
	for _, auth := range []ClientAuth{Request, Require} {
		cfg := w.config("server")
		cfg.CRL, cfg.ClientAuth, cfg.Mutual = crl, auth, false
		addr := serve(t, load(t, cfg))
		if _, err := dialWith(t, w.clientOf("good"), addr); err != nil {
			t.Errorf("auth %d: the good certificate: %v", auth, err)
		}
		_, err := dialWith(t, w.clientOf(""), addr)
		if (err == nil) != (auth == Request) {
			t.Errorf("auth %d: no certificate: %v", auth, err)
		}
		for _, name := range names {
			if _, err := dialWith(t, w.clientOf(name), addr); err == nil {
				t.Errorf("auth %d: %s was let in", auth, name)
			}
		}
	}
	addr := serve(t, load(t, w.config("server")))
	if _, err := dialWith(t, w.clientOf("good"), addr); err == nil {
		t.Error("a mere client was let in among equals")
	}
	if _, err := dialWith(t, w.clientOf("server"), addr); err != nil {
		t.Errorf("an equal: %v", err)
	}
}

func TestBadCertificatesAreRefusedByThoseWhoConnect(t *testing.T) {
	w := newWorld(t)
	w.pair(w.ca, "caller", Order{Hosts: loopback})
	w.pair(w.ca, "server", Order{Hosts: loopback})
	w.pair(w.ca, "other name", Order{Hosts: []string{"n2.example", "127.0.0.2"}})
	names, crl := badCertificates(w)
	cfg := w.config("caller")
	cfg.CRL = crl
	caller := load(t, cfg)
	for _, name := range append(names, "other name", "server") {
		server := w.config(name)
		server.Mutual, server.ClientAuth = false, Off // so that nothing else refuses
		_, err := call(t, caller, serve(t, load(t, server)))
		if (err == nil) != (name == "server") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A session must not be resumed if its certificate was revoked, or its authority
// dropped, after the session began.
func TestSessionsOfRevokedCertificatesDoNotResume(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, how := range []string{"revoked", "authority dropped"} {
			t.Run(tls.VersionName(version)+" "+how, func(t *testing.T) {
				w := newWorld(t)
				other := newAuthority(t, "another")
				w.pair(w.ca, "server", Order{Hosts: loopback})
				cert := w.pair(other, "client", Order{})
				cfg := w.config("server")
				cfg.Mutual = false
				w.write("ca.pem", slices.Concat(w.ca.CertPEM, other.CertPEM))
				list, _ := other.Revoke(1, time.Now().Add(time.Hour))
				cfg.CRL = w.write("crl.pem", list)
				b := load(t, cfg)
				addr := serve(t, b)
				client := w.clientOf("client")
				client.MaxVersion, client.ClientSessionCache = version, tls.NewLRUClientSessionCache(8)
				for i := range 2 {
					c, err := dialWith(t, client, addr)
					if err != nil {
						t.Fatal(err)
					}
					if resumed := c.ConnectionState().DidResume; resumed != (i == 1) {
						t.Fatalf("connection %d: resumed %v", i, resumed)
					}
				}
				if how == "revoked" {
					list, _ := other.Revoke(2, time.Now().Add(time.Hour), cert)
					w.write("crl.pem", list)
				} else {
					list, _ := w.ca.Revoke(1, time.Now().Add(time.Hour))
					w.write("crl.pem", list)
					w.write("ca.pem", w.ca.CertPEM)
				}
				if err := b.Reload(); err != nil {
					t.Fatal(err)
				}
				if _, err := dialWith(t, client, addr); err == nil {
					t.Error("the session was resumed")
				}
			})
		}
	}
}

func TestOpenConnectionsOfRevokedCertificatesAreClosed(t *testing.T) {
	w := newWorld(t)
	server := w.pair(w.ca, "server", Order{Hosts: loopback})
	caller := w.pair(w.ca, "caller", Order{Hosts: loopback})
	crl := w.revoke(1)
	bundles := map[string]*Bundle{}
	for _, name := range []string{"server", "caller"} {
		cfg := w.config(name)
		cfg.CRL = crl
		bundles[name] = load(t, cfg)
	}
	addr := serve(t, bundles["server"])
	for number, revoked := range map[string]*x509.Certificate{"server": caller, "caller": server} {
		w.revoke(2)
		c, err := call(t, bundles["caller"], addr)
		if err != nil {
			t.Fatal(err)
		}
		w.revoke(3, revoked)
		if err := bundles[number].Reload(); err != nil {
			t.Fatal(err)
		}
		if err := echo(c); err == nil || err == errTooLong {
			t.Errorf("the connection lives on after the %s saw the other's certificate revoked: %v", number, err)
		}
		w.revoke(4)
		if err := bundles[number].Reload(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAuthorityRotates trusts both authorities, then presents certificates of the new
// one, then drops the old one. No step may refuse a member.
func TestAuthorityRotates(t *testing.T) {
	w := newWorld(t)
	old, next := w.ca, newAuthority(t, "the next")
	var bundles []*Bundle
	for _, name := range []string{"one", "two"} {
		w.pair(old, name, Order{Hosts: loopback})
		cfg := w.config(name)
		cfg.CA = w.write(name+"-ca.pem", old.CertPEM)
		bundles = append(bundles, load(t, cfg))
	}
	addr := serve(t, bundles[0])
	steps := []func(name string){
		func(name string) { w.write(name+"-ca.pem", slices.Concat(old.CertPEM, next.CertPEM)) },
		func(name string) { w.pair(next, name, Order{Hosts: loopback}) },
		func(name string) { w.write(name+"-ca.pem", next.CertPEM) },
	}
	for i, step := range steps {
		for j, name := range []string{"one", "two"} {
			step(name)
			if err := bundles[j].Reload(); err != nil {
				t.Fatalf("step %d of %s: %v", i, name, err)
			}
			if _, err := call(t, bundles[1], addr); err != nil {
				t.Errorf("after step %d of %s: %v", i, name, err)
			}
		}
	}
	w.pair(old, "late", Order{Hosts: loopback})
	if _, err := dialWith(t, w.clientOf("late"), addr); err == nil {
		t.Error("a certificate of the dropped authority was let in")
	}
}

// Files that were changed one by one, or are invalid, are not loaded: the previous ones
// stay in use until all files fit together.
func TestHalfWrittenPairsKeepTheOldOnes(t *testing.T) {
	w := newWorld(t)
	first := w.pair(w.ca, "server", Order{Hosts: loopback})
	w.pair(w.ca, "client", Order{})
	cfg := w.config("server")
	cfg.Mutual = false
	b := load(t, cfg)
	addr := serve(t, b)
	cert, key, err := w.ca.Issue(Order{Name: "server", Hosts: loopback, NotAfter: time.Now().Add(2 * time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	w.write("server.pem", cert)
	if b.poll(); b.Counts() != (Counts{Failures: 1}) {
		t.Errorf("half a pair: %+v", b.Counts())
	}
	if b.poll(); b.Counts().Failures != 1 {
		t.Errorf("the same mistake counts again: %+v", b.Counts())
	}
	if err := b.Reload(); err == nil || !strings.Contains(err.Error(), "server-key.pem") {
		t.Errorf("Reload says %v", err)
	}
	if !b.NotAfter().Equal(first.NotAfter) {
		t.Error("the new certificate is in use without its key")
	}
	if _, err := dialWith(t, w.clientOf("client"), addr); err != nil {
		t.Errorf("the old pair no longer serves: %v", err)
	}
	w.write("server-key.pem", key)
	if b.poll(); b.Counts().Reloads != 1 || b.NotAfter().Equal(first.NotAfter) {
		t.Errorf("the whole pair: %+v", b.Counts())
	}
	w.write("server.pem", []byte("nonsense"))
	if b.poll(); b.NotAfter().Equal(first.NotAfter) || b.Counts().Failures != 2 {
		t.Errorf("nonsense: %+v", b.Counts())
	}
	if err := os.Remove(filepath.Join(w.dir, "server.pem")); err != nil {
		t.Fatal(err)
	}
	if b.poll(); b.Counts().Failures != 3 {
		t.Errorf("a missing file: %+v", b.Counts())
	}
}

// TestSwappedDirectoriesAreNoticed swaps a directory by a symbolic link, as Kubernetes
// does.
func TestSwappedDirectoriesAreNoticed(t *testing.T) {
	w := newWorld(t)
	cfg := w.config("data/server")
	for _, version := range []string{"v1", "v2"} {
		if err := os.Mkdir(filepath.Join(w.dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	first := w.pair(w.ca, "v1/server", Order{Hosts: loopback})
	second := w.pair(w.ca, "v2/server", Order{Hosts: loopback, NotAfter: time.Now().Add(2 * time.Hour)})
	swap := func(version string) {
		t.Helper()
		link := filepath.Join(w.dir, "next")
		if err := os.Symlink(version, link); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(link, filepath.Join(w.dir, "data")); err != nil {
			t.Fatal(err)
		}
	}
	swap("v1")
	b := load(t, cfg)
	if !b.NotAfter().Equal(first.NotAfter) {
		t.Fatal("not the first")
	}
	swap("v2")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go b.watch(ctx, time.Millisecond)
	for !b.NotAfter().Equal(second.NotAfter) {
		if t.Context().Err() != nil {
			t.Fatal("not noticed")
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	w := newWorld(t)
	other := newAuthority(t, "the authority") // the same name
	w.pair(w.ca, "good", Order{Hosts: loopback})
	w.pair(w.ca, "clients only", Order{})
	w.pair(other, "foreign", Order{Hosts: loopback})
	foreignList, err := other.Revoke(1, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		pair   string
		change func(*Config)
		says   string
	}{
		"no file":             {"absent", func(*Config) {}, "absent.pem"},
		"another host":        {"good", func(c *Config) { c.Hosts = []string{"127.0.0.1", "n1.example"} }, "n1.example"},
		"not for servers":     {"clients only", func(*Config) {}, "serverAuth"},
		"not by the CA":       {"foreign", func(*Config) {}, "not signed by an authority"},
		"a list by no CA":     {"good", func(c *Config) { c.CRL = w.write("foreign-crl.pem", foreignList) }, "is not signed by that authority"},
		"a list of no kind":   {"good", func(c *Config) { c.CRL = c.CA }, "not a revocation list"},
		"authorities of none": {"good", func(c *Config) { c.CA = w.write("empty", nil) }, "contains no PEM certificate"},
		"no authority":        {"good", func(c *Config) { c.CA = c.Cert }, "is not a certificate authority"},
	} {
		cfg := w.config(c.pair)
		c.change(&cfg)
		if _, err := Load(cfg); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNames(t *testing.T) {
	w := newWorld(t)
	cert := w.pair(w.ca, "m", Order{Hosts: []string{"n1.example", "*.kvd.svc", "10.0.0.1", "fd00::1"}})
	state := &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
	for url, want := range map[string]bool{
		"https://n1.example:1": true, "https://N1.example:1": true, "https://a.kvd.svc:1": true, "https://10.0.0.1:1": true, "https://[fd00::1]:1": true,
		"https://n2.example:1": false, "https://a.b.kvd.svc:1": false, "https://10.0.0.2:1": false, "https://m:1": false, ":": false,
	} {
		if err := Names(state, []string{"https://elsewhere:1", url}); (err == nil) != want {
			t.Errorf("%s: %v", url, err)
		}
	}
	if Names(nil, []string{"https://n1.example:1"}) == nil || Names(state, nil) == nil {
		t.Error("nothing names nobody")
	}
}

// TestWarnings: files that work, but probably not as their owner thinks.
func TestWarnings(t *testing.T) {
	w := newWorld(t)
	w.pair(w.ca, "node", Order{Hosts: []string{"a.example.com", "10.0.0.1"}})
	key := filepath.Join(w.dir, "node-key.pem")
	for _, c := range []struct {
		name     string
		mode     os.FileMode
		expected []string
		want     []string
	}{
		{"nothing wrong", 0o600, []string{"10.0.0.9", "a.example.com"}, nil},
		{"no host expected", 0o400, nil, nil},
		{"other hosts", 0o600, []string{"10.0.0.9", "b.example.com"}, []string{"names none of the hosts"}},
		{"readable key", 0o640, []string{"10.0.0.1"}, []string{"private key can be read"}},
		{"both", 0o604, []string{"b.example.com"}, []string{"names none of the hosts", "private key can be read"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := os.Chmod(key, c.mode); err != nil {
				t.Fatal(err)
			}
			core, logs := observer.New(zap.WarnLevel)
			_, err := Load(Config{Files: Files{Cert: filepath.Join(w.dir, "node.pem"), Key: key}, Expected: c.expected, Logger: zap.New(core)})
			if err != nil {
				t.Fatal(err)
			}
			all := logs.All()
			if len(all) != len(c.want) {
				t.Fatalf("logged %v, want %q", all, c.want)
			}
			for i, want := range c.want {
				if !strings.Contains(all[i].Message, want) {
					t.Errorf("logged %q, want %q", all[i].Message, want)
				}
			}
		})
	}
}
