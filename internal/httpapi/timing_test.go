package httpapi

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/kvd-io/kvd/internal/api"
)

func TestServerTiming(t *testing.T) {
	const total = `total;dur=[0-9]+\.[0-9]{3}$`
	write, read := "^commit;dur=1.000, apply;dur=1.500, "+total, "^readindex;dur=2.000, "+total
	f := newFixture(t)
	for _, c := range []struct{ method, target, want string }{
		{"PUT", "/v1/kv/n?timing", write},
		{"PUT", "/v1/kv/n?timing=true", write},
		{"PUT", "/v1/kv/n?timing=0", "^$"},
		{"PUT", "/v1/kv/n", "^$"},
		{"PUT", "/n?timing", write},
		{"PUT", "/v1/kv/n?timing&if_revision=99", write}, // 412
		{"POST", "/v1/kv/m?incr=1&timing", write},
		{"GET", "/v1/kv/m?timing", read},
		{"GET", "/m?timing", read},
		{"HEAD", "/m?timing", read},
		{"GET", "/absent?timing", read}, // 404
		{"GET", "/m?timing&consistency=stale", "^" + total},
		{"GET", "/v1/kv?timing", read},
		{"GET", "/v1/kv?timing&count_only", read},
		{"DELETE", "/v1/kv/m?timing", write},
		{"DELETE", "/v1/kv?prefix=x&timing", write},
	} {
		if got := f.do(c.method, c.target, "").header.Get("Server-Timing"); !regexp.MustCompile(c.want).MatchString(got) {
			t.Errorf("%s %s: Server-Timing %q does not match %s", c.method, c.target, got, c.want)
		}
	}
	f.do("GET", "/v1/kv/m?timing=yes", "").problem(400, api.BadRequest, "timing")
	f.do("GET", "/v1/status?timing", "").problem(400, api.BadRequest, "timing")
}

// A stream of operations reports the sums over its groups in a trailer.
func TestServerTimingOfABatch(t *testing.T) {
	f := newFixture(t)
	resp, err := f.http.Client().Post(f.http.URL+"/v1/batch?timing", ndjsonType, strings.NewReader(`{"put":{"key":"a","value":"x"}}`))
	if err != nil {
		t.Fatal(err)
	}
	readAnswer(t, "batch", resp).want(200, `"n":1`)
	if got := resp.Trailer.Get("Server-Timing"); !regexp.MustCompile(`^commit;dur=1.000, total;dur=`).MatchString(got) {
		t.Errorf("Server-Timing %q in %v", got, resp.Trailer)
	}
	var sums timing
	for _, s := range []stage{{"commit", 1}, {"apply", 2}, {"commit", 3}} {
		sums.note(s.name, s.took)
	}
	if !slices.Equal(sums.stages, []stage{{"commit", 4}, {"apply", 2}}) {
		t.Errorf("sums %v", sums.stages)
	}
}

// An error reports where the time went, too.
func TestServerTimingOfErrors(t *testing.T) {
	f := newFixture(t)
	f.node.doErr = api.Errorf(api.Timeout, "slow")
	a := f.do("PUT", "/v1/kv/a?timing", "v").problem(504, api.Timeout)
	if got := a.header.Get("Server-Timing"); !regexp.MustCompile(`^commit;dur=1.000, `).MatchString(got) {
		t.Errorf("Server-Timing %q", got)
	}
}
