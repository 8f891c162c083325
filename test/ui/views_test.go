package ui

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	cdpbrowser "github.com/chromedp/cdproto/browser"
	"github.com/chromedp/chromedp"
)

func TestClusterAndHandOver(t *testing.T) {
	c := startCluster(t, 3)
	p := openPage(t, c.url(0), "")
	p.see(".tiles", "healthy", "3 of 3 voters up", "kvd", "term")
	p.wait("document.querySelectorAll('.members tbody tr').length === 3")
	p.wait("document.querySelectorAll('.members .leads').length === 1")
	p.wait("new Set([...document.querySelectorAll('[data-label=\"State hash\"]')].map((e) => e.textContent)).size === 1")
	// The row whose button is pressed is the one that leads afterwards.
	to := get[string](p, "document.querySelector('.members tr:not(.leads)[data-id]').dataset.id")
	p.click(fmt.Sprintf("Hand leadership over to kvd%s (%s)", to, to))
	p.see("dialog", "stops leading", "none is lost")
	p.confirm("Hand over")
	p.wait(fmt.Sprintf("document.querySelector('.members .leads')?.dataset.id === '%s'", to))
	p.see("#pulse", "leader kvd"+to)

	// A member that fails is seen without a reload, and the others go on.
	i := int(to[0] - '1')
	if i == 0 { // the page comes from the first one
		i = 1
	}
	_ = c.procs[i].Process.Kill()
	p.wait(fmt.Sprintf("document.querySelector('.members tr[data-id=\"%d\"]').dataset.state === 'bad'", i+1))
	p.see("#pulse", "not healthy")
}

func TestAddPromoteRemove(t *testing.T) {
	c := startCluster(t, 3)
	p := openPage(t, c.url(0), "")
	c.peers, c.ports = append(c.peers, fmt.Sprintf("http://127.0.0.1:%d", freePort(t))), append(c.ports, freePort(t))
	p.see(".members", "kvd3")
	p.click("Add member…")
	p.fill("Peer URL", "nonsense")
	p.press("Add member")
	p.see("dialog .note.bad", "peer_urls")
	p.fill("Peer URL", c.peers[3])
	p.do(chromedp.Click(chromedp.CSS("#stay-learner")))
	p.press("Add member")
	p.see("dialog .command", "--id 4", c.peers[3])
	p.confirm("Close")
	c.start(3, "--join")
	p.wait("document.querySelector('.members tr[data-id=\"4\"] [data-label=Role]')?.textContent === 'learner'")
	c.wait(3)
	p.see(".members", "kvd4") // its name is known once it has started
	until(t, "the learner is promoted", func() bool {
		p.click("Promote kvd4 (4)")
		p.see("dialog", "now\n3 voters, of which 2 must be up", "then\n4 voters, of which 3 must be up")
		p.press("Promote")
		p.wait("!document.querySelector('dialog') || document.querySelector('dialog .note.bad')")
		if p.nodes("dialog") > 0 { // it has not caught up yet
			p.confirm("Cancel")
			return false
		}
		return true
	})
	p.wait("document.querySelector('.members tr[data-id=\"4\"] [data-label=Role]')?.textContent === 'follower'")
	p.click("Remove kvd4 (4)")
	p.see("dialog", "never returns", "then\n3 voters")
	p.confirm("Remove kvd4 (4)")
	p.wait("document.querySelectorAll('.members tbody tr').length === 3")
	if err := c.procs[3].Wait(); err != nil {
		t.Errorf("the removed member ended with %v", err)
	}
}

func TestTree(t *testing.T) {
	c := startCluster(t, 1)
	c.fill(0, 250, "many/%04d")
	c.fill(0, 3, "app/config/%d")
	c.put("app.name", "x")
	c.put("bin%FF/%00", "x")
	p := openPage(t, c.url(0), "#/keys")
	p.wait("document.querySelectorAll('[role=treeitem]').length === 4")
	if got := strings.Join(p.tree(), " "); got != `app.name app/ bin\xff/ many/` {
		t.Errorf("the tree has %q", got)
	}
	p.choose("many/")
	p.wait("document.querySelectorAll('[role=treeitem]').length === 105")
	p.choose("1 to 100 are shown; next 100 ›")
	p.see(".tree", "0100", "0199", "101 to 200 are shown")
	p.choose("101 to 200 are shown; next 100 ›")
	p.see(".tree", "0249")
	p.choose("‹ previous 100")
	p.see(".tree", "0150")
	p.fill("Prefix", "app/c")
	p.wait("document.querySelectorAll('[role=treeitem]').length === 1")
	if got := p.tree(); got[0] != "config/" {
		t.Errorf("with the prefix, the tree has %q", got)
	}
	p.view("#/keys")
	p.wait("document.querySelectorAll('[role=treeitem]').length === 4")
	p.fill("Prefix", "app/")
	p.wait("document.querySelectorAll('[role=treeitem]').length === 1")
	p.click("Delete prefix…")
	p.see("dialog", "Delete 3 keys?", "app/")
	p.confirm("Delete all 3")
	p.see(".tree", "No key begins with this.")
	if got := c.do("GET", "/v1/kv?prefix=app/&count_only", ""); !strings.Contains(got, `"count":0`) {
		t.Errorf("after the delete: %s", got)
	}
	c.fill(0, 3, "app/config/%d")
	p.view("#/keys")
	p.wait("document.querySelectorAll('[role=treeitem]').length === 4")
	p.fill("Delimiter", ".")
	p.keys("\t")
	p.see(".tree", "app.", "app/config/0")
}

func TestValueForms(t *testing.T) {
	c := startCluster(t, 1)
	c.put("doc", `{"b":[1,12345678901234567890],"a":"x"}`)
	c.put("text", "<b>one</b>\ntwo\u202e")
	c.put("bin", "\xff\x00\x01PNG")
	p := openPage(t, c.url(0), "#/keys?key=doc")
	p.see("pre.json", "{\n  \"b\": [\n    1,\n    12345678901234567890\n  ],\n  \"a\": \"x\"\n}")
	p.see(".facts", "38 B", "Version\n1", "revision 2")
	p.click("Hex")
	p.see("pre.hex", "00000000  7b 22 62", `{"b":[1,12345678`)
	p.view("#/keys?key=text")
	p.see("pre.text", "<b>one</b>\ntwo")
	p.view("#/keys?key=bin")
	p.see("pre.hex", "ff 00 01 50 4e 47")
	if !get[bool](p, "[...document.querySelectorAll('.tabs button')].find((b) => b.textContent === 'Text').disabled") {
		t.Error("bytes that are no text can be shown as text")
	}
}

// save lets the browser keep downloads, and returns the file that a click leaves.
func save(p *page, click func()) []byte {
	p.t.Helper()
	dir := p.t.TempDir()
	call(p, cdpbrowser.SetDownloadBehavior, cdpbrowser.SetDownloadBehaviorParams{Behavior: "allow", DownloadPath: dir})
	click()
	var file string
	until(p.t, "the file is there", func() bool {
		names, _ := filepath.Glob(filepath.Join(dir, "*"))
		if len(names) != 1 || strings.HasSuffix(names[0], ".crdownload") {
			return false
		}
		file = names[0]
		return true
	})
	text, err := os.ReadFile(file)
	if err != nil {
		p.t.Fatal(err)
	}
	return text
}

func TestUploadDownloadDelete(t *testing.T) {
	c := startCluster(t, 1)
	c.put("a/file", "before")
	p := openPage(t, c.url(0), "#/keys?key=a%2Ffile")
	p.see("pre", "before")
	content := []byte("\x00\xffnew\r\ncontent")
	file := filepath.Join(t.TempDir(), "up.bin")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	p.do(chromedp.SetUploadFiles(chromedp.CSS("input[type=file]"), []string{file}))
	p.see("dialog", "up.bin", "14 B")
	p.confirm("Upload")
	p.see("pre.hex", "00 ff 6e 65 77")
	if got := c.do("GET", "/v1/kv/a/file", ""); got != string(content) {
		t.Errorf("stored %q", got)
	}
	if got := save(p, func() { p.click("Download") }); string(got) != string(content) {
		t.Errorf("downloaded %q", got)
	}
	p.click("Delete…")
	p.see("dialog", "a/file")
	p.confirm("Delete")
	p.see(".tree", "The store is empty")
	if status, _ := c.ask("GET", "/v1/kv/a/file", ""); status != 404 {
		t.Errorf("status %d after the delete", status)
	}
}

func TestCreateAndEdit(t *testing.T) {
	c := startCluster(t, 1)
	p := openPage(t, c.url(0), "#/keys")
	p.click("New key…")
	p.fill("Key", "conf/site")
	p.fill("Value", `{"a":1,"b":[2]}`)
	p.fill("Expires after", "1h")
	p.confirm("Create")
	p.see("pre.json", "\"a\": 1")
	p.see(".facts", "Expires in", "59 min")
	p.click("Edit")
	p.wait("document.querySelector('textarea').value.includes('\\n  \"a\": 1')")
	p.fill("Value", `{"a": 5, "b": [2]}`)
	p.click("Save")
	p.see("pre.json", "\"a\": 5")
	// On one line as before, and with its lease.
	if got := c.do("GET", "/v1/kv/conf/site?meta", ""); !strings.Contains(got, `"value":"{\"a\":5,\"b\":[2]}"`) || strings.Contains(got, `"lease":0`) {
		t.Errorf("stored %s", got)
	}
	p.view("#/keys?key=lines")
	p.see("main", "does not exist")
	c.put("lines", "one\r\ntwo\r\n")
	p.view("#/keys?key=conf%2Fsite")
	p.see("pre.json", "5")
	p.view("#/keys?key=lines")
	p.see("pre.text", "one")
	p.click("Edit")
	p.run("document.querySelector('textarea').setRangeText('zero\\n', 0, 0)")
	p.click("Save")
	p.see("pre.text", "zero")
	if got := c.do("GET", "/v1/kv/lines", ""); got != "zero\r\none\r\ntwo\r\n" {
		t.Errorf("the ends of lines became %q", got)
	}
}

func TestConflict(t *testing.T) {
	c := startCluster(t, 1)
	c.put("k", "first\nline\n")
	p := openPage(t, c.url(0), "#/keys?key=k")
	p.see("pre", "first")
	p.click("Edit")
	c.put("k", "theirs\nline\n")
	p.see("main", "This key has changed since.")
	p.fill("Value", "mine\nline\n")
	p.click("Save")
	p.see(".diff", "in the store, revision 3", "yours, not saved", "theirs", "mine", "line")
	if got := c.do("GET", "/v1/kv/k", ""); got != "theirs\nline\n" {
		t.Errorf("the conflict stored %q", got)
	}
	p.click("Save mine over it")
	p.see("pre", "mine")
	if got := c.do("GET", "/v1/kv/k", ""); got != "mine\nline\n" {
		t.Errorf("stored %q", got)
	}
	p.click("Edit")
	c.do("DELETE", "/v1/kv/k", "")
	p.fill("Value", "again")
	p.click("Save")
	p.see("main", "deleted the key meanwhile")
	p.click("Create it again")
	p.see("pre", "again")
}

func TestHistory(t *testing.T) {
	c := startCluster(t, 1)
	c.put("k", "old life")
	c.do("DELETE", "/v1/kv/k", "")
	c.put("other", "x")
	for i := range 25 {
		c.put("k", fmt.Sprintf("same\nvalue %d\n", i))
	}
	p := openPage(t, c.url(0), "#/keys?key=k")
	p.see("pre", "value 24")
	p.click("History")
	p.wait("document.querySelectorAll('.timeline > li').length === 20")
	p.see(".timeline", "revision 29", "version 25")
	p.click("Show 20 older versions")
	p.wait("document.querySelectorAll('.timeline > li').length === 27")
	p.see(".timeline", "created", "deleted", "revision 2")
	p.see("main", "That is all that the store has.")
	p.do(chromedp.Click(chromedp.CSS("li[data-revision='20'] button.event")))
	p.see("li[data-revision='20'] .diff", "revision 19", "value 14", "value 15", "same")
	p.click("Compare with now")
	p.see("li[data-revision='20'] .diff", "now", "value 24")
	p.click("Restore…")
	p.confirm("Restore")
	p.see("pre", "value 15")
	if got := c.do("GET", "/v1/kv/k", ""); got != "same\nvalue 15\n" {
		t.Errorf("restored %q", got)
	}
	p.view("#/keys?rev=2&key=k")
	p.see("main", "The whole store as of revision 2.", "old life")
	if got := p.tree(); len(got) != 1 || got[0] != "k" {
		t.Errorf("at revision 2 the store has %q", got)
	}
	if p.nodes("main .primary:not([hidden])") != 0 {
		t.Error("the past can be changed")
	}
	p.fill("Revision", "3\t")
	p.see("main", "The key does not exist at revision 3.")
	// A key that was deleted is found by its name, and comes back.
	c.do("DELETE", "/v1/kv/other", "")
	p.view("#/keys?prefix=other")
	p.click("Look for the history of a key of this name")
	p.see("main", "The key does not exist now.", "deleted", "created")
	p.do(chromedp.Click(chromedp.CSS("li[data-type='put'] button.event")))
	p.see("li[data-type='put'] pre", "x")
	p.click("Restore…")
	p.confirm("Restore")
	p.see(".facts", "Version\n1")
	if got := c.do("GET", "/v1/kv/other", ""); got != "x" {
		t.Errorf("the deleted key came back as %q", got)
	}
	c.do("POST", "/v1/compact?revision=20", "")
	p.view("#/keys?key=k")
	p.see("pre", "value 15")
	p.click("History")
	p.see("main", "What was before revision 20 has been compacted.")
}

func TestWatch(t *testing.T) {
	c := startCluster(t, 1)
	p := openPage(t, c.url(0), "#/watch")
	p.see("main", "live")
	c.put("a/1", "one")
	c.put("a/1", "two")
	c.put("b/2", "other")
	c.do("DELETE", "/v1/kv/a/1", "")
	p.wait("document.querySelectorAll('tbody tr').length === 4")
	p.see("tbody tr:first-child", "delete", "a/1", "two")
	p.see("tbody tr:nth-child(3)", "put")
	p.click("Show the value of a/1 at revision 3")
	p.see("tbody .diff", "one", "two")
	p.fill("Filter what is shown", "OTHER")
	p.wait("[...document.querySelectorAll('tbody tr:not(.more)')].filter((r) => !r.hidden).length === 1")
	p.run("document.querySelector('[placeholder=\"text in key or value\"]').value = ''; document.querySelector('[placeholder=\"text in key or value\"]').dispatchEvent(new Event('input'))")
	p.click("Pause")
	p.see("main", "paused")
	c.fill(0, 600, "burst/%d")
	p.see("main", "600 changes waiting")
	p.click("Resume")
	p.wait("document.querySelectorAll('tbody tr').length === 500")
	p.see("tbody tr:first-child", "burst/599")
	p.fill("named", "b/")
	p.fill("From revision", "2")
	p.run("document.querySelector('form').requestSubmit()")
	p.wait("document.querySelectorAll('tbody tr').length === 1")
	p.see("tbody", "b/2")
	c.do("POST", "/v1/compact?revision=100", "")
	p.run("document.querySelector('form').requestSubmit()")
	p.see("main .note.bad", "compacted")
}

func TestLeasesAndLocks(t *testing.T) {
	c := startCluster(t, 1)
	c.do("POST", "/v1/leases", `{"ttl":"1h","name":"worker"}`)
	c.do("PUT", "/v1/kv/w/1?lease=1", "x")
	c.do("POST", "/v1/locks/report?ttl=5m", "host7")
	queued := make(chan string, 1)
	go func() { _, text := c.ask("POST", "/v1/locks/report?ttl=5m&wait=60s", "host8"); queued <- text }()
	p := openPage(t, c.url(0), "#/leases")
	p.see("section[aria-label=Leases]", "worker", "59 min", "1 key")
	p.see("section[aria-label=Locks]", "report", "host7", "1 waiting", "host8", "4 min")
	p.click("1 key")
	p.see("section[aria-label=Leases]", "w/1")
	p.click("Keep lease 1 alive")
	p.see("#toasts", "full time again")
	p.click("Release lock report")
	p.see("dialog", "The holder is not told")
	p.confirm("Release")
	p.see("section[aria-label=Locks]", "host8", "nobody waits")
	if got := <-queued; !strings.Contains(got, `"token"`) {
		t.Errorf("the next in the queue got %s", got)
	}
	p.click("Revoke lease 1")
	p.see("dialog", "deleted in one revision")
	p.confirm("Revoke")
	p.wait("!document.querySelector('tr[data-id=\"1\"]')")
	if status, _ := c.ask("GET", "/v1/kv/w/1", ""); status != 404 {
		t.Errorf("status %d for a key of a revoked lease", status)
	}
	p.click("Create a lease…")
	p.fill("Time to live", "2h")
	p.fill("Name", "by hand")
	p.confirm("Create")
	p.see("section[aria-label=Leases]", "by hand", "1 h 59 min")
}

func TestMetrics(t *testing.T) {
	c := startCluster(t, 1)
	p := openPage(t, c.url(0), "#/metrics")
	until(t, "the charts have lines", func() bool {
		c.put("k", "v")
		c.do("GET", "/v1/kv/k", "")
		return get[bool](p, `[0, 1, 2].every((i) => document.querySelectorAll('.chart')[i].querySelector('path').getAttribute('d')?.includes('L'))`)
	})
	p.see(".chart:nth-child(1)", "reads", "writes", "/s")
	p.wait(`/median [\d.]+ (µs|ms|s)/.test(document.querySelector('.chart:nth-child(3) svg').getAttribute('aria-label'))`)
	p.see(".charts", "MiB")
}

func TestSettings(t *testing.T) {
	c := startCluster(t, 1)
	c.fill(0, 20, "k%d")
	p := openPage(t, c.url(0), "#/settings")
	p.see("main", "max_value_bytes", "Revisions 1 to 21 can be read")
	p.click("Change max_value_bytes")
	p.fill("New value", "2097152")
	p.see("dialog", "2.0 MiB")
	p.confirm("Change for the whole cluster")
	p.see("tr[data-name=max_value_bytes]", "2.0 MiB")
	p.click("Change max_txn_ops")
	c.do("PATCH", "/v1/settings", `{"max_txn_ops":77}`)
	p.fill("New value", "99")
	p.press("Change for the whole cluster")
	p.see("dialog .note.bad", "a condition of the request failed")
	p.confirm("Cancel")
	p.click("Compact now…")
	p.fill("Oldest revision to keep", "10")
	p.confirm("Discard history")
	p.see("main", "Revisions 10 to 21 can be read")
	p.run("document.querySelector('select').value = 'warn'")
	p.click("Set")
	p.see("main", "logs from level warn up, until")
	if got := c.do("GET", "/v1/operator/log-level", ""); !strings.Contains(got, "warn") {
		t.Errorf("level %s", got)
	}
}

func TestBackup(t *testing.T) {
	c := startCluster(t, 1)
	c.fill(0, 2000, "key-%d")
	p := openPage(t, c.url(0), "#/backup")
	p.see("main", "2,000")
	file := filepath.Join(t.TempDir(), "page.snapshot")
	if err := os.WriteFile(file, save(p, func() { p.click("Download a backup") }), 0o600); err != nil {
		t.Fatal(err)
	}
	p.see("main", "Complete. Verify it with")
	if out, err := exec.Command(binary, "snapshot", "verify", file).CombinedOutput(); err != nil {
		t.Errorf("the backup is not valid: %v\n%s", err, out)
	}
	for _, proc := range c.procs {
		_ = proc.Process.Kill()
	}
	p.click("Download a backup")
	p.see("main [role=alert]", "The node did not answer")
	p.see("#pulse", "no answer")
}

// Without a quorum the page says so, and shows what this node has.
func TestWithoutAQuorum(t *testing.T) {
	c := startCluster(t, 3)
	c.put("app/name", "still here")
	for _, proc := range c.procs[1:] {
		_ = proc.Process.Kill()
	}
	p := openPage(t, c.url(0), "")
	p.see("#pulse", "not healthy", "no leader")
	p.see("[aria-label=Alarms]", "kvd2", "kvd3")
	p.view("#/keys")
	p.click("Show this node’s own copy")
	p.see(".tree", "app/")
	p.choose("app/")
	p.choose("name")
	p.see("pre", "still here")
	p.click("Edit")
	p.fill("Value", "no chance")
	p.click("Save")
	p.see("main .note.bad", "leader")
	if got := c.do("GET", "/v1/kv/app/name?consistency=stale", ""); got != "still here" {
		t.Errorf("stored %q", got)
	}
}
