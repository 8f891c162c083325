package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/certs"
	"github.com/kvd-io/kvd/internal/peers"
	"github.com/kvd-io/kvd/internal/raftnode"
	"github.com/kvd-io/kvd/internal/roster"
)

// trust is an authority with a directory of certificates.
type trust struct {
	t   *testing.T
	ca  *certs.Authority
	dir string
}

func newTrust(t *testing.T) *trust {
	t.Helper()
	// Every member has a host of its own; otherwise there is nothing to
	// bind a certificate to.
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Skipf("this machine has no second loopback address: %v", err)
	}
	_ = l.Close()
	ca, err := certs.NewAuthority("the members", time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	tr := &trust{t: t, ca: ca, dir: t.TempDir()}
	tr.write("ca.pem", ca.CertPEM)
	tr.revoke(1)
	return tr
}

func (tr *trust) path(name string) string { return filepath.Join(tr.dir, name) }

func (tr *trust) write(name string, data []byte) {
	tr.t.Helper()
	if err := os.WriteFile(tr.path(name), data, 0o600); err != nil {
		tr.t.Fatal(err)
	}
}

// issue writes NAME.pem and NAME-key.pem, signed by the authority of tr or
// another.
func (tr *trust) issue(ca *certs.Authority, name string, o certs.Order) *x509.Certificate {
	tr.t.Helper()
	if o.Name = name; o.NotAfter.IsZero() {
		o.NotAfter = time.Now().Add(time.Hour)
	}
	cert, key, err := ca.Issue(o)
	if err != nil {
		tr.t.Fatal(err)
	}
	tr.write(name+".pem", cert)
	tr.write(name+"-key.pem", key)
	block, _ := pem.Decode(cert)
	parsed, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		tr.t.Fatal(err)
	}
	return parsed
}

func (tr *trust) revoke(number int64, revoked ...*x509.Certificate) {
	tr.t.Helper()
	list, err := tr.ca.Revoke(number, time.Now().Add(time.Hour), revoked...)
	if err != nil {
		tr.t.Fatal(err)
	}
	tr.write("crl.pem", list)
}

// bundle is what a member has, under its own name.
func (tr *trust) bundle(name string) *certs.Bundle {
	tr.t.Helper()
	b, err := certs.Load(certs.Config{
		Name:       name,
		Files:      certs.Files{Cert: tr.path(name + ".pem"), Key: tr.path(name + "-key.pem"), CA: tr.path("ca.pem"), CRL: tr.path("crl.pem")},
		ClientAuth: certs.Require, Mutual: true,
	})
	if err != nil {
		tr.t.Fatal(err)
	}
	return b
}

func memberHost(id int) string { return fmt.Sprintf("127.0.0.%d", id) }

func (tr *trust) memberURL(id int) string {
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(freeURL(tr.t), "http://"))
	return "https://" + net.JoinHostPort(memberHost(id), port)
}

// startSecure runs n members with TLS, each with a host and a certificate of
// its own.
func (tr *trust) startSecure(n int) (members []*testNode) {
	tr.t.Helper()
	var initial []Peer
	for i := range n {
		initial = append(initial, Peer{ID: uint64(i + 1), URL: tr.memberURL(i + 1)})
	}
	for i := range n {
		name := fmt.Sprint("m", i+1)
		tr.issue(tr.ca, name, certs.Order{Hosts: []string{memberHost(i + 1)}})
		members = append(members, start(tr.t, Config{
			ID: uint64(i + 1), DataDir: tr.t.TempDir(), Engine: "memory", ListenPeer: initial[i].URL,
			Initial: initial, TickInterval: 20 * time.Millisecond, TLS: tr.bundle(name),
		}))
	}
	for _, m := range members {
		m.awaitReady(tr.t)
	}
	return members
}

// client presents the certificate, whatever it is, and accepts any server's.
func (tr *trust) client(name string) *http.Client {
	tr.t.Helper()
	cfg := &tls.Config{InsecureSkipVerify: true}
	if name != "" {
		pair, err := tls.LoadX509KeyPair(tr.path(name+".pem"), tr.path(name+"-key.pem"))
		if err != nil {
			tr.t.Fatal(err)
		}
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}, Timeout: 20 * time.Second}
}

// askPeer sends a request to the peer listener as rafthttp and the calls do.
func askPeer(t *testing.T, c *http.Client, m *testNode, method, path, from string, body []byte) (status int, answer string, err error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel() // streams never end by themselves
	req, err := http.NewRequestWithContext(ctx, method, m.cfg.ListenPeer+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Etcd-Cluster-ID", fmt.Sprintf("%x", m.identity.Load().Cluster))
	if from != "" {
		req.Header.Set("X-Server-From", from)
	}
	req.Header.Set("X-Server-Version", "3.7.0")
	req.Header.Set("X-Min-Cluster-Version", "3.0.0")
	req.Header.Set("X-Raft-To", fmt.Sprintf("%x", m.cfg.ID))
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK && method == http.MethodGet {
		return resp.StatusCode, "", nil
	}
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data), err
}

// TestPeerListenerRefusesBadCertificates: none of these gets a request through
// to the peer listener, whatever it asks.
func TestPeerListenerRefusesBadCertificates(t *testing.T) {
	tr := newTrust(t)
	m := tr.startSecure(1)[0]
	own := []string{memberHost(1)}
	stranger, err := certs.NewAuthority("the members", time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	tr.issue(tr.ca, "expired", certs.Order{Hosts: own, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)})
	tr.issue(stranger, "other authority", certs.Order{Hosts: own})
	tr.issue(tr.ca, "client only", certs.Order{})
	tr.issue(tr.ca, "good", certs.Order{Hosts: []string{"127.0.0.9"}})
	tr.revoke(2, tr.issue(tr.ca, "revoked", certs.Order{Hosts: own}))
	if err := m.cfg.TLS.Reload(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "expired", "other authority", "client only", "revoked"} {
		for _, path := range []string{pathInfo, "/raft/stream/message/2", "/raft/probing"} {
			if status, _, err := askPeer(t, tr.client(name), m, http.MethodPost, path, "2", []byte("{}")); err == nil {
				t.Errorf("%q on %s: status %d", name, path, status)
			}
		}
	}
	if status, _, err := askPeer(t, tr.client("good"), m, http.MethodPost, pathInfo, "2", []byte("{}")); err != nil || status != http.StatusOK {
		t.Errorf("a good one: %d, %v", status, err)
	}
	plain := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := plain.Post("http"+strings.TrimPrefix(m.cfg.ListenPeer, "https")+pathInfo, "", strings.NewReader("{}"))
	if err == nil {
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("without TLS: %s", resp.Status)
		}
	}
}

// TestCertificatesAreBoundToMembers: a good certificate is not enough to speak
// as a member whose host it does not name.
func TestCertificatesAreBoundToMembers(t *testing.T) {
	tr := newTrust(t)
	m := tr.startSecure(2)[0]
	tr.issue(tr.ca, "newcomer", certs.Order{Hosts: []string{"127.0.0.9"}})
	other, newcomer := tr.client("m2"), tr.client("newcomer")
	marshal := func(v any) []byte {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	add := func(url string) []byte {
		return marshal(roster.Change{Kind: roster.AddMember, Member: roster.Member{PeerURLs: []string{url}}})
	}
	admit := marshal(joinRequest{Member: 2, ClusterID: m.identity.Load().Cluster, Nonce: "another"})
	for _, c := range []struct {
		what, method, path, from string
		body                     []byte
		member                   bool // whether member 2 may
	}{
		{"a message", "POST", "/raft", "2", nil, true},
		{"a message in the name of nobody", "POST", "/raft", "7", nil, false},
		{"a snapshot", "POST", "/raft/snapshot", "2", nil, true},
		{"a stream", "GET", "/raft/stream/message/2", "2", nil, true},
		{"a stream of appends", "GET", "/raft/stream/msgapp/2", "2", nil, true},
		{"a watch", "GET", "/raft/watch", "2", nil, true},
		{"its admission", "POST", pathAdmit, "2", admit, true},
		{"a removal", "POST", pathChange, "2", marshal(roster.Change{Kind: roster.RemoveMember, Member: roster.Member{ID: 9}}), true},
		{"adding another", "POST", pathChange, "2", add("https://127.0.0.8:1"), true},
		{"a hand-over", "POST", pathTransfer, "2", marshal(handover{To: 99}), true},
		{"the status", "POST", pathStatus, "2", []byte("{}"), true},
		{"who lags", "POST", pathBehind, "2", []byte("{}"), true},
	} {
		for who, client := range map[string]*http.Client{"newcomer": newcomer, "member 2": other} {
			status, answer, err := askPeer(t, client, m, c.method, c.path, c.from, c.body)
			if err != nil {
				t.Errorf("%s by the %s: %v", c.what, who, err)
				continue
			}
			// What is refused for its process passed the check of its certificate.
			refused := status == http.StatusUnauthorized && !strings.Contains(answer, "clone") || c.from == "7" && status == http.StatusServiceUnavailable
			if want := !c.member || who == "newcomer"; refused != want {
				t.Errorf("%s by the %s: %d %s", c.what, who, status, answer)
			}
		}
	}
	// A newcomer may ask for itself.
	if status, answer, err := askPeer(t, newcomer, m, http.MethodPost, pathChange, "", add("https://127.0.0.9:1")); err != nil || status == http.StatusUnauthorized {
		t.Errorf("a newcomer asks to be added: %d %s %v", status, answer, err)
	}
}

// TestRevokedMemberIsCutOff: the member's streams in both directions end,
// although they began before the revocation, and come back once it gets
// another certificate.
func TestRevokedMemberIsCutOff(t *testing.T) {
	tr := newTrust(t)
	members := tr.startSecure(3)
	reach := func(from, to int) bool {
		return !members[from-1].member.Load().replica.ActiveSince(uint64(to)).IsZero()
	}
	eventually(t, "all connected", func() bool { return reach(1, 3) && reach(2, 3) && reach(3, 1) && reach(3, 2) })
	old := tr.bundleCertificate("m3")
	tr.revoke(2, old)
	for _, m := range members[:2] { // the revoked one may not care
		if err := m.cfg.TLS.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "member 3 cut off", func() bool { return !reach(1, 3) && !reach(2, 3) && !reach(3, 1) && !reach(3, 2) })
	members[0].put(t, "k", "without member 3")
	if _, err := members[2].calls.status(t.Context(), []string{members[0].cfg.ListenPeer}); !errors.Is(err, raftnode.ErrNoLeader) {
		t.Errorf("a call of the revoked member: %v", err) // surely without effect
	}
	if _, err := members[0].calls.status(t.Context(), []string{members[2].cfg.ListenPeer}); !errors.Is(err, raftnode.ErrNoLeader) {
		t.Errorf("a call to the revoked member: %v", err)
	}
	tr.issue(tr.ca, "m3", certs.Order{Hosts: []string{memberHost(3)}})
	if err := members[2].cfg.TLS.Reload(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "member 3 back", func() bool { return reach(1, 3) && reach(2, 3) && reach(3, 1) && reach(3, 2) })
	if got := members[2].get(t, "k"); got != "without member 3" {
		t.Errorf("member 3 reads %q", got)
	}
}

func (tr *trust) bundleCertificate(name string) *x509.Certificate {
	tr.t.Helper()
	pair, err := tls.LoadX509KeyPair(tr.path(name+".pem"), tr.path(name+"-key.pem"))
	if err != nil {
		tr.t.Fatal(err)
	}
	return pair.Leaf
}

// TestMembersJudgeServers: a server that presents a bad certificate, or one
// with another name, gets no streams, messages or calls.
func TestMembersJudgeServers(t *testing.T) {
	tr := newTrust(t)
	m := tr.startSecure(1)[0]
	own := []string{memberHost(2)}
	stranger, err := certs.NewAuthority("the members", time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	tr.issue(tr.ca, "good", certs.Order{Hosts: own})
	tr.issue(tr.ca, "other name", certs.Order{Hosts: []string{memberHost(3), "localhost"}})
	tr.issue(tr.ca, "expired", certs.Order{Hosts: own, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)})
	tr.issue(stranger, "other authority", certs.Order{Hosts: own})
	tr.revoke(2, tr.issue(tr.ca, "revoked", certs.Order{Hosts: own}))
	if err := m.cfg.TLS.Reload(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"other name", "expired", "other authority", "revoked", "good"} {
		t.Run(name, func(t *testing.T) {
			asked, shaken, url := tr.impostor(name)
			added, err := m.AddMember(testContext(t), api.NewMember{PeerURLs: []string{url}})
			if err != nil {
				t.Fatal(err)
			}
			_, err = m.calls.info(testContext(t), url)
			if name == "good" {
				<-asked // a stream; the call got an answer that it cannot read
				return
			}
			if !errors.Is(err, raftnode.ErrNoLeader) {
				t.Errorf("a call: %v", err)
			}
			for range 6 { // both streams have tried, and again
				<-shaken
			}
			if len(asked) > 0 {
				t.Errorf("the member sent it %q", <-asked)
			}
			if err := m.RemoveMember(testContext(t), added.ID); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// impostor serves TLS with the certificate on the host of member 2. It reports
// the paths it was asked for and the number of handshakes.
func (tr *trust) impostor(name string) (asked chan string, shaken chan struct{}, url string) {
	tr.t.Helper()
	pair, err := tls.LoadX509KeyPair(tr.path(name+".pem"), tr.path(name+"-key.pem"))
	if err != nil {
		tr.t.Fatal(err)
	}
	asked, shaken = make(chan string, 1024), make(chan struct{}, 1024)
	l, err := net.Listen("tcp", memberHost(2)+":0")
	if err != nil {
		tr.t.Fatal(err)
	}
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			select {
			case asked <- r.URL.Path:
			default:
			}
			http.Error(w, "an impostor", http.StatusInternalServerError)
		}),
		ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{
			ClientAuth: tls.RequireAnyClientCert,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				select {
				case shaken <- struct{}{}:
				default:
				}
				return &pair, nil
			},
		},
	}
	tr.t.Cleanup(func() { _ = srv.Close() })
	go func() { _ = srv.ServeTLS(l, "", "") }()
	return asked, shaken, "https://" + l.Addr().String()
}

func TestJoinWithTLS(t *testing.T) {
	tr := newTrust(t)
	members := tr.startSecure(2)
	members[0].put(t, "k", "v")
	tr.issue(tr.ca, "m3", certs.Order{Hosts: []string{memberHost(3)}})
	newcomer := start(t, Config{
		DataDir: t.TempDir(), Engine: "memory", ListenPeer: tr.memberURL(3), TickInterval: 20 * time.Millisecond,
		JoinURLs: []string{members[1].cfg.ListenPeer}, TLS: tr.bundle("m3"),
	})
	newcomer.awaitReady(t)
	if got := newcomer.get(t, "k"); got != "v" {
		t.Errorf("it reads %q", got)
	}
}

// A newcomer whose certificate names another host is told so, and does not
// try forever.
func TestJoinWithTheCertificateOfAnother(t *testing.T) {
	tr := newTrust(t)
	members := tr.startSecure(1)
	tr.issue(tr.ca, "m4", certs.Order{Hosts: []string{memberHost(4)}})
	newcomer := start(t, Config{
		DataDir: t.TempDir(), Engine: "memory", ListenPeer: tr.memberURL(3), TickInterval: 20 * time.Millisecond,
		JoinURLs: []string{members[0].cfg.ListenPeer}, TLS: tr.bundle("m4"),
	})
	if err := newcomer.awaitEnd(t); !errors.Is(err, errIdentity) || !strings.Contains(err.Error(), memberHost(3)) {
		t.Errorf("it ended with %v", err)
	}
}

func TestPeerURLsMustFitTheCluster(t *testing.T) {
	for _, c := range []struct {
		url           string
		tls, insecure bool
		says          string
	}{
		{"http://127.0.0.1:1", false, false, ""},
		{"http://localhost:1", false, false, ""},
		{"http://[::1]:1", false, false, ""},
		{"http://10.0.0.1:1", false, false, "without TLS beyond this machine"},
		{"http://n1.example:1", false, false, "--insecure-peers"},
		{"http://localhost.example:1", false, false, "without TLS beyond this machine"},
		{"http://10.0.0.1:1", false, true, ""},
		{"https://10.0.0.1:1", false, false, "the members of this cluster do not"},
		{"https://10.0.0.1:1", true, false, ""},
		{"http://127.0.0.1:1", true, false, "the members of this cluster do; use https://"},
		{"http://10.0.0.1:1", true, false, "the members of this cluster do; use https://"},
	} {
		p := peering{insecure: c.insecure}
		if c.tls {
			p.tls = new(certs.Bundle)
		}
		err := p.checkURLs([]string{"https://n0.example:1", c.url}[btoi(!c.tls):])
		if (err == nil) != (c.says == "") || err != nil && (!strings.Contains(err.Error(), c.says) || !errors.Is(err, roster.ErrBadMember)) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestMembersAreAddedAsTheClusterTalks: the check applies wherever the change
// is requested, also to changed URLs.
func TestMembersAreAddedAsTheClusterTalks(t *testing.T) {
	tr := newTrust(t)
	secure := tr.startSecure(2)
	plain := startCluster(t, 1, nil)
	for _, m := range append(secure, plain...) {
		bad := "http://10.0.0.1:1"
		_, err := m.AddMember(testContext(t), api.NewMember{PeerURLs: []string{bad}})
		if code(err) != api.BadRequest {
			t.Errorf("member %d of %s adds: %v", m.cfg.ID, m.cfg.ListenPeer, err)
		}
		if _, err := m.UpdateMember(testContext(t), 1, []string{bad}, nil); code(err) != api.BadRequest {
			t.Errorf("member %d of %s updates: %v", m.cfg.ID, m.cfg.ListenPeer, err)
		}
	}
}

// TestCallsStateTheirIdentity: what only members may ask for is refused to callers that do
// not state the identity of another member of this cluster, also without TLS; and the
// members' own calls state it.
func TestCallsStateTheirIdentity(t *testing.T) {
	ms := startCluster(t, 2, memoryEngine)
	marshal := func(v any) []byte {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	change := func(kind roster.ChangeKind, id uint64) []byte {
		return marshal(roster.Change{Kind: kind, Member: roster.Member{ID: id, PeerURLs: []string{"http://127.0.0.1:1"}}})
	}
	calls := map[string][]byte{pathStatus: []byte("{}"), pathBehind: []byte("{}"), pathTransfer: marshal(handover{To: 99}), pathChange: change(roster.RemoveMember, 9), pathBody: []byte("{}")}
	cluster := ms[0].identity.Load().Cluster
	stampAs := func(member, cluster uint64, boot string) func(http.Header) {
		return func(h http.Header) { peers.Stamp(h, member, cluster, boot) }
	}
	call := func(path string, body []byte, stamp func(http.Header)) (status, answer string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, ms[0].cfg.ListenPeer+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		stamp(req.Header)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			t.Fatal(err)
		}
		return resp.Status, string(text)
	}
	refuses := func(answer string) bool { return strings.Contains(answer, `"sender"`) }
	eventually(t, "member 1 knows the process of member 2 by its stream", func() bool {
		_, answer := call(pathStatus, []byte("{}"), stampAs(2, cluster, "x"))
		return refuses(answer)
	})
	for path, body := range calls {
		for who, stamp := range map[string]func(http.Header){
			"nobody":                       func(http.Header) {},
			"this member":                  stampAs(1, cluster, "x"),
			"a member of another cluster":  stampAs(2, cluster+1, "x"),
			"a second process of member 2": stampAs(2, cluster, "x"),
			"no member id":                 func(h http.Header) { stampAs(2, cluster, "x")(h); h.Set("X-Server-From", "zz") },
			"member 2":                     *ms[1].calls.stamp.Load(),
		} {
			if status, answer := call(path, body, stamp); refuses(answer) == (who == "member 2") {
				t.Errorf("%s by %s: %s %s", path, who, status, answer)
			}
		}
	}
	if status, answer, err := askPeer(t, http.DefaultClient, ms[0], http.MethodPost, pathChange, "", change(roster.AddMember, 1)); err != nil || !strings.Contains(answer, "member_exists") && !strings.Contains(answer, "not_leader") {
		t.Errorf("a newcomer asks to be added: %d %s, %v", status, answer, err)
	}
	if got := ms[0].member.Load().replica.Refusals(); got["sender"] == 0 || got["clone"] == 0 || got["cluster"] == 0 {
		t.Errorf("refusals were not counted: %v", got)
	}
	eventually(t, "the status of both", func() bool {
		st, err := ms[1].ClusterStatus(t.Context())
		return err == nil && len(st.Members) == 2 && st.Members[0].Status != nil && st.Members[1].Status != nil
	})
}
