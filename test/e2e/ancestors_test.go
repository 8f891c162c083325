package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The commands of raftd and riot, run as they were written, with kvd as the binary. Each
// row of what they could do is a test by its name, and requests go to each of three
// nodes.

// bothDialects are the flags of nodes that speak raftd and riot.
var bothDialects = []string{"--dialects", "raftd,riot"}

// raftdArgs is the command line that stands for raftd -p CLIENT [-join JOIN] DIR.
func (m *member) raftdArgs(join string) []string {
	args := []string{
		"--listen-client", fmt.Sprintf("http://localhost:%d", m.clientPort),
		"--listen-peer", fmt.Sprintf("http://localhost:%d", m.peerPort),
		"--data-dir", m.dir,
	}
	if join != "" {
		args = append(args, "--join", "http://"+join)
	}
	return args
}

// newRaftd starts n nodes as raftd's README does: the first alone, each other one with
// the address of the first.
func newRaftd(t *testing.T, n int, flags ...string) *cluster {
	t.Helper()
	requireTool(t, "curl")
	flags = slices.Concat(flags, bothDialects, quick)
	c := newIdleCluster(t, n, flags...)
	join := ""
	for _, m := range c.nodes {
		m.args = append(m.raftdArgs(join), flags...)
		m.start()
		m.awaitReady()
		c.awaitVoter(m) // the next one asks a cluster that can decide
		join = fmt.Sprintf("localhost:%d", c.node(1).clientPort)
	}
	return c
}

// curlStatus runs curl and returns the body and the status.
func curlStatus(t *testing.T, args ...string) (body string, status int) {
	t.Helper()
	out := curl(t, append(args, "--write-out", `\n%{http_code}`)...)
	i := strings.LastIndexByte(out, '\n')
	status, err := strconv.Atoi(out[i+1:])
	if err != nil {
		t.Fatalf("curl %v printed %q", args, out)
	}
	return out[:i], status
}

// expectCurlStatus fails the test unless curl gets this body and status.
func expectCurlStatus(t *testing.T, status int, body string, args ...string) {
	t.Helper()
	if gotBody, got := curlStatus(t, args...); got != status || gotBody != body {
		t.Errorf("curl %v: %d %q, want %d %q", args, got, gotBody, status, body)
	}
}

// local is a URL as raftd's README writes it.
func local(m *member, path string) string { return fmt.Sprintf("localhost:%d%s", m.clientPort, path) }

func TestRaftd(t *testing.T) {
	t.Parallel()
	c := newRaftd(t, 3)
	t.Run("POST db key sets on every node", func(t *testing.T) {
		for i, m := range c.nodes {
			key := fmt.Sprintf("foo%d", i)
			expectCurlStatus(t, 200, "", "-XPOST", local(m, "/db/"+key), "-d", "bar")
			for _, other := range c.nodes {
				expectValue(t, other, key, "bar")
			}
		}
	})
	t.Run("GET db key returns the value on every node", func(t *testing.T) {
		put(t, c.node(2), "my_key", "FOO")
		for _, m := range c.nodes {
			expectCurlStatus(t, 200, "FOO", local(m, "/db/my_key"))
		}
	})
	t.Run("GET db of a missing key is 200 and empty", func(t *testing.T) {
		for _, m := range c.nodes {
			expectCurlStatus(t, 200, "", local(m, "/db/missing"))
		}
	})
	t.Run("GET members lists the peers of the node", func(t *testing.T) { raftdMembersRow(t, c) })
	t.Run("GET leader is the name of the leader", func(t *testing.T) {
		for _, m := range c.nodes {
			expectCurlStatus(t, 200, c.leader().name(t), local(m, "/leader"))
		}
	})
	t.Run("GET state is the line of goraft", func(t *testing.T) { raftdStateRow(t, c) })
	t.Run("POST join of a member's URL is 409", func(t *testing.T) {
		for i, m := range c.nodes {
			taken := c.nodes[(i+1)%3]
			body := fmt.Sprintf(`{"name":"2832bfa","connectionString":"http://localhost:%d"}`, taken.clientPort)
			if got, status := curlStatus(t, "-XPOST", local(m, "/join"), "-d", body); status != 409 || !strings.Contains(got, "member_exists") {
				t.Errorf("%d %s", status, got)
			}
		}
		expectMembers(t, c.node(1), 3)
	})
	t.Run("a name is an identity and persists", func(t *testing.T) {
		m := c.followers()[0]
		name, id := m.name(t), m.mustStatus(t).ID
		m.kill()
		restart(m)
		if m.name(t) != name || m.mustStatus(t).ID != id {
			t.Errorf("name %q and id %d have become %q and %d", name, id, m.name(t), m.mustStatus(t).ID)
		}
	})
	t.Run("a restarted leader forwards", func(t *testing.T) {
		old := c.leader()
		old.kill()
		restart(old)
		expectCurlStatus(t, 200, "", "-XPOST", local(old, "/db/foo"), "-d", "bar")
		for _, m := range c.nodes {
			expectCurlStatus(t, 200, "bar", local(m, "/db/foo"))
		}
	})
}

func (m *member) mustStatus(t *testing.T) memberStatus {
	t.Helper()
	st, err := m.status()
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// name returns the name that the member has in the cluster.
func (m *member) name(t *testing.T) string {
	t.Helper()
	var doc struct{ Name string }
	if err := m.getJSON("/v1/status", &doc); err != nil || doc.Name == "" {
		t.Fatalf("%v: name %q, %v", m, doc.Name, err)
	}
	return doc.Name
}

func raftdMembersRow(t *testing.T, c *cluster) {
	for _, m := range c.nodes {
		body, status := curlStatus(t, local(m, "/members"))
		var peers []struct{ Name, ConnectionString string }
		if err := json.Unmarshal([]byte(body), &peers); err != nil || status != 200 || len(peers) != 2 {
			t.Fatalf("%v: %d %s (%v)", m, status, body, err)
		}
		for _, other := range c.nodes {
			want := fmt.Sprintf(`{"name":%q,"connectionString":"http://localhost:%d"}`, other.name(t), other.clientPort)
			if strings.Contains(body, want) != (other != m) {
				t.Errorf("%v: %s: %s", m, body, want)
			}
		}
	}
}

var raftdStateLine = regexp.MustCompile(`^Name: (\S+), State: (leader|follower|candidate), Term: ([1-9]\d*), CommitedIndex: ([1-9]\d*)$`)

func raftdStateRow(t *testing.T, c *cluster) {
	leaders := 0
	for _, m := range c.nodes {
		body, _ := curlStatus(t, local(m, "/state"))
		found := raftdStateLine.FindStringSubmatch(body)
		if found == nil || found[1] != m.name(t) {
			t.Fatalf("%v: %q", m, body)
		}
		if found[2] == "leader" {
			leaders++
		}
	}
	if leaders != 1 {
		t.Errorf("%d nodes say that they lead", leaders)
	}
}

// The three commands of raftd's README, and a fourth node that waits to be added by a
// request.
func TestRaftdJoin(t *testing.T) {
	t.Parallel()
	c := newRaftd(t, 2)
	t.Run("-join asks for an id and is promoted by itself", func(t *testing.T) {
		st := c.node(2).mustStatus(t)
		if st.ID != 2 || st.Role != "follower" && st.Role != "leader" {
			t.Errorf("status %+v", st)
		}
		expectMembers(t, c.node(1), 2)
	})
	t.Run("POST join adds the node behind a client URL", func(t *testing.T) {
		waiting := c.joining()
		waiting.start()
		body := fmt.Sprintf(`{"name":"2832bfa","connectionString":%q}`, waiting.url())
		eventually(t, "the node answers and is added", func() error {
			got, status := curlStatus(t, "-XPOST", local(c.node(2), "/join"), "-d", body)
			if status != 200 || got != "" {
				return fmt.Errorf("%d %s", status, got)
			}
			return nil
		})
		waiting.awaitReady()
		c.awaitVoter(waiting)
		put(t, waiting, "k", "v")
		expectMembers(t, c.node(1), 3)
		if got, status := curlStatus(t, "-XPOST", local(c.node(1), "/join"), "-d", body); status != 409 {
			t.Errorf("joining again: %d %s", status, got)
		}
	})
	t.Run("POST join of a node with data of its own is refused", func(t *testing.T) {
		other := newCluster(t, 1, quick...)
		body := fmt.Sprintf(`{"name":"x","connectionString":%q}`, other.node(1).url())
		if got, status := curlStatus(t, "-XPOST", local(c.node(1), "/join"), "-d", body); status != 409 || !strings.Contains(got, "another cluster") {
			t.Errorf("%d %s", status, got)
		}
		expectMembers(t, c.node(1), 3)
	})
}

func TestRiot(t *testing.T) {
	t.Parallel()
	c := newRaftd(t, 3)
	const notFound = `{"errCode":40004,"msg":"not found"}` + "\n"
	t.Run("CRUD on every node", func(t *testing.T) {
		for i, m := range c.nodes {
			url := local(m, fmt.Sprintf("/riot?key=a%d", i))
			expectCurlStatus(t, 200, "", "-XPOST", url, "-d", "1")
			expectCurlStatus(t, 200, "", "-XPOST", url, "-d", "2")
			for _, other := range c.nodes {
				expectCurlStatus(t, 200, "2", local(other, fmt.Sprintf("/riot?key=a%d", i)))
			}
			expectCurlStatus(t, 200, "", "-XDELETE", url)
			for _, other := range c.nodes {
				expectCurlStatus(t, 404, notFound, local(other, fmt.Sprintf("/riot?key=a%d", i)))
			}
		}
	})
	t.Run("riot key foo is the key foo of every other interface", func(t *testing.T) {
		for i, m := range c.nodes {
			expectCurlStatus(t, 200, "", "-XPOST", local(m, "/riot?key=foo"), "-d", fmt.Sprint(i))
			expectCurlStatus(t, 200, fmt.Sprint(i), local(c.nodes[(i+1)%3], "/db/foo"))
			expectCurlStatus(t, 200, fmt.Sprint(i), local(c.nodes[(i+2)%3], "/v1/kv/foo"))
		}
	})
	t.Run("GET admin status", func(t *testing.T) {
		count := make(map[string]int)
		for _, m := range c.nodes {
			count[riotAdmin[string](t, m, "status")]++
		}
		if count["Leader"] != 1 || count["Follower"] != 2 {
			t.Errorf("roles %v", count)
		}
	})
	t.Run("GET admin peer", func(t *testing.T) {
		for _, m := range c.nodes {
			want := []string{}
			for _, other := range c.nodes {
				want = append(want, fmt.Sprintf("localhost:%d", other.peerPort))
			}
			if got := riotAdmin[[]string](t, m, "peer"); !slices.Equal(got, want) {
				t.Errorf("%v: %v, want %v", m, got, want)
			}
		}
	})
	t.Run("the reader chooses whether a read goes through the leader", func(t *testing.T) { riotReaderChooses(t, c) })
	t.Run("monitoring", func(t *testing.T) {
		for _, m := range c.nodes {
			if body, status := curlStatus(t, local(m, "/metrics")); status != 200 || !strings.Contains(body, "kvd_http_requests_total") {
				t.Errorf("%v: %d %.300s", m, status, body)
			}
		}
	})
	t.Run("REST API", func(t *testing.T) {
		expectCurlStatus(t, 200, "v", "-XPUT", local(c.node(1), "/v1/kv/rest?pretty"), "-d", "v", "-o", "/dev/null", "--next", "--silent", local(c.node(2), "/v1/kv/rest"))
	})
	t.Run("compressed snapshots", func(t *testing.T) {
		const size = 1 << 20
		put(t, c.node(1), "long", strings.Repeat("riot ", size/5))
		for _, m := range c.nodes {
			if a := get(m, "/v1/snapshot"); a.status != 200 || len(a.body) < 100 || len(a.body) > size/4 {
				t.Errorf("%v: %d, %d bytes for a value of %d", m, a.status, len(a.body), size)
			}
		}
	})
	t.Run("fault-tolerant", func(t *testing.T) {
		dead := c.leader()
		dead.kill()
		for _, m := range c.live() {
			eventually(t, "a write through "+m.String(), func() error {
				if body, status := curlStatus(t, "-XPOST", local(m, "/riot?key=ft"), "-d", m.String()); status != 200 {
					return fmt.Errorf("%d %s", status, body)
				}
				return nil
			})
		}
		last := c.live()[1].String()
		restart(dead)
		expectCurlStatus(t, 200, last, local(dead, "/riot?key=ft"))
	})
}

// riotAdmin returns the results of an /admin route in riot's envelope.
func riotAdmin[T any](t *testing.T, m *member, what string) T {
	t.Helper()
	var doc struct {
		Results T
		Error   *int
		Time    float64
	}
	body, status := curlStatus(t, local(m, "/admin/"+what))
	if err := json.Unmarshal([]byte(body), &doc); err != nil || status != 200 || doc.Error == nil || *doc.Error != 0 || doc.Time <= 0 {
		t.Fatalf("%v: %d %s (%v)", m, status, body, err)
	}
	return doc.Results
}

// riotReaderChooses cuts the majority off: only a read that asks this node alone is
// answered then.
func riotReaderChooses(t *testing.T, c *cluster) {
	put(t, c.node(1), "chosen", "v")
	c.judgeReplicas()
	c.node(2).pause()
	c.node(3).pause()
	expectCurlStatus(t, 200, "v", local(c.node(1), "/riot?key=chosen&qs=0"))
	if body, status := curlStatus(t, local(c.node(1), "/riot?key=chosen&qs=1&timeout=500ms")); status != 503 || !strings.Contains(body, `"errCode":40002`) {
		t.Errorf("a consistent read without a quorum: %d %s", status, body)
	}
	c.node(2).resume()
	c.node(3).resume()
	c.leader()
	expectCurlStatus(t, 200, "v", local(c.node(2), "/riot?key=chosen&qs=1"))
}

// riot's storage engines stood behind one interface, and it rebuilt its state from log
// and snapshot.
func TestRiotStorageEngines(t *testing.T) {
	t.Parallel()
	for _, engine := range []string{"pebble", "memory"} {
		t.Run("rebuild from log and snapshot with "+engine, func(t *testing.T) {
			c := newRaftd(t, 1, append([]string{"--engine", engine}, small...)...)
			m := c.node(1)
			expectCurlStatus(t, 200, "", "-XPOST", local(m, "/riot?key=a"), "-d", "early")
			fill(t, m, 0, 8, 64<<10) // some checkpoints later
			expectCurlStatus(t, 200, "", "-XPOST", local(m, "/riot?key=b"), "-d", "late")
			snapshots, err := filepath.Glob(filepath.Join(m.dir, "*", "*.snap"))
			if err != nil || len(snapshots) == 0 {
				t.Errorf("no snapshot was taken (%v), so that this proves only half", err)
			}
			m.kill()
			restart(m)
			expectCurlStatus(t, 200, "early", local(m, "/riot?key=a"))
			expectCurlStatus(t, 200, "late", local(m, "/riot?key=b"))
		})
	}
}
