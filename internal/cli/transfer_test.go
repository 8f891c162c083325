package cli

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/kvdtest"
)

// fill stores n keys, and some that are hard to write down.
func (b *bench) fill(n int) {
	b.t.Helper()
	var txn strings.Builder
	txn.WriteString("then\n")
	for i := range n {
		fmt.Fprintf(&txn, "put key/%04d value-%d\n", i, i)
	}
	txn.WriteString(`put "\x00\xff" "\xfe\x00"` + "\nput empty \"\"\nput html <a&b>\nput session s ttl=1h\n")
	b.with(txn.String()).expect(exitOK, "the comparisons held", words("kv txn")...)
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestExportAndImport(t *testing.T) {
	from, to := newBench(t), newBench(t)
	from.fill(300)
	file := filepath.Join(t.TempDir(), "all.ndjson")
	from.expect(exitOK, "exported 304 keys of revision 2 to "+file, "kv", "export", file)
	text := read(t, file)
	if !strings.HasPrefix(text, `{"type":"kvd-export","format":1,"revision":2}`+"\n"+
		`{"key_base64":"AP8=","value_base64":"/gA=","create_revision":2,"mod_revision":2,"version":1,"lease":0}`+"\n") ||
		!strings.Contains(text, `"value":"<a&b>"`) || !strings.HasSuffix(text, "\"}\n") {
		t.Errorf("%.300s", text)
	}
	from.prints(text, words("kv export")...)

	to.expect(exitOK, "would store 303 of 303 keys", "kv", "import", file, "--dry-run")
	r := to.expect(exitOK, "imported 303 keys: 303 stored, 0 were there already; verified, sha256 ", "kv", "import", file)
	if !strings.Contains(r.stderr, "left out 1 key bound to leases") {
		t.Error(r.stderr)
	}
	to.prints("value-299", words("kv get key/0299")...)
	to.prints("", words("kv get empty")...)
	to.expect(exitNotFound, "", words("kv get session")...)
	to.expect(exitOK, "", words("kv put key/0007 changed")...)
	to.expect(exitOK, "", words("kv put other kept")...)
	to.with(text).expect(exitOK, "imported 303 keys: 1 stored, 302 were there already", words("kv import -")...)
	to.expect(exitOK, `{"keys":304,"written":1,"skipped":0,"sha256":"`, "kv", "import", file, "--leased", "-o", "json")
	to.prints("10\n", "kv", "import", file, "--prefix", "key/000", "-o", "value")
	to.prints("kept", words("kv get other")...)

	part := from.expect(exitOK, `"prefix":"key/000"}`, words("kv export --prefix key/000 --rev 2")...)
	if n := strings.Count(part.stdout, "value-"); n != 10 {
		t.Errorf("%d keys in\n%s", n, part.stdout)
	}
	from.expect(exitOK, `{"type":"end","count":304,"revision":2,"sha256":"`, "kv", "export", file+"2", "-o", "json")
	from.prints("304\n", "kv", "export", file+"3", "-o", "value")
}

// A snapshot of etcd has the keys and the leases that they are bound to; conformance looks
// at it with etcd's own tools.
func TestExportEtcd(t *testing.T) {
	b := newBench(t)
	b.fill(300)
	file := filepath.Join(t.TempDir(), "kvd.db")
	b.expect(exitOK, "exported 304 keys of revision 2 to "+file+", a snapshot of etcd", "export", "etcd", file)
	if head := read(t, file); len(head)%512 != 32 {
		t.Errorf("the file has %d bytes: no hash of 32 behind whole pages", len(head))
	}
	b.prints("304\n", "export", "etcd", file, "-o", "value")
	b.expect(exitOK, `"revision":2`, "export", "etcd", file, "-o", "json")
	b.expect(exitUsage, "is a directory", "export", "etcd", t.TempDir())
	b.expect(exitFailed, "no such file or directory", "export", "etcd", filepath.Join(t.TempDir(), "none", "kvd.db"))
	if left, err := filepath.Glob(file + "?*"); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

// The NDJSON of the HTTP interface is an export, too, without a hash.
func TestImportOfAList(t *testing.T) {
	from, to := newBench(t), newBench(t)
	from.fill(3)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, strings.TrimPrefix(from.environ[0], "KVD_ENDPOINTS=")+"/v1/kv?prefix=", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/x-ndjson")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	to.stdin = resp.Body
	to.expect(exitOK, "imported 6 keys: 6 stored", words("kv import -")...)
}

func TestDamagedExports(t *testing.T) {
	b := newBench(t)
	b.fill(5)
	text := b.run(words("kv export")...).stdout
	lines := strings.SplitAfter(text, "\n")
	b.expect(exitOK, "", words("kv del --all")...)
	for name, c := range map[string]struct{ text, want string }{
		"cut":       {text[:len(text)/2], "it is incomplete"},
		"no end":    {strings.Join(lines[:len(lines)-2], ""), "it is incomplete: the last line, with the number of keys, is missing after 9 keys"},
		"lost line": {strings.Join(append(lines[:2:2], lines[3:]...), ""), "it has 8 keys, but its last line says 9"},
		"changed":   {strings.Replace(text, "value-3", "value-4", 1), "it was changed: its sha256 is"},
		"appended":  {text + lines[1], "comes after the end"},
		"future":    {strings.Replace(text, `"format":1`, `"format":2`, 1), "its format is 2"},
		"no key":    {lines[0] + `{"value":"x"}`, "line 2 has no key and value"},
		"not JSON":  {"hello", "line 1 is not a line of an export"},
		"empty":     {"", "it is incomplete"},
	} {
		r := b.with(c.text).expect(exitFailed, c.want, words("kv import -")...)
		if !strings.Contains(r.stderr, "standard input cannot be imported") || !strings.Contains(r.stderr, "nothing was stored") {
			t.Errorf("%s: %s", name, r.stderr)
		}
	}
	b.prints("0\n", words("kv list --count")...)
}

// An export that was cut anywhere goes on, and is byte for byte what it would have
// been, although the keys have changed since.
func TestResumedExport(t *testing.T) {
	b := newBench(t)
	b.fill(20)
	want := b.run(words("kv export")...).stdout
	b.expect(exitOK, "", words("kv put key/0015 changed")...)
	file := filepath.Join(t.TempDir(), "all")
	for cut := len(`{"type":"kvd-export","format":1,"revision":2}`); cut <= len(want); cut += 97 {
		write(t, file+partialSuffix, want[:cut])
		b.expect(exitFailed, "is left of an export that was interrupted; go on with --resume", "kv", "export", file)
		b.expect(exitOK, "exported 24 keys", "kv", "export", file, "--resume")
		if got := read(t, file); got != want {
			t.Fatalf("cut at %d: %s", cut, got)
		}
	}
	b.expect(exitFailed, "leave out --resume to begin", "kv", "export", file, "--resume")
	write(t, file+partialSuffix, "something else")
	b.expect(exitFailed, "does not begin like an export", "kv", "export", file, "--resume")
	write(t, file+partialSuffix, want[:500])
	b.expect(exitOK, "", words("compact 3")...)
	b.expect(exitFailed, "the history before revision 3 has been compacted", "kv", "export", file, "--resume")
}

func TestConsul(t *testing.T) {
	b := newBench(t)
	const text = `[
	{"key": "app/", "flags": 0, "value": ""},
	{"key": "app/name", "flags": 42, "value": "c2hvcA=="},
	{"key": "app/blob", "flags": 0, "value": "/wA=", "namespace": "default"}
]`
	file := filepath.Join(t.TempDir(), "consul.json")
	write(t, file, text)
	b.expect(exitOK, "imported 3 keys: 3 stored", "kv", "import", "--from", "consul:"+file)
	b.prints("shop", words("kv get app/name")...)
	b.prints("\xff\x00", words("kv get app/blob")...)
	b.with(text).expect(exitOK, "imported 3 keys: 0 stored, 3 were there already", words("kv import --from consul:-")...)
	for text, want := range map[string]string{
		`{"key":"a"}`:                         "does not begin like the output of consul kv export",
		text[:len(text)-1]:                    "it is incomplete",
		`[{"value":"YQ=="}`:                   "entry 1 has no key",
		`[{"key":"a","value":"not base64!"}]`: "entry 1: illegal base64",
	} {
		b.with(text).expect(exitFailed, want, words("kv import --from consul:-")...)
	}
}

func TestTransferUsage(t *testing.T) {
	b := newBench(t)
	for line, want := range map[string]string{
		"kv export a b":                    "takes at most 1 argument, but got 2",
		"kv export --resume":               "--resume needs the FILE",
		"kv export /":                      "/ is a directory",
		"kv export --rev 0":                "--rev is 0",
		"kv import":                        "name the FILE to import",
		"kv import /no/such":               "no such file",
		"kv import x --from consul:y":      "both name a source",
		"kv import --from redis:x":         "must be etcd:URL or consul:FILE",
		"kv import --from consul:":         "lacks the file",
		"kv import --from etcd:10.0.0.1:2": "is not a client URL of etcd",
		"kv import --from etcd:http://a:1 --from-cacert /no/such": "for etcd: --from-cacert: open /no/such",
	} {
		b.expect(exitUsage, want, words(line)...)
	}
	b.expect(exitFailed, "no such file", words("kv export /no/such/directory/file")...)
	b.expect(exitFailed, "revision", words("kv export --rev 1000")...)
	b.expect(exitDown, "check that an etcd serves clients there", "kv", "import", "--from", "etcd:"+silent)
	b.expect(exitFailed, "404 Not Found", "kv", "import", "--from", "etcd:"+kvdtest.New(t).Endpoint)
	b.expect(exitDown, "cannot reach", "kv", "export", "--endpoints", silent, "--timeout", "50ms")
	text := b.run(words("kv export")...).stdout
	b.fill(1)
	full := b.run(words("kv export")...).stdout
	b.with(full).expect(exitDown, "keys compared so far: 0, and stored: 0; run the command again to go on",
		"kv", "import", "-", "--endpoints", silent, "--timeout", "50ms")
	b.with(text).expect(exitOK, "imported 0 keys", words("kv import -")...)
}

// A value that the cluster refuses is named; what was stored before stays.
func TestImportOfATooLargeValue(t *testing.T) {
	b := newBench(t)
	big := bytes.Repeat([]byte("x"), 2<<20)
	text := `[{"key":"a","value":"YQ=="},{"key":"big","value":"` + base64.StdEncoding.EncodeToString(big) + `"},{"key":"z","value":"YQ=="}]`
	r := b.with(text).expect(exitFailed, "store big: ", words("kv import --from consul:-")...)
	if !strings.Contains(r.stderr, "keys compared so far: 1, and stored: 1") || !strings.Contains(r.stderr, "kvd settings") {
		t.Error(r.stderr)
	}
	b.prints("a", words("kv get a")...)
}
