package gateway

import (
	"encoding/base64"
	"strings"
	"testing"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// keyed replaces <text> by its base64, so that the requests below can be read.
func keyed(s string) string {
	for {
		head, rest, found := strings.Cut(s, "<")
		if !found {
			return s
		}
		text, tail, _ := strings.Cut(rest, ">")
		s = head + `"` + b64(text) + `"` + tail
	}
}

// call posts and compares, with keys and values in plain text.
func (f *fixture) call(path, body, want string) {
	f.t.Helper()
	f.want(path, keyed(body), keyed(want))
}

// The calls of Patroni, in the order in which it makes them: how it finds the cluster,
// takes the leader key under a lease, keeps it, watches, and steps down.
func TestPatroni(t *testing.T) {
	f := newFixture(t).open()
	if status, body := f.do("GET", "/version", ""); status != 200 || !strings.Contains(body, `"etcdserver":"3.7.3","etcdcluster":"3.7.0"`) {
		t.Errorf("%d %s", status, body)
	}
	f.call("/v3/cluster/member/list", `{}`, `{@,"members":[{"ID":"1","name":"one","peerURLs":["`+f.self+`"],"clientURLs":["http://etcd:2379"]}]}`)
	f.call("/v3/auth/authenticate", `{"name":"patroni","password":"x"}`,
		`400 {"code":9,"message":"etcdserver: authentication is not enabled","error":"etcdserver: authentication is not enabled"}`)
	f.call("/v3/kv/range", `{"key":</service/batman/>,"range_end":</service/batman0>,"serializable":true}`, `{@1}`)
	f.call("/v3/lease/grant", `{"TTL":30,"ID":"77"}`, `{@1,"ID":"77","TTL":"30"}`)
	initialize := `{"compare":[{"key":</service/batman/initialize>,"target":"CREATE","result":"EQUAL","create_revision":0}],` +
		`"success":[{"request_put":{"key":</service/batman/initialize>,"value":<7>}}]}`
	f.call("/v3/kv/txn", initialize, `{@2,"succeeded":true,"responses":[{"response_put":{"header":{"revision":"2"}}}]}`)
	f.call("/v3/kv/txn", initialize, `{@2}`)
	f.call("/v3/kv/put", `{"key":</service/batman/members/a>,"value":<{}>,"lease":"78"}`,
		`404 {"code":5,"message":"etcdserver: requested lease not found","error":"etcdserver: requested lease not found"}`)
	f.call("/v3/kv/put", `{"key":</service/batman/members/a>,"value":<{}>,"lease":"77"}`, `{@3}`)
	f.call("/v3/kv/txn", `{"compare":[{"key":</service/batman/leader>,"target":"CREATE","result":"EQUAL","create_revision":"0"}],`+
		`"success":[{"request_put":{"key":</service/batman/leader>,"value":<a>,"lease":77}}]}`,
		`{@4,"succeeded":true,"responses":[{"response_put":{"header":{"revision":"4"}}}]}`)
	f.call("/v3/lease/keepalive", `{"ID":"77"}`, `{"result":{@4,"ID":"77","TTL":"30"}}`+"\n")
	f.call("/v3/lease/keepalive", `{"ID":"78"}`, `{"result":{@4,"ID":"78"}}`+"\n")
	w := f.stream("/v3/watch", strings.NewReader(keyed(`{"create_request":{"key":</service/batman/>,"range_end":</service/batman0>,"start_revision":"4"}}`))).want(
		`{"result":{@4,"created":true}}`,
		keyed(`{"result":{@4,"events":[{"kv":{"key":</service/batman/leader>,"create_revision":"4","mod_revision":"4","version":"1","value":<a>,"lease":"77"}}]}}`),
	)
	// Write the status if nobody else did, and otherwise delete what is there if it is old.
	f.call("/v3/kv/txn", `{"compare":[{"key":</service/batman/status>,"target":"MOD","result":"EQUAL","mod_revision":"0"}],`+
		`"success":[{"request_put":{"key":</service/batman/status>,"value":<s>}}],`+
		`"failure":[{"request_txn":{"compare":[{"key":</service/batman/status>,"target":"MOD","result":"LESS","mod_revision":"3"}],"success":[{"request_delete_range":{"key":</service/batman/status>}}]}}]}`,
		`{@5,"succeeded":true,"responses":[{"response_put":{"header":{"revision":"5"}}}]}`)
	w.want(keyed(`{"result":{@5,"events":[{"kv":{"key":</service/batman/status>,"create_revision":"5","mod_revision":"5","version":"1","value":<s>}}]}}`))
	f.call("/v3/kv/txn", `{"compare":[{"key":</service/batman/leader>,"target":"VALUE","result":"EQUAL","value":<a>}],"success":[{"request_delete_range":{"key":</service/batman/leader>}}]}`,
		`{@6,"succeeded":true,"responses":[{"response_delete_range":{"header":{"revision":"6"},"deleted":"1"}}]}`)
	w.want(keyed(`{"result":{@6,"events":[{"type":"DELETE","kv":{"key":</service/batman/leader>,"mod_revision":"6"}}]}}`))
	f.call("/v3/kv/lease/revoke", `{"ID":"77"}`, `{@7}`)
	w.want(keyed(`{"result":{@7,"events":[{"type":"DELETE","kv":{"key":</service/batman/members/a>,"mod_revision":"7"}}]}}`))
}

// The calls of APISIX (lua-resty-etcd): it reads directories, watches them from the
// revision of the header on, and starts over when that is compacted.
func TestAPISIX(t *testing.T) {
	f := newFixture(t).open()
	f.call("/v3/kv/put", `{"key":</apisix/routes/>,"value":<init_dir>}`, `{@2}`)
	f.call("/v3/lease/grant", `{"TTL":60,"ID":5}`, `{@2,"ID":"5","TTL":"60"}`)
	f.call("/v3/kv/put", `{"key":</apisix/routes/1>,"value":<{"uri":"/*"}>,"prev_kv":true,"lease":"5"}`, `{@3}`)
	f.call("/v3/kv/range", `{"key":</apisix/routes>,"range_end":</apisix/routet>,"sort_order":"NONE","sort_target":"KEY","keys_only":false,"count_only":false,"revision":0,"limit":0}`,
		`{@3,"kvs":[{"key":</apisix/routes/>,"create_revision":"2","mod_revision":"2","version":"1","value":<init_dir>},`+
			`{"key":</apisix/routes/1>,"create_revision":"3","mod_revision":"3","version":"1","value":<{"uri":"/*"}>,"lease":"5"}],"count":"2"}`)
	w := f.stream("/v3/watch", strings.NewReader(keyed(`{"create_request":{"key":</apisix/routes>,"range_end":</apisix/routet>,"start_revision":4,"need_cancel":true}}`))).want(`{"result":{@3,"created":true}}`)
	f.call("/v3/kv/put", `{"key":</apisix/routes/1>,"value":<{}>,"prev_kv":true}`,
		`{@4,"prev_kv":{"key":</apisix/routes/1>,"create_revision":"3","mod_revision":"3","version":"1","value":<{"uri":"/*"}>,"lease":"5"}}`)
	w.want(keyed(`{"result":{@4,"events":[{"kv":{"key":</apisix/routes/1>,"create_revision":"3","mod_revision":"4","version":"2","value":<{}>}}]}}`))
	f.call("/v3/kv/compaction", `{"revision":4}`, `{@4}`)
	f.stream("/v3/watch", strings.NewReader(keyed(`{"create_request":{"key":</apisix/routes>,"start_revision":3}}`))).want(
		`{"result":{@4,"created":true}}`, `{"result":{@,"canceled":true,"compact_revision":"4"}}`)
	f.call("/v3/kv/deleterange", `{"key":</apisix/routes/1>,"prev_kv":true}`,
		`{@5,"deleted":"1","prev_kvs":[{"key":</apisix/routes/1>,"create_revision":"3","mod_revision":"4","version":"2","value":<{}>}]}`)
	if status, body := f.post("/v3/lease/timetolive", `{"ID":"5","keys":true}`); status != 200 || !strings.HasPrefix(body, `{@5,"ID":"5","TTL":"5`) || !strings.HasSuffix(body, `","grantedTTL":"60"}`) {
		t.Errorf("%d %s", status, body)
	}
	f.call("/v3/lease/leases", `{}`, `{@5,"leases":[{"ID":"5"}]}`)
}

// Locks and elections, and the stream of an election's leaders.
func TestElection(t *testing.T) {
	f := newFixture(t).open()
	f.call("/v3/lease/grant", `{"TTL":60,"ID":255}`, `{@1,"ID":"255","TTL":"60"}`)
	f.call("/v3/election/leader", `{"name":<vote>}`, `500 {"code":2,"message":"election: no leader","error":"election: no leader"}`)
	o := f.begin("/v3/election/observe", strings.NewReader(keyed(`{"name":<vote>}`)))
	f.call("/v3/election/campaign", `{"name":<vote>,"lease":"255","value":<first>}`, `{@2,"leader":{"name":<vote>,"key":<vote/ff>,"rev":"2","lease":"255"}}`)
	l := o()
	l.want(keyed(`{"result":{@2,"kv":{"key":<vote/ff>,"create_revision":"2","mod_revision":"2","version":"1","value":<first>,"lease":"255"}}}`))
	f.call("/v3/election/proclaim", `{"leader":{"name":<vote>,"key":<vote/ff>,"rev":"2","lease":"255"},"value":<second>}`, `{@3}`)
	l.want(keyed(`{"result":{@3,"kv":{"key":<vote/ff>,"create_revision":"2","mod_revision":"3","version":"2","value":<second>,"lease":"255"}}}`))
	f.call("/v3/lock/lock", `{"name":<mutex>,"lease":"255"}`, `{@4,"key":<mutex/ff>}`)
	f.call("/v3/lock/unlock", `{"key":<mutex/ff>}`, `{@5}`)
}
