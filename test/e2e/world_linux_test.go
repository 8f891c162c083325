package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Commands of documents that name machines, ports, and directories of their own run as they
// stand: in a world, which has a network, processes, /etc, and /run of its own (namespaces of
// Linux). All machines of a document are addresses of its loopback interface.

// worldHosts are the machines that documents name.
const worldHosts = `127.0.0.1 localhost
127.0.0.11 n1.example
127.0.0.12 n2.example
127.0.0.13 n3.example
127.0.0.21 HOST1
127.0.0.22 HOST2
127.0.0.23 HOST3
127.0.0.31 NEW1
127.0.0.32 NEW2
`

// worldPrelude makes the world, and offers to the steps:
//
//	until_ready URL [OPTION…]   waits until a node is ready; the options are curl's
const worldPrelude = `
set -u
ip link set lo up
for i in 1 2 3; do ip addr add 10.0.0.$i/32 dev lo; done
mkdir etc
mount -t tmpfs tmpfs etc && cp -a /etc/. etc && mount --move etc /etc
mount -t tmpfs tmpfs /run
cp hosts /etc/hosts
mkdir /etc/kvd /run/kvd
until_ready() { local url=$1; shift; until curl -fs "$@" "$url/readyz" >/dev/null; do sleep 0.1; done; }
`

// worldStep is a piece of a script. The output of one that is looked at is the result.
type worldStep struct {
	script string
	want   []string // parts of the output
	line   string   // of the document, for reports; empty for what the test adds
}

// silent is a step of the test, between those of the document.
func silent(script string) worldStep { return worldStep{script: script} }

const stepEnd = "--- end of step"

// runWorld runs the steps in a world of their own, and requires that each ends with status 0
// and prints what is wanted.
func runWorld(t *testing.T, steps []worldStep) {
	t.Helper()
	requireTool(t, "curl")
	requireTool(t, "ip")
	dir := t.TempDir()
	world := []string{"--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash"}
	if out, err := exec.Command("unshare", append(slices.Clone(world), "-c", "ip link set lo up && mount -t tmpfs tmpfs /run")...).CombinedOutput(); err != nil {
		t.Skipf("NOT TESTED: no namespaces here, which root may make: %v: %s", err, out)
	}
	script := worldPrelude
	for i, s := range steps {
		// A step that changes variables or starts jobs has to run in this very shell.
		script += fmt.Sprintf("{ %s\n} >step-%d.out 2>&1 </dev/null\necho \"$? %s\"\n", s.script, i, stepEnd)
	}
	files := map[string]string{"hosts": worldHosts, "script": script, ".curlrc": "silent\nshow-error\nmax-time = 20\nwrite-out = \"[%{http_code}]\\n\"\n"}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", append(world, "script")...)
	cmd.Dir, cmd.WaitDelay = dir, time.Second
	cmd.Env = append(environment(), "PATH="+pathWithKvd(t), "HOME="+dir, "CURL_HOME="+dir, "NO_COLOR=1")
	out, _ := cmd.CombinedOutput()
	ends := regexp.MustCompile(`(?m)^(\d+) `+stepEnd+`$`).FindAllStringSubmatch(string(out), -1)
	for i, s := range steps {
		text, _ := os.ReadFile(filepath.Join(dir, fmt.Sprintf("step-%d.out", i)))
		name := s.line
		if name == "" {
			name = s.script
		}
		if i >= len(ends) {
			t.Fatalf("%s\ndoes not end: %s\n%s", name, text, out)
		}
		if ends[i][1] != "0" {
			t.Errorf("%s\nends with %s: %s", name, ends[i][1], text)
		}
		for _, want := range s.want {
			pattern := "(?i)" + strings.ReplaceAll(regexp.QuoteMeta(want), "…", "(?s:.*?)")
			if !regexp.MustCompile(pattern).Match(text) {
				t.Errorf("%s\nprints %s\nwant   %s", name, text, want)
			}
		}
	}
}

// comment splits a command line from what the document says about it.
var comment = regexp.MustCompile(`^(.*?)\s{2,}# (.*)$`)

// status is a comment that begins with the status of the answer.
var status = regexp.MustCompile(`^(\d{3})\b(.*)$`)

// asDocumented turns lines of a document into steps. A comment that begins with a status, or
// is a value or a header, is what curl must print; without one, the status must be 2xx.
func asDocumented(lines []string, edit func(command string) string) (steps []worldStep) {
	for _, line := range lines {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		command, says := line, ""
		if m := comment.FindStringSubmatch(line); m != nil {
			command, says = m[1], m[2]
		}
		var want []string
		switch m := status.FindStringSubmatch(says); {
		case m != nil:
			want = []string{"[" + m[1] + "]"}
			if doc := strings.TrimSpace(m[2]); strings.HasPrefix(doc, "{") {
				want = append(want, strings.TrimSuffix(doc, "}"))
			}
		case strings.HasPrefix(says, "{"), strings.HasPrefix(says, "ETag: "):
			want = []string{strings.TrimSuffix(says, "}")}
		case says != "" && !strings.Contains(says, " "):
			want = []string{says + "["}
		case strings.Contains(command, "curl"):
			want = []string{"[2"}
		}
		steps = append(steps, worldStep{script: edit(command), want: want, line: line})
	}
	return steps
}

func asItStands(command string) string { return command }

// likewise makes the commands of the other machines from those of the first.
func likewise(command string, i int) string {
	n := strconv.Itoa(i)
	return strings.NewReplacer("member1", "member"+n, "--id 1", "--id "+n, "--listen-client https://n1", "--listen-client https://n"+n,
		"--listen-client http://10.0.0.1", "--listen-client http://10.0.0."+n, " n1.example:/", " n"+n+".example:/").Replace(command)
}

// TestReadme runs the commands of the README: its tour on one node, and on the three of the
// Procfile, of which each answers a third.
func TestReadme(t *testing.T) {
	requireTool(t, "script")
	tour := slices.Concat(blockWith(t, "README.md", "curl -L http://127.0.0.1:12380/my-key -XPUT"), blockWith(t, "README.md", "curl -XPUT http://127.0.0.1:12380/v1/kv/app/color"),
		blockWith(t, "README.md", "curl -i http://127.0.0.1:12380/v1/kv/hits"), blockWith(t, "README.md", "curl http://127.0.0.1:12380/v1/txn"),
		blockWith(t, "README.md", "curl -i http://127.0.0.1:12380/v1/kv/absent"))
	ending := func(command string) string { // a watch ends when its reader leaves
		if strings.Contains(command, "curl -N") {
			return command + " --max-time 1 || [[ $? == 28 ]]"
		}
		return command
	}
	commandLine := asDocumented(blockWith(t, "README.md", "kvd kv put app/color"), func(command string) string {
		if strings.HasPrefix(command, "kvd kv watch") {
			return command + " & until [[ -e reloaded ]]; do kvd kv put app/color green; sleep 0.1; done"
		}
		return command
	})
	reload := silent(`printf '#!/bin/sh\ntouch reloaded\n' >reload.sh; chmod +x reload.sh`)
	t.Run("one node", func(t *testing.T) {
		t.Parallel()
		steps := []worldStep{silent("kvd >log 2>&1 & until_ready http://127.0.0.1:12380")} // what go run ./cmd/kvd starts
		steps = append(append(steps, asDocumented(tour, ending)...), reload)
		steps = append(steps, commandLine...)
		steps = append(steps, asDocumented(blockWith(t, "README.md", "kvd auth init"), func(command string) string {
			switch command {
			case "kvd auth init":
				return command + ` | tee init.txt; PASSWORD=$(sed -n 's/^password *//p' init.txt)`
			case "kvd login --user root":
				// A person types it at a terminal, which script provides.
				return `echo "$PASSWORD" | script -qec '` + command + `' /dev/null`
			}
			return command
		})...)
		runWorld(t, steps)
	})
	t.Run("three nodes", func(t *testing.T) {
		t.Parallel()
		procfile, err := os.ReadFile(filepath.Join(repository, "Procfile"))
		if err != nil {
			t.Fatal(err)
		}
		steps := []worldStep{silent("mkdir bin && ln -s $(command -v kvd) bin/kvd")}
		for line := range strings.Lines(string(procfile)) {
			if name, command, ok := strings.Cut(strings.TrimSpace(line), ": "); ok && !strings.HasPrefix(line, "#") {
				steps = append(steps, silent(fmt.Sprintf("sh -c '%s' >%s.log 2>&1 &", command, name)))
			}
		}
		steps = append(steps, silent("for i in 1 2 3; do until_ready http://127.0.0.1:${i}2380; done"))
		n := 0
		steps = append(append(steps, asDocumented(tour, func(command string) string {
			n++
			return ending(strings.Replace(command, ":12380", fmt.Sprintf(":%d2380", n%3+1), 1))
		})...), reload)
		steps = append(steps, commandLine...)
		steps = append(steps, asDocumented(blockWith(t, "README.md", "curl 'http://127.0.0.1:12380/v1/members?pretty'"), asItStands)...)
		steps = append(steps, asDocumented(blockWith(t, "README.md", "curl -L http://127.0.0.1:12380/4 -XPOST"), func(command string) string {
			if strings.HasPrefix(command, "bin/kvd") {
				return command + " >kvd4.log 2>&1 & until_ready http://127.0.0.1:42380"
			}
			return command
		})...)
		steps = append(steps, asDocumented(blockWith(t, "README.md", "curl -L http://127.0.0.1:12380/3 -XDELETE"), asItStands)...)
		runWorld(t, steps)
	})
	t.Run("three machines", func(t *testing.T) {
		t.Parallel()
		var steps []worldStep
		for i := range 3 {
			steps = append(steps, asDocumented(blockWith(t, "README.md", "kvd --id 1 --cluster http://10.0.0.1"), func(command string) string {
				return likewise(command, i+1) + fmt.Sprintf(" >log%d 2>&1 &", i+1)
			})...)
		}
		runWorld(t, append(steps, worldStep{script: "for i in 1 2 3; do until_ready http://10.0.0.$i:12380; done; curl http://10.0.0.3:12380/v1/members", want: []string{`"id":3`, "[200]"}}))
	})
}

// TestSecurityDocument starts the three members with TLS of docs/security.md, and replaces the
// lost password of root.
func TestSecurityDocument(t *testing.T) {
	const path = "docs/security.md"
	t.Run("three members with TLS", func(t *testing.T) {
		t.Parallel()
		// All machines share /etc/kvd here, so scp is cp.
		steps := []worldStep{silent(`scp() { local last=${@: -1}; cp "${@:1:$#-1}" "${last#*:}"; }`)}
		for i := range 3 {
			for j, s := range asDocumented(blockWith(t, path, "kvd cert init --host n1.example"), func(command string) string { return likewise(command, i+1) }) {
				if i == 0 || j == 1 { // the certificates are made once
					steps = append(steps, s)
				}
			}
		}
		starts := blockWith(t, path, "kvd --id 1 --cluster https://n1.example")
		for i := range 3 {
			steps = append(steps, asDocumented(starts[:1], func(command string) string { return likewise(command, i+1) + fmt.Sprintf(" >log%d 2>&1 &", i+1) })...)
		}
		steps = append(steps, silent("for i in 1 2 3; do until_ready https://n$i.example:12380 --cacert /etc/kvd/ca.pem --cert /etc/kvd/client.pem --key /etc/kvd/client-key.pem; done"))
		steps = append(steps, asDocumented(starts[1:], asItStands)...)
		steps = append(steps, worldStep{script: "curl --cacert /etc/kvd/ca.pem https://n1.example:12380/v1/members; true", want: []string{"[000]"}}) // nobody without a certificate
		runWorld(t, steps)
	})
	t.Run("lost password", func(t *testing.T) {
		t.Parallel()
		steps := []worldStep{
			silent("kvd --listen-client http://127.0.0.1:12380,unix:///run/kvd/kvd.sock >log 2>&1 & until_ready http://127.0.0.1:12380"),
			silent("echo forgotten | kvd auth init --password-file -"),
		}
		steps = append(steps, asDocumented(blockWith(t, path, "curl --unix-socket"), asItStands)...)
		runWorld(t, append(steps,
			worldStep{script: "curl -u root:forgotten http://127.0.0.1:12380/v1/kv/x", want: []string{"[401]"}},
			worldStep{script: "curl -u 'root:a new one' http://127.0.0.1:12380/v1/kv/x -XPUT -d 1", want: []string{"[201]"}}))
	})
}

// TestOtherDocuments runs what docs/dialects.md, docs/etcd.md, docs/audit.md, docs/operations.md, and
// docs/deploy.md have of commands.
func TestOtherDocuments(t *testing.T) {
	t.Run("dialects", func(t *testing.T) {
		t.Parallel()
		background := func(command string) string { return command + " >>log 2>&1 &" }
		steps := asDocumented(blockWith(t, "docs/dialects.md", "kvd --dialects raftexample,raftd,riot"), background)
		steps = append(steps, worldStep{script: "until_ready http://127.0.0.1:12380; curl http://127.0.0.1:12380/db/foo -d bar; curl '127.0.0.1:12380/riot?key=foo'", want: []string{"[200]", "bar[200]"}},
			silent("kvd --dialects raftd --listen-client http://localhost:4001 --listen-peer http://localhost:14001 --data-dir FIRST >first.log 2>&1 & until_ready http://localhost:4001"))
		steps = append(steps, asDocumented(blockWith(t, "docs/dialects.md", "kvd --dialects raftd --listen-client"), background)...)
		runWorld(t, append(steps, worldStep{script: "until_ready http://localhost:4002; curl http://localhost:4002/db/foo -d baz; curl http://localhost:4001/db/foo", want: []string{"baz[200]"}}))
	})
	t.Run("etcd", func(t *testing.T) {
		t.Parallel()
		steps := asDocumented(blockWith(t, "docs/etcd.md", "kvd --listen-etcd")[:2], func(command string) string {
			return "kill $(jobs -p) 2>/dev/null; wait; " + command + " >>log 2>&1 & until_ready http://127.0.0.1:12380; kvd status"
		})
		runWorld(t, append(steps, asDocumented(blockWith(t, "docs/etcd.md", "curl http://10.0.0.1:2379"), func(command string) string {
			if strings.Contains(command, "curl -N") {
				return command + " --max-time 1 || [[ $? == 28 ]]"
			}
			return command
		})...))
	})
	t.Run("audit", func(t *testing.T) {
		t.Parallel()
		steps := []worldStep{silent("mkdir -p run-log && mount --bind run-log /var/log && mkdir /var/log/kvd")}
		steps = append(steps, asDocumented(blockWith(t, "docs/audit.md", "kvd --audit-log"), func(command string) string { return command + " >log 2>&1 &" })...)
		runWorld(t, append(steps, worldStep{script: "until_ready http://127.0.0.1:12380; kvd kv put app/color red; cat /var/log/kvd/audit.log", want: []string{`"operation":"PUT /v1/kv/{key}"…"keys":[{"key":"app/color"}],"outcome":"ok"`}}))
	})
	t.Run("operations", func(t *testing.T) {
		t.Parallel()
		const path = "docs/operations.md"
		steps := []worldStep{silent("systemctl() { kill $(jobs -p); wait; kvd >>log 2>&1 & }; kvd >log 2>&1 & until_ready http://127.0.0.1:12380")}
		steps = append(steps, asDocumented(blockWith(t, path, "curl http://127.0.0.1:12380/v1/operator/log-level"), asItStands)...)
		steps = append(steps, asDocumented(blockWith(t, path, "curl -XPATCH http://127.0.0.1:12380/v1/settings"), func(command string) string {
			tag := regexp.MustCompile(`"\d{10,}"`) // of the state that was read
			return `TAG=$(curl -i http://127.0.0.1:12380/v1/settings | sed -n 's/^ETag: \(.*\)\r$/\1/ip'); ` + tag.ReplaceAllString(command, `'"$$TAG"'`)
		})...)
		runWorld(t, append(steps, asDocumented(blockWith(t, path, "systemctl restart kvd"), asItStands)...))
	})
	t.Run("operations: a member moves", func(t *testing.T) {
		t.Parallel()
		steps := []worldStep{silent(`export KVD_INSECURE_PEERS=true; for i in 1 2 3; do
			kvd --id $i --cluster http://HOST1:12379,http://HOST2:12379,http://HOST3:12379 --listen-client http://HOST$i:12380 --data-dir DIR$i >log$i 2>&1 & eval pid$i=$!
			done; for i in 1 2 3; do until_ready http://HOST$i:12380; done; kvd --endpoints http://HOST3:12380 kv put k before`)}
		steps = append(steps, asDocumented(blockWith(t, "docs/operations.md", "curl -X PUT http://HOST2:12380/v1/members/1"), func(command string) string {
			if strings.HasPrefix(command, "kvd") {
				return "kill $pid1; wait $pid1; " + strings.Replace(command, "--data-dir DIR", "--data-dir DIR1", 1) + " >>log1 2>&1 & until_ready http://NEW1:12380"
			}
			return command
		})...)
		steps = append(steps, worldStep{script: `curl http://NEW1:12380/v1/kv/k; until curl http://HOST2:12380/v1/cluster | grep '"healthy":true'; do sleep 0.2; done`, want: []string{"before[200]"}},
			silent("kill $pid3; wait $pid3"))
		steps = append(steps, asDocumented(blockWith(t, "docs/operations.md", "curl -X DELETE http://HOST1:12380/v1/members/3"), func(command string) string {
			command = strings.ReplaceAll(command, "HOST1", "NEW1") // where that member is by now
			if strings.HasPrefix(command, "kvd") {
				return command + " >log4 2>&1 & until_ready http://HOST3:12380"
			}
			return command
		})...)
		// Then the others are lost, and the one that is left goes on elsewhere.
		steps = append(steps, silent("kill $(jobs -p); wait; kvd recover --yes DIR2 && mv DIR2 DIR"))
		steps = append(steps, asDocumented(blockWith(t, "docs/operations.md", "kvd --id 1 --listen-peer http://NEW1"), func(command string) string {
			if at := strings.Index(command, "--listen-client"); at >= 0 {
				command = strings.Replace(command, "--id 1", "--id 2", 1) + " >>log 2>&1 & until_ready " + strings.Fields(command[at:])[1]
			}
			return strings.Replace(command, "/v1/members/1", "/v1/members/2", 1)
		})...)
		runWorld(t, append(steps, worldStep{script: "curl http://NEW2:12380/v1/kv/k", want: []string{"before[200]"}}))
	})
	t.Run("deploy", func(t *testing.T) {
		t.Parallel()
		requireTool(t, "kubectl")
		runWorld(t, asDocumented(blockWith(t, "docs/deploy.md", "kvd cert init --host kvd-0.kvd-peers")[:2], func(command string) string {
			if strings.HasPrefix(command, "kubectl") {
				return command + " --dry-run=client -o yaml" // there is no cluster
			}
			return command
		}))
	})
}
