package accounts_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/kvd-io/kvd/kvdtest"
)

// TestInit: one step from a new node to rights, with a password that is printed once and
// works; a second one changes nothing.
func TestInit(t *testing.T) {
	w := newWorld(t)
	w.want(2, "", "auth init --password-file /nowhere", "/nowhere")
	w.want(2, "", "auth init --password-file -", "empty")
	w.want(0, "", "auth status", "disabled")
	made := w.want(0, "", "auth init -o json")
	var doc struct {
		Enabled        bool
		User, Password string
	}
	if err := json.Unmarshal([]byte(made.out), &doc); err != nil || !doc.Enabled || doc.User != "root" || len(doc.Password) < 20 {
		t.Fatalf("%s: %v", made.out, err)
	}
	if strings.Contains(made.err, doc.Password) || strings.Count(made.out, doc.Password) != 1 {
		t.Errorf("the password is not shown exactly once: %s%s", made.out, made.err)
	}
	w.want(8, "", "user list")
	w.want(0, "", "auth whoami --user root:"+doc.Password, "do everything")
	for _, args := range []string{"auth init", "auth init --user root:" + doc.Password, "auth init --password-file -"} {
		w.want(5, "another\n", args, "enabled already", "kvd user passwd root")
	}
	w.want(0, "", "auth whoami --user root:"+doc.Password, "do everything")
}

// TestInitInEveryForm: what is printed fits who reads it, and each password is another one.
func TestInitInEveryForm(t *testing.T) {
	w := newWorld(t)
	text := w.want(0, "", "auth init", "rights are enabled", "password", "shown only now", "kvd login --user root").out
	w.environ = append(w.environ, "KVD_USER=root:"+strings.Fields(text[strings.Index(text, "password "):])[1])
	w.want(0, "", "auth disable")
	first := w.environ[len(w.environ)-1]
	w.environ = w.environ[:len(w.environ)-1]
	value := strings.TrimSpace(w.want(0, "", "auth init -o value").out) // for the root who is there already
	if strings.HasSuffix(first, value) {
		t.Error("two passwords are the same")
	}
	w.want(8, "", "user list")
	w.want(0, "", "auth disable --user root:"+value)
	if got := w.want(0, "chosen\n", "auth init --password-file -", "rights are enabled", "kvd login"); strings.Contains(got.out+got.err, "chosen") {
		t.Errorf("the user's own password is shown: %s%s", got.out, got.err)
	}
	w.want(0, "", "auth whoami --user root:chosen", "do everything")
}

// TestInitWhoseAnswerIsLost: the password is printed although the command got no answer, and
// its repeat was refused: rights were enabled by the first attempt.
func TestInitWhoseAnswerIsLost(t *testing.T) {
	w := newWorld(t)
	at, err := url.Parse(w.node.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	var changes atomic.Int64
	proxy := httputil.NewSingleHostReverseProxy(at)
	proxy.ModifyResponse = func(r *http.Response) error {
		if r.Request.Method == http.MethodPut && changes.Add(1) == 1 {
			panic(http.ErrAbortHandler) // the connection ends
		}
		return nil
	}
	front := httptest.NewServer(proxy)
	t.Cleanup(front.Close)
	got := w.want(0, "", "auth init -o value --endpoints "+front.URL)
	if changes.Load() < 2 {
		t.Errorf("the change was sent %d times: nothing was lost", changes.Load())
	}
	w.want(0, "", "auth whoami --user root:"+strings.TrimSpace(got.out), "do everything")
}

// TestInitOverTheSocket: a unix socket works, too; there, a node's own user is root
// afterwards without the password.
func TestInitOverTheSocket(t *testing.T) {
	node := kvdtest.New(t, kvdtest.UnixSocket())
	w := &world{t, node, []string{"HOME=" + t.TempDir(), "KVD_ENDPOINTS=" + node.Endpoint}}
	if !strings.HasPrefix(node.Endpoint, "unix://") {
		t.Fatal(node.Endpoint)
	}
	w.want(0, "", "auth init", "rights are enabled")
	w.want(5, "", "auth init", "enabled already")
}
