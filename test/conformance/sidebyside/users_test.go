package sidebyside

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"regexp"
	"testing"
)

// exchange is a request to the gateway with its answer, as kvd's tests read it.
type exchange struct {
	Path   string          `json:"path"`
	Body   json.RawMessage `json:"body"`
	Token  bool            `json:"token,omitempty"` // sent with the token of the login
	Status int             `json:"status"`
	Answer json.RawMessage `json:"answer"`
}

var loginToken = regexp.MustCompile(`"token":"[^"]*"`)

// TestRecordedUsers: what the tests of "kvd auth import" take for answers of etcd is what
// etcd answers, in a session that makes the users and roles first.
func TestRecordedUsers(t *testing.T) {
	const file = "../../../internal/cli/accounts/testdata/etcd-users.jsonl"
	if os.Getenv("CONFORMANCE_BIN") == "" {
		t.Skip("it builds an etcd, as make conformance does")
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	etcd := start(t, "etcd", buildEtcd(t), "")
	var anew bytes.Buffer
	token := ""
	for line := range bytes.Lines(text) {
		var e exchange
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		recorded := e
		etcd.exchange(t, &e, token)
		var login struct{ Token string }
		if err := json.Unmarshal(e.Answer, &login); err != nil {
			t.Fatalf("%s: %v", e.Answer, err)
		}
		if login.Token != "" {
			token = login.Token
		}
		mask := func(e exchange) string {
			return loginToken.ReplaceAllString(normalize(string(e.Answer)), `"token":"…"`)
		}
		if os.Getenv("CONFORMANCE_UPDATE") == "" && (e.Status != recorded.Status || mask(e) != mask(recorded)) {
			t.Errorf("%s %s: etcd answers %d %s, but %d %s is recorded; run with CONFORMANCE_UPDATE=1", e.Path, e.Body, e.Status, e.Answer, recorded.Status, recorded.Answer)
		}
		out, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		anew.Write(append(out, '\n'))
	}
	if token == "" {
		t.Error("nobody has logged in")
	}
	if os.Getenv("CONFORMANCE_UPDATE") != "" {
		if err := os.WriteFile(file, anew.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// exchange sends the request and takes the answer.
func (a *target) exchange(t *testing.T, e *exchange, token string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+a.address+e.Path, bytes.NewReader(e.Body))
	if err != nil {
		t.Fatal(err)
	}
	if e.Token {
		r.Header.Set("Authorization", token)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if e.Answer, err = io.ReadAll(answer.Body); err != nil {
		t.Fatal(err)
	}
	e.Status = answer.StatusCode
}
