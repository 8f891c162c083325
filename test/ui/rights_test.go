package ui

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// basic is the header of a user whose password is the name.
func basic(user string) []string {
	r := http.Request{Header: http.Header{}}
	r.SetBasicAuth(user, user)
	return []string{"Authorization", r.Header.Get("Authorization")}
}

// startGuarded starts a cluster with rights: root, and ann who may read app/ and write
// below app/ann/.
func startGuarded(t *testing.T, args ...string) *cluster {
	t.Helper()
	c := startCluster(t, 1, args...)
	c.put("app/config", "on")
	c.put("app/ann/note", "mine")
	c.put("other", "hidden")
	c.do("PUT", "/v1/auth", `{"enabled":true,"root_password":"root"}`)
	c.do("PUT", "/v1/roles/reader", `{"permissions":[{"access":"read","prefix":"app/"}]}`, basic("root")...)
	c.do("PUT", "/v1/roles/ann", `{"permissions":[{"access":"readwrite","prefix":"app/ann/"},{"access":"write","space":"locks","key":"deploy"}]}`, basic("root")...)
	c.do("PUT", "/v1/roles/nightly", `{"capabilities":["backup"]}`, basic("root")...)
	c.do("PUT", "/v1/users/ann", `{"roles":["reader","ann"],"password":"ann"}`, basic("root")...)
	c.do("PUT", "/v1/users/ci", `{"roles":["nightly"]}`, basic("root")...)
	c.do("POST", "/v1/tokens", `{"user":"ci","label":"build server","ttl":"720h"}`, basic("root")...)
	return c
}

// signIn fills in the dialog, and waits for the page to come back.
func (p *page) signIn(user, password string) {
	p.t.Helper()
	p.wait("document.querySelector('dialog h2')?.innerText === 'Log in'")
	p.fill("User", user)
	p.fill("Password", password)
	p.press("Log in")
	p.see(".who", user)
}

// buttons are the texts of those in the view.
func (p *page) buttons() []string {
	p.t.Helper()
	return strings.Split(get[string](p, "[...document.querySelectorAll('main button')].filter((b) => !b.hidden).map((b) => b.textContent).join('\\n')"), "\n")
}

// TestSignIn: a page of a node with rights asks who is there, keeps the login for the tab,
// and offers what that user may do.
func TestSignIn(t *testing.T) {
	c := startGuarded(t)
	p := openPage(t, c.url(0), "#/keys?prefix=app%2F")
	p.wait("document.querySelector('dialog')")
	p.fill("User", "ann")
	p.fill("Password", "wrong")
	p.press("Log in")
	p.see("dialog", "the user or the password is wrong")
	p.signIn("ann", "ann")
	p.wait("document.querySelector('[role=treeitem]')")
	if got := get[string](p, "JSON.stringify(Object.values(sessionStorage))"); !strings.HasPrefix(got, `["kvdl_`) || get[int64](p, "localStorage.length") != 0 || get[string](p, "document.cookie") != "" {
		t.Errorf("the tab keeps %s", got)
	}
	p.view("#/keys?key=app%2Fconfig")
	p.see("main", "on")
	if b := p.buttons(); slices.Contains(b, "Edit") || slices.Contains(b, "Delete…") {
		t.Errorf("a key that ann may only read offers %q", b)
	}
	p.view("#/keys?key=app%2Fann%2Fnote")
	p.see("main", "mine")
	p.wait("[...document.querySelectorAll('main button')].some((b) => b.textContent === 'Edit')")
	p.view("#/settings")
	p.see("main", "max_key_bytes")
	if b := p.buttons(); slices.Contains(b, "Change…") || slices.Contains(b, "Compact now…") || slices.Contains(b, "Set") {
		t.Errorf("the settings offer ann %q", b)
	}
	p.view("#/access")
	p.see("main", "You are ann", "write keys", "app/ann/…", "0 tokens")
	if p.nodes("#a-users") != 0 {
		t.Error("ann sees the users")
	}
	p.click("Create a token…")
	p.fill("Label", "mine")
	p.press("Create")
	p.see("dialog", "kvd_")
	p.press("Close")
	p.see("main", "1 token", "mine")
	p.click("Log out")
	p.wait("document.querySelector('dialog')")
	p.press("Cancel")
	p.wait("!document.querySelector('dialog')")
	p.see(".who", "Log in")
}

// TestManageAccess: those who may edit users and roles on the page, and a token made
// elsewhere serves to log in.
func TestManageAccess(t *testing.T) {
	c := startGuarded(t)
	p := openPage(t, c.url(0), "#/access")
	p.signIn("root", "root")
	p.see("main", "You may do everything", "3 users", "3 roles", "build server")
	p.click("Add a role…")
	p.fill("Name", "ops")
	p.press("Add a permission")
	p.fill("Key or lock", "svc/")
	p.run("document.getElementById('cap-operate').click()")
	p.confirm("Add role")
	p.see("main", "4 roles", "svc/…", "operate")
	p.click("Add a user…")
	p.fill("Name", "bob")
	p.fill("Password", "bob")
	p.run("[...document.querySelectorAll('dialog .check label')].find((l) => l.textContent === 'ops').click()")
	p.confirm("Add user")
	p.see("main", "4 users", "bob")
	if got := c.do("GET", "/v1/auth/whoami", "", basic("bob")...); !strings.Contains(got, `"prefix":"svc/"`) || !strings.Contains(got, `"capabilities":["operate"]`) {
		t.Errorf("bob is %s", got)
	}
	p.click("Edit user bob")
	p.wait("document.querySelector('dialog')")
	c.do("PUT", "/v1/roles/other", `{}`, basic("root")...)
	p.press("Save")
	p.see("dialog", "read the entry again")
	p.confirm("Cancel")
	p.click("Delete user bob")
	p.confirm("Delete")
	p.see("main", "3 users")
}

// TestSignInToReadOnly: a login changes nothing, so a page that changes nothing has it, too.
func TestSignInToReadOnly(t *testing.T) {
	c := startGuarded(t, "--ui=read")
	p := openPage(t, c.url(0), "#/access")
	p.signIn("root", "root")
	p.see("main", "You may do everything", "3 users")
	if b := p.buttons(); slices.ContainsFunc(b, func(s string) bool { return strings.HasSuffix(s, "…") }) {
		t.Errorf("a page that changes nothing offers %q", b)
	}
}

// TestEnableRights: rights are enabled on the page.
func TestEnableRights(t *testing.T) {
	c := startCluster(t, 1)
	p := openPage(t, c.url(0), "#/access")
	p.see("main", "Rights are disabled")
	p.click("Enable rights…")
	p.fill("Password of root", "secret")
	p.press("Enable")
	p.signIn("root", "secret")
	p.see("main", "You may do everything")
}

// TestAccessScreenshots is TestScreenshots for the view of users and its dialogs.
func TestAccessScreenshots(t *testing.T) {
	c := startGuarded(t)
	dir := os.Getenv("KVD_UI_SHOTS")
	if dir == "" {
		dir = t.ArtifactDir()
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p := openPage(t, c.url(0), "#/access")
	p.wait("document.querySelector('dialog')")
	shoot := func(name string) {
		for _, w := range []int64{360, 768, 1280} {
			for _, scheme := range []string{"light", "dark"} {
				p.size(w, 900, scheme)
				if wide := get[int64](p, "document.scrollingElement.scrollWidth"); wide > w {
					t.Errorf("%s needs %d pixels, and has %d", name, wide, w)
				}
				shot, err := chromedp.Run(p.ctx, chromedp.FullScreenshot(100))
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s-%d-%s.png", name, w, scheme)), shot, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		p.size(1280, 900, "light")
	}
	shoot("signin")
	p.signIn("root", "root")
	p.see("main", "build server")
	p.checkNames("access")
	shoot("access")
	p.click("Edit role ann")
	p.wait("document.querySelector('dialog .permission')")
	shoot("role")
}
