package httpapi

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kvd-io/kvd/internal/api"
	"github.com/kvd-io/kvd/internal/httpapi/param"
)

// Each accepted request makes exactly one call.
func TestMembershipRequests(t *testing.T) {
	for _, c := range []struct {
		method, target, body string
		status               int
		call, part           string
	}{
		{"POST", "/4", "http://127.0.0.1:42379", 204, `add 4 "" [http://127.0.0.1:42379] [] false`, ""},
		{"POST", "/4", "http://127.0.0.1:42379\n", 204, `add 4 "" [http://127.0.0.1:42379] [] false`, ""},
		{"POST", "/0x10", "https://h:1/", 204, `add 16 "" [https://h:1] [] false`, ""},
		{"POST", "/%34", "http://h:1", 204, `add 4 "" [http://h:1] [] false`, ""},
		{"DELETE", "/3", "", 204, "remove 3", ""},
		{"DELETE", "/0b11", "", 204, "remove 3", ""},
		{"GET", "/v1/members", "", 200, "members", `{"cluster_id":"0123456789abcdef","members":[{"id":1,"name":"one",`},
		{"POST", "/v1/members", `{"peer_urls":["http://h:1"]}`, 201, `add 0 "" [http://h:1] [] false`, `"command":"kvd --join"`},
		{"POST", "/v1/members", `{"id":4,"name":"n","peer_urls":["http://h:1"],"client_urls":["http://h:2"],"learner":true}`, 201, `add 4 "n" [http://h:1] [http://h:2] true`, `"id":4`},
		{"PUT", "/v1/members/4", `{"peer_urls":["http://h:1"]}`, 200, "update 4 [http://h:1] []", `"peer_urls":["http://h:1"]`},
		{"PUT", "/v1/members/4", `{"client_urls":["http://h:2"]}`, 200, "update 4 [] [http://h:2]", ""},
		{"POST", "/v1/members/4/promote", "", 200, "promote 4", `"id":4`},
		{"DELETE", "/v1/members/4", "", 204, "remove 4", ""},
		{"GET", "/v1/leader", "", 200, "leader", `{"id":1,"name":"one","term":7,`},
		{"POST", "/v1/leader?to=2", "", 204, "transfer 2", ""},
	} {
		f := newFixture(t)
		f.do(c.method, c.target, c.body).want(c.status, c.part)
		if !slices.Equal(f.cluster.calls, []string{c.call}) {
			t.Errorf("%s %s: calls %q, want %q", c.method, c.target, f.cluster.calls, c.call)
		}
	}
	f := newFixture(t)
	f.do("POST", "/v1/members", `{"peer_urls":["http://h:1"]}`).wantHeader("Location", "/v1/members/4")
}

func TestMembershipRequestsRefused(t *testing.T) {
	f := newFixture(t)
	for _, c := range []struct{ method, target, body, part string }{
		{"POST", "/x", "http://h:1", "POST /v1/kv/x?append"},
		{"DELETE", "/x", "", "DELETE /v1/kv/x"},
		{"DELETE", "/a%2Fb", "", "DELETE /v1/kv/a%2Fb"},
		{"DELETE", "/-1", "", "DELETE /v1/kv/-1"},
		{"DELETE", "/18446744073709551616", "", "not a member id"},
		{"DELETE", "/0", "", "from 1 to 9007199254740991"},
		{"DELETE", "/9007199254740992", "", "from 1 to 9007199254740991"},
		{"POST", "/0", "http://h:1", "from 1 to"},
		{"POST", "/4", "", "scheme must be http or https"},
		{"POST", "/4", "h:1", "scheme must be http or https"},
		{"POST", "/4", "ftp://h:1", "scheme must be http or https"},
		{"POST", "/4", "http://", "port is missing"},
		{"POST", "/4", "http://h", "port is missing"},
		{"POST", "/4", "http://h:0", "between 1 and 65535"},
		{"POST", "/4", "http://h:65536", "between 1 and 65535"},
		{"POST", "/4", "http://169.254.1.1:1", "link-local"},
		{"POST", "/4", "http://user:secret@h:1", "user or password"},
		{"POST", "/4", "http://h:1/path", "must have the form http://host:port"},
		{"POST", "/4", "http://h:1?q", "must have the form http://host:port"},
		{"POST", "/4", "http://h:1\nhttp://h:2", "not printable ASCII"},
		{"POST", "/v1/members", "", "unexpected end"},
		{"POST", "/v1/members", "{}", "peer_urls"},
		{"POST", "/v1/members", `{"peer_urls":[]}`, "peer_urls"},
		{"POST", "/v1/members", `{"peer_urls":["x"]}`, "peer_urls"},
		{"POST", "/v1/members", `{"peer_urls":["http://h:1"],"client_urls":["x"]}`, "client_urls"},
		{"POST", "/v1/members", `{"id":9007199254740992,"peer_urls":["http://h:1"]}`, "id: expected an integer"},
		{"POST", "/v1/members", `{"peer_url":"http://h:1"}`, "unknown field"},
		{"PUT", "/v1/members/4", `{}`, "peer_urls"},
		{"PUT", "/v1/members/4", `{"peer_urls":[]}`, "at least one"},
		{"PUT", "/v1/members/4", `{"client_urls":["http://h"]}`, "port is missing"},
		{"PUT", "/v1/members/x", `{"peer_urls":["http://h:1"]}`, "decimal"},
		{"PUT", "/v1/members/0x4", `{"peer_urls":["http://h:1"]}`, "decimal"},
		{"DELETE", "/v1/members/x", "", "decimal"},
		{"DELETE", "/v1/members/0", "", "from 1 to"},
		{"POST", "/v1/members/x/promote", "", "decimal"},
		{"POST", "/v1/leader", "", "to"},
		{"POST", "/v1/leader?to=0", "", "to"},
		{"POST", "/v1/leader?to=x", "", "to"},
	} {
		f.do(c.method, c.target, c.body).problem(400, api.BadRequest, c.part)
	}
	if len(f.cluster.calls) != 0 {
		t.Errorf("calls %q, want none", f.cluster.calls)
	}
	f.do("POST", "/v1/members", `{"name":"`+strings.Repeat("n", maxDocument)+`"}`).problem(413, api.TooLarge)
}

func TestMembershipErrors(t *testing.T) {
	f := newFixture(t)
	for code, status := range map[api.Code]int{
		api.MemberExists: 409, api.MemberRemoved: 409, api.UnsafeChange: 409, api.MemberNotFound: 404,
		api.NoLeader: 503, api.Timeout: 504, api.Internal: 500,
	} {
		f.cluster.err = api.Errorf(code, "because")
		for _, r := range [][3]string{
			{"POST", "/4", "http://h:1"}, {"DELETE", "/4", ""}, {"GET", "/v1/members", ""},
			{"POST", "/v1/members", `{"peer_urls":["http://h:1"]}`}, {"PUT", "/v1/members/4", `{"peer_urls":["http://h:1"]}`},
			{"DELETE", "/v1/members/4", ""}, {"POST", "/v1/members/4/promote", ""}, {"GET", "/v1/leader", ""}, {"POST", "/v1/leader?to=2", ""},
		} {
			f.do(r[0], r[1], r[2]).problem(status, code, "because")
		}
	}
}

func TestStatusAndCluster(t *testing.T) {
	f := newFixture(t)
	f.health.status = api.Status{ID: 7, Role: "leader", Revision: 3}
	f.do("GET", "/v1/status", "").want(200, `"id":7`, `"role":"leader"`, `"alarms":null`)
	f.do("GET", "/v1/cluster?pretty", "").want(200, `"healthy": true`, `"hashes_agree": null`)
	f.health.err = api.Errorf(api.Starting, "not yet")
	f.do("GET", "/v1/status", "").problem(503, api.Starting).wantHeader("Retry-After", "1")
	f.do("GET", "/v1/cluster", "").problem(503, api.Starting)
}

func TestSettings(t *testing.T) {
	f := newFixture(t)
	f.do("GET", "/v1/settings", "").want(200, `"max_value_bytes":1572864`).wantHeader("Kvd-Revision", "1")
	f.do("PUT", "/v1/settings", `{"quota_bytes":1048576}`).want(200, `"quota_bytes":1048576`, `"max_value_bytes":1572864`)
	f.do("GET", "/v1/settings", "").want(200, `"quota_bytes":1048576`)
	f.do("PUT", "/v1/settings", `{"quota":1}`).problem(400, api.BadRequest, "unknown field")
	f.do("PUT", "/v1/settings", `{"max_key_bytes":5000}`).problem(400, api.BadRequest)
	f.do("PUT", "/v1/settings", `{"max_key_bytes":"1"}`).problem(400, api.BadRequest, "max_key_bytes")
	f.do("PUT", "/v1/settings", `{"quota_bytes":5}`).problem(400, api.BadRequest, "quota_bytes")
}

// TestSettingsAreMerged: a change has only its own fields, and If-Match refuses one
// that is based on settings which have changed since.
func TestSettingsAreMerged(t *testing.T) {
	f := newFixture(t)
	tag := f.do("GET", "/v1/settings", "").want(200).header.Get("Etag")
	f.do("GET", "/v1/settings", "", "If-None-Match: "+tag).wantBody(304, "")
	changed := f.do("PATCH", "/v1/settings", `{"retention_millis":1000}`, "If-Match: "+tag).want(200, `"retention_millis":1000`).header.Get("Etag")
	if changed == tag || changed == "" {
		t.Errorf("the entity tag was %s and is %s", tag, changed)
	}
	f.do("PUT", "/v1/settings", `{"retention_revisions":10}`, "If-Match: "+tag).problem(412, api.PreconditionFailed, "read them again", `"etag":"\"`+strings.Trim(changed, `"`))
	f.do("GET", "/v1/settings", "", "If-Match: "+tag).problem(412, api.PreconditionFailed)
	f.node.onDo = func(context.Context) { // another client, between this one's request and its entry
		f.node.onDo = nil
		f.do("PUT", "/v1/settings", `{"quota_bytes":1048576}`).want(200)
	}
	f.do("PUT", "/v1/settings", `{"retention_revisions":20}`).want(200, `"quota_bytes":1048576`, `"retention_millis":1000`, `"retention_revisions":20`)
	f.do("GET", "/v1/settings", "").want(200, `"quota_bytes":1048576`, `"retention_revisions":20`)
}

// TestCompactTellsWhatCanBeRead: an older revision than the compact one changes nothing.
func TestCompactTellsWhatCanBeRead(t *testing.T) {
	f := newFixture(t)
	f.put("a", "1")
	f.put("a", "2")
	f.do("POST", "/v1/compact?revision=3", "").wantBody(200, `{"revision":3,"compact_revision":3}`+"\n")
	f.do("POST", "/v1/compact?revision=2", "").wantBody(200, `{"revision":3,"compact_revision":3}`+"\n")
}

func TestQuota(t *testing.T) {
	f := newFixture(t)
	f.do("PUT", "/v1/settings", `{"quota_bytes":1048576}`).want(200)
	value := strings.Repeat("v", 700_000)
	f.do("PUT", "/v1/kv/a", value).want(201)
	f.do("PUT", "/v1/kv/b", value).problem(503, api.NoSpace).wantHeader("Retry-After", "1")
	f.do("PUT", "/b", value).problem(503, api.NoSpace)
	f.do("DELETE", "/v1/kv/a", "").want(200, `"deleted":1`)
	f.do("PUT", "/v1/kv/b", value).want(201)
}

func TestSnapshot(t *testing.T) {
	f := newFixture(t)
	f.health.snapshot = func(w io.Writer) error {
		_, err := io.WriteString(w, strings.Repeat("s", 100_000))
		return err
	}
	a := f.do("GET", "/v1/snapshot", "").want(200).wantHeader("Content-Type", "application/octet-stream").wantHeader("Kvd-Cluster", testClusterID)
	if len(a.body) != 100_000 {
		t.Errorf("received %d bytes", len(a.body))
	}
	f.do("HEAD", "/v1/snapshot", "").wantBody(200, "")
	f.do("GET", "/v1/snapshot?consistency=stale&max_staleness=3s", "").want(200)
	if got, want := f.node.barriers, []param.Freshness{{}, {}, {Stale: true, MaxStaleness: 3 * time.Second}}; !slices.Equal(got, want) {
		t.Errorf("the backups were as fresh as %v, want %v", got, want)
	}
	f.node.readErr = api.Errorf(api.ReadTimeout, "no quorum")
	f.do("GET", "/v1/snapshot", "").problem(503, api.ReadTimeout)
	f.node.readErr = nil
	f.health.snapshot = func(io.Writer) error { return api.Errorf(api.Starting, "not yet") }
	f.do("GET", "/v1/snapshot", "").problem(503, api.Starting)
	f.health.snapshot = func(w io.Writer) error {
		_, _ = io.WriteString(w, strings.Repeat("s", 100_000))
		return errors.New("disk gone")
	}
	resp, err := f.http.Client().Get(f.http.URL + "/v1/snapshot")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("a snapshot that failed midway looks complete")
	}
}
