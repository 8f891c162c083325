package ui

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// A page of a node with --ui=read offers no change, and one that tries is refused.
// Programs are not.
func TestReadOnly(t *testing.T) {
	c := startCluster(t, 1, "--ui=read")
	c.put("k", "v")
	p := openPage(t, c.url(0), "#/keys?key=k")
	p.see("header", "read only")
	p.see("pre", "v")
	changes := []string{"Add", "Remove", "Promote", "Hand", "New", "Edit", "Upload", "Delete", "Restore", "Revoke", "Release", "Keep", "Create", "Change", "Compact", "Set"}
	for _, view := range []string{"#/keys?key=k", "#/cluster", "#/leases", "#/settings", "#/watch", "#/backup"} {
		p.view(view)
		p.see("main", "")
		p.wait("document.querySelector('main h1')")
		for _, b := range strings.Split(get[string](p, "[...document.querySelectorAll('main button')].map((b) => b.textContent).join('\\n')"), "\n") {
			if slices.ContainsFunc(changes, func(c string) bool { return strings.HasPrefix(b, c) }) {
				t.Errorf("%s has the button %q", view, b)
			}
		}
	}
	for method, path := range map[string]string{"PUT": "/v1/kv/k", "DELETE": "/v1/members/1", "POST": "/v1/compact?revision=1", "PATCH": "/v1/settings"} {
		got := get[string](p, fmt.Sprintf("fetch(%q, {method: %q}).then(async (r) => r.status + ' ' + (await r.json()).code)", path, method))
		if got != "403 permission_denied" {
			t.Errorf("%s %s by the page: %s", method, path, got)
		}
	}
	if got := c.do("GET", "/v1/kv/k", ""); got != "v" {
		t.Errorf("the value is %q", got)
	}
}

func TestOff(t *testing.T) {
	c := startCluster(t, 1, "--ui=off")
	for _, path := range []string{"/ui", "/ui/", "/ui/app.js"} {
		if status, text := c.ask("GET", path, ""); status != 404 || !strings.Contains(text, "--ui") {
			t.Errorf("%s: %d %s", path, status, text)
		}
	}
}

// Everything can be reached and done with keys alone.
func TestKeyboardOnly(t *testing.T) {
	c := startCluster(t, 1)
	c.fill(0, 3, "app/%d")
	c.put("zebra", "stripes")
	p := openPage(t, c.url(0), "")
	p.see(".tiles", "healthy")
	focused := func(what string) bool {
		return get[bool](p, "document.activeElement.textContent.trim() === "+fmt.Sprintf("%q", what))
	}
	tabTo := func(what string) {
		t.Helper()
		for range 60 {
			if p.keys(kb.Tab); focused(what) {
				return
			}
		}
		t.Fatalf("Tab does not reach %q", what)
	}
	p.keys(kb.Tab)
	if !focused("Skip to content") {
		t.Error("the first stop is not the link to the content")
	}
	tabTo("Keys")
	p.keys(kb.Enter)
	p.wait("document.activeElement.tagName === 'H1' && document.title.startsWith('Keys')")
	p.wait("document.querySelectorAll('[role=treeitem]').length === 2")
	for range 12 {
		if p.keys(kb.Tab); get[bool](p, "document.activeElement.getAttribute('role') === 'treeitem'") {
			break
		}
	}
	p.keys(kb.ArrowRight)
	p.wait("document.querySelectorAll('[role=treeitem]').length === 5")
	p.keys(kb.ArrowDown, kb.ArrowDown, kb.ArrowLeft)
	p.wait("document.activeElement.querySelector('.key').textContent === 'app/'")
	p.keys(kb.End, kb.Enter)
	p.see("pre", "stripes")
	p.wait("document.activeElement.getAttribute('aria-label') === 'Key'")
	tabTo("Edit")
	p.keys(kb.Enter)
	p.wait("document.activeElement.tagName === 'TEXTAREA'")
	p.keys("more ")
	p.do(chromedp.KeyEvent("s", chromedp.KeyModifiers(chromedp.ModifierCtrl))) // Ctrl-S
	p.see("pre", "more stripes")
	p.run("document.querySelector('section[tabindex]').focus()")
	tabTo("Delete…")
	p.keys(kb.Enter)
	p.wait("document.querySelector('dialog')?.open && document.activeElement.textContent === 'Cancel'")
	p.keys(kb.Escape)
	p.wait("!document.querySelector('dialog') && document.activeElement.textContent === 'Delete…'")
	p.keys(kb.Escape)
	p.wait("document.activeElement.getAttribute('role') === 'treeitem'")
}

// views are the states that screenshots and the checks of all views look at.
var views = []struct{ name, hash, ready string }{
	{"cluster", "#/cluster", "document.querySelectorAll('.members tbody tr').length === 3"},
	{"keys", "#/keys?key=app%2Fconfig", "document.querySelector('pre.json')"},
	{"past", "#/keys?rev=40", "document.querySelector('.split [role=treeitem]')"},
	{"watch", "#/watch", "document.querySelector('tbody tr')"},
	{"leases", "#/leases", "document.querySelectorAll('tbody tr').length > 2"},
	{"metrics", "#/metrics", "document.querySelectorAll('.chart path[d*=L]').length > 4"},
	{"settings", "#/settings", "document.querySelectorAll('tbody tr').length > 5 && document.querySelector('select')"},
	{"backup", "#/backup", "document.querySelector('dl dt')"},
}

// furnish stores something of everything.
func furnish(c *cluster) {
	c.fill(0, 120, "service/web/%03d")
	c.fill(0, 30, "user/%d/name")
	for v := range 4 {
		c.put("app/config", fmt.Sprintf(`{"name":"shop","replicas":%d,"regions":["eu","us"],"limits":{"rps":%d00,"burst":50}}`, v, v))
	}
	c.put("flags/dark-mode", "on")
	c.put("bin%FF/logo.png", "\x89PNG\r\n\x1a\n")
	c.do("PUT", "/v1/kv/session/a81f?ttl=1h", "user 7")
	c.do("POST", "/v1/leases", `{"ttl":"20m","name":"worker 3"}`)
	c.do("POST", "/v1/locks/report?ttl=5m", "host7")
	c.do("POST", "/v1/locks/deploy/web?ttl=15m", "build 4711")
}

// settle opens a view and waits until it shows what it will.
func (p *page) settle(c *cluster, i int) {
	p.t.Helper()
	p.view(views[i].hash)
	p.wait("document.querySelector('main').dataset.view === " + fmt.Sprintf("%q", strings.TrimLeft(strings.Split(views[i].hash, "?")[0], "#/")))
	if views[i].name == "watch" {
		p.see("main", "live")
		c.put("app/limits", `{"rps":100}`)
		c.put("app/limits", `{"rps":200}`)
		c.do("DELETE", "/v1/kv/app/limits", "")
	}
	p.wait(views[i].ready)
	if views[i].name == "keys" {
		p.click("History")
		p.wait("document.querySelector('.timeline > li')")
		p.do(chromedp.Click(chromedp.CSS(".timeline button.event")))
		p.wait("document.querySelector('.diff')")
	}
}

// Screenshots of all views at three widths, light and dark. Nothing may need scrolling
// sideways, and every control must have a name for a screen reader.
func TestScreenshots(t *testing.T) {
	c := startCluster(t, 3)
	furnish(c)
	dir := os.Getenv("KVD_UI_SHOTS")
	if dir == "" {
		dir = t.ArtifactDir()
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p := openPage(t, c.url(0), "")
	for i, v := range views {
		p.settle(c, i)
		p.checkNames(v.name)
		for _, w := range []int64{360, 768, 1280} {
			for _, scheme := range []string{"light", "dark"} {
				p.size(w, 900, scheme)
				if wide := get[int64](p, "document.scrollingElement.scrollWidth"); wide > w {
					t.Errorf("%s needs %d pixels, and has %d", v.name, wide, w)
				}
				shot, err := chromedp.Run(p.ctx, chromedp.FullScreenshot(100))
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s-%d-%s.png", v.name, w, scheme)), shot, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		p.size(1280, 900, "light")
	}
}

// checkNames looks at a view as a screen reader does.
func (p *page) checkNames(view string) {
	p.t.Helper()
	tree := call(p, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{}).Nodes
	roles := map[string]int{}
	for _, n := range tree {
		if n.Ignored || n.Role == nil {
			continue
		}
		role := strings.Trim(string(n.Role.Value), `"`)
		roles[role]++
		named := n.Name != nil && strings.Trim(string(n.Name.Value), `"`) != ""
		if slices.Contains([]string{"button", "link", "textbox", "searchbox", "combobox", "checkbox", "slider", "spinbutton", "tree", "treeitem", "table", "image", "dialog", "navigation", "progressbar"}, role) && !named {
			p.t.Errorf("%s has a %s without a name (node %d)", view, role, n.BackendDOMNodeID)
		}
	}
	for _, landmark := range []string{"banner", "navigation", "main", "heading"} {
		if roles[landmark] == 0 {
			p.t.Errorf("%s has no %s", view, landmark)
		}
	}
}
