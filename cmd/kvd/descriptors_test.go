package main

import (
	"math"
	"testing"

	"github.com/kvd-io/kvd/internal/frontdoor"
)

// TestDescriptorsSuffice: whatever the limit, all parts together stay within it, and
// the files of the node come first.
func TestDescriptorsSuffice(t *testing.T) {
	for limit := uint64(0); limit < 70_000; limit += 1 + limit/50 {
		for _, asked := range []int64{0, 1, 100, 10_000} {
			d, err := shareDescriptors(limit, asked)
			if err != nil {
				if limit >= 256 {
					t.Errorf("a limit of %d: %v", limit, err)
				}
				continue
			}
			if sum := ownFiles + int64(d.engine) + d.peers + d.clients + frontdoor.ExtraConnections; sum > int64(limit) {
				t.Errorf("a limit of %d is exceeded: %+v sum up to %d", limit, d, sum)
			}
			if d.clients < 1 || asked != 0 && d.clients > asked || d.engine < 32 || d.peers < 32 {
				t.Errorf("a limit of %d, %d asked: %+v", limit, asked, d)
			}
		}
	}
	if d, err := shareDescriptors(math.MaxUint64, 10_000); err != nil || d.clients != 10_000 || d.engine != 1000 {
		t.Errorf("no limit: %+v, %v", d, err)
	}
}
