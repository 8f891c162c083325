package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/certs"
)

// anyFailure stands for every exit code but 0.
const anyFailure = -1

// TestClientCommandsWithTLS: the commands for users reach a node that asks for
// certificates, and one behind a socket, told by flags or by variables.
func TestClientCommandsWithTLS(t *testing.T) {
	f := newTLSFiles(t)
	f.issue(t, f.ca, "member", certs.Order{Hosts: []string{"127.0.0.1"}})
	dir, err := os.MkdirTemp("", "kvd") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	secure, socket := freeSecureURL(t), "unix://"+filepath.Join(dir, "kvd.sock")
	p := startSecure(t, 1, []string{freeSecureURL(t)}, secure+","+socket, nil, f.flags("member"))
	p.client = secure
	awaitSecure(t, f.client(t, "client"), p)
	variables := []string{"KVD_ENDPOINTS=" + secure, "KVD_CACERT=" + f.path("ca.pem"), "KVD_CLIENT_CERT=" + f.path("client.pem"), "KVD_CLIENT_KEY=" + f.path("client-key.pem")}
	for _, c := range []struct {
		what    string
		environ []string
		args    string
		code    int
		says    string
	}{
		{"variables", variables, "kv put k v", exitOK, "created k"},
		{"flags", nil, "kv get k --endpoints " + secure + " --cacert " + f.path("ca.pem") + " --cert " + f.path("client.pem") + " --key " + f.path("client-key.pem"), exitOK, "v"},
		{"a socket", nil, "kv get k --endpoints " + socket, exitOK, "v"},
		{"a flag before a variable", variables, "kv get k --cacert " + f.path("none"), exitUsage, "--cacert: open"},
		{"an unknown authority", variables[:1], "kv get k --timeout 1s", exitFailed, "name the authority that signed it with --cacert"},
		// The node's reason is lost if the connection breaks before it is read.
		{"no certificate shown", variables[:2], "kv get k --timeout 1s", anyFailure, "kvd: "},
	} {
		out, err := command(t, c.environ, strings.Fields(c.args)...).CombinedOutput()
		code := codeOf(t, err)
		if code != exitOK && c.code == anyFailure {
			code = anyFailure
		}
		if code != c.code || !strings.Contains(string(out), c.says) {
			t.Errorf("%s: exit code %d: %s", c.what, code, out)
		}
	}
}

// TestNodeIgnoresClientVariables: a shell that exports the variables of the commands
// can still start a node.
func TestNodeIgnoresClientVariables(t *testing.T) {
	var out strings.Builder
	e := environment{args: []string{"config", "check"}, environ: []string{"KVD_ENDPOINTS=x", "KVD_CLIENT_KEY=x", "KVD_KEY=x", "KVD_TIMEOUT=1s"}, stdout: &out, stderr: &out}
	if code := run(e); code != exitOK {
		t.Errorf("exit code %d: %s", code, out.String())
	}
}
