package httpapi

import (
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/api"
)

func TestLeases(t *testing.T) {
	f := newFixture(t)
	f.do("POST", "/v1/leases", `{"ttl":"30s"}`).wantBody(201, `{"id":1,"ttl":"30s"}`+"\n").wantHeader("Location", "/v1/leases/1")
	f.do("POST", "/v1/leases", `{"id":9007199254740993,"ttl":90,"name":"me"}`).wantBody(201, `{"id":"9007199254740993","ttl":"1m30s"}`+"\n")
	f.do("PUT", "/v1/kv/a?lease=1", "x").want(201, `"lease":1`)
	f.do("PUT", "/v1/kv/%FF?lease=9007199254740993", "x").want(201, `"lease":"9007199254740993"`)
	f.do("GET", "/v1/leases", "").wantBody(200, `{"leases":[{"id":1,"ttl":"30s","key_count":1,"lock_count":0},{"id":"9007199254740993","ttl":"1m30s","name":"me","key_count":1,"lock_count":0}]}`+"\n")
	f.do("GET", "/v1/leases/9007199254740993?keys", "").wantBody(200,
		`{"id":"9007199254740993","ttl":"1m30s","name":"me","key_count":1,"lock_count":0,"remaining":"1m30s","keys":[{"key_base64":"/w=="}]}`+"\n")
	f.do("POST", "/v1/leases/1/keepalive", "").wantBody(200, `{"id":1,"ttl":"30s"}`+"\n")
	f.do("GET", "/v1/kv/a?meta", "").want(200, `"lease":1,"ttl":"30s"}`)
	f.do("GET", "/v1/kv/a?meta&consistency=stale", "").want(200, `"lease":1}`)
	f.do("DELETE", "/v1/leases/1", "").want(200, `"deleted":1,"revision":4`)
	f.do("GET", "/v1/kv/a", "").problem(404, api.KeyNotFound)
	for _, gone := range [][2]string{{"GET", "/v1/leases/1"}, {"DELETE", "/v1/leases/1"}, {"POST", "/v1/leases/1/keepalive"}, {"PUT", "/v1/kv/b?lease=1"}} {
		f.do(gone[0], gone[1], "").problem(404, api.LeaseNotFound)
	}
}

// TestOwnLeases: a write with a TTL makes a lease for its key.
func TestOwnLeases(t *testing.T) {
	f := newFixture(t)
	f.do("PUT", "/v1/kv/a?ttl=1m", "x").want(201, `"lease":1,"ttl":"1m0s"`)
	f.do("POST", "/v1/kv/n?incr=1&ttl=90", "").want(201, `"lease":2,"ttl":"1m30s"`)
	f.do("PUT", "/short?ttl=1h", "x").want(204)
	f.do("POST", "/v1/txn", `{"then":[{"put":{"key":"t","value":"","ttl":"2h"}}]}`).want(200, `"lease":4`)
	f.do("POST", "/v1/batch", `{"put":{"key":"b","value":"","lease":4}}`+"\n").want(200, `"status":404`, `lease_not_found`)
	f.do("PUT", "/v1/kv/a", "y").want(200)
	f.do("GET", "/v1/leases/1", "").problem(404, api.LeaseNotFound)
}

func TestLeaseRequestsAreChecked(t *testing.T) {
	f := newFixture(t)
	for body, part := range map[string]string{
		`{}`: `ttl`, `{"ttl":"0s"}`: `above 0`, `{"ttl":"soon"}`: `ttl: expected a duration`, `{"ttl":1,"id":0}`: `id: expected the id`,
		`{"ttl":1,"id":"9223372036854775808"}`: `id: expected the id`, `{"ttl":1,"x":1}`: `unknown field`, `{"ttl":1`: `JSON`,
	} {
		f.do("POST", "/v1/leases", body).problem(400, api.BadRequest, part)
	}
	f.do("POST", "/v1/leases", `{"ttl":"1s","name":"`+strings.Repeat("n", 2000)+`"}`).problem(413, api.TooLarge)
	for _, target := range []string{"/v1/leases/0", "/v1/leases/x", "/v1/leases/9223372036854775808", "/v1/leases?limit=1001", "/v1/leases?cursor=*"} {
		f.do("GET", target, "").problem(400, api.BadRequest)
	}
	f.do("PUT", "/v1/kv/a?ttl=1s&lease=1", "").problem(400, api.BadRequest)
	f.do("GET", "/v1/leases/1/x", "").problem(404, api.NotFound, "/v1/leases/1/x", "does not exist")
}

// TestLeasePages: lists of leases and of their keys continue where they ended.
func TestLeasePages(t *testing.T) {
	f := newFixture(t)
	for range 5 {
		f.do("POST", "/v1/leases", `{"ttl":"30s"}`).want(201)
	}
	for _, key := range []string{"a", "b", "b%00", "c", "d"} {
		f.do("PUT", "/v1/kv/"+key+"?lease=3", "").want(201)
	}
	for target, want := range map[string]string{"/v1/leases?limit=2": "1,2;3,4;5;", "/v1/leases/3?keys&limit=2": "a,b;b\x00,c;d;"} {
		got, cursor := "", ""
		for range 4 {
			var page struct {
				Leases []struct{ ID int }
				Keys   []struct{ Key string }
				Next   string
			}
			f.do("GET", target+cursor, "").want(200).decode(&page)
			var parts []string
			for _, l := range page.Leases {
				parts = append(parts, string(rune('0'+l.ID)))
			}
			for _, k := range page.Keys {
				parts = append(parts, k.Key)
			}
			got += strings.Join(parts, ",") + ";"
			if page.Next == "" {
				break
			}
			cursor = "&cursor=" + page.Next
		}
		if got != want {
			t.Errorf("%s: %q, want %q", target, got, want)
		}
	}
}
