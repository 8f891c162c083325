package e2e

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const rootPassword = "root-s-secret"

// asRoot is the header of root's requests.
var asRoot = []string{"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("root:"+rootPassword))}

// guard enables rights, and returns the secret of a token of ann, who may read and write
// what begins with a.
func guard(t testing.TB, m *member) (token string) {
	t.Helper()
	for _, r := range []struct{ method, path, body string }{
		{"PUT", "/v1/kv/a1", "of ann"}, {"PUT", "/v1/kv/hidden", "of root"},
		{"PUT", "/v1/roles/as", `{"permissions":[{"access":"readwrite","prefix":"a"}]}`}, {"PUT", "/v1/users/ann", `{"roles":["as"]}`},
		{"PUT", "/v1/auth", `{"enabled":true,"root_password":"` + rootPassword + `"}`},
	} {
		if a := send(m, r.method, r.path, r.body); a.status/100 != 2 {
			t.Fatalf("%s %s: %v", r.method, r.path, a)
		}
	}
	return field(t, send(m, "POST", "/v1/tokens", `{"user":"ann","label":"test"}`, asRoot...), "secret")
}

// field returns a field of a document.
func field(t testing.TB, a answer, name string) string {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal([]byte(a.body), &doc); a.err != nil || err != nil || doc[name] == nil {
		t.Fatalf("no %s in %v", name, a)
	}
	return fmt.Sprint(doc[name])
}

// unguard disables rights, because what checks the cluster at the end has no credentials.
func unguard(t testing.TB, m *member) {
	t.Helper()
	if a := send(m, "PUT", "/v1/auth", `{"enabled":false}`, asRoot...); a.status != 200 {
		t.Fatal(a)
	}
}

// raw sends bytes on a connection of its own, and returns the statuses of so many answers.
func raw(m *member, text string, n int) (statuses []int, bodies string, _ error) {
	conn, err := net.DialTimeout("tcp", loopback(m.clientPort), 5*time.Second)
	if err != nil {
		return nil, "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		return nil, "", err
	}
	r := bufio.NewReader(conn)
	for range n {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return statuses, bodies, err
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return statuses, bodies, err
		}
		statuses, bodies = append(statuses, resp.StatusCode), bodies+string(body)
	}
	return statuses, bodies, nil
}

// TestOddCredentials sends odd forms of the header Authorization to three real nodes, by
// HTTP/1.1 to the small parser and to net/http, and by HTTP/2. None of them reads what
// its credentials do not allow, and none is taken for a request without credentials.
func TestOddCredentials(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, quick...)
	token := guard(t, c.leader())
	root := asRoot[1]
	get := func(path, headers string) string {
		return "GET " + path + " HTTP/1.1\r\nHost: localhost\r\n" + headers + "\r\n"
	}
	for _, m := range c.nodes {
		expectAllowed(t, m, token)
		for name, x := range map[string]struct {
			text string
			want string // statuses
		}{
			"none":                      {get("/v1/kv/hidden", ""), "401"},
			"another's":                 {get("/v1/kv/hidden", "Authorization: Bearer "+token+"\r\n"), "403"},
			"root's":                    {get("/v1/kv/hidden", "Authorization: "+root+"\r\n"), "200"},
			"lower case":                {get("/v1/kv/hidden", "authorization: basic "+strings.TrimPrefix(root, "Basic ")+"\r\n"), "200"},
			"spaces":                    {get("/v1/kv/a1", "Authorization:   Bearer   "+token+"  \r\n"), "200"},
			"a tab":                     {get("/v1/kv/a1", "Authorization: Bearer\t"+token+"\r\n"), "401"},
			"no token":                  {get("/v1/kv/a1", "Authorization: Bearer\r\n"), "401"},
			"empty":                     {get("/v1/kv/a1", "Authorization:\r\n"), "400"},
			"no scheme":                 {get("/v1/kv/a1", "Authorization: "+token+"\r\n"), "401"},
			"another scheme":            {get("/v1/kv/a1", "Authorization: Digest "+token+"\r\n"), "401"},
			"not base64":                {get("/v1/kv/a1", "Authorization: Basic !!!\r\n"), "401"},
			"no colon":                  {get("/v1/kv/a1", "Authorization: Basic cm9vdA==\r\n"), "401"},
			"a part of a token":         {get("/v1/kv/a1", "Authorization: Bearer "+token[:len(token)-1]+"\r\n"), "401"},
			"more than a token":         {get("/v1/kv/a1", "Authorization: Bearer "+token+"x\r\n"), "401"},
			"two, the right one first":  {get("/v1/kv/hidden", "Authorization: "+root+"\r\nAuthorization: Bearer "+token+"\r\n"), "400"},
			"two, the right one second": {get("/v1/kv/hidden", "Authorization: Bearer "+token+"\r\nauthorization: "+root+"\r\n"), "400"},
			"twice the same":            {get("/v1/kv/hidden", "Authorization: "+root+"\r\nAuthorization: "+root+"\r\n"), "400"},
			"joined":                    {get("/v1/kv/hidden", "Authorization: Bearer x, "+root+"\r\n"), "401"},
			"folded":                    {get("/v1/kv/hidden", "Authorization: Basic\r\n "+strings.TrimPrefix(root, "Basic ")+"\r\n"), "200 400"},
			"a space before the colon":  {get("/v1/kv/hidden", "Authorization : "+root+"\r\n"), "400"},
			"a zero byte":               {get("/v1/kv/hidden", "Authorization: "+root+"\x00\r\n"), "400"},
			"of a proxy":                {get("/v1/kv/hidden", "Proxy-Authorization: "+root+"\r\n"), "401"},
			"in a cookie":               {get("/v1/kv/hidden", "Cookie: Authorization="+root+"\r\n"), "401"},
			"hop by hop":                {get("/v1/kv/hidden", "Connection: Authorization\r\n"), "401"},
			"etcd's metadata":           {get("/v1/kv/hidden", "Grpc-Metadata-Authorization: "+root+"\r\nToken: "+token+"\r\n"), "401"},
			"in a trailer":              {"POST /v1/kv/hidden?append HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTrailer: Authorization\r\n\r\n1\r\nx\r\n0\r\nAuthorization: " + root + "\r\n\r\n", "401"},
			"in the URL":                {"GET http://root:" + rootPassword + "@localhost/v1/kv/hidden HTTP/1.1\r\nHost: localhost\r\n\r\n", "401 400"},
			"HTTP/1.0":                  {"GET /v1/kv/hidden HTTP/1.0\r\nHost: localhost\r\n\r\n", "401"},
			"HEAD":                      {strings.Replace(get("/v1/kv/hidden", "Connection: close\r\n"), "GET", "HEAD", 1), "401"},
			"an escaped path":           {get("/v1/%6bv/hidden", ""), "401 404"},
			"dots":                      {get("/ui/../v1/kv/hidden", ""), "401 404"},
			"slashes":                   {get("//v1//kv/hidden", ""), "401 404"},
			"the short form":            {get("/hidden", ""), "401"},
			"a page of an asset":        {get("/ui/../../v1/snapshot", ""), "401 404"},
		} {
			if name == "HEAD" { // its answer has no body, which ReadResponse cannot know
				continue
			}
			statuses, body, err := raw(m, x.text, 1)
			if err != nil || !strings.Contains(x.want, fmt.Sprint(statuses[0])) {
				t.Errorf("%v, %s: %v %q, %v, want %s", m, name, statuses, body, err, x.want)
			}
			if len(statuses) == 1 && statuses[0] != 200 && strings.Contains(body, "of root") {
				t.Errorf("%v, %s: the answer has the value: %q", m, name, body)
			}
		}
		// Requests of one connection have nothing of each other.
		text := get("/v1/kv/hidden", "Authorization: "+root+"\r\n") + get("/v1/kv/hidden", "") + get("/v1/kv/hidden", "Authorization: Bearer "+token+"\r\n") +
			get("/v1/kv/a1", "Authorization: Bearer "+token+"\r\n") + get("/v1/kv/a1", "")
		if statuses, _, err := raw(m, text, 5); err != nil || fmt.Sprint(statuses) != "[200 401 403 200 401]" {
			t.Errorf("%v, one after the other: %v, %v", m, statuses, err)
		}
		expectOverHTTP2(t, m, token)
	}
	unguard(t, c.node(1))
}

// expectAllowed waits until a member knows the rights.
func expectAllowed(t testing.TB, m *member, token string) {
	t.Helper()
	eventually(t, m.String()+" knows the token", func() error {
		if a := get(m, "/v1/kv/a1", "Authorization", "Bearer "+token); a.status != 200 || a.body != "of ann" {
			return fmt.Errorf("%v", a)
		}
		return nil
	})
}

// expectOverHTTP2 sends several streams of one connection with different credentials.
func expectOverHTTP2(t *testing.T, m *member, token string) {
	t.Helper()
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	h2 := &http.Client{Transport: &http.Transport{Protocols: protocols}, Timeout: 20 * time.Second}
	defer h2.CloseIdleConnections()
	for name, x := range map[string]struct {
		lines  []string
		status int
	}{
		"none": {nil, 401}, "root's": {asRoot[1:], 200}, "another's": {[]string{"Bearer " + token}, 403}, "empty": {[]string{""}, 400},
		"two": {[]string{asRoot[1], "Bearer " + token}, 400}, "two, in another order": {[]string{"Bearer " + token, asRoot[1]}, 400}, "wrong": {[]string{"Bearer x"}, 401},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, m.url()+"/v1/kv/hidden", nil)
		if err != nil {
			t.Fatal(err)
		}
		if x.lines != nil {
			req.Header["Authorization"] = x.lines
		}
		resp, err := h2.Do(req)
		if err != nil {
			t.Fatalf("%v by HTTP/2, %s: %v", m, name, err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != x.status || resp.ProtoMajor != 2 {
			t.Errorf("%v by %s, %s: %d, want %d", m, resp.Proto, name, resp.StatusCode, x.status)
		}
	}
}

// TestRightsEverywhere: what reaches other members on behalf of a client, and what needs no
// credentials, shows nothing of the store and changes nothing, on each of three nodes.
func TestRightsEverywhere(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, quick...)
	token := guard(t, c.leader())
	for _, m := range c.nodes {
		expectAllowed(t, m, token)
		bearer := []string{"Authorization", "Bearer " + token}
		if a := get(m, "/v1/cluster"); a.status != 401 || strings.Contains(a.body, "peer_urls") {
			t.Errorf("%v: the cluster without credentials: %v", m, a)
		}
		if a := get(m, "/v1/cluster", bearer...); a.status != 200 || strings.Count(a.body, `"state_hash"`) == 0 {
			t.Errorf("%v: the cluster: %v", m, a)
		}
		if a := get(m, "/ui/"); a.status != 200 || strings.Contains(a.body, "of root") {
			t.Errorf("%v: the page: %v", m, a)
		}
		for _, path := range []string{"/ui/../v1/kv/hidden", "/ui/%2e%2e/v1/kv/hidden", "/ui/app.js/../../v1/snapshot", "/ui//v1/kv/hidden"} {
			if a := get(m, path); a.status == 200 {
				t.Errorf("%v: %s: %v", m, path, a)
			}
		}
		peerCalls(t, m)
	}
	if a := get(c.node(1), "/v1/kv/hidden", asRoot...); a.body != "of root" {
		t.Errorf("the key is now %v", a)
	}
	unguard(t, c.node(1))
}

// peerCalls sends what clients may not to the peer port, as no member of the cluster.
func peerCalls(t *testing.T, m *member) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), requestLimit)
	defer cancel()
	for _, path := range []string{
		"/v1/kv/hidden", "/v1/snapshot", "/v1/users", "/v1/auth", "/hidden", "/ui/", "/metrics",
		"/kvd/status", "/kvd/change", "/kvd/transfer", "/kvd/leases", "/kvd/body", "/kvd/behind", "/raft", "/raft/stream/message/1", "/raft/snapshot",
	} {
		for _, method := range []string{"GET", "POST", "PUT"} {
			req, err := http.NewRequestWithContext(ctx, method, m.peerURL()+path, strings.NewReader(`{}`))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set(asRoot[0], asRoot[1]) // which means nothing there
			resp, err := httpClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
			_ = resp.Body.Close()
			if err != nil || resp.StatusCode/100 == 2 || strings.Contains(string(body), "of root") {
				t.Errorf("%v: %s %s at the peer port: %d %.200q, %v", m, method, path, resp.StatusCode, body, err)
			}
		}
	}
}

// TestRecoverWithRights: a cluster that was recovered from one member, and one that was
// restored from a backup, have the rights of the old one. Passwords and tokens go on;
// logins of the old cluster do not outlive a restore.
func TestRecoverWithRights(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, quick...)
	token := guard(t, c.leader())
	left := c.node(3)
	expectAllowed(t, left, token)
	login := field(t, send(left, "POST", "/v1/auth/login", `{"user":"root","password":"`+rootPassword+`"}`), "token")
	backup := filepath.Join(t.TempDir(), "backup.kvd")
	mustRun(t, "snapshot", "save", backup, "--endpoints", left.url(), "--user", "root:"+rootPassword)

	for _, m := range c.nodes {
		m.kill()
	}
	if out, code := recoverDir(left.dir, "--yes"); code != 0 {
		t.Fatalf("exit code %d\n%s", code, out)
	}
	left.start()
	left.awaitReady()
	expectRights(t, left, token)
	if a := get(left, "/v1/kv/hidden", "Authorization", "Bearer "+login); a.status != 200 && a.status != 401 {
		t.Errorf("a login from before the recovery: %v", a)
	}

	dir := filepath.Join(t.TempDir(), "restored")
	mustRun(t, "snapshot", "restore", backup, "--data-dir", dir)
	alone := &member{t: t, id: 1, clientPort: freePort(t), peerPort: freePort(t), dir: dir, expected: map[*process]int{}}
	alone.args = []string{"--data-dir", dir, "--listen-client", alone.url(), "--listen-peer", alone.peerURL()}
	alone.start()
	alone.awaitReady()
	expectRights(t, alone, token)
	if a := get(alone, "/v1/kv/hidden", "Authorization", "Bearer "+login); a.status != 401 {
		t.Errorf("a login of the cluster that was backed up: %v", a)
	}
	again := field(t, send(alone, "POST", "/v1/auth/login", `{"user":"root","password":"`+rootPassword+`"}`), "token")
	if a := get(alone, "/v1/kv/hidden", "Authorization", "Bearer "+again); a.status != 200 {
		t.Errorf("a new login: %v", a)
	}
	alone.stop()
	unguard(t, left)
	for _, m := range c.nodes[:2] {
		m.noDoctor, m.removed = true, true
	}
}

// expectRights expects the rights of guard.
func expectRights(t testing.TB, m *member, token string) {
	t.Helper()
	for _, x := range []struct {
		path   string
		header []string
		status int
	}{
		{"/v1/kv/hidden", nil, 401}, {"/v1/kv/a1", nil, 401}, {"/v1/kv/hidden", []string{"Authorization", "Bearer " + token}, 403},
		{"/v1/kv/a1", []string{"Authorization", "Bearer " + token}, 200}, {"/v1/kv/hidden", asRoot, 200},
		{"/v1/snapshot", []string{"Authorization", "Bearer " + token}, 403}, {"/v1/users", nil, 401},
	} {
		if a := get(m, x.path, x.header...); a.status != x.status {
			t.Errorf("%s with %d credentials: %v, want %d", x.path, len(x.header)/2, a, x.status)
		}
	}
}
