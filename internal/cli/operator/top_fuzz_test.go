package operator

import (
	"fmt"
	"math"
	"strings"
	"testing"
)

// FuzzFigures: figures are read as they were written, between any other lines.
func FuzzFigures(f *testing.F) {
	f.Add("# HELP kvd_watches x\nother{a=\"b\"} 1\n", uint32(3), uint32(4))
	f.Add("kvd_watches{} NaN\nkvd_watches 1 2\n{ 1\n  \n", uint32(0), uint32(1))
	f.Add("kvd_http_request_duration_seconds_bucket{le=\"x\",route=\"/v1/kv\"} 1", uint32(1), uint32(1))
	f.Fuzz(func(t *testing.T, text string, watches, requests uint32) {
		before := parseFigures(strings.NewReader(text + "\n"))
		sum := before.watches + before.requests + before.applied + before.buckets[0.125]
		if len(text) > 60_000 || math.IsNaN(sum) || math.IsInf(sum, 0) {
			return
		}
		after := parseFigures(strings.NewReader(text + fmt.Sprintf("\nkvd_watches{kind=\"a\"} %d\nkvd_http_request_duration_seconds_count{method=\"GET\",route=\"/v1/kv\"} %d\n", watches, requests) +
			fmt.Sprintf("kvd_http_request_duration_seconds_bucket{route=\"/v1/kv\",le=\"0.125\"} %d\n", requests)))
		near := func(a, b float64) bool { return math.Abs(a-b) <= 1e-9*math.Max(1, math.Abs(b)) }
		if !near(after.watches, before.watches+float64(watches)) || !near(after.requests, before.requests+float64(requests)) || !near(after.applied, before.applied) ||
			!near(after.buckets[0.125], before.buckets[0.125]+float64(requests)) {
			t.Fatalf("%+v became %+v", before, after)
		}
	})
}
