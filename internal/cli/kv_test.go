package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kvd-io/kvd/kvdtest"
)

// patience bounds what the tests wait for.
const patience = 30 * time.Second

// hole accepts connections, reads, and never answers. It calls got for each piece.
func hole(t *testing.T, got func()) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			go func() {
				buf := make([]byte, 4096)
				for {
					if _, err := c.Read(buf); err != nil {
						return
					}
					got()
				}
			}()
		}
	}()
	return "http://" + l.Addr().String()
}

// Each command that writes says so if it cannot know whether it did; each that reads
// is a failure that changed nothing.
func TestNodeThatDoesNotAnswer(t *testing.T) {
	// Long enough to send a request on a busy machine; the commands wait side by side.
	b := &bench{t: t, environ: []string{"KVD_ENDPOINTS=" + hole(t, func() {}), "KVD_TIMEOUT=2s"}}
	var running sync.WaitGroup
	defer running.Wait()
	for _, line := range []string{"kv put k v", "kv del k", "kv del k --prefix", "kv append k v", "kv incr k", "compact 3", "settings quota_bytes=1GiB"} {
		running.Go(func() { b.expect(exitUnknown, "the outcome is unknown", words(line)...) })
	}
	running.Go(func() {
		b.with(`{"then":[{"put":{"key":"a","value":"b"}}]}`).expect(exitUnknown, "the outcome is unknown", words("kv txn")...)
	})
	for _, line := range []string{"kv get k", "kv list", "kv list --count", "kv watch k", "kv history k", "kv export"} {
		running.Go(func() { b.expect(exitDown, "no ", words(line)...) })
	}
	running.Go(func() { b.set("EDITOR=true").expect(exitDown, "", words("kv edit k")...) })
}

// The reason is that of the last attempt. On a busy machine, a short timeout could be
// the reason itself.
func TestNobodyListens(t *testing.T) {
	b := &bench{t: t, environ: []string{"KVD_ENDPOINTS=" + silent, "KVD_TIMEOUT=2s"}}
	var running sync.WaitGroup
	defer running.Wait()
	for _, line := range []string{"kv put k v", "kv get k", "kv del k", "kv list", "kv watch k", "kv append k v", "kv incr k", "kv edit k", "compact 3"} {
		running.Go(func() {
			b.expect(exitDown, "check that a node runs there, or name others with --endpoints", words(line)...)
		})
	}
	running.Go(func() { b.with("{}").expect(exitDown, "cannot reach", words("kv txn")...) })
}

func TestUsage(t *testing.T) {
	b := newBench(t)
	for line, want := range map[string]string{
		"kv put":                              "takes 1 or 2 arguments, but got 0: kvd kv put KEY",
		"kv put k v --if-match 1 --ttl 0s":    "--ttl is 0s, but must be above 0",
		"kv put k v --if-absent --if-match 3": "--if-absent and --if-match contradict each other",
		"kv put k v --lease 3 --ttl 1s":       "--ttl and --lease contradict each other",
		"kv put k v --lease 0":                "--lease is 0",
		"kv put k @/no/such/file":             "no such file",
		"kv put k v --timeout 0s":             "--timeout is 0s",
		"kv put k v --cert /no/such":          "--cert and --key must be given together",
		"kv put k v --cacert /no/such":        "--cacert: open /no/such",
		"kv get a b":                          "takes 1 argument, but got 2",
		"kv get a --count":                    "--count is for ranges",
		"kv get a --rev 0":                    "--rev is 0",
		"kv get a --max-staleness 1s":         "--max-staleness is only for reads with --stale",
		"kv del":                              "takes a KEY, or --all",
		"kv del a --all":                      "takes a KEY, or --all",
		"kv del a --prefix --end b":           "--prefix and --end contradict",
		"kv del a --prefix --if-match 3":      "--prefix and --if-match contradict",
		"kv list a --start b":                 "a prefix and --start or --end both choose",
		"kv list --limit -1":                  "--limit is -1",
		"kv watch":                            "takes 1 argument",
		"kv watch k --events get":             `--events has "get"`,
		"kv watch k --from 0":                 "--from is 0",
		"kv watch k --keep-going":             "only for watches with --exec",
		"kv incr k -5":                        "kvd kv incr KEY -- -5",
		"kv incr k five":                      `"five" is not a whole number`,
		"kv append":                           "takes 1 or 2 arguments",
		"kv edit":                             "takes 1 argument",
		"kv txn file":                         "write @file",
		"kv frob":                             `unknown command "frob" for "kvd kv"`,
		"kv":                                  "kvd kv needs a subcommand",
		"compact now":                         `"now" is not a revision`,
		"kv put k v --if-match x":             `--if-match: "x" is not a whole number`,
		"kv put k v --ttl soon":               `--ttl: "soon" is not a duration (for example, 30s)`,
		"kv get k --timout 3s":                "unknown flag: --timout",
		"kv get k --endpoints a:1":            `"a:1" has no scheme; write http://a:1`,
		"compact":                             "takes one argument",
	} {
		b.expect(exitUsage, want, words(line)...)
	}
	b.expect(exitUsage, "this would delete every key", "kv", "del", "", "--prefix")
	b.with("").expect(exitUsage, "the transaction is empty", words("kv txn")...)
	b.set("KVD_TIMEOUT=soon").expect(exitUsage, "KVD_TIMEOUT", words("kv get k")...)
	b.prints("", words("kv list")...) // nothing of all that had an effect
}

func TestConditions(t *testing.T) {
	b := newBench(t)
	b.expect(exitCondition, "", words("kv put k v --if-exists")...)
	b.expect(exitOK, "created k at revision 2", words("kv put k v --if-absent")...)
	b.expect(exitCondition, "the key is at revision 2", words("kv put k w --if-match 7")...)
	b.expect(exitOK, "updated", words("kv put k w --if-match 2")...)
	b.expect(exitCondition, "", words("kv append k x --if-absent")...)
	b.expect(exitCondition, "", words("kv incr n 1 --if-exists")...)
	b.expect(exitCondition, "not a decimal", words("kv incr k")...)
	b.expect(exitCondition, "", words("kv del k --if-match 2")...)
	b.expect(exitCondition, "", words("kv del absent --if-exists")...)
	b.expect(exitNotFound, "lease", words("kv put k v --lease 77")...)
	b.expect(exitOK, "deleted 1 key", words("kv del k --if-match 3")...)
}

func TestAppendAndIncr(t *testing.T) {
	b := newBench(t)
	b.expect(exitOK, "created log", words("kv append log one,")...)
	b.with("two").expect(exitOK, "updated log", words("kv append log -")...)
	b.prints("one,two", words("kv get log")...)
	b.prints("1\n", words("kv incr visits")...)
	b.prints("-4\n", words("kv incr visits -- -5")...)
	b.prints(`{"key":"visits","value":"-3"}`+"\n", words("kv incr visits -o json")...)
	b.expect(exitOK, "", words("kv put big 9223372036854775807")...)
	b.expect(exitCondition, "", words("kv incr big")...)
}

func TestValuesFromFiles(t *testing.T) {
	b := newBench(t)
	name := filepath.Join(t.TempDir(), "value")
	if err := os.WriteFile(name, []byte("\x00bytes\xff\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.expect(exitOK, "created", "kv", "put", "k", "@"+name)
	b.prints("\x00bytes\xff\n", words("kv get k")...)
	b.expect(exitOK, `"\x00bytes\xff\n"`, words("kv list")...)
	b.expect(exitOK, `"value_base64":"AGJ5dGVz/wo="`, words("kv get k -o json")...)
	b.with("@home").expect(exitOK, "created", words("kv put at")...)
	b.prints("@home", words("kv get at")...)
}

func TestRanges(t *testing.T) {
	b := newBench(t)
	for _, k := range []string{"a/1", "a/2", "b/1", "c"} {
		b.expect(exitOK, "created", "kv", "put", k, "v"+k)
	}
	b.prints("KEY   VALUE   REVISION   VERSION   LEASE\na/1   va/1    2          1         -\na/2   va/2    3          1         -\n", words("kv list a/")...)
	b.prints("a/1\na/2\n", words("kv get a/ --prefix --keys-only -o value")...)
	b.prints("va/2\nvb/1\n", words("kv list --start a/2 --end c -o value")...)
	b.prints("c\nb/1\n", words("kv list --reverse --limit 2 --keys-only -o value")...)
	b.prints("4\n", words("kv list --count")...)
	b.prints(`{"count":2}`+"\n", words("kv get a/ --prefix --count -o json")...)
	b.prints("1\n", words("kv list --count --rev 2")...)
	b.prints(`{"key":"c","create_revision":5,"mod_revision":5,"version":1,"lease":0}`+"\n", words("kv list c --keys-only -o json")...)
	b.prints("KEY   REVISION   VERSION   LEASE\nc     5          1         -\n", words("kv list c --keys-only --stale --max-staleness 1m")...)
	b.prints("deleted 2 keys at revision 6\n", words("kv del a/ --prefix")...)
	b.prints("1\n", words("kv del b --end c -o value")...)
	b.prints(`{"deleted":1,"revision":8}`+"\n", words("kv del --all -o json")...)
	b.prints("", words("kv list")...)
}

// A list goes over as many pages as it takes.
func TestListOfManyPages(t *testing.T) {
	b := newBench(t)
	var script strings.Builder
	for i := range 2500 {
		if i%500 == 0 {
			script.Reset()
			script.WriteString("then\n")
		}
		fmt.Fprintf(&script, "put k/%04d v\n", i)
		if i%500 == 499 {
			b.with(script.String()).expect(exitOK, "the comparisons held", words("kv txn")...)
		}
	}
	r := b.expect(exitOK, "k/2499\n", words("kv list k/ --keys-only -o value")...)
	if n := strings.Count(r.stdout, "\n"); n != 2500 {
		t.Errorf("%d keys", n)
	}
	if r := b.run(words("kv list k/ --limit 1500")...); strings.Count(r.stdout, "k/") != 1500 {
		t.Errorf("%d keys", strings.Count(r.stdout, "k/"))
	}
}

func TestTTL(t *testing.T) {
	b := newBench(t)
	b.expect(exitOK, "created", words("kv put session web3 --ttl 1h")...)
	if r := b.run(words("kv get session -o table")...); !strings.Contains(r.stdout, "lease") {
		t.Errorf("%+v", r)
	}
	b.set("EDITOR=printf edited >").expect(exitOK, "updated session", words("kv edit session")...)
	b.expect(exitOK, "lease", words("kv get session -o table")...)
	b.expect(exitOK, "updated", words("kv put session web4")...)
	b.expect(exitOK, `"lease":0`, words("kv get session -o json")...)
}

func TestTxn(t *testing.T) {
	b := newBench(t)
	txn := "# a move\nif:\n  lock absent\n  color value = \"dark red\"\n" +
		"then:\n put lock n1 ttl=1h\n incr n 5\n delete color\nelse\n get lock\n put color \"dark red\"\n"
	b.with(txn).expect(exitCondition, "a comparison did not hold", words("kv txn")...)
	r := b.with(txn).expect(exitOK, "the comparisons held; revision 3", words("kv txn")...)
	for _, want := range []string{"lock", "written", "deleted 1", "5"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("%q is missing:\n%s", want, r.stdout)
		}
	}
	name := filepath.Join(t.TempDir(), "txn.json")
	write(t, name, `{"if":[{"key":"n","value":"5"}],"then":[{"get":{"key":"n"}},{"list":{"prefix":"l"}},{"get":{"key":"zz"}}]}`)
	b.prints("5\nn1\n", "kv", "txn", "@"+name, "-o", "value")
	b.expect(exitOK, `"succeeded":true`, "kv", "txn", "@"+name, "-o", "json")
	b.expect(exitOK, "no such key", "kv", "txn", "@"+name)
	b.with("if\nn version > 0\nn revision != 9\nthen\nincr n -- 1").expect(exitUsage, "line 5: after incr comes KEY [N]", words("kv txn")...)
	b.with("if\nn version > 0\nn revision != 9\nthen\nincr n -10").expect(exitOK, "-5", words("kv txn")...)
	b.with(`{"then":[{"put":{"kee":"a"}}]}`).expect(exitFailed, "then[0].put.kee: unknown field", words("kv txn")...)
	b.with("then\nincr lock").expect(exitCondition, "then[0].incr", words("kv txn")...)
}

func TestTxnText(t *testing.T) {
	for text, want := range map[string]string{
		"if\na exists\nthen\nget a":            `{"if":[{"exists":true,"key":"a"}],"then":[{"get":{"key":"a"}}]}`,
		"if\na lease < 7\nelse\ndel prefix a/": `{"else":[{"delete":{"prefix":"a/"}}],"if":[{"key":"a","lease":{"lt":7}}]}`,
		"then\nput ttl=1 lease=2 ttl=3s":       `{"then":[{"put":{"key":"ttl=1","ttl":"3s","value":"lease=2"}}]}`,
		"then\nput \"a b\" \"\\xff\" lease=4":  `{"then":[{"put":{"key":"a b","lease":"4","value_base64":"/w=="}}]}`,
		"then\nincr n ttl=1m\nlist p":          `{"then":[{"incr":{"delta":1,"key":"n","ttl":"1m"}},{"list":{"prefix":"p"}}]}`,
	} {
		if got, err := parseTxn(text); err != nil || string(got) != want {
			t.Errorf("%q is %s (%v), want %s", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"put a b":                 `line 1: "put" comes before any of the lines`,
		"then\nput a":             "line 2: after put comes KEY VALUE",
		"then\npush a":            `"push" is not one of put`,
		"if\na size = 3":          `"size" is not one of value, revision`,
		"if\na version ~ 3":       `"~" is not one of =`,
		"if\na version = x":       `"x" is none`,
		"if\na":                   "a comparison is KEY exists",
		"if\na value > b":         "only be compared with =",
		"then\nput a \"b":         "quotes are not closed",
		"then\nput \"a\"b c":      "a space is missing",
		"then\nincr a b":          "after incr",
		"then\ndelete prefix a b": "after delete",
	} {
		if got, err := parseTxn(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is %s (%v), want %s", text, got, err, want)
		}
	}
}

func TestCompact(t *testing.T) {
	b := newBench(t)
	for range 5 {
		b.expect(exitOK, "", words("kv put k v")...)
	}
	b.expect(exitOK, "the oldest readable revision is 4", words("compact 4")...)
	b.prints("4\n", words("compact 4 -o value")...)
	b.prints(`{"compact_revision":5}`+"\n", words("compact 5 -o json")...)
	b.expect(exitFailed, "the history before revision 5 has been compacted; choose a later", words("kv get k --rev 2")...)
	b.expect(exitFailed, "the history before revision 5 has been compacted", words("kv watch k --from 2")...)
	b.expect(exitFailed, "", words("compact 1000")...)
}

func TestEdit(t *testing.T) {
	b := newBench(t)
	b.set("EDITOR=printf new >").expect(exitOK, "created conf/app.yaml at revision 2", words("kv edit conf/app.yaml")...)
	b.set("EDITOR=sed -i s/new/newer/").expect(exitOK, "updated conf/app.yaml at revision 3", words("kv edit conf/app.yaml")...)
	b.prints("newer", words("kv get conf/app.yaml")...)
	if r := b.set("VISUAL=true", "EDITOR=false").run(words("kv edit conf/app.yaml")...); r.code != exitOK || !strings.Contains(r.stderr, "nothing was changed") {
		t.Errorf("%+v", r)
	}
	if r := b.set("EDITOR=true").run(words("kv edit new")...); r.code != exitOK || !strings.Contains(r.stderr, "was not created") {
		t.Errorf("%+v", r)
	}
	b.expectKept(exitFailed, "the editor", "newer", "EDITOR=sh -c 'exit 3'")
}

// expectKept expects an edit to fail and to keep the user's text.
func (b *bench) expectKept(code int, want, text, editor string) {
	b.t.Helper()
	r := b.set(editor).expect(code, want, words("kv edit conf/app.yaml")...)
	_, name, _ := strings.Cut(r.stderr, "your text is in ")
	name, _, _ = strings.Cut(name, ";")
	got, err := os.ReadFile(name)
	if err != nil || string(got) != text {
		b.t.Errorf("%q has %q (%v)", name, got, err)
	}
	_ = os.Remove(name)
}

// Somebody else changes the key while the editor is open.
func TestEditConflict(t *testing.T) {
	b := newBench(t)
	b.expect(exitOK, "", words("kv put conf/app.yaml one")...)
	endpoint := strings.TrimPrefix(b.environ[0], "KVD_ENDPOINTS=")
	script := filepath.Join(t.TempDir(), "editor")
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skipf("NOT TESTED: this machine has no curl: %v", err)
	}
	text := "#!/bin/sh\nprintf mine > \"$1\"\ncurl -sf -X PUT -d theirs " + endpoint + "/v1/kv/conf/app.yaml >/dev/null\n"
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	b.expectKept(exitCondition, "somebody else has changed the key meanwhile; your text is in", "mine", "EDITOR="+script)
	b.expectKept(exitCondition, "compare it with the value now (kvd kv get conf/app.yaml)", "mine", "EDITOR="+script)
	b.prints("theirs", words("kv get conf/app.yaml")...)
}

// await waits until a text is what it should be.
func await(t *testing.T, want string, read func() string) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); read() != want; <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("got\n%s\nwant\n%s", read(), want)
		}
	}
}

// contents returns a function that reads a file.
func contents(name string) func() string {
	return func() string {
		text, _ := os.ReadFile(name)
		return string(text)
	}
}

// start runs a command in the background until stop, which returns how it ended.
func (b *bench) start(args ...string) (stdout *buffer, stop func() result) {
	ctx, cancel := context.WithCancel(b.t.Context())
	ended := make(chan result, 1)
	stdout = new(buffer)
	go func() { ended <- b.runInto(ctx, stdout, args...) }()
	return stdout, func() result {
		cancel()
		return <-ended
	}
}

func TestWatchExec(t *testing.T) {
	nodes := kvdtest.Cluster(t, 3)
	b := &bench{t: t, environ: []string{"KVD_ENDPOINTS=" + strings.Join(nodes.Endpoints(), ","), "PATH=" + os.Getenv("PATH")}}
	out := filepath.Join(t.TempDir(), "out")
	b.expect(exitOK, "", words("kv put job/0 early")...)
	_, stop := b.start("kv", "watch", "job/", "--prefix", "--from", "2", "--exec",
		`echo "$KVD_EVENT $KVD_KEY $KVD_REVISION $(cat)" >> `+out)
	b.expect(exitOK, "", words("kv put job/1 one")...)
	b.expect(exitOK, "", words("kv del job/1")...)
	want := "put job/0 2 early\nput job/1 3 one\ndelete job/1 4 \n"
	await(t, want, contents(out))
	// The node that serves the watch is the first of the list.
	nodes[0].Stop()
	b.expect(exitOK, "", words("kv put job/2 two --timeout 30s")...)
	await(t, want+"put job/2 5 two\n", contents(out))
	if r := stop(); r.code != exitOK {
		t.Errorf("%+v", r)
	}
}

func TestWatchExecFails(t *testing.T) {
	b := newBench(t).set("PATH=" + os.Getenv("PATH"))
	b.expect(exitOK, "", words("kv put k v")...)
	b.expect(exitFailed, "the command failed for k at revision 2: exit status 9; to try again and go on, watch with --from 2",
		"kv", "watch", "k", "--from", "2", "--exec", "exit 9")
	out := filepath.Join(t.TempDir(), "out")
	_, stop := b.start("kv", "watch", "k", "--from", "2", "--keep-going", "--exec", "echo $KVD_REVISION >>"+out+"; exit 9")
	b.expect(exitOK, "", words("kv put k w")...)
	await(t, "2\n3\n", contents(out))
	if r := stop(); r.code != exitOK || !strings.Contains(r.stderr, "at revision 2: exit status 9") {
		t.Errorf("%+v", r)
	}
}

func TestWatchPrints(t *testing.T) {
	b := newBench(t).set("PATH=" + os.Getenv("PATH"))
	for _, line := range []string{"kv put k one", "kv put k two", "kv del k"} {
		b.expect(exitOK, "", words(line)...)
	}
	b.prints("one\n", words("kv watch k --from 2 --limit 1 -o value")...)
	for args, want := range map[string]string{
		"":                    "2        put     k  one\n3        put     k  two\n4        delete  k\n",
		"-o value":            "one\ntwo\n",
		"--events delete":     "4        delete  k\n",
		"--prev --events put": "2        put     k  one\n3        put     k  two  (was one)\n",
		"-o json --from 4 --prev": `{"type":"delete","key":"k","mod_revision":4,` +
			`"previous":{"key":"k","value":"two","create_revision":2,"mod_revision":3,"version":2,"lease":0}}` + "\n",
	} {
		line := words("kv watch k --from 2 " + args)
		stdout, stop := b.start(line...)
		await(t, want, stdout.String)
		if r := stop(); r.code != exitOK || r.stdout != want {
			t.Errorf("%v: %+v", line, r)
		}
	}
}

// An interrupt is not an outage, except that it leaves the outcome of a write open.
func TestInterrupt(t *testing.T) {
	for line, code := range map[string]int{"kv get k": exitFailed, "kv list": exitFailed, "kv put k v": exitUnknown} {
		ctx, cancel := context.WithCancel(t.Context())
		b := &bench{t: t, environ: []string{"KVD_ENDPOINTS=" + hole(t, cancel)}}
		if r := b.runContext(ctx, words(line)...); r.code != code {
			t.Errorf("%s: %+v", line, r)
		}
	}
}

func TestCompletion(t *testing.T) {
	b := newBench(t)
	for _, k := range []string{"fruit/apple", "fruit/pear/green", "fruit/pear/red", "fruits", "color"} {
		b.expect(exitOK, "", "kv", "put", k, "v")
	}
	for typed, want := range map[string]string{
		"":            "color\nfruit/\nfruits\n:4\n",
		"fr":          "fruit/\nfruits\n:4\n",
		"fruit/":      "fruit/apple\nfruit/pear/\n:4\n",
		"fruit/p":     "fruit/pear/\n:6\n",
		"fruit/pear/": "fruit/pear/green\nfruit/pear/red\n:4\n",
		"zz":          ":4\n",
	} {
		if r := b.run("__complete", "kv", "get", typed); r.stdout != want {
			t.Errorf("%q completes to\n%s", typed, r.stdout)
		}
	}
	if r := b.run("__complete", "kv", "get", "k", "--output", ""); r.stdout != "table\njson\nvalue\n:4\n" {
		t.Errorf("%+v", r)
	}
	if r := b.run("__complete", "kv", "get", "--endpoints", silent, ""); r.stdout != ":4\n" {
		t.Errorf("%+v", r)
	}
}

func TestHistory(t *testing.T) {
	b := newBench(t)
	for _, line := range []string{"kv put k one", "kv put other x", "kv put k two", "kv del k", "kv put k three"} {
		b.expect(exitOK, "", words(line)...)
	}
	b.prints("2        put     k  one\n4        put     k  two\n5        delete  k\n6        put     k  three\n", words("kv history k")...)
	b.prints("one\ntwo\nthree\n", words("kv history k -o value")...)
	b.prints("5        delete  k\n6        put     k  three\n", words("kv history k --limit 2")...)
	b.expect(exitNotFound, "nothing about kk", words("kv history kk")...)
	b.expect(exitUsage, "--limit is -1", words("kv history k --limit -1")...)
	b.expect(exitUsage, "takes 1 argument", words("kv history")...)
	b.expect(exitOK, "", words("compact 4")...)
	b.prints("4        put     k  two\n5        delete  k\n6        put     k  three\n", words("kv history k")...)
	b.expect(exitDown, "", "kv", "history", "k", "--endpoints", silent, "--timeout", "50ms")
}

func TestSettings(t *testing.T) {
	b := newBench(t)
	b.expect(exitOK, "max_key_bytes         4096         4.0 KiB", words("settings")...)
	b.expect(exitOK, "1h0m0s", words("settings max_value_bytes=2MiB retention_millis=1h")...)
	b.expect(exitOK, "max_value_bytes=2097152\n", words("settings -o value")...)
	b.expect(exitOK, `"retention_millis":3600000`, words("settings -o json")...)
	r := b.expect(exitUsage, `"max_value" is not a setting; the names are max_key_bytes,`,
		words("settings max_value=3 quota_bytes=lots retention_revisions=1x quota_bytes")...)
	for _, want := range []string{`quota_bytes: "lots" is not a size`, `retention_revisions: "1x" is not a number`, `"quota_bytes" is not NAME=VALUE`} {
		if !strings.Contains(r.stderr, want) {
			t.Errorf("%q is missing in %s", want, r.stderr)
		}
	}
	b.expect(exitUsage, "given twice", words("settings quota_bytes=1 quota_bytes=2")...)
	b.expect(exitFailed, "max_key_bytes", words("settings max_key_bytes=100MiB")...)
	b.expect(exitDown, "", "settings", "--endpoints", silent, "--timeout", "50ms")
	if r := b.run("__complete", "settings", "max_v"); !strings.Contains(r.stdout, "max_value_bytes=\n") {
		t.Errorf("%+v", r)
	}
}

// halfDeaf forwards to the node, but does not answer requests that write. These may
// have taken effect for all that their sender knows.
func (b *bench) halfDeaf() *bench {
	b.t.Helper()
	target, err := url.Parse(strings.TrimPrefix(b.environ[0], "KVD_ENDPOINTS="))
	if err != nil {
		b.t.Fatal(err)
	}
	forward := httputil.NewSingleHostReverseProxy(target)
	stop := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Method == http.MethodPut || bytes.Contains(body, []byte(`"put"`)) {
			<-stop
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		forward.ServeHTTP(w, r)
	}))
	b.t.Cleanup(server.Close)
	b.t.Cleanup(func() { close(stop) }) // before Close, which waits for the requests
	return b.set("KVD_ENDPOINTS="+server.URL, "KVD_TIMEOUT=2s")
}

func TestUnknownOutcomeInTheMiddle(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.expect(exitOK, "", words("kv put conf/app.yaml one")...)
	deaf := b.halfDeaf()
	deaf.expectKept(exitUnknown, "the outcome is unknown", "mine", "EDITOR=printf mine >")
	text := `[{"key":"a","value":"YQ=="},{"key":"b","value":"YQ=="}]`
	deaf.with(text).expect(exitUnknown, "run the command again to go on", words("kv import --from consul:-")...)
	b.prints("one", words("kv get conf/app.yaml")...)
}
