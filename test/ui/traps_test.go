package ui

import (
	"fmt"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// What somebody has typed is never dropped without their will: not by a change of the key, nor
// by a walk to another key or view.
func TestDrafts(t *testing.T) {
	c := startCluster(t, 1)
	c.put("k", "first")
	c.put("other", "x")
	p := openPage(t, c.url(0), "#/keys?key=k")
	p.see("pre", "first")
	p.click("Edit")
	p.fill("Value", "mine")
	c.put("k", "theirs")
	p.see("main", "This key has changed since.")
	if b := p.buttons(); strings.Contains(strings.Join(b, "\n"), "Show the new value") {
		t.Errorf("an open editor offers %q", b)
	}
	p.click("Compare with yours")
	p.see(".diff", "in the store, revision 4", "theirs", "mine")
	p.see(".split form", "Saved only if the key is still at revision 4.")
	p.wait("!document.querySelector('main').innerText.includes('This key has changed since.')")
	c.put("k", "theirs again")
	p.see("main", "This key has changed since.") // what was compared is old by now

	p.choose("other")
	p.see("pre", "x")
	p.view("#/cluster")
	p.see(".tiles", "healthy")
	p.view("#/keys?key=k")
	p.see("pre", "theirs again")
	p.see("main", "You have an unsaved edit of revision 4.")
	p.click("Continue editing")
	p.wait("document.querySelector('textarea').value === 'mine'")
	p.click("Save")
	p.see(".diff", "in the store, revision 5", "theirs again", "mine")
	p.click("Save mine over it")
	p.see("pre", "mine")
	if got := c.do("GET", "/v1/kv/k", ""); got != "mine" {
		t.Errorf("stored %q", got)
	}
	if text := p.text("main"); strings.Contains(text, "unsaved") {
		t.Errorf("after saving, the page says %q", text)
	}

	// A draft of a key that was deleted can make it again.
	p.click("Edit")
	p.fill("Value", "still mine")
	p.choose("other")
	p.see("pre", "x")
	c.do("DELETE", "/v1/kv/k", "")
	p.choose("k") // the tree is older
	p.see("main", "The key does not exist now.", "still mine")
	p.click("Create the key with it")
	p.see("pre", "still mine")

	// Cancel is a will.
	p.click("Edit")
	p.fill("Value", "never mind")
	p.click("Cancel")
	p.see("pre", "still mine")
	p.choose("other")
	p.see("pre", "x")
	p.choose("k")
	p.see("pre", "still mine")
	if text := p.text("main"); strings.Contains(text, "unsaved") {
		t.Errorf("after Cancel, the page says %q", text)
	}
}

// Any two versions of a key can be compared, in whichever order they are selected.
func TestCompareAnyTwo(t *testing.T) {
	c := startCluster(t, 1)
	for i := range 9 {
		c.put("k", fmt.Sprintf("same\nvalue %d\n", i))
	}
	p := openPage(t, c.url(0), "#/keys?key=k")
	p.click("History")
	p.wait("document.querySelectorAll('.timeline > li').length === 9")
	pick := func(revision int) {
		t.Helper()
		p.do(chromedp.Click(chromedp.CSS(fmt.Sprintf("[aria-label='Compare revision %d']", revision)), chromedp.NodeVisible))
	}
	pick(9)
	p.see("main", "Select another one to compare it with.")
	pick(4)
	p.see("main .diff", "revision 4", "value 2", "revision 9", "value 7", "same")
	if got := get[string](p, "document.querySelector('main .diff .old').textContent"); got != "value 2" {
		t.Errorf("the older side shows %q", got)
	}
	pick(2) // the first selection goes
	p.see("main .diff", "revision 2", "value 0", "revision 4", "value 2")
	if got := p.nodes(".pick:checked"); got != 2 {
		t.Errorf("%d versions are selected", got)
	}
	p.click("Close the comparison")
	p.wait("!document.querySelector('main .diff') && !document.querySelector('.pick:checked')")
}

// A level of the tree that could not be read is not busy, and the person can try again.
func TestRefusedList(t *testing.T) {
	c := startCluster(t, 3)
	for _, proc := range c.procs[1:] {
		_ = proc.Process.Kill()
	}
	p := openPage(t, c.url(0), "#/keys")
	p.see(".tree .note.bad", "leader")
	if p.nodes("[aria-busy]") != 0 {
		t.Error("a list that was refused is still busy")
	}
}

// Before a login the header says so, and does not call it a failure of the cluster.
func TestHeaderBeforeLogin(t *testing.T) {
	c := startGuarded(t)
	p := openPage(t, c.url(0), "#/access")
	p.see("#pulse", "not logged in")
	if got := get[string](p, "document.querySelector('#pulse').dataset.state"); got != "" {
		t.Errorf("the header has the state %q", got)
	}
	p.signIn("root", "root")
	p.see("#pulse", "healthy")
}

// The Prefix field shows the prefix of the address, also after Back, while it has the focus.
func TestPrefixFollowsBack(t *testing.T) {
	c := startCluster(t, 1)
	c.put("app/a", "x")
	c.put("b", "x")
	p := openPage(t, c.url(0), "#/keys")
	p.wait("document.querySelectorAll('[role=treeitem]').length === 2")
	p.view("#/keys?prefix=b")
	p.wait("document.querySelectorAll('[role=treeitem]').length === 1")
	p.fill("Prefix", "app/")
	p.see(".tree", "a")
	p.wait("document.activeElement.type === 'search'")
	p.run("history.back()")
	p.wait("location.hash === '#/keys' && document.activeElement.value === ''")
	p.wait("document.querySelectorAll('[role=treeitem]').length === 2")
}

// Words that people misread stay away.
func TestPlainLabels(t *testing.T) {
	c := startCluster(t, 1)
	p := openPage(t, c.url(0), "")
	p.see(".tiles", "one member, nothing to compare")
	p.view("#/settings")
	p.see("tr[data-name=retention_millis]", "10 min")
	if text := p.text("tr[data-name=retention_millis]"); strings.Contains(text, "0 s") {
		t.Errorf("ten minutes are %q", text)
	}
	p.view("#/backup")
	p.see("main", "Save straight to disk")
}

// The tree stays as it was unfolded, and on its pages, when a key changes or goes.
func TestTreeKeepsItsPlace(t *testing.T) {
	c := startCluster(t, 1)
	c.fill(0, 250, "many/%04d")
	c.fill(0, 3, "app/%d")
	p := openPage(t, c.url(0), "#/keys")
	p.choose("app/")
	p.wait("document.querySelectorAll('[role=treeitem]').length === 5")
	p.choose("many/")
	p.wait("document.querySelectorAll('[role=treeitem]').length === 106")
	p.choose("1 to 100 are shown; next 100 ›")
	p.see(".tree", "0100")
	p.choose("0100")
	p.see("pre", "value of 100")
	at := get[float64](p, "(() => { const list = document.querySelector('.split').firstChild; list.scrollTop = 60; return list.scrollTop })()")
	p.click("Delete…")
	p.confirm("Delete")
	p.wait("!document.querySelector('[data-key=\"many%2F0100\"]')")
	if got := p.tree(); got[0] != "app/" || got[1] != "0" || got[4] != "many/" || got[6] != "0101" {
		t.Errorf("after the delete, the tree has %q", got[:8])
	}
	if got := get[float64](p, "document.querySelector('.split').firstChild.scrollTop"); got != at {
		t.Errorf("the list was scrolled by %v, and is by %v", at, got)
	}
}

// A member that was added and not started yet is no alarm.
func TestAddedMemberIsNoAlarm(t *testing.T) {
	c := startCluster(t, 1)
	c.do("POST", "/v1/members", fmt.Sprintf(`{"peer_urls":["http://127.0.0.1:%d"]}`, freePort(t)))
	p := openPage(t, c.url(0), "")
	p.see(".members tr[data-id='2']", "not started yet")
	if p.nodes("[aria-label=Alarms]:not([hidden])") != 0 {
		t.Errorf("the alarms are %q", p.text("[aria-label=Alarms]"))
	}
}

// A filter that nothing matches says so.
func TestWatchExplainsEmptiness(t *testing.T) {
	c := startCluster(t, 1)
	p := openPage(t, c.url(0), "#/watch")
	p.see("main", "Changes appear here as they happen.")
	c.put("a", "x")
	p.wait("document.querySelectorAll('tbody tr').length === 1")
	p.fill("Filter what is shown", "zebra")
	p.see("main", "None of the 1 change matches the filter.")
}
