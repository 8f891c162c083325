package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// rightsNode is a node as a process with rights from its beginning.
type rightsNode struct {
	*daemonProcess
	etcd    string // URL of its listener for clients of etcd
	exposed string // URL of a listener that other machines reach; "" if there is no network
	socket  string
	etcdAt  string // another socket, for clients of etcd
}

const firstPassword = "correct horse"

// startWithRights starts a node whose log and audit log are in the directory.
func startWithRights(t *testing.T, dir string, more ...string) *rightsNode {
	t.Helper()
	for name, text := range map[string]string{"password": firstPassword + "\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	n := &rightsNode{etcd: freeURL(t), socket: filepath.Join(dir, "kvd.sock"), etcdAt: filepath.Join(dir, "etcd.sock")}
	p := &daemonProcess{client: freeURL(t), ended: make(chan error, 1)}
	n.daemonProcess = p
	listeners := p.client + ",unix://" + n.socket
	if ip := outsideIP(); ip != "" {
		n.exposed = strings.Replace(freeURL(t), "127.0.0.1", ip, 1)
		listeners += "," + n.exposed
	}
	p.cmd = command(t, nil, append([]string{
		"--listen-client", listeners, "--listen-etcd", n.etcd + ",unix://" + n.etcdAt, "--listen-peer", freeURL(t), "--engine", "memory",
		"--root-password-file", filepath.Join(dir, "password"), "--bcrypt-cost", "4",
	}, more...)...)
	p.cmd.Stderr = log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.ended <- p.cmd.Wait() }()
	t.Cleanup(func() { _ = p.cmd.Process.Kill() }) // it has ended if this fails
	p.awaitReady(t)
	return n
}

// outsideIP returns an address of this machine at which others reach it.
func outsideIP() string {
	addresses, _ := net.InterfaceAddrs()
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() && !n.IP.IsLinkLocalUnicast() {
			return n.IP.String()
		}
	}
	return ""
}

// over is a client whose connections all go to a socket.
func over(socket string) *http.Client {
	return &http.Client{Timeout: patience, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
}

// request sends a request and returns the status and the body. user may be "".
func request(t *testing.T, c *http.Client, method, url, user, password, body string, headers ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if user != "" {
		req.SetBasicAuth(user, password)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// want fails the test unless a request has the status and its answer the text.
func want(t *testing.T, what string, status int, text string) func(int, string) {
	t.Helper()
	return func(got int, body string) {
		t.Helper()
		if got != status || !strings.Contains(body, text) {
			t.Errorf("%s: %d %s, want %d with %q", what, got, body, status, text)
		}
	}
}

// TestTheSocketIsTheWayBackIn: over a Unix socket, this process's user is root without a
// password, in both APIs, so a lost password can be replaced with curl.
func TestTheSocketIsTheWayBackIn(t *testing.T) {
	n := startWithRights(t, t.TempDir())
	plain := http.DefaultClient
	want(t, "nobody", 401, "unauthenticated")(request(t, plain, "PUT", n.client+"/v1/kv/a", "", "", "x"))
	want(t, "nobody's read", 401, "unauthenticated")(request(t, plain, "GET", n.client+"/v1/kv/a", "", "", ""))
	want(t, "root", 201, "")(request(t, plain, "PUT", n.client+"/v1/kv/a", "root", firstPassword, "x"))
	want(t, "the socket", 200, `"proof":"socket"`)(request(t, over(n.socket), "GET", "http://kvd/v1/auth/whoami", "", "", ""))
	want(t, "a read by net/http", 200, "x")(request(t, over(n.socket), "GET", "http://kvd/v1/kv/a", "", "", "", "Pragma", "no-cache"))
	want(t, "the socket of etcd", 200, "revision")(request(t, over(n.etcdAt), "POST", "http://kvd/v3/kv/put", "", "", `{"key":"Yg==","value":"Yg=="}`))
	want(t, "nobody at etcd", 400, "user name is empty")(request(t, plain, "POST", n.etcd+"/v3/kv/put", "", "", `{"key":"Yg==","value":"Yg=="}`))
	want(t, "wrong password on the socket", 401, "")(request(t, over(n.socket), "GET", "http://kvd/v1/kv/a", "root", "wrong", ""))
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("there is no curl")
	}
	out, err := exec.Command(curl, "--silent", "--show-error", "--fail-with-body", "--unix-socket", n.socket, "-X", "PUT", "http://localhost/v1/users/root", "-d", `{"roles":["root"],"password":"found again"}`).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	want(t, "the lost password", 401, "")(request(t, plain, "GET", n.client+"/v1/kv/a", "root", firstPassword, ""))
	want(t, "the new password", 200, "x")(request(t, plain, "GET", n.client+"/v1/kv/a", "root", "found again", ""))
}

// TestTheSocketIsNobody without --auth-local-root.
func TestTheSocketIsNobody(t *testing.T) {
	n := startWithRights(t, t.TempDir(), "--auth-local-root=off")
	want(t, "the socket", 401, "unauthenticated")(request(t, over(n.socket), "GET", "http://kvd/v1/kv/a", "", "", ""))
}

// TestCredentialsInTheClear: a listener without TLS that other machines reach takes no
// credentials and gives none out, in both APIs, unless --insecure-auth is on.
func TestCredentialsInTheClear(t *testing.T) {
	dir := t.TempDir()
	n := startWithRights(t, dir)
	if n.exposed == "" {
		t.Skip("this machine has no network")
	}
	refused := func(what string) func(int, string) { return want(t, what, 403, "--insecure-auth") }
	plain := http.DefaultClient
	refused("password")(request(t, plain, "GET", n.exposed+"/v1/kv/a", "root", firstPassword, ""))
	refused("token")(request(t, plain, "GET", n.exposed+"/v1/kv/a", "", "", "", "Authorization", "Bearer x"))
	refused("login")(request(t, plain, "POST", n.exposed+"/v1/auth/login", "", "", `{"user":"root","password":"`+firstPassword+`"}`))
	refused("user")(request(t, plain, "PUT", n.exposed+"/v1/users/ann", "", "", `{"password":"p"}`))
	want(t, "nobody", 401, "unauthenticated")(request(t, plain, "GET", n.exposed+"/v1/kv/a", "", "", ""))
	want(t, "a probe", 200, "")(request(t, plain, "GET", n.exposed+"/readyz", "", "", ""))
	want(t, "loopback", 404, "")(request(t, plain, "GET", n.client+"/v1/kv/a", "root", firstPassword, ""))
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil || !bytes.Contains(log, []byte(n.exposed+`"]`)) {
		t.Errorf("the log does not warn of %s: %v\n%s", n.exposed, err, log)
	}
	n = startWithRights(t, t.TempDir(), "--insecure-auth")
	want(t, "as the operator allows", 404, "")(request(t, plain, "GET", n.exposed+"/v1/kv/a", "root", firstPassword, ""))
}

// readAudit reads an audit log.
func readAudit(t *testing.T, path string) (lines []map[string]any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var ln map[string]any
		if err := json.Unmarshal([]byte(line), &ln); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		lines = append(lines, ln)
	}
	return lines
}

// awaitAudit waits until the audit log has a line with all the fields.
func awaitAudit(t *testing.T, path string, fields map[string]any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	pace := time.NewTicker(10 * time.Millisecond)
	defer pace.Stop()
	for {
		for _, ln := range readAudit(t, path) {
			found := true
			for k, v := range fields {
				found = found && fmt.Sprint(ln[k]) == fmt.Sprint(v)
			}
			if found {
				return
			}
		}
		select {
		case <-ctx.Done():
			text, _ := os.ReadFile(path)
			t.Fatalf("no line with %v in\n%s", fields, text)
		case <-pace.C:
		}
	}
}

// TestAuditLog: changes, refusals, and administrative reads of both APIs are in the file,
// which SIGHUP opens anew.
func TestAuditLog(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.log")
	n := startWithRights(t, dir, "--audit-log", path, "--dialects", "raftexample,riot")
	plain, asRoot := http.DefaultClient, func(method, at, body string) {
		t.Helper()
		if status, answer := request(t, http.DefaultClient, method, at, "root", firstPassword, body); status/100 != 2 {
			t.Errorf("%s %s: %d %s", method, at, status, answer)
		}
	}
	asRoot("PUT", n.client+"/v1/kv/plain", "x")
	asRoot("PUT", n.client+"/short", "x")
	asRoot("POST", n.client+"/v1/txn", `{"then":[{"put":{"key":"t","value":"v"}}]}`)
	asRoot("POST", n.client+"/v1/batch", `{"put":{"key":"line","value":"v"}}`)
	asRoot("POST", n.client+"/v1/locks/mutex?ttl=60s", "")
	asRoot("PUT", n.client+"/v1/users/ann", `{"password":"pass of ann","roles":[]}`)
	asRoot("PUT", n.client+"/v1/settings", `{"quota_bytes":1073741824}`)
	asRoot("GET", n.client+"/v1/snapshot", "")
	asRoot("GET", n.client+"/v1/users", "")
	request(t, plain, "POST", n.client+"/v1/auth/login", "", "", `{"user":"ann","password":"pass of ann"}`)
	request(t, plain, "POST", n.client+"/v1/auth/login", "", "", `{"user":"ann","password":"wrong"}`)
	request(t, plain, "GET", n.client+"/v1/kv/hidden", "ann", "pass of ann", "")
	request(t, plain, "GET", n.client+"/v1/kv/hidden", "ann\x1b[2J"+strings.Repeat("x", 1000), "not the pass of ann", "")
	request(t, plain, "POST", n.client+"/v1/batch", "ann", "pass of ann", `{"put":{"key":"of root","value":"v"}}`)
	request(t, over(n.etcdAt), "POST", "http://kvd/v3/kv/txn", "", "", `{"success":[{"request_put":{"key":"Yg==","value":"Yg=="}}]}`)
	request(t, plain, "POST", n.etcd+"/v3/kv/range", "", "", `{"key":"Yg=="}`)
	request(t, over(n.etcdAt), "POST", "http://kvd/v3/cluster/member/list", "", "", `{}`)
	root := map[string]any{"user": "root", "proof": "password", "face": "http", "outcome": "ok"}
	with := func(base map[string]any, pairs ...any) map[string]any {
		all := map[string]any{}
		for k, v := range base {
			all[k] = v
		}
		for i := 0; i < len(pairs); i += 2 {
			all[pairs[i].(string)] = pairs[i+1]
		}
		return all
	}
	key := func(k string) []any { return []any{map[string]any{"key": k}} }
	for _, fields := range []map[string]any{
		with(root, "operation", "PUT /v1/kv/{key}", "action", "put", "keys", key("plain"), "revision", 2),
		with(root, "operation", "PUT /{key}", "keys", key("short"), "revision", 3),
		with(root, "operation", "POST /v1/txn", "action", "txn", "branch", "then", "keys", key("t")),
		with(root, "operation", "POST /v1/batch", "action", "put", "keys", key("line")),
		with(root, "operation", "POST /v1/locks/{name}", "action", "lock", "keys", []any{map[string]any{"lock": "mutex"}}),
		with(root, "operation", "PUT /v1/users/{name}", "action", "rights", "target", `put user (new password) "ann" with roles []`),
		with(root, "operation", "PUT /v1/settings", "action", "settings"),
		with(root, "operation", "GET /v1/snapshot"),
		with(root, "operation", "GET /v1/users"),
		{"operation": "POST /v1/auth/login", "target": "user ann", "outcome": "ok"},
		{"operation": "POST /v1/auth/login", "target": "user ann", "outcome": "unauthenticated"},
		{"operation": "GET /v1/kv/{key}", "user": "ann", "missing": "read", "keys": key("hidden"), "outcome": "permission_denied"},
		{"operation": "GET /v1/kv/{key}", "claimed": "ann?[2J" + strings.Repeat("x", 121), "outcome": "unauthenticated"},
		{"operation": "POST /v1/batch", "user": "ann", "missing": "write", "keys": key("of root"), "outcome": "permission_denied"},
		{"operation": "KV/Txn", "face": "etcd", "user": "root", "proof": "socket", "client": "unix", "keys": key("b"), "outcome": "ok"},
		{"operation": "KV/Range", "face": "etcd", "outcome": "unauthenticated"},
		{"operation": "Cluster/MemberList", "face": "etcd", "user": "root", "outcome": "ok"},
	} {
		awaitAudit(t, path, fields)
	}
	text, err := os.ReadFile(path)
	if err != nil || bytes.Contains(text, []byte(firstPassword)) || bytes.Contains(text, []byte("pass of ann")) || bytes.Contains(text, []byte("$2a$")) {
		t.Errorf("the audit log has a secret: %v", err)
	}
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil { // as logrotate makes it
		t.Fatal(err)
	}
	n.signal(t, syscall.SIGHUP)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		log, err := os.ReadFile(filepath.Join(dir, "log"))
		if err != nil || ctx.Err() != nil {
			t.Fatal("no reload in the log", err)
		}
		if bytes.Contains(log, []byte(`"audit log"`)) {
			break
		}
	}
	asRoot("PUT", n.client+"/v1/kv/after", "x")
	awaitAudit(t, path, with(root, "keys", key("after")))
	n.stop(t)
}

// TestAuditOfWatches: a watch of either API that loses its right leaves a line, and the log
// of the node says who took the right away.
func TestAuditOfWatches(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.log")
	n := startWithRights(t, dir, "--audit-log", path)
	ann := func(document string) {
		t.Helper()
		status, text := request(t, http.DefaultClient, "PUT", n.client+"/v1/users/ann", "root", firstPassword, document)
		if status/100 != 2 {
			t.Fatalf("%d %s", status, text)
		}
	}
	request(t, http.DefaultClient, "PUT", n.client+"/v1/roles/w", "root", firstPassword, `{"permissions":[{"access":"read","prefix":"w"}]}`)
	ann(`{"roles":["w"],"password":"pass of ann"}`)
	_, text := request(t, http.DefaultClient, "POST", n.etcd+"/v3/auth/authenticate", "", "", `{"name":"ann","password":"pass of ann"}`)
	var login struct{ Token string }
	if err := json.Unmarshal([]byte(text), &login); err != nil || login.Token == "" {
		t.Fatal(text, err)
	}
	watch := func(method, url, body, authorization, first string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", authorization)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		for lines, line := bufio.NewReader(resp.Body), ""; !strings.Contains(line, first); {
			if line, err = lines.ReadString('\n'); err != nil {
				t.Fatalf("%s: %d, %q, %v", url, resp.StatusCode, line, err)
			}
		}
	}
	watch("POST", n.etcd+"/v3/watch", `{"create_request":{"key":"dw=="}}`, login.Token, "created")
	request(t, http.DefaultClient, "PUT", n.client+"/v1/kv/w", "root", firstPassword, "x")
	watch("GET", n.client+"/v1/watch?key=w&from_revision=1", "", "Basic "+base64.StdEncoding.EncodeToString([]byte("ann:pass of ann")), `"w"`)
	ann(`{"roles":[]}`)
	keys := []any{map[string]any{"key": "w"}}
	awaitAudit(t, path, map[string]any{"operation": "GET /v1/watch", "user": "ann", "missing": "read", "keys": keys, "outcome": "permission_denied"})
	awaitAudit(t, path, map[string]any{"operation": "Watch/Watch", "face": "etcd", "user": "ann", "missing": "read", "keys": keys, "outcome": "permission_denied"})
	n.stop(t)
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	said := false
	for line := range bytes.Lines(log) {
		said = said || bytes.Contains(line, []byte(`"rights changed"`)) && bytes.Contains(line, []byte(`put user (password kept) \"ann\" with roles []`)) && bytes.Contains(line, []byte(`"principal":"root"`))
	}
	if !said || bytes.Contains(log, []byte("pass of ann")) || bytes.Contains(log, []byte("$2a$")) {
		t.Errorf("the log does not say who changed the rights, or more than that: %s", log)
	}
}

// TestStrictAuditOnAFullDisk: nothing takes effect that cannot be recorded, through either
// API; reads and probes go on. Without --audit-strict the lines are counted.
func TestStrictAuditOnAFullDisk(t *testing.T) {
	n := startWithRights(t, t.TempDir(), "--audit-log", "/dev/full", "--audit-strict")
	socket, etcd := over(n.socket), over(n.etcdAt)
	for _, r := range []struct{ method, path, body string }{
		{"PUT", "/v1/kv/a", "x"}, {"POST", "/v1/txn", `{"then":[{"put":{"key":"a","value":"v"}}]}`}, {"DELETE", "/v1/kv?prefix=a", ""},
		{"POST", "/v1/members", `{"peer_urls":["http://127.0.0.1:1"]}`}, {"PUT", "/v1/settings", `{"quota_bytes":1073741824}`},
		{"PUT", "/v1/users/ann", `{}`}, {"GET", "/v1/snapshot", ""}, {"GET", "/v1/users", ""}, {"PUT", "/v1/operator/log-level", `{"level":"debug"}`},
	} {
		want(t, r.method+" "+r.path, 503, "audit_failed")(request(t, socket, r.method, "http://kvd"+r.path, "", "", r.body))
	}
	want(t, "a batch", 200, "audit_failed")(request(t, socket, "POST", "http://kvd/v1/batch", "", "", `{"put":{"key":"a","value":"v"}}`))
	want(t, "a put of etcd", 503, "audit log")(request(t, etcd, "POST", "http://kvd/v3/kv/put", "", "", `{"key":"YQ==","value":"Yg=="}`))
	want(t, "a member of etcd", 503, "audit log")(request(t, etcd, "POST", "http://kvd/v3/cluster/member/add", "", "", `{"peerURLs":["http://127.0.0.1:1"]}`))
	want(t, "a read", 404, "key_not_found")(request(t, socket, "GET", "http://kvd/v1/kv/a", "", "", ""))
	want(t, "a probe", 200, "")(request(t, http.DefaultClient, "GET", n.client+"/readyz", "", "", ""))
	n = startWithRights(t, t.TempDir(), "--audit-log", "/dev/full")
	want(t, "a put", 201, "")(request(t, over(n.socket), "PUT", "http://kvd/v1/kv/a", "", "", "x"))
	for deadline := time.Now().Add(patience); ; {
		_, metrics := request(t, http.DefaultClient, "GET", n.client+"/metrics", "", "", "")
		if strings.Contains(metrics, "\nkvd_audit_lines_dropped_total 1\n") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the lost line is not counted")
		}
	}
}
