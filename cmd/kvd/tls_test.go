package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/kvd-io/kvd/internal/certs"
	"github.com/kvd-io/kvd/internal/settings"
)

// tlsFiles is an authority with a directory of certificates.
type tlsFiles struct {
	ca   *certs.Authority
	dir  string
	pool *x509.CertPool // what the test's clients trust
}

func newTLSFiles(t *testing.T) *tlsFiles {
	t.Helper()
	f := &tlsFiles{dir: t.TempDir(), pool: x509.NewCertPool()}
	f.ca = f.newAuthority(t)
	f.write(t, "ca.pem", f.ca.CertPEM)
	f.issue(t, f.ca, "member", certs.Order{Hosts: loopbackNames})
	f.issue(t, f.ca, "client", certs.Order{})
	return f
}

func (f *tlsFiles) newAuthority(t *testing.T) *certs.Authority {
	t.Helper()
	ca, err := certs.NewAuthority("a test", time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	f.pool.AppendCertsFromPEM(ca.CertPEM)
	return ca
}

func (f *tlsFiles) path(name string) string { return filepath.Join(f.dir, name) }

func (f *tlsFiles) write(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(f.path(name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (f *tlsFiles) issue(t *testing.T, ca *certs.Authority, name string, o certs.Order) *x509.Certificate {
	t.Helper()
	if o.Name = name; o.NotAfter.IsZero() {
		o.NotAfter = time.Now().Add(time.Hour)
	}
	cert, key, err := ca.Issue(o)
	if err != nil {
		t.Fatal(err)
	}
	f.write(t, name+".pem", cert)
	f.write(t, name+"-key.pem", key)
	block, _ := pem.Decode(cert)
	parsed, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func (f *tlsFiles) revoke(t *testing.T, number int64, revoked ...*x509.Certificate) {
	t.Helper()
	list, err := f.ca.Revoke(number, time.Now().Add(time.Hour), revoked...)
	if err != nil {
		t.Fatal(err)
	}
	f.write(t, "crl.pem", list)
}

// load returns the certificates that a node loads from the files.
func (f *tlsFiles) load(t *testing.T) certificates {
	t.Helper()
	c, err := loadCertificates(&settings.Settings{
		TLSCertFile: f.path("member.pem"), TLSKeyFile: f.path("member-key.pem"), TLSCAFile: f.path("ca.pem"), TLSClientAuth: "require",
		PeerCertFile: f.path("member.pem"), PeerKeyFile: f.path("member-key.pem"), PeerCAFile: f.path("ca.pem"),
	}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// flags returns the flags for the listeners of clients and members.
func (f *tlsFiles) flags(member string) []string {
	return []string{
		"--tls-cert-file", f.path(member + ".pem"), "--tls-key-file", f.path(member + "-key.pem"), "--tls-ca-file", f.path("ca.pem"),
		"--peer-cert-file", f.path(member + ".pem"), "--peer-key-file", f.path(member + "-key.pem"), "--peer-ca-file", f.path("ca.pem"),
	}
}

// client returns a client that presents the certificate of that name, or none
// for "", whether the server asks for one or not.
func (f *tlsFiles) client(t *testing.T, name string, change ...func(*http.Transport)) *http.Client {
	t.Helper()
	cfg := &tls.Config{RootCAs: f.pool}
	if name != "" {
		pair, err := tls.LoadX509KeyPair(f.path(name+".pem"), f.path(name+"-key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	rt := &http.Transport{TLSClientConfig: cfg}
	for _, c := range change {
		c(rt)
	}
	return &http.Client{Transport: rt, Timeout: patience}
}

func freeSecureURL(t *testing.T) string {
	return "https" + strings.TrimPrefix(freeURL(t), "http")
}

// startSecure starts a node; peers has the URLs of all, one for each id.
func startSecure(t *testing.T, id int, peers []string, client string, log *os.File, flags []string) *daemonProcess {
	t.Helper()
	p := &daemonProcess{client: client, ended: make(chan error, 1)}
	p.cmd = command(t, []string{"HTTPS_PROXY=http://127.0.0.1:1", "HTTP_PROXY=http://127.0.0.1:1"},
		append(flags, "--id", fmt.Sprint(id), "--cluster", strings.Join(peers, ","), "--listen-client", client, "--engine", "memory")...)
	p.cmd.Stderr = log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.ended <- p.cmd.Wait() }()
	t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Kill() // it has ended if this fails
		}
	})
	return p
}

func awaitSecure(t *testing.T, c *http.Client, p *daemonProcess) {
	t.Helper()
	await(t, "the node is ready", func() error { return probe(c, p.client+"/readyz") })
}

func await(t *testing.T, what string, done func() error) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	pace := time.NewTicker(20 * time.Millisecond)
	defer pace.Stop()
	for {
		err := done()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("not seen: %s: %v", what, err)
		case <-pace.C:
		}
	}
}

// TestClientListenerRefusesBadCertificates: one that is revoked, expired or of
// another authority, and none at all; and a connection ends when its certificate
// is revoked.
func TestClientListenerRefusesBadCertificates(t *testing.T) {
	f := newTLSFiles(t)
	f.issue(t, f.ca, "expired", certs.Order{NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)})
	f.issue(t, f.newAuthority(t), "other authority", certs.Order{})
	revoked, later := f.issue(t, f.ca, "revoked", certs.Order{}), f.issue(t, f.ca, "revoked later", certs.Order{})
	f.revoke(t, 1, revoked)
	p := startSecure(t, 1, []string{freeSecureURL(t)}, freeSecureURL(t), nil, append(f.flags("member"), "--tls-crl-file", f.path("crl.pem")))
	good := f.client(t, "client")
	awaitSecure(t, good, p)
	for _, name := range []string{"", "expired", "other authority", "revoked"} {
		if resp, err := f.client(t, name).Get(p.client + "/v1/status"); err == nil {
			_ = resp.Body.Close()
			t.Errorf("%q is let in: %s", name, resp.Status)
		}
	}
	wrong := f.client(t, "client", func(rt *http.Transport) { rt.TLSClientConfig.ServerName = "n1.example" })
	if resp, err := wrong.Get(p.client + "/v1/status"); err == nil {
		_ = resp.Body.Close()
		t.Error("the server's certificate names whatever is asked")
	}
	plain := "http" + strings.TrimPrefix(p.client, "https")
	if resp, err := http.Get(plain + "/v1/status"); err == nil {
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("without TLS: %s", resp.Status)
		}
	}
	endsWithRevocation(t, f, p, later, revoked)
	resp, err := good.Get(p.client + "/v1/status")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
}

func endsWithRevocation(t *testing.T, f *tlsFiles, p *daemonProcess, revoked ...*x509.Certificate) {
	t.Helper()
	cfg := f.client(t, "revoked later").Transport.(*http.Transport).TLSClientConfig
	cfg.ServerName = "127.0.0.1"
	conn, err := tls.Dial("tcp", strings.TrimPrefix(p.client, "https://"), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	f.revoke(t, 2, revoked...)
	_ = conn.SetReadDeadline(time.Now().Add(patience)) // idle connections may live for two minutes
	if _, err := conn.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("the connection lives on: %v", err)
	}
}

// A handshake that a client begins and does not continue is ended, on both
// listeners.
func TestHandshakesHaveADeadline(t *testing.T) {
	t.Parallel()
	f := newTLSFiles(t)
	peer := freeSecureURL(t)
	p := startSecure(t, 1, []string{peer}, freeSecureURL(t), nil, f.flags("member"))
	awaitSecure(t, f.client(t, "client"), p)
	stuck := make(map[string]net.Conn)
	for _, url := range []string{peer, p.client} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(url, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte{22, 3, 1}); err != nil { // a ClientHello begins like this
			t.Fatal(err)
		}
		stuck[url] = conn
	}
	for url, conn := range stuck { // both wait at the same time
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.Copy(io.Discard, conn); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestHTTP2WithTLSAndWithout(t *testing.T) {
	f := newTLSFiles(t)
	secure, plain := freeSecureURL(t), freeURL(t)
	p := startSecure(t, 1, []string{freeSecureURL(t)}, secure+","+plain, nil, f.flags("member"))
	p.client = secure
	c := f.client(t, "client", func(rt *http.Transport) { rt.ForceAttemptHTTP2 = true })
	awaitSecure(t, c, p)
	prior := new(http.Protocols)
	prior.SetUnencryptedHTTP2(true)
	for url, client := range map[string]*http.Client{secure: c, plain: {Transport: &http.Transport{Protocols: prior}}} {
		resp, err := client.Get(url + "/v1/status")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK || resp.ProtoMajor != 2 {
			t.Errorf("%s: %s %s", url, resp.Proto, resp.Status)
		}
	}
	minimum := f.client(t, "client", func(rt *http.Transport) { rt.TLSClientConfig.MaxVersion = tls.VersionTLS11 })
	if resp, err := minimum.Get(secure + "/v1/status"); err == nil {
		_ = resp.Body.Close()
		t.Error("TLS 1.1 is spoken")
	}
}

func TestHealthcheckWithTLS(t *testing.T) {
	f := newTLSFiles(t)
	f.issue(t, f.ca, "member", certs.Order{Hosts: []string{"127.0.0.1"}})
	dir, err := os.MkdirTemp("", "kvd") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	url, socket := freeSecureURL(t), "unix://"+filepath.Join(dir, "kvd.sock")
	p := startSecure(t, 1, []string{freeSecureURL(t)}, url+","+socket, nil, f.flags("member"))
	p.client = url
	awaitSecure(t, f.client(t, "client"), p)
	node := []string{
		"KVD_LISTEN_CLIENT=" + p.client, "KVD_TLS_CERT_FILE=" + f.path("member.pem"), "KVD_TLS_KEY_FILE=" + f.path("member-key.pem"),
		"KVD_TLS_CA_FILE=" + f.path("ca.pem"),
	}
	f.issue(t, f.ca, "impostor", certs.Order{Hosts: []string{"127.0.0.1"}})
	impostor := append(node[:1:1], "KVD_TLS_CERT_FILE="+f.path("impostor.pem"), "KVD_TLS_KEY_FILE="+f.path("impostor-key.pem"))
	said := []string{"--endpoint", p.client, "--cacert", f.path("ca.pem"), "--cert", f.path("client.pem"), "--key", f.path("client-key.pem")}
	for _, c := range []struct {
		what string
		env  []string
		args []string
		code int
		says string
	}{
		{"the node's own settings", node, nil, exitOK, ""},
		{"the node's own settings, readiness", node, []string{"--ready"}, exitOK, ""},
		{"a socket", []string{"KVD_LISTEN_CLIENT=" + socket}, []string{"--ready"}, exitOK, ""},
		{"said", nil, said, exitOK, ""},
		// The reason is lost if the connection breaks before it is read.
		{"no certificate shown", nil, said[:4], exitFailed, "health check: "},
		{"an unknown authority", nil, said[:2], exitFailed, "certificate"},
		{"another certificate than the node's", impostor, nil, exitFailed, "other than the one in"},
		{"half a pair", nil, said[:6], exitUsage, "--cert and --key must be given together"},
		{"no such file", nil, []string{"--endpoint", p.client, "--cacert", f.path("none")}, exitUsage, "--cacert"},
	} {
		out, err := command(t, c.env, append([]string{"healthcheck"}, c.args...)...).CombinedOutput()
		if code := codeOf(t, err); code != c.code || !strings.Contains(string(out), c.says) {
			t.Errorf("%s: exit code %d: %s", c.what, code, out)
		}
	}
}
