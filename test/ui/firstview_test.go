package ui

import (
	"os"
	"slices"
	"testing"

	"github.com/chromedp/cdproto/network"
)

const (
	manyKeys   = 1_000_000
	firstViews = 9
)

// The first view must not depend on how much is stored. It is measured from the request
// for the page until its figures are drawn, in a new tab that has nothing in its cache,
// with an empty store and with a million keys; and so is the first look at the keys. The
// figures are for people: a loaded machine must not fail a test.
func TestFirstView(t *testing.T) {
	if os.Getenv("KVD_E2E") != "huge" {
		t.Skip("set KVD_E2E=huge to store a million keys first")
	}
	c := startCluster(t, 3)
	measure(t, c, "empty", "")
	const chunk = 50_000
	for i := 0; i < manyKeys; i += chunk {
		c.fill(i, i+chunk, "user/%d/profile")
	}
	measure(t, c, "a million keys", "", "#/keys", "#/keys?prefix=user%2F")
}

// measure logs how long views take.
func measure(t *testing.T, c *cluster, store string, views ...string) {
	t.Helper()
	for _, view := range views {
		var took []float64
		for range firstViews {
			took = append(took, firstView(t, c.url(0), view))
		}
		slices.Sort(took)
		t.Logf("%s: first view of %q: median %.0f ms, from %.0f to %.0f ms", store, "/ui/"+view, took[len(took)/2], took[0], took[len(took)-1])
	}
}

// firstView returns how long a view took, in milliseconds. The page's clock begins with
// the navigation, and the page marks when it has drawn what it shows.
func firstView(t *testing.T, base, view string) float64 {
	p := newPage(t, base)
	call(p, network.Enable, network.EnableParams{})
	call(p, network.SetCacheDisabled, network.SetCacheDisabledParams{CacheDisabled: true})
	p.open(view)
	p.wait("performance.getEntriesByName('drawn').length")
	defer p.end()
	return get[float64](p, "performance.getEntriesByName('drawn')[0].startTime")
}
