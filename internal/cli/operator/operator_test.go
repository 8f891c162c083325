package operator

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kvd-io/kvd/client"
	"github.com/kvd-io/kvd/internal/cli"
	"github.com/kvd-io/kvd/kvdtest"
)

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(30 * time.Second); !holds(); <-ticker.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func TestMembers(t *testing.T) {
	b, nodes := newClusterBench(t)
	b.prints("1\n2\n3\n", words("member list -o value")...)
	b.expect(cli.ExitOK, "PEER URLS", words("member list")...)
	b.expect(cli.ExitOK, `{"id":1,"name":"kvd1"`, words("member list -o json")...)
	b.expect(cli.ExitUsage, "takes 1 to 8 arguments", words("member add")...)
	b.expect(cli.ExitOK, "added member 4 as a learner; start it with:\nkvd --id 4 ", words("member add http://127.0.0.1:1 --learner --name spare")...)
	b.expect(cli.ExitFailed, "exists", words("member add http://127.0.0.1:1 --id 4")...)
	b.prints("member 4 has new URLs\n", words("member update spare --peer-urls http://127.0.0.1:2")...)
	b.expect(cli.ExitUsage, "--peer-urls", words("member update spare")...)
	b.expect(cli.ExitFailed, "caught up", words("member promote 4")...)
	b.prints("4\n", words("member remove spare -o value")...)
	b.expect(cli.ExitNotFound, `no member has the id or name "spare"`, words("member remove spare")...)
	b.expect(cli.ExitNotFound, "removed", words("member remove 4")...)
	nodes[2].Stop() // it would end by itself, which kvdtest takes for a failure
	b.prints("member 3 was removed\n", words("member remove 3")...)
	newBench(t).expect(cli.ExitFailed, "voter", words("member remove 1")...)
}

// The wait for a new member ends with an interrupt, or when it was removed.
func TestMemberAddWaits(t *testing.T) {
	b, nodes := newClusterBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	out, done := b.background(ctx, words("member add http://127.0.0.1:1 --wait -o value")...)
	eventually(t, "the member is added", func() bool { return out.String() == "4\n" })
	cancel()
	if r := <-done; r.code != cli.ExitFailed || !strings.Contains(r.stderr, "member 4 was added") {
		t.Errorf("interrupted: %+v", r)
	}
	out, done = b.background(t.Context(), words("member add http://127.0.0.1:3 --wait -o value")...)
	eventually(t, "the member is added", func() bool { return out.String() == "5\n" })
	if err := nodes.Client().RemoveMember(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	if r := <-done; r.code != cli.ExitNotFound {
		t.Errorf("removed: %+v", r)
	}
}

func TestLeader(t *testing.T) {
	b, _ := newClusterBench(t)
	before := strings.TrimSpace(b.run(words("leader -o value")...).stdout)
	b.expect(cli.ExitOK, "leads in term", words("leader transfer")...)
	after := strings.TrimSpace(b.run(words("leader -o value")...).stdout)
	if before == after || after == "" {
		t.Errorf("leader %q after %q", after, before)
	}
	b.expect(cli.ExitOK, "member "+before+" (kvd"+before+") leads", "leader", "transfer", "kvd"+before)
	b.expect(cli.ExitNotFound, "no member", words("leader transfer nobody")...)
	one := newBench(t)
	one.expect(cli.ExitFailed, "no other voter", words("leader transfer")...)
}

func TestStatusAndCluster(t *testing.T) {
	b, nodes := newClusterBench(t)
	b.expect(cli.ExitOK, "member         1 kvd1   ", words("status")...)
	if r := b.run(words("status -o json")...); strings.Count(r.stdout, "\n") != 3 || !strings.HasPrefix(r.stdout, `{"id":1,`) {
		t.Errorf("%+v", r)
	}
	b.expect(cli.ExitOK, "is healthy", words("cluster")...)
	b.prints("healthy\n", words("cluster -o value")...)
	b.expect(cli.ExitOK, `"healthy":true`, words("cluster -o json")...)
	b.expect(cli.ExitOK, "REQ/S", words("top --once --interval 50ms")...)
	b.expect(cli.ExitOK, `"role":"leader"`, words("top --once --interval 50ms -o json")...)
	b.expect(cli.ExitUsage, "--interval", words("top --interval 1ns")...)
	nodes[1].Stop()
	b.expect(cli.ExitDown, "cannot reach "+nodes[1].Endpoint, words("status --timeout 300ms")...)
	b.expect(cli.ExitFailed, "member 2 does not answer", words("cluster")...)
	b.expect(cli.ExitOK, "no answer", words("top --once --interval 50ms")...)
}

// What commands print as JSON has the fields of the HTTP interface, and no others.
func TestJSONIsThatOfHTTP(t *testing.T) {
	node := kvdtest.New(t)
	b := benchOf(t, node.Endpoint)
	if _, err := node.Client().Grant(t.Context(), time.Hour, client.LeaseID(7), client.LeaseName("test"), client.LockDelay(time.Minute)); err != nil {
		t.Fatal(err)
	}
	b.expect(cli.ExitOK, "created", words("kv put k v --lease 7")...)
	for command, path := range map[string]string{
		"status": "/v1/status", "cluster": "/v1/cluster", "leader": "/v1/leader", "settings": "/v1/settings",
		"member list": "/v1/members#members", "lease list": "/v1/leases#leases", "lease show 7": "/v1/leases/7",
	} {
		path, list, _ := strings.Cut(path, "#")
		resp, err := http.Get(node.Endpoint + path)
		if err != nil {
			t.Fatal(err)
		}
		var served any
		err = json.NewDecoder(resp.Body).Decode(&served)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if list != "" {
			served = served.(map[string]any)[list].([]any)[0]
		}
		var printed any
		out := b.run(words(command + " -o json")...).stdout
		if err := json.Unmarshal([]byte(out), &printed); err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
		if got, want := fields(printed), fields(served); got != want {
			t.Errorf("%s has %s, want %s", command, got, want)
		}
	}
}

// fields names the fields of a document, and those of the documents in it.
func fields(doc any) string {
	switch doc := doc.(type) {
	case map[string]any:
		var list []string
		for name, value := range doc {
			list = append(list, name+fields(value))
		}
		slices.Sort(list)
		return "{" + strings.Join(list, " ") + "}"
	case []any:
		text := "["
		for _, element := range doc {
			text += fields(element)
		}
		return text + "]"
	}
	return ""
}

// kvd top counts what happened cli.Between two looks.
func TestTopRates(t *testing.T) {
	text := func(n int) *figures {
		return parseFigures(strings.NewReader(fmt.Sprintf(`# HELP x
kvd_apply_commands_total %d
kvd_watches 3
kvd_http_request_duration_seconds_bucket{method="GET",route="/v1/kv/{key}",le="0.001"} %d
kvd_http_request_duration_seconds_bucket{method="GET",route="/v1/kv/{key}",le="0.01"} %d
kvd_http_request_duration_seconds_bucket{method="GET",route="/v1/kv/{key}",le="+Inf"} %d
kvd_http_request_duration_seconds_count{method="GET",route="/v1/kv/{key}"} %d
kvd_http_request_duration_seconds_count{method="GET",route="/v1/watch"} 1000
`, n, 90*n, 100*n, 100*n, 100*n)))
	}
	status := &client.ClusterStatus{Leader: 1, Members: []client.MemberStatus{{ID: 1, Status: &client.Status{ID: 1, Role: "leader", Commit: 9, Applied: 7}}, {ID: 2}}}
	now := time.Now()
	rows := topRows(&view{now.Add(-2 * time.Second), status, map[uint64]*figures{1: text(1)}}, &view{now, status, map[uint64]*figures{1: text(5)}})
	r := rows[0]
	if r.RequestsPerSecond != 200 || r.WritesPerSecond != 2 || r.Watches != 3 || *r.P50Seconds != 0.001 || *r.P99Seconds != 0.01 {
		t.Errorf("%+v", r)
	}
	if rows[1].Role != "no answer" || rows[1].P50Seconds != nil {
		t.Errorf("%+v", rows[1])
	}
	for i := range rows { // a script goes through the list
		if text, err := json.Marshal(&rows[i]); err != nil || !strings.Contains(string(text), `"alarms":[]`) {
			t.Errorf("%s, %v", text, err)
		}
	}
}

func TestLeases(t *testing.T) {
	b := newBench(t)
	b.prints("granted lease 7 for 1m0s\n", words("lease grant 60 --id 7 --name test")...)
	b.expect(cli.ExitFailed, "exist", words("lease grant 60s --id 7")...)
	b.expect(cli.ExitUsage, "time to live", words("lease grant soon")...)
	b.expect(cli.ExitOK, "created", words("kv put k v --lease 7")...)
	b.prints("ID   TTL    KEYS   LOCKS   NAME\n7    1m0s   1      0       test\n", words("lease list")...)
	b.prints("7\n", words("lease list -o value")...)
	b.prints(`{"id":7,"ttl":"1m0s","name":"test","key_count":1,"lock_count":0}`+"\n", words("lease list -o json")...)
	b.expect(cli.ExitOK, "remaining", words("lease show 7")...)
	b.prints("k\n", words("lease show 7 --keys -o value")...)
	b.prints("7\n", words("lease keepalive 7 --once -o value")...)
	ctx, cancel := context.WithCancel(t.Context())
	out, done := b.background(ctx, words("lease keepalive 7")...)
	eventually(t, "the lease is renewed", func() bool { return out.String() == "lease 7 lives for 1m0s\n" })
	cancel()
	if r := <-done; r.code != cli.ExitOK {
		t.Errorf("%+v", r)
	}
	b.prints("revoked lease 7\n", words("lease revoke 7")...)
	b.expect(cli.ExitNotFound, "lease 7 does not exist", words("lease revoke 7")...)
	b.expect(cli.ExitNotFound, "lease 7 does not exist", words("lease show 7")...)
	b.expect(cli.ExitNotFound, "lease 7 does not exist", words("lease keepalive 7")...)
	b.expect(cli.ExitUsage, "is not the id of a lease", words("lease show x")...)
}

// A command runs under the lock, with what it needs to know, and its status is kvd's.
func TestLockRunsACommand(t *testing.T) {
	b := newBench(t)
	script := func(text string) []string { return []string{"lock", "job", "--", "sh", "-c", text} }
	b.stdin = "in"
	b.prints("in job 1\n", script(`echo "$(cat) $KVD_LOCK_NAME $((KVD_LOCK_TOKEN > 0))"`)...)
	for _, code := range []int{0, 3, 126, 255} {
		b.expect(code, "", script(fmt.Sprint("exit ", code))...)
	}
	b.expect(128+int(syscall.SIGKILL), "", script("kill -9 $$")...)
	b.expect(statusNotFound, "no-such-program", words("lock job -- no-such-program")...)
	b.expect(statusNotExecutable, "permission", words("lock job -- /etc/passwd")...)
	b.expect(cli.ExitUsage, "after --", words("lock job true")...)
	b.expect(cli.ExitUsage, "after --", words("lock")...)
	b.expect(cli.ExitDown, "cannot reach", words("lock job --endpoints http://127.0.0.1:1 --timeout 50ms -- true")...)
}

// The holder of a lock keeps others out, and its end lets them in.
func TestLockIsHeld(t *testing.T) {
	b := newBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	out, done := b.background(ctx, words("lock job --text me")...)
	eventually(t, "the lock is held", func() bool { return out.String() != "" })
	b.expect(cli.ExitCondition, "holds the lock job (me), and 0 wait for it; wait longer with --wait", words("lock job --wait 0s -- true")...)
	b.expect(cli.ExitCondition, "--wait", words("lock job --wait 10ms -- true")...)
	b.expect(cli.ExitOK, "me", words("locks")...)
	b.prints("job\n", words("locks -o value")...)
	b.expect(cli.ExitOK, `"holder":{"lease":`, words("locks -o json")...)
	b.expect(cli.ExitCondition, "(me)", words("elect job --wait 0s -- true")...)
	cancel()
	if r := <-done; r.code != cli.ExitOK {
		t.Errorf("%+v", r)
	}
	b.expect(cli.ExitOK, "", words("lock job --wait 0s -- true")...)
}

// The end of the lease ends the command, and what it has started.
func TestLostLockEndsTheCommand(t *testing.T) {
	n := kvdtest.New(t)
	b := benchOf(t, n.Endpoint)
	marker := filepath.Join(t.TempDir(), "running")
	done := make(chan result, 1)
	go func() {
		done <- b.run("lock", "job", "--ttl", "1s", "--", "sh", "-c", "echo $KVD_LOCK_LEASE > "+marker+".new; mv "+marker+".new "+marker+"; sleep 1000; echo not reached")
	}()
	var lease int64
	eventually(t, "the command runs", func() bool {
		text, err := os.ReadFile(marker)
		if err != nil {
			return false
		}
		_, err = fmt.Sscan(string(text), &lease)
		return err == nil
	})
	if err := n.Client().Revoke(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	if r := <-done; r.code != cli.ExitFailed || !strings.Contains(r.stderr, fmt.Sprintf("the lock job was lost: lease %d does not exist", lease)) || strings.Contains(r.stdout, "not reached") {
		t.Errorf("%+v", r)
	}
}

// The leader's value is in the key of the election while its command runs.
func TestElect(t *testing.T) {
	b := newBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	out, done := b.background(ctx, words("elect chief --observe -o value")...)
	eventually(t, "the observer sees that nobody leads", func() bool { return out.String() == "\n" })
	b.expect(5, "", "elect", "chief", "--value", "a", "--", "sh", "-c", "exit 5")
	b.expect(cli.ExitOK, "", "elect", "chief", "--value", "b", "--", "true")
	eventually(t, "the observer sees both leaders", func() bool { return out.String() == "\na\n\nb\n\n" })
	cancel()
	if r := <-done; r.code != cli.ExitOK {
		t.Errorf("%+v", r)
	}
	b.expect(cli.ExitUsage, "contradict", words("elect chief --observe --value x")...)
	b.expect(cli.ExitNotFound, "does not exist", words("kv get chief")...)
}
