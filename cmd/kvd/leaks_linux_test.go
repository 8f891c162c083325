package main

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/kvstore/body"
)

// forms are how a careless line might show a secret.
func forms(secret string) []string {
	return []string{
		secret, hex.EncodeToString([]byte(secret)), base64.StdEncoding.EncodeToString([]byte(secret)), base64.RawURLEncoding.EncodeToString([]byte(secret)),
		base64.StdEncoding.EncodeToString([]byte("root:" + secret)), base64.StdEncoding.EncodeToString([]byte("ann:" + secret)),
	}
}

// unpacked returns the records of a backup as they are inside its compressed blocks.
func unpacked(t *testing.T, backup string) string {
	t.Helper()
	var out strings.Builder
	_, sections, err := body.Read(strings.NewReader(backup), func(string, byte) error { return nil }, func(key, value []byte) error {
		out.Write(key)
		out.Write(value)
		return nil
	})
	if err != nil || len(sections) == 0 {
		t.Fatalf("a backup of %d bytes: %d sections, %v", len(backup), len(sections), err)
	}
	return out.String()
}

// TestNoSecretLeaks: after a run that used every credential, rightly and wrongly, no log,
// metric, status, list, error, file of the page, and setting shows one, nor a hash of one or
// a value. A backup has values and hashes, and no secret.
func TestNoSecretLeaks(t *testing.T) {
	dir := t.TempDir()
	n := startWithRights(t, dir, "--log-level", "debug", "--request-log", "all", "--audit-log", filepath.Join(dir, "audit.log"), "--cluster-token", "token of the cluster")
	secrets := map[string]string{
		"root's password": firstPassword, "ann's password": "pass of ann 1", "a wrong password": "pass that is wrong", "a wrong token": "kvd_" + strings.Repeat("Zq9", 14) + "w",
		"a value": "value-0xC0FFEE", "the cluster's token": "token of the cluster",
	}
	var shown strings.Builder // everything that must have no secret
	call := func(keep bool, method, url, user, password, body string, headers ...string) string {
		t.Helper()
		status, text := request(t, http.DefaultClient, method, url, user, password, body, headers...)
		if keep || status >= 400 {
			shown.WriteString(text)
		}
		return text
	}
	field := func(document, name string) string {
		t.Helper()
		var doc map[string]any
		if err := json.Unmarshal([]byte(document), &doc); err != nil || doc[name] == nil {
			t.Fatalf("no %s in %s (%v)", name, document, err)
		}
		return doc[name].(string)
	}
	root, ann := firstPassword, secrets["ann's password"]
	call(true, "PUT", n.client+"/v1/roles/as", "root", root, `{"permissions":[{"access":"readwrite","prefix":"a"}]}`)
	call(true, "PUT", n.client+"/v1/users/ann", "root", root, `{"roles":["as"],"password":"`+ann+`"}`)
	secrets["a token"] = field(call(false, "POST", n.client+"/v1/tokens", "root", root, `{"user":"ann","label":"ci"}`), "secret")
	secrets["a login"] = field(call(false, "POST", n.client+"/v1/auth/login", "", "", `{"user":"ann","password":"`+ann+`"}`), "token")
	secrets["a login of etcd"] = field(call(false, "POST", n.etcd+"/v3/auth/authenticate", "", "", `{"name":"ann","password":"`+ann+`"}`), "token")
	call(true, "PUT", n.client+"/v1/kv/a1", "ann", ann, secrets["a value"])
	call(true, "PUT", n.client+"/v1/kv/a2", "", "", secrets["a value"], "Authorization", "Bearer "+secrets["a token"])
	call(true, "PUT", n.client+"/v1/kv/b", "", "", secrets["a value"], "Authorization", "Bearer "+secrets["a login"])
	call(true, "PUT", n.client+"/v1/kv/a3", "", "", secrets["a value"], "Authorization", "Bearer "+secrets["a wrong token"])
	call(true, "PUT", n.client+"/v1/kv/a3", "ann", secrets["a wrong password"], secrets["a value"])
	call(true, "POST", n.client+"/v1/auth/login", "", "", `{"user":"ann","password":"`+secrets["a wrong password"]+`"}`)
	call(true, "POST", n.client+"/v1/auth/login", "", "", `{"user":"ann","password":"`+secrets["a wrong password"]+`"`)
	call(true, "PUT", n.client+"/v1/users/bob", "ann", ann, `{"roles":[],"password":"`+ann+`"}`)
	call(true, "POST", n.client+"/v1/batch", "ann", ann, `{"put":{"key":"b","value":"`+secrets["a value"]+`"}}`)
	call(true, "POST", n.etcd+"/v3/kv/put", "", "", `{"key":"YTQ=","value":"`+base64.StdEncoding.EncodeToString([]byte(secrets["a value"]))+`"}`, "Authorization", secrets["a login of etcd"])
	call(true, "POST", n.etcd+"/v3/kv/put", "", "", `{"key":"Yg==","value":"Yg=="}`, "Authorization", secrets["a wrong token"])
	call(true, "POST", n.etcd+"/v3/auth/user/add", "", "", `{"name":"eve","password":"`+ann+`"}`, "Authorization", secrets["a login of etcd"])
	for _, path := range []string{"/v1/status", "/v1/cluster", "/v1/members", "/v1/settings", "/v1/users", "/v1/users/ann", "/v1/roles", "/v1/tokens", "/v1/auth", "/v1/auth/whoami", "/metrics", "/version"} {
		call(true, "GET", n.client+path, "root", root, "")
	}
	stored := unpacked(t, call(false, "GET", n.client+"/v1/snapshot", "root", root, ""))
	hash := base64.StdEncoding.EncodeToString([]byte("$2a$04$"))[:8]  // what hashes of passwords begin with, in JSON
	for _, there := range []string{secrets["a value"], hash, "ann"} { // it is a whole backup, and was unpacked
		if !strings.Contains(stored, there) {
			t.Errorf("%q is not in the backup", there)
		}
	}
	page := call(true, "GET", n.client+"/ui/", "", "", "")
	for _, file := range regexp.MustCompile(`(?:src|href)="(?:/ui/|\./)?([a-z0-9._-]+)"`).FindAllStringSubmatch(page, -1) {
		call(true, "GET", n.client+"/ui/"+file[1], "", "", "")
	}
	n.stop(t)
	for _, name := range []string{"log", "audit.log"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || len(text) < 1000 {
			t.Fatalf("%s has %d bytes, %v", name, len(text), err)
		}
		shown.Write(text)
	}
	code, out, stderr := kvd("config", "show", "--cluster-token", "token of the cluster", "--root-password-file", filepath.Join(dir, "password"))
	if code != exitOK {
		t.Fatalf("%d: %s", code, stderr)
	}
	shown.WriteString(out + stderr)
	if shown.Len() < 50_000 {
		t.Errorf("only %d bytes were looked at", shown.Len())
	}
	text := shown.String()
	for what, secret := range secrets {
		for _, form := range forms(secret) {
			if i := strings.Index(text, form); i >= 0 {
				t.Errorf("%s is shown as %s: %.300s", what, form, text[max(0, i-100):])
			}
		}
	}
	delete(secrets, "a value") // a backup has the values, and hashes of secrets
	for what, secret := range secrets {
		for _, form := range forms(secret) {
			if i := strings.Index(stored, form); i >= 0 {
				t.Errorf("%s is in a backup as %.100q", what, stored[max(0, i-20):])
			}
		}
	}
	for _, start := range []string{"$2a$", hash} {
		if i := strings.Index(text, start); i >= 0 {
			t.Errorf("a hash is shown: %.300s", text[max(0, i-100):])
		}
	}
}
