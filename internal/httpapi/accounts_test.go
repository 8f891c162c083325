package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/kvd-io/kvd/internal/access"
	"github.com/kvd-io/kvd/internal/kvstore"
	"github.com/kvd-io/kvd/internal/rights"
)

// withGate gives the Server a Gate over the rights in its store.
func withGate(opts *Options) {
	n := opts.Store.(*testNode)
	opts.Gate = access.New(access.Options{
		Tables:  n.Rights,
		Changed: func() <-chan struct{} { return kvstore.RightsChanged(n.Store) },
		EachBound: func(lease uint64, fn func(rights.Space, []byte) bool) error {
			return kvstore.EachBound(n.Store, lease, fn)
		},
		CertUser:   access.CertCN,
		LocalRoot:  true,
		BcryptCost: bcrypt.MinCost,
		Change: func(ctx context.Context, c *rights.Change) error {
			_, err := n.Do(ctx, &kvstore.Command{Op: kvstore.OpRights, Rights: c, Origin: kvstore.Origin{Principal: rights.Root}}, nil)
			return err
		},
	})
}

const rootBasic = "Authorization: Basic cm9vdDpzZWNyZXQ=" // root:secret

// newAccounts has rights enabled: root, lead who manages the people of a/, and dev.
func newAccounts(t *testing.T) *fixture {
	t.Helper()
	f := newFixture(t, withGate)
	f.do("PUT", "/v1/auth", `{"enabled":true,"root_password":"secret"}`).want(200)
	for _, c := range []struct{ target, body string }{
		{"/v1/roles/a", `{"permissions":[{"access":"readwrite","prefix":"a/"}]}`},
		{"/v1/roles/auth", `{"capabilities":["auth"]}`},
		{"/v1/roles/b", `{"permissions":[{"access":"read","key":"b"}]}`},
		{"/v1/users/lead", `{"roles":["a","auth"],"password":"lead"}`},
		{"/v1/users/dev", `{"roles":["a"],"password":"dev"}`},
		{"/v1/users/other", `{"roles":["b"]}`},
	} {
		f.do("PUT", c.target, c.body, rootBasic).want(201)
	}
	return f
}

// as returns the header with a user whose password is the name.
func as(user string) string {
	r := http.Request{Header: http.Header{}}
	r.SetBasicAuth(user, user)
	return "Authorization: " + r.Header.Get("Authorization")
}

// lacks checks that parts are not in the body.
func (a *answer) lacks(parts ...string) {
	a.t.Helper()
	for _, p := range parts {
		if strings.Contains(a.body, p) {
			a.t.Errorf("%s: %q is in %s", a.what, p, a.body)
		}
	}
}

// token makes a token, and returns the header with it.
func (f *fixture) token(header, body string) string {
	f.t.Helper()
	var made struct{ Secret string }
	if err := json.Unmarshal([]byte(f.do("POST", "/v1/tokens", body, header).want(201).body), &made); err != nil {
		f.t.Fatal(err)
	}
	return "Authorization: Bearer " + made.Secret
}

// TestFirstStart: rights are enabled in one step, and from then on judge everybody.
func TestFirstStart(t *testing.T) {
	f := newFixture(t, withGate)
	f.do("GET", "/v1/auth", "").want(200, `{"enabled":false,"revision":1}`)
	f.do("GET", "/v1/auth/whoami", "").want(200, `"enabled":false`, `"proof":"off"`, `"root":true`)
	f.do("PUT", "/v1/auth", `{"enabled":true}`).want(400, `rights need a user \"root\"`)
	f.do("PUT", "/v1/auth", `{"enabled":true,"root_password":""}`).want(400, "root_password: it is empty", `"path":"root_password"`)
	f.do("PUT", "/v1/auth", `{"enabled":false,"root_password":"x"}`).want(400)
	f.do("PUT", "/v1/auth", `{}`).want(400, "enabled")
	f.do("PUT", "/v1/auth", `{"enabled":true,"root_password":"secret"}`).want(200, `"enabled":true`)
	f.do("GET", "/v1/auth", "").want(200, `"enabled":true`)
	f.do("PUT", "/v1/auth", `{"enabled":false}`).want(401)
	f.do("PUT", "/v1/auth", `{"enabled":false}`, rootBasic).want(200)
	// What GET answers can be sent back.
	f.do("PUT", "/v1/auth", f.do("GET", "/v1/auth", "").body).want(200)
}

// TestWhoMayDoWhatWithAccounts has the routes by kinds of callers.
func TestWhoMayDoWhatWithAccounts(t *testing.T) {
	f := newAccounts(t)
	f.do("POST", "/v1/tokens", `{"user":"other"}`, rootBasic).want(201)
	program := f.token(as("dev"), `{"label":"program"}`)
	manager := f.token(as("lead"), `{}`)
	for _, c := range []struct {
		method, target, body string
		want                 [5]int // nobody, dev, dev by a token, lead, root
	}{
		{"GET", "/v1/users", "", [5]int{401, 403, 403, 200, 200}},
		{"GET", "/v1/users/dev", "", [5]int{401, 200, 200, 200, 200}},
		{"GET", "/v1/users/other", "", [5]int{401, 403, 403, 200, 200}},
		{"GET", "/v1/users/nobody", "", [5]int{401, 403, 403, 404, 404}},
		{"PUT", "/v1/users/other", `{"roles":["b"]}`, [5]int{401, 403, 403, 403, 200}},
		{"PUT", "/v1/users/dev", `{"roles":["a"]}`, [5]int{401, 403, 403, 200, 200}},
		{"PUT", "/v1/users/root", `{"password":"x"}`, [5]int{401, 403, 403, 403, -1}},
		{"PUT", "/v1/users/dev", `{"roles":["a","b"]}`, [5]int{401, 403, 403, 403, 200}},
		{"PUT", "/v1/users/dev", `{"roles":["a"]}`, [5]int{401, 403, 403, 403, 200}},
		{"DELETE", "/v1/users/root", "", [5]int{401, 403, 403, 403, 400}},
		{"GET", "/v1/roles", "", [5]int{401, 403, 403, 200, 200}},
		{"GET", "/v1/roles/a", "", [5]int{401, 200, 200, 200, 200}},
		{"GET", "/v1/roles/b", "", [5]int{401, 403, 403, 200, 200}},
		{"PUT", "/v1/roles/b", `{}`, [5]int{401, 403, 403, 403, -1}},
		{"PUT", "/v1/roles/a", `{"permissions":[{"access":"readwrite","prefix":"a/"}]}`, [5]int{401, 403, 403, 200, 200}},
		{"DELETE", "/v1/roles/b", "", [5]int{401, 403, 403, 403, -1}},
		{"GET", "/v1/tokens", "", [5]int{401, 200, 200, 200, 200}},
		{"GET", "/v1/tokens?user=other", "", [5]int{401, 403, 403, 200, 200}},
		{"POST", "/v1/tokens", `{}`, [5]int{400, 201, 403, 201, 201}},
		{"POST", "/v1/tokens", `{"user":"other"}`, [5]int{401, 403, 403, 403, 201}},
		{"DELETE", "/v1/tokens/none", "", [5]int{401, 403, 403, 404, 404}},
		{"GET", "/v1/auth", "", [5]int{200, 200, 200, 200, 200}},
		{"PUT", "/v1/auth", `{"enabled":true}`, [5]int{401, 403, 403, 403, 200}},
		{"GET", "/v1/auth/whoami", "", [5]int{200, 200, 200, 200, 200}},
		{"POST", "/v1/auth/check", `{"capability":"backup"}`, [5]int{200, 200, 200, 200, 200}},
		{"POST", "/v1/auth/check", `{"user":"other","capability":"backup"}`, [5]int{401, 403, 403, 200, 200}},
		{"POST", "/v1/auth/login", `{"user":"dev","password":"dev"}`, [5]int{200, 200, 200, 200, 200}},
	} {
		for i, header := range []string{"X-None: x", as("dev"), program, as("lead"), rootBasic} {
			if c.want[i] < 0 {
				continue
			}
			f.do(c.method, c.target, c.body, header).want(c.want[i])
			if i == 3 { // what lead may do does not depend on how it proves who it is
				f.do(c.method, c.target, c.body, manager).want(c.want[i])
			}
		}
	}
}

// TestUsersChange: what a document changes, and what it leaves alone.
func TestUsersChange(t *testing.T) {
	f := newAccounts(t)
	f.do("GET", "/v1/users/dev", "", rootBasic).want(200, `{"name":"dev","roles":["a"],"has_password":true}`)
	f.do("PUT", "/v1/users/dev", `{"roles":[]}`, rootBasic).want(200, `{"name":"dev","roles":[],"has_password":true}`)
	f.do("PUT", "/v1/users/dev", `{"password":"new"}`, as("dev")).want(200)
	f.do("GET", "/v1/auth/whoami", "", as("dev")).want(401)
	f.do("PUT", "/v1/users/dev", `{"has_password":false}`, rootBasic).want(200, `"has_password":false`)
	hash, err := bcrypt.GenerateFromPassword([]byte("dev"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	f.do("PUT", "/v1/users/dev", fmt.Sprintf(`{"password_hash":%q}`, hash), rootBasic).want(200)
	f.do("GET", "/v1/auth/whoami", "", as("dev")).want(200, `"user":"dev"`, `"proof":"password"`)
	for body, want := range map[string]string{
		`{}`:                                   "roles",
		`{"name":"x","roles":[]}`:              "name: it is",
		`{"roles":["none"]}`:                   `role \"none\" does not exist`,
		`{"roles":[1]}`:                        `"path":"roles[0]"`,
		`{"role":[]}`:                          "unknown field",
		`{"password":""}`:                      "password: it is empty",
		`{"password":"x","password_hash":"y"}`: "only one",
		`{"password_hash":"y"}`:                "bcrypt",
		fmt.Sprintf(`{"password_hash":%q}`, "$2a$15"+string(hash[6:])):     "its cost is 15",
		fmt.Sprintf(`{"roles":[],"password":%q}`, strings.Repeat("x", 73)): "72",
	} {
		f.do("PUT", "/v1/users/dev", body, rootBasic).want(400, want)
	}
	f.do("PUT", "/v1/users/new", `{"password":"x"}`, rootBasic).want(404, `user \"new\" does not exist`)
	f.do("PUT", "/v1/users/a:b", `{"roles":[],"password":"x"}`, rootBasic).want(400, "colon")
	f.do("PUT", "/v1/users/%00", `{"roles":[]}`, rootBasic).want(400)
	f.do("PUT", "/v1/users/h%C3%A9%20%2F", `{"roles":[]}`, rootBasic).want(201, `"name":"hé /"`)
	f.do("GET", "/v1/users/h%C3%A9%20%2F", "", rootBasic).want(200)
	f.do("DELETE", "/v1/users/dev", "", rootBasic).want(200, `"deleted":1`)
	f.do("DELETE", "/v1/users/dev", "", rootBasic).want(404)
}

// TestRolesInEveryForm: permissions come back in the form in which they were given, and
// mistakes are named by their path.
func TestRolesInEveryForm(t *testing.T) {
	f := newAccounts(t)
	forms := []string{
		`{"access":"read","space":"keys","key":"a"}`,
		`{"access":"write","space":"keys","key_base64":"/wA="}`,
		`{"access":"readwrite","space":"keys","prefix":"b/"}`,
		`{"access":"read","space":"locks","prefix":""}`,
		`{"access":"read","space":"keys","prefix_base64":"/gD/"}`,
		`{"access":"read","space":"keys","start":"c","end":"d!"}`,
		`{"access":"read","space":"keys","start":"x"}`,
		`{"access":"read","space":"keys","start_base64":"//8=","end_base64":"///+"}`,
	}
	doc := `{"name":"forms","permissions":[` + strings.Join(forms, ",") + `],"capabilities":["backup","members"]}`
	f.do("PUT", "/v1/roles/forms", doc, rootBasic).want(201, doc)
	stored := f.do("GET", "/v1/roles/forms", "", rootBasic).want(200, doc)
	f.do("PUT", "/v1/roles/forms", stored.body, rootBasic).want(200, doc)
	for body, want := range map[string]string{
		`{"permissions":[{"access":"read","key":"a"},{"acces":"read"}]}`:                `"path":"permissions[1].acces"`,
		`{"permissions":[{"access":"all","key":"a"}]}`:                                  `"path":"permissions[0].access"`,
		`{"permissions":[{"key":"a"}]}`:                                                 `permissions[0]: the field \"access\" is missing`,
		`{"permissions":[{"access":"read"}]}`:                                           "permissions[0]: expected one of key, prefix, or start and end",
		`{"permissions":[{"access":"read","key":""}]}`:                                  "the key is empty",
		`{"permissions":[{"access":"read","key":"a","prefix":"a"}]}`:                    "expected one of",
		`{"permissions":[{"access":"read","key":"a","key_base64":"YQ=="}]}`:             "give one of them",
		`{"permissions":[{"access":"read","key_base64":"a"}]}`:                          `"path":"permissions[0].key_base64"`,
		`{"permissions":[{"access":"read","start":"b","end":"b"}]}`:                     "the range is empty",
		`{"permissions":[{"access":"read","space":"leases","key":"a"}]}`:                `"path":"permissions[0].space"`,
		`{"permissions":[{"access":"read","key":"a"},{"access":"write","key":"a"}]}`:    "two permissions",
		`{"capabilities":["backup","rule"]}`:                                            `"path":"capabilities[1]"`,
		`{"name":"other"}`:                                                              "renamed",
		`{"permissions":[{"access":"read","key":"` + strings.Repeat("x", 4097) + `"}]}`: "4097 bytes",
	} {
		f.do("PUT", "/v1/roles/x", body, rootBasic).want(400, want)
	}
	f.do("PUT", "/v1/roles/root", `{}`, rootBasic).want(400, "exists without being made")
	f.do("DELETE", "/v1/roles/root", "", rootBasic).want(404)
	f.do("PUT", "/v1/roles/big", `{"permissions":[`+strings.Repeat(" ", 1<<20)+`]}`, rootBasic).want(413)
}

// TestTokens: a secret is shown once, works as its user, and no longer than it may.
func TestTokens(t *testing.T) {
	f := newAccounts(t)
	made := f.do("POST", "/v1/tokens", `{"user":"dev","label":"ci","ttl":"1h"}`, rootBasic).want(201)
	var token struct {
		ID, User, Label, Secret string
		Created, Expires        time.Time
	}
	if err := json.Unmarshal([]byte(made.body), &token); err != nil {
		t.Fatal(err)
	}
	if got := token.Expires.Sub(token.Created); got != time.Hour || token.Label != "ci" || made.header.Get("Cache-Control") != "no-store" || made.header.Get("Location") != "/v1/tokens/"+token.ID {
		t.Errorf("%s, %v", made.body, made.header)
	}
	f.do("GET", "/v1/tokens?user=dev", "", rootBasic).want(200, token.ID).lacks("last_used")
	f.do("GET", "/v1/auth/whoami", "", "Authorization: Bearer "+token.Secret).want(200, `"user":"dev"`, `"proof":"token"`, `"expires":"`)
	f.do("GET", "/v1/tokens?user=dev", "", rootBasic).want(200, token.ID, `:00.000Z"}]`, `"last_used":"20`).lacks("secret")
	f.do("GET", "/v1/tokens?user=lead", "", rootBasic).want(200, `{"tokens":[]}`)
	f.do("POST", "/v1/tokens", `{}`, rootBasic, "Idempotency-Key: x").want(400, "secret is in the first answer")
	for _, body := range []string{`{"ttl":"0s"}`, `{"ttl":-1}`, `{"ttl":"soon"}`, `{"ttl":true}`} {
		f.do("POST", "/v1/tokens", body, rootBasic).want(400, `"path":"ttl"`)
	}
	f.do("POST", "/v1/tokens", `{"user":"nobody"}`, rootBasic).want(404)
	other := f.token(rootBasic, `{"user":"dev"}`)
	f.do("DELETE", "/v1/tokens/"+token.ID, "", other).want(403)
	f.do("DELETE", "/v1/tokens/"+token.ID, "", "Authorization: Bearer "+token.Secret).want(200)
	f.do("GET", "/v1/auth/whoami", "", "Authorization: Bearer "+token.Secret).want(401)
}

// TestTokensOfOneUser: a user can have so many tokens, and the refusal says what to do.
func TestTokensOfOneUser(t *testing.T) {
	f := newAccounts(t)
	for i := range rights.MaxUserTokens {
		token := &rights.Token{ID: fmt.Sprint("t", i), User: "dev", Sum: access.Sum(fmt.Sprint(i)), Created: time.Now().UnixMilli()}
		f.change(rights.Change{PutToken: token})
	}
	f.do("POST", "/v1/tokens", `{"user":"dev"}`, rootBasic).want(400, "1000 tokens, which is the limit", "revoke")
	f.do("POST", "/v1/tokens", `{}`, rootBasic).want(201)
	f.do("DELETE", "/v1/tokens/t7", "", rootBasic).want(200)
	f.do("POST", "/v1/tokens", `{"user":"dev"}`, rootBasic).want(201)
}

// TestConcurrentEditsOfAccounts: with the tag that was read, an edit that would undo
// another one is refused; and a repeat with an idempotency key changes nothing more.
func TestConcurrentEditsOfAccounts(t *testing.T) {
	f := newAccounts(t)
	read := f.do("GET", "/v1/roles/a", "", rootBasic).want(200)
	tag := read.header.Get("Etag")
	f.do("GET", "/v1/roles/a", "", rootBasic, "If-None-Match: "+tag).want(304)
	f.do("PUT", "/v1/roles/a", `{"permissions":[{"access":"read","prefix":"a/"}]}`, rootBasic, "If-Match: "+tag).want(200)
	f.do("PUT", "/v1/roles/a", `{}`, rootBasic, "If-Match: "+tag).want(412, "read the entry again")
	f.do("DELETE", "/v1/roles/a", "", rootBasic, "If-Match: "+tag).want(412)
	f.do("GET", "/v1/roles/a", "", rootBasic, "If-Match: "+tag).want(412)
	f.do("PUT", "/v1/users/dev", `{"roles":[]}`, rootBasic, "If-None-Match: *").want(412)
	f.do("PUT", "/v1/users/new", `{"roles":[]}`, rootBasic, "If-Match: *").want(412, "does not exist")
	first := f.do("PUT", "/v1/users/new", `{"roles":[]}`, rootBasic, "If-None-Match: *", "Idempotency-Key: once").want(201)
	again := f.do("PUT", "/v1/users/new", `{"roles":[]}`, rootBasic, "If-None-Match: *", "Idempotency-Key: once").want(201)
	if again.header.Get("Idempotency-Replayed") != "true" || again.header.Get("Etag") != first.header.Get("Etag") {
		t.Errorf("%v, then %v", first.header, again.header)
	}
	f.do("DELETE", "/v1/users/new", "", rootBasic, "Idempotency-Key: gone").want(200)
	f.do("DELETE", "/v1/users/new", "", rootBasic, "Idempotency-Key: gone").want(200)
}

// TestAccountPages: a list is complete over its pages, in order.
func TestAccountPages(t *testing.T) {
	f := newAccounts(t)
	var want []string
	for i := range 7 {
		name := fmt.Sprint("u", i)
		f.do("PUT", "/v1/users/"+name, `{"roles":[]}`, rootBasic).want(201)
		want = append(want, name)
	}
	want = slices.Sorted(slices.Values(append(want, "dev", "lead", "other", "root")))
	var got []string
	for query := "?limit=3"; ; {
		var page struct {
			Users []struct{ Name string }
			Next  string
		}
		a := f.do("GET", "/v1/users"+query, "", rootBasic).want(200)
		if err := json.Unmarshal([]byte(a.body), &page); err != nil || len(page.Users) > 3 {
			t.Fatal(a.body, err)
		}
		for _, u := range page.Users {
			got = append(got, u.Name)
		}
		if page.Next == "" {
			break
		}
		query = "?limit=3&cursor=" + page.Next
	}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	f.do("GET", "/v1/users?limit=1001", "", rootBasic).want(400)
	f.do("GET", "/v1/users?cursor=*", "", rootBasic).want(400)
	// Few large entries fill a page, too.
	var big []string
	for i := range 250 {
		big = append(big, fmt.Sprintf(`{"access":"read","key":"%s%d"}`, strings.Repeat("x", 4000), i))
	}
	for i := range 3 {
		f.do("PUT", fmt.Sprint("/v1/roles/big", i), `{"permissions":[`+strings.Join(big, ",")+`]}`, rootBasic).want(201)
	}
	if a := f.do("GET", "/v1/roles", "", rootBasic).want(200, `"next":"`); len(a.body) > 3<<20 {
		t.Errorf("a page of %d bytes", len(a.body))
	}
}

// TestWhoAmIAndCheck: callers are told all that they may do, and why not the rest.
func TestWhoAmIAndCheck(t *testing.T) {
	f := newAccounts(t)
	f.do("GET", "/v1/auth/whoami", "", as("lead")).want(200, `"user":"lead"`, `"roles":["a","auth"]`, `"root":false`,
		`"permissions":[{"access":"readwrite","space":"keys","prefix":"a/"}]`, `"capabilities":["auth"]`)
	f.do("GET", "/v1/auth/whoami", "", rootBasic).want(200, `"root":true`, `{"access":"readwrite","space":"locks","prefix":""}`)
	f.do("GET", "/v1/auth/whoami", "").want(200, `"user":"","proof":"none","roles":[],"root":false,"permissions":[],"capabilities":[]`)
	f.do("POST", "/v1/auth/check", `{"permission":{"access":"write","key":"a/1"}}`, as("dev")).want(200, `{"user":"dev","allowed":true}`)
	f.do("POST", "/v1/auth/check", `{"user":"dev","permission":{"access":"read","prefix":"a"}}`, rootBasic).want(200, `"allowed":false,"reason":"user \"dev\" may not read keys with the prefix \"a\"`)
	f.do("POST", "/v1/auth/check", `{"user":"nobody","capability":"auth"}`, rootBasic).want(404)
	for _, body := range []string{`{}`, `{"permission":{"access":"read","key":"a"},"capability":"auth"}`, `{"capability":"x"}`, `{"permission":{"access":"read"}}`} {
		f.do("POST", "/v1/auth/check", body, rootBasic).want(400)
	}
}

// TestLogin: a password becomes a token.
func TestLogin(t *testing.T) {
	f := newAccounts(t)
	a := f.do("POST", "/v1/auth/login", `{"user":"dev","password":"dev"}`).want(200)
	var made struct{ Token string }
	if err := json.Unmarshal([]byte(a.body), &made); err != nil || a.header.Get("Cache-Control") != "no-store" {
		t.Fatal(a.body, a.header, err)
	}
	f.do("GET", "/v1/auth/whoami", "", "Authorization: Bearer "+made.Token).want(200, `"proof":"login"`)
	f.do("POST", "/v1/auth/login", `{"user":"dev","password":"mistaken"}`).want(401).lacks("mistaken")
	f.do("POST", "/v1/auth/login", `{"user":"dev"}`).want(400)
	f.do("POST", "/v1/auth/login", `{"user":"dev","password":"dev"}`, "Idempotency-Key: x").want(200)
}
