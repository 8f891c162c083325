package accounts_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/kvd-io/kvd/internal/cli"
	"github.com/kvd-io/kvd/internal/cli/accounts"
	"github.com/kvd-io/kvd/kvdtest"
)

// world is a node, and a home directory for logins.
type world struct {
	t       *testing.T
	node    *kvdtest.Node
	environ []string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	node := kvdtest.New(t)
	return &world{t, node, []string{"HOME=" + t.TempDir(), "KVD_ENDPOINTS=" + node.Endpoint}}
}

// said is what a run of kvd has answered.
type said struct {
	code     int
	out, err string
}

// kvd runs a command line, with a text as standard input.
func (w *world) kvd(stdin string, args ...string) said {
	w.t.Helper()
	var out, errs bytes.Buffer
	root := &cobra.Command{Use: "kvd", SilenceErrors: true, SilenceUsage: true}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return err })
	root.AddGroup(cli.Groups()...)
	root.AddCommand(accounts.Commands(cli.Environment{
		Environ: w.environ, Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &errs, DefaultEndpoint: w.node.Endpoint,
	})...)
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&errs)
	err := root.ExecuteContext(context.Background())
	if err != nil {
		errs.WriteString(err.Error())
	}
	return said{cli.ExitCode(err), out.String(), errs.String()}
}

// want runs a command line, and checks its exit code and what it says.
func (w *world) want(code int, stdin, line string, parts ...string) said {
	w.t.Helper()
	got := w.kvd(stdin, strings.Fields(line)...)
	if got.code != code {
		w.t.Errorf("kvd %s: code %d, want %d: %s%s", line, got.code, code, got.out, got.err)
	}
	for _, p := range parts {
		if !strings.Contains(got.out+got.err, p) {
			w.t.Errorf("kvd %s: %q is not in %s%s", line, p, got.out, got.err)
		}
	}
	return got
}

// TestAdministration: from the first start to a user who may do what the role says.
func TestAdministration(t *testing.T) {
	w := newWorld(t)
	w.want(0, "", "auth status", "disabled")
	w.want(0, "secret\n", "auth enable --password-file -", "rights are enabled")
	w.want(8, "", "user list", "kvd login")
	w.environ = append(w.environ, "KVD_USER=root:secret")
	w.want(0, "", "auth whoami", "do everything", "a login with a password")
	w.want(0, "", "role add a", "permits nothing yet")
	w.want(5, "", "role add a", "already exists")
	w.want(0, "", "role grant a readwrite --prefix a/", `readwrite keys: prefix "a/"`)
	w.want(0, "", "role grant a read --range x,xz --capability backup,operate", `read keys: from "x" to "xz"`, "backup, operate")
	w.want(0, "", "role grant a write --lock l", `write locks: "l"`)
	w.want(0, "", "role grant a read --lock l", `read locks: "l"`)
	if got := w.want(0, "", "role revoke a --range x,xz --capability operate"); strings.Contains(got.out, "operate") || strings.Contains(got.out, `"x"`) {
		t.Errorf("after a revocation: %s", got.out)
	}
	w.want(0, "", "role grant a read --range q,r", `prefix "q"`)
	w.want(0, "", "role revoke a --range q,r")
	w.want(4, "", "role revoke a --all-keys", "no permission for exactly that")
	for _, line := range []string{"role grant a", "role grant a read", "role grant a all --key k", "role grant a --key k", "role grant a read --key k --prefix k", "role grant a read --range a", "role grant a read --key=", "role revoke a"} {
		w.want(2, "", line)
	}
	w.want(0, "pw\n", "user add ann --role a --password-file -", "added user ann")
	w.want(5, "", "user add ann --no-password", "already exists")
	w.want(2, "", "user add bob", "no terminal")
	w.want(0, "", "user add bob --no-password")
	w.want(0, "", "user grant bob a", "bob has: a")
	w.want(0, "", "user revoke bob a", "bob has: -")
	w.want(0, "", "user list -o value", "ann\nbob\nroot\n")
	w.want(0, "", "user list -o json", `{"name":"bob","roles":[],"has_password":false}`)
	w.want(0, "", "user show ann", `readwrite keys: prefix "a/"`)
	w.want(0, "", "auth check read --prefix a/x --user-name ann", "allowed")
	w.want(5, "", "auth check read --key b --user-name ann", "may not read")
	w.want(5, "", "auth check --capability auth --user-name ann", "capability")
	w.want(0, "", "auth whoami --user ann:pw", "ann", "backup")
	w.want(8, "", "user list --user ann:pw", "auth")
	w.want(0, "new\n", "user passwd --user ann:pw --password-file -", "changed the password of ann")
	w.want(8, "", "auth whoami --user ann:pw")
	w.want(0, "", "user delete bob", "deleted user bob")
	w.want(4, "", "user delete bob", "does not exist")
	w.want(0, "", "role delete a")
	w.want(0, "", "user show ann -o json", `"roles":[]`)
	w.want(0, "", "auth disable", "disabled")
}

// TestTokensAndLogins: a login is kept for the endpoint it was made for, in a file that
// nobody else can read; a flag or a variable comes before it.
func TestTokensAndLogins(t *testing.T) {
	w := newWorld(t)
	w.want(0, "secret\n", "auth enable --password-file -")
	w.want(8, "", "login --user root:wrong")
	w.want(0, "", "login --user root:secret --ttl 1h", "logged in as root")
	file := filepath.Join(strings.TrimPrefix(w.environ[0], "HOME="), ".config", "kvd", "logins.json")
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	w.want(0, "", "user add ci --no-password")
	secret := strings.TrimSpace(w.want(0, "", "token create ci --ttl 1h --label build -o value").out)
	if !strings.HasPrefix(secret, "kvd_") {
		t.Errorf("the token is %q", secret)
	}
	w.want(2, "", "token create ci --ttl 0s")
	w.want(0, "", "token list ci", "build")
	w.want(0, "", "token list", "kvd login on", "build")
	w.want(0, "", "auth whoami --token "+secret, "ci", "a token")
	w.want(8, "", "token create --token "+secret, "a token may not change")
	tokenFile := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(tokenFile, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	plain := w.environ
	w.environ = append(plain, "KVD_TOKEN_FILE="+tokenFile)
	w.want(0, "", "auth whoami -o value", "ci")
	w.want(0, "", "auth whoami -o value --user root:secret", "root")
	w.environ = append(w.environ, "KVD_TOKEN="+secret)
	w.want(2, "", "auth whoami", "give only one of them")
	w.environ = plain
	w.want(0, "", "auth whoami", "root")
	w.want(0, "", "auth whoami --endpoints http://localhost:"+w.node.Endpoint[strings.LastIndex(w.node.Endpoint, ":")+1:], "nobody")
	var listed struct{ ID string }
	if err := json.Unmarshal([]byte(w.want(0, "", "token list ci -o json").out), &listed); err != nil {
		t.Fatal(err)
	}
	w.want(0, "", "token revoke "+listed.ID)
	w.want(8, "", "auth whoami --token "+secret)
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	w.want(1, "", "auth whoami", "chmod 600")
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	w.want(0, "", "logout", "logged out root")
	w.want(4, "", "logout", "nobody is logged in")
	w.want(0, "", "auth whoami", "nobody")
	if got := w.want(0, "", "token list --user root:secret"); strings.Contains(got.out, "kvd login") {
		t.Errorf("the token of the login is still there: %s", got.out)
	}
}

// exchange is a request to etcd's JSON gateway with its answer.
type exchange struct {
	Path   string          `json:"path"`
	Body   json.RawMessage `json:"body"`
	Token  bool            `json:"token"` // sent with the token of the login
	Status int             `json:"status"`
	Answer json.RawMessage `json:"answer"`
}

// gateway answers reads and logins as an etcd 3.7.3 did when it was recorded: the file is
// the whole session, which made the users and roles first. test/conformance/sidebyside
// holds it against etcd, and records it anew.
func gateway(t *testing.T) *httptest.Server {
	t.Helper()
	text, err := os.ReadFile("testdata/etcd-users.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	answers, token := make(map[string]exchange), ""
	for line := range bytes.Lines(text) {
		var e exchange
		var login struct{ Token string }
		if err := errors.Join(json.Unmarshal(line, &e), json.Unmarshal(e.Answer, &login)); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		token += login.Token // of the one login that succeeds
		answers[fmt.Sprint(e.Path, " ", string(e.Body), " ", e.Token)] = e
	}
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		given := r.Header.Get("Authorization")
		e, ok := answers[fmt.Sprint(r.URL.Path, " ", string(body), " ", given == token)]
		if !ok || given != "" && given != token {
			t.Errorf("etcd was not asked for %s %s with the token %q when it was recorded", r.URL.Path, body, given)
			rw.WriteHeader(http.StatusNotImplemented)
			return
		}
		rw.WriteHeader(e.Status)
		_, _ = rw.Write(e.Answer)
	}))
	t.Cleanup(srv.Close)
	return srv
}

// TestImportFromEtcd: roles and users come over, passwords do not, and a repeat changes
// nothing.
func TestImportFromEtcd(t *testing.T) {
	w := newWorld(t)
	from := "auth import --from etcd:" + gateway(t).URL
	w.want(1, "", from, "user name is empty")
	w.want(1, "wrong\n", from+" --from-user root --from-password-file -", "authentication failed")
	w.want(2, "", "auth import", "etcd:URL")
	w.want(7, "", "auth import --from etcd:http://127.0.0.1:1", "unreachable")
	from += " --from-user root --from-password-file -"
	w.want(0, "secret\n", from+" --dry-run", "would make 1 roles and 2 users")
	w.want(0, "", "user list -o json")
	w.want(0, "secret\n", from, "made 1 roles and 2 users", "no password", "ann")
	w.want(0, "", "role show team", `readwrite keys: prefix "team/"`, `read keys: "c"`, `write keys: from "x" on`)
	w.want(0, "", "user show ann", "team")
	w.want(0, "secret\n", from, "made 0 roles and 0 users", "left alone")
}
